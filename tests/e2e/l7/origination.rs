//! TLS from the waypoint to servers, as DestinationRules want it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use orlop_tests::traffic::request;
use orlop_tests::{Pod, PodSpec, ServiceSpec, TargetPort};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConfig, ServerConnection};

use super::gateway_api;
use super::routes::Versions;
use crate::mesh::{NAMESPACE, TIMEOUT};

/// Of every certificate that is signed here.
const SERIAL: u64 = 77;

/// A WebSocket begins, and says `hello`.
const UPGRADED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nhello";

/// Puts this `tls` in force for the service.
fn secure(versions: &Versions, tls: &str) {
    let rule = format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{host: web, trafficPolicy: {{tls: {{{tls}}}}}}}\n"
    );
    let stage = &versions.stage;
    stage.change(|| stage.mesh.testbed.world().write("subsets.yaml", &rule).unwrap());
}

/// Has the service lead to this pod alone.
fn lead_to(versions: &Versions, pod: &Pod) {
    let only = super::web(&versions.stage.vip).endpoints([pod]);
    let stage = &versions.stage;
    stage.change(|| stage.mesh.testbed.world().service(&only).unwrap());
}

#[test]
fn a_server_in_the_mesh_and_one_outside_are_reached_by_tls_of_their_own() {
    let versions = Versions::new();
    let outside = PodSpec::new().service_account("outside").opt_out();
    let outside = versions.stage.mesh.nodes[1].pod(NAMESPACE, "outside", outside).unwrap();
    for pod in [&versions.pods[0], &outside] {
        serve_tls(pod);
        lead_to(&versions, pod);
        secure(&versions, "mode: SIMPLE, sni: shop.example, insecureSkipVerify: true");
        let answer = versions.stage.get("/");
        assert_eq!((answer.status, answer.text().as_str()), (200, "shop.example"), "{}", pod.name());
        // Without a name of its own it is asked for by the service's.
        secure(&versions, "mode: SIMPLE, insecureSkipVerify: true");
        assert_eq!(versions.stage.get("/").text(), "web.shop.svc.cluster.local");
        // Nobody has signed its certificate.
        secure(&versions, "mode: SIMPLE");
        assert_eq!(versions.stage.get("/untrusted").status, 503);
        versions
            .stage
            .record(|record| record["path"] == "/untrusted" && record["reason"] == "untrusted_certificate");
    }
}

#[test]
fn what_cannot_be_had_is_refused_and_not_sent_in_clear() {
    let versions = Versions::new();
    let outside = PodSpec::new().service_account("outside").opt_out();
    let outside = versions.stage.mesh.nodes[1].pod(NAMESPACE, "outside", outside).unwrap();
    let [inside, _] = &versions.pods;
    let _servers = [inside, &outside].map(|pod| pod.serve_http(80).unwrap());
    for (pod, tls, status) in [
        (inside, "mode: DISABLE", 200),
        (inside, "mode: ISTIO_MUTUAL", 200),
        (inside, "mode: MUTUAL, clientCertificate: /etc/a, privateKey: /etc/b", 503),
        (inside, "mode: SIMPLE, credentialName: secret", 503),
        (inside, "mode: MUTUAL, credentialName: secret", 503),
        (inside, "mode: MUTUAL", 503),
        (inside, "mode: SIMPLE, caCertificates: /etc/certs/ca.pem", 503),
        (&outside, "mode: DISABLE", 200),
        (&outside, "mode: ISTIO_MUTUAL", 503),
        (&outside, "mode: MUTUAL, clientCertificate: /etc/a, privateKey: /etc/b", 503),
    ] {
        lead_to(&versions, pod);
        secure(&versions, tls);
        assert_eq!(versions.stage.get("/").status, status, "{}: {tls}", pod.name());
    }
    versions.stage.record(|record| record["reason"] == "tls_unavailable" && record["flags"] == "UF");
}

#[test]
fn a_backend_tls_policy_lets_nothing_go_in_clear() {
    let versions = Versions::new();
    let [plain, secured] = &versions.pods;
    let _server = plain.serve_http(80).unwrap();
    let asked = serve_tls(secured);
    let stage = &versions.stage;
    let world = stage.mesh.testbed.world();
    let put = |validation: &str| {
        let policy = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: web, namespace: shop}}\n\
             spec:\n  targetRefs: [{{group: '', kind: Service, name: web}}]\n  validation: {{{validation}}}\n"
        );
        stage.change(|| world.write("backend.yaml", &policy).unwrap());
    };
    let refused = |path: &str, reason: &str| {
        assert_eq!(stage.get(path).status, 503, "{path}");
        stage.record(|record| record["path"] == path && record["reason"] == reason);
    };
    // Nothing that a DestinationRule says undoes it.
    secure(&versions, "mode: DISABLE");
    lead_to(&versions, plain);
    assert_eq!(stage.get("/").status, 200);
    put("hostname: shop.example, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]");
    refused("/unavailable", "tls_unavailable");
    put("hostname: shop.example, wellKnownCACertificates: System");
    assert_eq!(stage.get("/plain").status, 503);
    lead_to(&versions, secured);
    // No public authority has signed its certificate.
    refused("/untrusted", "untrusted_certificate");
    assert_eq!(asked.recv().unwrap(), "shop.example");
    stage.change(|| world.remove("backend.yaml").unwrap());
    lead_to(&versions, plain);
    assert_eq!(stage.get("/").status, 200);
}

#[test]
fn a_route_leads_to_a_backend_that_speaks_tls_where_a_rule_has_it_reached_so() {
    let versions = Versions::new();
    let stage = &versions.stage;
    let world = stage.mesh.testbed.world();
    serve_tls(&versions.pods[0]);
    let vip = stage.mesh.testbed.vip();
    let speak = |protocol: &str| {
        let service = ServiceSpec::new(NAMESPACE, "sealed", 80, TargetPort::Number(80));
        let service = service.cluster_ips(vip.clone()).app_protocol(protocol);
        stage.change(|| world.service(&service.endpoints([&versions.pods[0]])).unwrap());
    };
    let secure = |tls: &str| {
        let rule = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: sealed, namespace: shop}}\n\
             spec: {{host: sealed, trafficPolicy: {{tls: {{{tls}}}}}}}\n"
        );
        stage.change(|| world.write("sealed.yaml", &rule).unwrap());
    };
    speak("https");
    gateway_api::route(stage, "HTTPRoute", NAMESPACE, "- backendRefs: [{name: sealed, port: 80}]");
    assert_eq!(stage.get("/nothing").status, 500);
    secure("mode: DISABLE");
    assert_eq!(stage.get("/plain").status, 500);
    stage.record(|record| record["path"] == "/plain" && record["reason"] == "invalid_route");
    secure("mode: SIMPLE, insecureSkipVerify: true");
    assert_eq!(stage.get("/").text(), "sealed.shop.svc.cluster.local");
    speak("kubernetes.io/wss");
    assert_eq!(gateway_api::hello(stage), "hello");
    secure("mode: DISABLE");
    assert_eq!(stage.get("/chat").status, 500);
}

#[test]
fn config_maps_say_whom_a_backend_tls_policy_believes() {
    let versions = Versions::new();
    let [secured, plain] = &versions.pods;
    let (ours, theirs) = (Authority::new(), Authority::new());
    serve(secured, config(&ours, false), asked_for);
    let stage = &versions.stage;
    let world = stage.mesh.testbed.world();
    let put = |names: &[&str]| {
        let refs: Vec<_> = names.iter().map(|name| format!("{{group: '', {name}}}")).collect();
        let policy = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: web, namespace: shop}}\n\
             spec:\n  targetRefs: [{{group: '', kind: Service, name: web}}]\n  \
             validation: {{hostname: shop.example, caCertificateRefs: [{}]}}\n",
            refs.join(", ")
        );
        stage.change(|| world.write("backend.yaml", &policy).unwrap());
    };
    let map = |namespace: &str, name: &str, text: &str| {
        let data = text.replace('\n', "\n    ");
        let map = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             data:\n  ca.crt: |\n    {data}\n"
        );
        stage.change(|| world.write(&format!("map-{namespace}-{name}.yaml"), &map).unwrap());
    };
    let refused = |path: &str, reason: &str| {
        assert_eq!(stage.get(path).status, 503, "{path}");
        stage.record(|record| record["path"] == path && record["reason"] == reason);
    };
    map("shop", "theirs", &theirs.root);
    map("shop", "broken", "no certificate");
    map("far", "ours", &ours.root);
    lead_to(&versions, secured);
    let named = |name: &str| format!("kind: ConfigMap, name: {name}");
    put(&[&named("ours")]);
    // Another namespace's is not it.
    refused("/missing", "tls_unavailable");
    map("shop", "ours", &ours.root);
    assert_eq!(stage.get("/").text(), "shop.example");
    // The connection that is open is no way round what is believed now.
    map("shop", "ours", &theirs.root);
    refused("/replaced", "untrusted_certificate");
    map("shop", "ours", &ours.root);
    assert_eq!(stage.get("/").status, 200);
    stage.change(|| world.remove("map-shop-ours.yaml").unwrap());
    refused("/removed", "tls_unavailable");
    map("shop", "ours", &ours.root);
    // Of several all count that have any.
    put(&[&named("broken"), &named("theirs"), &named("ours"), "kind: Secret, name: ours"]);
    assert_eq!(stage.get("/").status, 200);
    put(&[&named("theirs")]);
    refused("/theirs", "untrusted_certificate");
    // Nothing goes to a server that speaks no TLS while there is nobody to believe, nor when there is.
    let _server = plain.serve_http(80).unwrap();
    lead_to(&versions, plain);
    for (path, refs) in [
        ("/broken", vec![named("broken")]),
        ("/kind", vec!["kind: Secret, name: ours".to_owned()]),
        ("/none", vec![named("none"), named("broken")]),
    ] {
        put(&refs.iter().map(String::as_str).collect::<Vec<_>>());
        refused(path, "tls_unavailable");
    }
    put(&[&named("ours")]);
    assert_eq!(stage.get("/plain").status, 503);
}

#[test]
fn a_secret_says_whom_to_believe_and_what_to_show() {
    let dir = std::env::temp_dir().join(format!("orlop-credentials-{}", std::process::id()));
    let path = dir.to_string_lossy().into_owned();
    let versions = Versions::with(&["--credentials", &path]);
    let stage = &versions.stage;
    let outside = PodSpec::new().service_account("outside").opt_out();
    let outside = stage.mesh.nodes[1].pod(NAMESPACE, "outside", outside).unwrap();
    lead_to(&versions, &outside);
    let (ours, theirs) = (Authority::new(), Authority::new());
    serve_mutual(&outside, &ours);
    let put = |namespace: &str, name: &str, files: &[(&str, &str)]| {
        mount(&dir.join(namespace).join(name), files);
    };
    let (certificate, key) = ours.certificate("client.example");
    put("shop", "good", &[("ca.crt", &ours.root), ("tls.crt", &certificate), ("tls.key", &key)]);
    put("shop", "only-root", &[("cacert", &ours.root)]);
    put("shop", "no-root", &[("tls.crt", &certificate), ("tls.key", &key)]);
    let (other, other_key) = theirs.certificate("client.example");
    put("shop", "other", &[("ca.crt", &ours.root), ("tls.crt", &other), ("tls.key", &other_key)]);
    put("shop", "no-trust", &[("ca.crt", &theirs.root), ("tls.crt", &certificate), ("tls.key", &key)]);
    put("shop", "broken", &[("ca.crt", &ours.root), ("tls.crt", &certificate), ("tls.key", &other_key)]);
    let tls = |mode: &str, name: &str| format!("mode: {mode}, sni: shop.example, credentialName: {name}");
    for (path, mode, name, reason) in [
        ("/good", "MUTUAL", "good", None),
        // Nobody is shown what a rule does not want shown.
        ("/simple", "SIMPLE", "good", Some("upstream_reset")),
        ("/only-root", "MUTUAL", "only-root", Some("tls_unavailable")),
        ("/no-root", "MUTUAL", "no-root", Some("tls_unavailable")),
        ("/other", "MUTUAL", "other", Some("upstream_reset")),
        ("/no-trust", "MUTUAL", "no-trust", Some("untrusted_certificate")),
        ("/broken", "MUTUAL", "broken", Some("tls_unavailable")),
        ("/missing", "MUTUAL", "missing", Some("tls_unavailable")),
    ] {
        secure(&versions, &tls(mode, name));
        let answer = stage.get(path);
        match reason {
            None => assert_eq!((answer.status, answer.text().as_str()), (200, "client.example")),
            Some(reason) => {
                assert_eq!(answer.status, 503, "{path}");
                let record = stage.record(|record| record["path"] == path);
                let refused = record["reason"].as_str().unwrap();
                // TLS 1.3 tells a client late that it is refused.
                let late = ["upstream_reset", "tls_failed", "reset", "tunnel_closed"];
                assert!(refused == reason || (reason == late[0] && late.contains(&refused)), "{record}");
            }
        }
    }
    // A Secret that comes later counts from then on.
    let whole = [("ca.crt", &*ours.root), ("tls.crt", &*certificate), ("tls.key", &*key)];
    put("shop", "missing", &whole);
    assert!(orlop_tests::wait_for(TIMEOUT, || stage.get("/came").status == 200));
    // A connection that was made by what it said before is no way round what it says now.
    for (path, reason) in [("/other-root", "untrusted_certificate"), ("/gone", "tls_unavailable")] {
        match reason {
            "tls_unavailable" => std::fs::remove_dir_all(dir.join("shop/missing")).unwrap(),
            _ => put("shop", "missing", &[("ca.crt", &theirs.root)]),
        }
        assert!(orlop_tests::wait_for(TIMEOUT, || stage.get(path).status == 503), "{path}");
        stage.record(|record| record["path"] == path && record["reason"] == reason);
        put("shop", "missing", &whole);
        assert!(orlop_tests::wait_for(TIMEOUT, || stage.get("/again").status == 200), "{path}");
    }
    // Some have the certificates to believe in a Secret of their own.
    put("shop", "split", &[("ca.crt", &theirs.root), ("tls.crt", &certificate), ("tls.key", &key)]);
    put("shop", "split-cacert", &[("cacert", &ours.root)]);
    secure(&versions, &tls("MUTUAL", "split"));
    assert_eq!(stage.get("/split").status, 200);
    // Only who has one of the names that are wanted is believed.
    for (names, status) in [("other.example", 503), ("other.example, shop.example", 200)] {
        secure(&versions, &format!("{}, subjectAltNames: [{names}]", tls("MUTUAL", "good")));
        assert_eq!(stage.get("/named").status, status, "{names}");
    }
    stage.record(|record| record["path"] == "/named" && record["reason"] == "untrusted_certificate");
    // What is revoked is not believed, nor is anything while nobody can tell.
    put("shop", "split-cacert", &[("ca.crl", &ours.revokes(SERIAL + 1))]);
    secure(&versions, &tls("MUTUAL", "good"));
    put("shop", "good", &[("ca.crl", &ours.revokes(SERIAL))]);
    assert!(orlop_tests::wait_for(TIMEOUT, || stage.get("/revoked").status == 503));
    stage.record(|record| record["path"] == "/revoked" && record["reason"] == "revoked_certificate");
    secure(&versions, &tls("MUTUAL", "split"));
    assert_eq!(stage.get("/not-revoked").status, 200);
    for (path, list) in [("/empty-list", ""), ("/no-list", "no list")] {
        put("shop", "split-cacert", &[("ca.crl", list)]);
        assert!(orlop_tests::wait_for(TIMEOUT, || stage.get(path).status == 503), "{path}");
        stage.record(|record| record["path"] == path && record["reason"] == "tls_unavailable");
        put("shop", "split-cacert", &[("ca.crl", &ours.revokes(SERIAL + 1))]);
        assert!(orlop_tests::wait_for(TIMEOUT, || stage.get("/list").status == 200), "{path}");
    }
    // Of another namespace's rules there is none to be had.
    put("far", "good", &[("ca.crt", &ours.root), ("tls.crt", &certificate), ("tls.key", &key)]);
    let rule = format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: istio-system}}\n\
         spec: {{host: web.shop.svc.cluster.local, trafficPolicy: {{tls: {{{}}}}}}}\n",
        tls("MUTUAL", "good")
    );
    stage.change(|| stage.mesh.testbed.world().write("subsets.yaml", &rule).unwrap());
    assert_eq!(stage.get("/far").status, 503);
    stage.record(|record| record["path"] == "/far" && record["reason"] == "tls_unavailable");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_secret_stays_in_force_while_no_file_can_be_opened() {
    let dir = std::env::temp_dir().join(format!("orlop-credentials-short-{}", std::process::id()));
    let versions = Versions::with(&["--credentials", &dir.to_string_lossy()]);
    let stage = &versions.stage;
    let ours = Authority::new();
    let (certificate, key) = ours.certificate("client.example");
    let files = [("ca.crt", &*ours.root), ("tls.crt", &*certificate), ("tls.key", &*key)];
    mount(&dir.join("shop/good"), &files);
    let outside = PodSpec::new().service_account("outside").opt_out();
    let outside = stage.mesh.nodes[1].pod(NAMESPACE, "outside", outside).unwrap();
    lead_to(&versions, &outside);
    serve_mutual(&outside, &ours);
    secure(&versions, "mode: MUTUAL, sni: shop.example, credentialName: good");
    // All that this needs is open.
    let mut stream = stage.connect();
    let mut ask = || request(&mut stream, "GET / HTTP/1.1\r\nhost: web\r\n\r\n").unwrap().status;
    assert_eq!(ask(), 200);
    let waypoint = stage.waypoint.process();
    waypoint.limit_files(3).unwrap();
    let looks = || stage.waypoint.log().unwrap().matches("no file can be opened just now").count();
    assert!(orlop_tests::wait_for(TIMEOUT, || looks() > 0), "it has looked at none");
    assert_eq!(ask(), 200);
    // What is gone counts no more once anybody can see that.
    std::fs::remove_dir_all(&dir).unwrap();
    let before = looks();
    assert!(orlop_tests::wait_for(TIMEOUT, || looks() > before), "it has not looked again");
    assert_eq!(ask(), 200);
    waypoint.limit_files(1024).unwrap();
    assert!(orlop_tests::wait_for(TIMEOUT, || ask() == 503), "it still counts");
}

/// Writes files where a Secret is mounted.
fn mount(at: &Path, files: &[(&str, &str)]) {
    std::fs::create_dir_all(at).unwrap();
    files.iter().for_each(|(file, text)| std::fs::write(at.join(file), text).unwrap());
}

/// Who signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// A certificate and its key.
    fn certificate(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.serial_number = Some(SERIAL.into());
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// A list of one certificate that it has taken back.
    fn revokes(&self, serial: u64) -> String {
        let revoked = RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// A server's certificate of this authority, and what it asks of clients.
fn config(authority: &Authority, asks_for_certificates: bool) -> Arc<ServerConfig> {
    let provider = orlop_identity::provider();
    let (certificate, key) = authority.certificate("shop.example");
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = if asks_for_certificates {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.root.as_bytes()).unwrap()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        config.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        config.with_no_client_auth()
    };
    Arc::new(config.with_single_cert(vec![certificate], key).unwrap())
}

/// Answers each request of those who show a certificate of this authority's with the name in it, until the process ends.
fn serve_mutual(pod: &Pod, authority: &Authority) {
    let shown = |tls: &ServerConnection| {
        let shown = tls.peer_certificates().is_some_and(|shown| shown.len() == 1);
        if shown { "client.example" } else { "nobody" }.to_owned()
    };
    serve(pod, config(authority, true), shown);
}

/// Answers each request with the name that it was asked for by, until the process ends. Gives the names by which
/// connections asked for it and did not believe it.
fn serve_tls(pod: &Pod) -> Receiver<String> {
    serve(pod, config(&Authority::new(), false), asked_for)
}

fn asked_for(tls: &ServerConnection) -> String {
    tls.server_name().unwrap_or_default().to_owned()
}

fn serve(pod: &Pod, config: Arc<ServerConfig>, answer: fn(&ServerConnection) -> String) -> Receiver<String> {
    let listener = pod.listen(false, 80).unwrap();
    let (unbelieved, names) = channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let unbelieved = unbelieved.clone();
            thread::spawn(move || {
                let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
                let mut line = String::new();
                let mut upgrades = false;
                while stream.read_line(&mut line).is_ok_and(|length| length > 0) {
                    upgrades |= line.to_ascii_lowercase().starts_with("upgrade: websocket");
                    if line == "\r\n" {
                        let tls = stream.get_mut();
                        let body = answer(&tls.conn);
                        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                        let text = if upgrades { UPGRADED.to_owned() } else { head + &body };
                        tls.write_all(text.as_bytes()).unwrap();
                        tls.flush().unwrap();
                    }
                    line.clear();
                }
                let connection = &stream.get_ref().conn;
                if connection.is_handshaking() {
                    let _ = unbelieved.send(asked_for(connection));
                }
            });
        }
    });
    names
}

//! TLS from the waypoint to servers, as DestinationRules want it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use orlop_tests::{Pod, PodSpec};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::routes::Versions;
use crate::mesh::NAMESPACE;

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

/// Answers each request with the name that it was asked for by, until the process ends. Gives the names by which
/// connections asked for it and did not believe it.
fn serve_tls(pod: &Pod) -> Receiver<String> {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["shop.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(orlop_identity::provider());
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = Arc::new(config.with_single_cert(vec![certificate.der().clone()], key).unwrap());
    let listener = pod.listen(false, 80).unwrap();
    let (asked, names) = channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let asked = asked.clone();
            thread::spawn(move || {
                let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
                let mut line = String::new();
                while stream.read_line(&mut line).is_ok_and(|length| length > 0) {
                    if line == "\r\n" {
                        let tls = stream.get_mut();
                        let name = tls.conn.server_name().unwrap_or_default().to_owned();
                        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", name.len());
                        tls.write_all((head + &name).as_bytes()).unwrap();
                        tls.flush().unwrap();
                    }
                    line.clear();
                }
                let connection = &stream.get_ref().conn;
                if connection.is_handshaking() {
                    let _ = asked.send(connection.server_name().unwrap_or_default().to_owned());
                }
            });
        }
    });
    names
}

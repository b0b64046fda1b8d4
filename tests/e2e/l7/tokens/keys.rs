//! The keys of tokens' issuers: how they come, and from where they don't.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use orlop_tests::{Pod, PodSpec, wait_for};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};

use super::super::Stage;
use super::super::scripted::{Reply, Scripted};
use super::{ISSUER, Issuer, ask, authentication, status};
use crate::mesh::{NAMESPACE, TIMEOUT, await_value};
use crate::names::{NameServer, SERVER};

/// A pod outside the mesh.
fn outsider(stage: &Stage, name: &str) -> Pod {
    stage.mesh.nodes[0].pod(NAMESPACE, name, PodSpec::new().opt_out()).unwrap()
}

#[test]
fn keys_are_fetched_and_nothing_is_believed_before_they_are() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let idp = outsider(&stage, "idp");
    let issuer = Issuer::new("1");
    // A redirect leads nowhere, and what is too long or no key set is none: each once, and the last for as long as it is
    // told to.
    let bad = [
        (500, String::new()),
        (302, issuer.jwks()),
        (200, " ".repeat(300 << 10)),
        (200, "<html>".to_owned()),
    ];
    let (asked, good) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
    let (is_good, jwks) = (Arc::clone(&good), issuer.jwks());
    let keys = Scripted::start(&idp, move |_| {
        if is_good.load(Ordering::SeqCst) {
            return Reply::Answer(200, jwks.clone());
        }
        let nth = asked.fetch_add(1, Ordering::SeqCst).min(bad.len() - 1);
        let (status, body) = bad[nth].clone();
        Reply::Answer(status, body)
    });
    let uri = format!("http://{}/keys?all", idp.ipv4());
    authentication(&stage, json!({"issuer": ISSUER, "jwksUri": uri}));
    let token = issuer.token(json!({}));
    let refused = ask(&stage, "/", &[("authorization", &format!("Bearer {token}"))]);
    assert_eq!((refused.status, refused.text().as_str()), (401, "token_keys_unavailable\n"));
    for why in ["answers with status 302 ", "more than 262144 bytes", "is no JSON"] {
        await_value(true, || stage.waypoint.log().unwrap().contains(why));
        assert_eq!(status(&stage, &token), 401, "{why}");
    }
    good.store(true, Ordering::SeqCst);
    await_value(200, || status(&stage, &token));
    assert_eq!(keys.asked()[0].line, "GET /keys?all HTTP/1.1");
    assert!(stage.waypoint.metric("orlop_token_key_fetches_total", &[]).unwrap() >= 1.0);
    assert!(stage.waypoint.metric("orlop_token_key_fetches_failed_total", &[]).unwrap() >= 4.0);
    // What was fetched stays while nobody answers.
    drop(keys);
    assert_eq!(status(&stage, &token), 200);
    assert_eq!(status(&stage, &Issuer::new("2").token(json!({}))), 401);
}

#[test]
fn inline_keys_that_are_none_fit_no_token_and_stop_nobody_without_one() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let issuer = Issuer::new("1");
    for bad in ["garbage", "{}", r#"{"keys": ["abc"]}"#, r#"{"keys": [{"kty": "oct", "k": "AAAA"}]}"#] {
        authentication(&stage, json!({"issuer": ISSUER, "jwks": bad}));
        assert_eq!(ask(&stage, "/", &[]).status, 200, "{bad}");
        let token = issuer.token(json!({}));
        let refused = ask(&stage, "/", &[("authorization", &format!("Bearer {token}"))]);
        assert_eq!((refused.status, refused.text().as_str()), (401, "token_keys_unavailable\n"), "{bad}");
    }
    // One that nobody knows is passed over.
    let mut keys: Value = serde_json::from_str(&issuer.jwks()).unwrap();
    keys["keys"].as_array_mut().unwrap().insert(0, json!({"kty": "new", "kid": 7}));
    authentication(&stage, json!({"issuer": ISSUER, "jwks": keys.to_string()}));
    assert_eq!(status(&stage, &issuer.token(json!({}))), 200);
}

#[test]
fn keys_are_not_asked_for_where_only_the_waypoint_or_its_node_can_go() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let own = Scripted::start(&stage.gate, |_| Reply::Answer(200, "{\"keys\": []}".to_owned()));
    let node = stage.mesh.nodes[1].ipv4();
    let object = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": stage.mesh.nodes[1].name()},
        "status": {"addresses": [{"type": "InternalIP", "address": node.to_string()}]},
    });
    stage.change(|| stage.mesh.testbed.world().write("node.yaml", &object.to_string()).unwrap());
    for host in [
        "127.0.0.1".to_owned(),
        "127.0.0.1:15000".to_owned(),
        "[::1]".to_owned(),
        "[::ffff:127.0.0.1]".to_owned(),
        "0.0.0.0".to_owned(),
        "169.254.169.254".to_owned(),
        "[fe80::1]".to_owned(),
        "[64:ff9b::a9fe:a9fe]".to_owned(),
        stage.gate.ipv4().to_string(),
        format!("[{}]", stage.gate.ipv6()),
        node.to_string(),
    ] {
        authentication(&stage, json!({"issuer": ISSUER, "jwksUri": format!("http://{host}/keys")}));
        let told = format!("\"place\":\"http://{host}/keys\"");
        let refused = |line: &str| line.contains(&told) && line.contains("keys are not asked for there");
        let found = wait_for(TIMEOUT, || stage.waypoint.log().unwrap().lines().any(refused));
        assert!(found, "{host}: {}", stage.waypoint.log().unwrap());
        assert_eq!(status(&stage, &Issuer::new("1").token(json!({}))), 401, "{host}");
    }
    assert_eq!(own.count(), 0);
}

#[test]
fn keys_come_over_tls_from_who_has_the_name_alone() {
    let root = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root_certificate = params.self_signed(&root).unwrap();
    let file = std::env::temp_dir().join(format!("orlop-roots-{}.pem", std::process::id()));
    std::fs::write(&file, root_certificate.pem()).unwrap();
    let stage = Stage::with(&["--jwks-roots", &file.to_string_lossy()]);
    std::fs::remove_file(&file).unwrap();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let (idp, impostor) = (outsider(&stage, "idp"), outsider(&stage, "impostor"));
    let issuer = Issuer::new("1");
    // Its certificate is for the other's address.
    let signer = rcgen::Issuer::new(params, root);
    let tls = |key: &KeyPair| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::IpAddress(idp.ipv4().into())];
        let certificate = params.signed_by(key, &signer).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = rustls::ServerConfig::builder_with_provider(orlop_identity::provider());
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        Arc::new(config.with_single_cert(vec![certificate.der().clone()], key).unwrap())
    };
    let config = tls(&KeyPair::generate().unwrap());
    for pod in [&idp, &impostor] {
        serve_keys(pod, Arc::clone(&config), issuer.jwks());
    }
    let token = issuer.token(json!({}));
    authentication(&stage, json!({"issuer": ISSUER, "jwksUri": format!("https://{}/", impostor.ipv4())}));
    await_value(true, || stage.waypoint.log().unwrap().contains("invalid peer certificate"));
    assert_eq!(status(&stage, &token), 401);
    authentication(&stage, json!({"issuer": ISSUER, "jwksUri": format!("https://{}/", idp.ipv4())}));
    await_value(200, || status(&stage, &token));
}

/// Until the process ends.
fn serve_keys(pod: &Pod, config: Arc<rustls::ServerConfig>, keys: String) {
    let listener = pod.listen(false, 443).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
            let mut line = String::new();
            // A client that does not like the certificate says nothing.
            while stream.read_line(&mut line).is_ok_and(|length| length > 2) {
                line.clear();
            }
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{keys}",
                keys.len()
            );
            let _ = stream.get_mut().write_all(answer.as_bytes());
            stream.get_mut().conn.send_close_notify();
            let _ = stream.get_mut().flush();
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
}

#[test]
fn a_name_leads_only_where_keys_may_be_asked_for() {
    let stage = Stage::with(&["--host-resolver", SERVER]);
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let names = NameServer::serve(stage.gate.run(|| UdpSocket::bind(SERVER).unwrap()).unwrap());
    let own = Scripted::start(&stage.gate, |_| Reply::Answer(200, "{\"keys\": []}".to_owned()));
    let (idp, issuer) = (outsider(&stage, "idp"), Issuer::new("1"));
    let jwks = issuer.jwks();
    let keys = Scripted::start(&idp, move |_| Reply::Answer(200, jwks.clone()));
    let here: [IpAddr; 3] = [[127, 0, 0, 1].into(), stage.gate.ipv4().into(), [169, 254, 169, 254].into()];
    names.set("idp.example", &here);
    authentication(&stage, json!({"issuer": ISSUER, "jwksUri": "http://idp.example/keys"}));
    let refused = |line: &str| line.contains("keys are not asked for there");
    assert!(wait_for(TIMEOUT, || stage.waypoint.log().unwrap().lines().any(refused)));
    assert_eq!(status(&stage, &issuer.token(json!({}))), 401);
    // Of several addresses only those are dialled that may be.
    names.set("idp.example", &[&here[..], &[idp.ipv4().into()]].concat());
    await_value(200, || status(&stage, &issuer.token(json!({}))));
    assert_eq!(keys.asked()[0].headers["host"], "idp.example");
    assert_eq!(own.count(), 0);
}

#[test]
fn an_issuer_says_where_its_keys_are() {
    let stage = Stage::new();
    let _server = stage.mesh.server.serve_http(80).unwrap();
    let (idp, key) = (outsider(&stage, "idp"), Issuer::new("1"));
    let issuer = format!("http://{}/realms/shop", idp.ipv4());
    let (jwks, says) = (key.jwks(), Arc::new(Mutex::new("https://other.example".to_owned())));
    let (told, keys) = (Arc::clone(&says), format!("http://{}/keys", idp.ipv4()));
    let _idp = Scripted::start(&idp, move |asked| match asked.line.split(' ').nth(1) {
        Some("/realms/shop/.well-known/openid-configuration") => {
            let issuer = told.lock().unwrap().clone();
            Reply::Answer(200, json!({"issuer": issuer, "jwks_uri": keys}).to_string())
        }
        Some("/keys") => Reply::Answer(200, jwks.clone()),
        _ => Reply::Answer(404, String::new()),
    });
    authentication(&stage, json!({ "issuer": issuer }));
    // One that speaks for another is not believed.
    await_value(true, || stage.waypoint.log().unwrap().contains("it names another issuer"));
    let token = key.token(json!({ "iss": issuer }));
    assert_eq!(status(&stage, &token), 401);
    issuer.clone_into(&mut says.lock().unwrap());
    await_value(200, || status(&stage, &token));
}

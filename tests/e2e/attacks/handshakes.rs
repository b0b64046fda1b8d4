//! Whoever knocks at the HBONE port without being a workload of the mesh.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::forge::{certificate, client, foreign, uri};
use super::{Siege, assert_closed};
use crate::hbone::{HBONE_PORT, hbone, identity, within};
use crate::mesh::TIMEOUT;
use crate::pattern::Pattern;

const H2: &[&[u8]] = &[b"h2"];

/// Says `bytes` at the HBONE port, and no more.
fn say(siege: &Siege, bytes: &[u8]) {
    let mut stream = siege.attacker.connect(hbone(&siege.mesh.server), TIMEOUT).unwrap();
    // The agent may have hung up before all is said.
    let _ = stream.write_all(bytes);
    assert_closed(&stream);
}

/// Tries a handshake, which must come to nothing.
fn shake_hands(siege: &Siege, config: Arc<ClientConfig>) {
    let to = hbone(&siege.mesh.server);
    within(&siege.attacker, async move || {
        let tcp = TcpStream::connect(to).await.unwrap();
        let name = ServerName::IpAddress(to.ip().into());
        // In TLS 1.3 a client is done before its certificate was looked at.
        if let Ok(mut tls) = TlsConnector::from(config).connect(name, tcp).await {
            let mut said = Vec::new();
            let _ = tls.read_to_end(&mut said).await;
            assert_eq!(said, b"", "nothing is said to a stranger");
        }
    });
}

fn with_key(key: Arc<CertifiedKey>) -> Arc<ClientConfig> {
    client(Some(key), H2)
}

#[test]
fn random_bytes() {
    let siege = Siege::new();
    siege.assert_refused("tls_failed", || say(&siege, &Pattern::new(0).take(10_000)));
}

#[test]
fn http_in_clear() {
    let siege = Siege::new();
    let request = b"CONNECT 10.2.0.2:80 HTTP/1.1\r\nhost: 10.2.0.2:80\r\n\r\n";
    siege.assert_refused("tls_failed", || say(&siege, request));
    let siege = Siege::new();
    siege.assert_refused("tls_failed", || say(&siege, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
}

#[test]
fn a_handshake_that_breaks_off() {
    let siege = Siege::new();
    siege.assert_refused("tls_failed", || {
        let mut stream = siege.attacker.connect(hbone(&siege.mesh.server), TIMEOUT).unwrap();
        stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_closed(&stream);
    });
}

#[test]
fn a_handshake_that_never_ends() {
    let siege = Siege::with(&["--handshake-timeout", "3s"]);
    siege.assert_refused("tls_timeout", || say(&siege, &[22, 3, 1, 2, 0, 1, 0, 1]));
    // TLS is done, HTTP/2 never begins.
    let siege = Siege::with(&["--handshake-timeout", "3s"]);
    let key = certificate(&siege.mesh.testbed, |_| {});
    siege.assert_refused("tls_timeout", || shake_hands_and_wait(&siege, with_key(key)));
}

fn shake_hands_and_wait(siege: &Siege, config: Arc<ClientConfig>) {
    let to = hbone(&siege.mesh.server);
    within(&siege.attacker, async move || {
        let tcp = TcpStream::connect(to).await.unwrap();
        let name = ServerName::IpAddress(to.ip().into());
        let mut tls = TlsConnector::from(config).connect(name, tcp).await.unwrap();
        // Its settings, and then the end.
        let _ = tls.read_to_end(&mut Vec::new()).await;
    });
}

#[test]
fn no_certificate() {
    let siege = Siege::new();
    siege.assert_refused("no_client_certificate", || shake_hands(&siege, client(None, H2)));
}

#[test]
fn a_certificate_of_another_authority() {
    let siege = Siege::new();
    let key = foreign(&siege.mesh.testbed);
    siege.assert_refused("untrusted_certificate", || shake_hands(&siege, with_key(key)));
}

#[test]
fn a_certificate_of_another_trust_domain() {
    let siege = Siege::new();
    let key = certificate(&siege.mesh.testbed, |params| {
        params.subject_alt_names = vec![uri("spiffe://evil.example/ns/shop/sa/client")];
    });
    siege.assert_refused("untrusted_certificate", || shake_hands(&siege, with_key(key)));
}

#[test]
fn an_expired_certificate() {
    let siege = Siege::new();
    let key = certificate(&siege.mesh.testbed, |params| {
        params.not_after = (SystemTime::now() - Duration::from_secs(60)).into();
    });
    siege.assert_refused("untrusted_certificate", || shake_hands(&siege, with_key(key)));
}

#[test]
fn a_certificate_of_two_workloads() {
    let siege = Siege::new();
    let key = certificate(&siege.mesh.testbed, |params| {
        params.subject_alt_names = ["client", "server"].map(|name| uri(identity(name).as_str())).into();
    });
    siege.assert_refused("untrusted_certificate", || shake_hands(&siege, with_key(key)));
}

#[test]
fn a_certificate_of_nobody() {
    let siege = Siege::new();
    let key = certificate(&siege.mesh.testbed, |params| params.subject_alt_names.clear());
    siege.assert_refused("untrusted_certificate", || shake_hands(&siege, with_key(key)));
}

#[test]
fn another_protocol_than_h2() {
    for alpn in [&[&b"http/1.1"[..]][..], &[]] {
        let siege = Siege::new();
        let key = certificate(&siege.mesh.testbed, |_| {});
        siege.assert_refused("alpn_mismatch", || shake_hands(&siege, client(Some(key), alpn)));
    }
}

#[test]
fn no_http_2_after_a_good_handshake() {
    let siege = Siege::new();
    let key = certificate(&siege.mesh.testbed, |_| {});
    let to = hbone(&siege.mesh.server);
    siege.assert_refused("bad_connect_request", || {
        within(&siege.attacker, async move || {
            let tcp = TcpStream::connect(to).await.unwrap();
            let name = ServerName::IpAddress(to.ip().into());
            let mut tls = TlsConnector::from(with_key(key)).connect(name, tcp).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut tls, &[b'x'; 1000]).await.unwrap();
            let _ = tls.read_to_end(&mut Vec::new()).await;
        });
    });
}

#[test]
fn a_server_name_changes_nothing() {
    let siege = Siege::new();
    let key = certificate(&siege.mesh.testbed, |_| {});
    let to = hbone(&siege.mesh.server);
    within(&siege.attacker, async move || {
        let tcp = TcpStream::connect(to).await.unwrap();
        let name = ServerName::try_from("kubernetes.default.svc").unwrap();
        let tls = TlsConnector::from(with_key(key)).connect(name, tcp).await.unwrap();
        let (send, connection) = h2::client::handshake(tls).await.unwrap();
        tokio::task::spawn_local(connection);
        let mut send: h2::client::SendRequest<bytes::Bytes> = send.ready().await.unwrap();
        let elsewhere = format!("10.96.0.1:{HBONE_PORT}");
        let request = crate::hbone::connect_request(&elsewhere, &[]);
        let (answer, _stream) = send.send_request(request, true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 400);
    });
    siege.assert_serves();
}

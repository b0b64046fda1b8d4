//! Listeners of HTTPS: whose certificate a client is shown, and what it may ask for then.

use std::fs;
use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_tests::traffic::{Response, request};
use orlop_tests::wait_for;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::Stage;
use crate::l7::scripted::{Reply, Scripted};
use crate::mesh::{TIMEOUT, await_value};

const PORT: u16 = 443;
const LISTENERS: &str = "- name: one\n  port: 443\n  protocol: HTTPS\n  hostname: one.example\n  \
     allowedRoutes: {namespaces: {from: All}}\n  tls: {certificateRefs: [{name: one}]}\n\
     - name: wide\n  port: 443\n  protocol: HTTPS\n  hostname: '*.two.example'\n  \
     allowedRoutes: {namespaces: {from: All}}\n  tls: {certificateRefs: [{name: two}]}\n\
     - {name: web, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}";

/// A gateway with certificates for these hosts, and what a client has to trust.
struct Sealed {
    stage: Stage,
    server: Scripted,
    dir: PathBuf,
    one: String,
    two: String,
}

impl Sealed {
    fn new() -> Self {
        let stage = Stage::certified();
        let dir = stage.mesh.testbed.dir().join("certificates");
        let [one, two] =
            [("one", "one.example"), ("two", "*.two.example")].map(|(name, host)| certify(&dir, name, host));
        let server = Scripted::start(&stage.mesh.server, |_| Reply::Answer(200, "ok\n".to_owned()));
        stage.change(|mesh| super::write_gateway(mesh, LISTENERS));
        let sealed = Self { stage, server, dir, one, two };
        assert!(wait_for(TIMEOUT, || sealed.get(&sealed.one, "one.example", "one.example").is_ok()));
        sealed
    }

    fn address(&self) -> SocketAddr {
        self.stage.gate.addr(PORT)
    }

    /// TLS with the gateway by this name, for a client that trusts this certificate alone.
    fn connect(
        &self,
        trusted: &str,
        name: &str,
    ) -> io::Result<BufReader<StreamOwned<ClientConnection, TcpStream>>> {
        let tcp = self.stage.stranger.connect(self.address(), TIMEOUT).unwrap();
        let mut tls = StreamOwned::new(client(trusted, &[b"http/1.1"], name), tcp);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(BufReader::new(tls))
    }

    /// One request for `host` on a connection on which `name` was asked for.
    fn get(&self, trusted: &str, name: &str, host: &str) -> io::Result<Response> {
        let head = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
        request(&mut self.connect(trusted, name)?, &head)
    }
}

/// Writes a certificate for a host where the Secret `edge/NAME` is mounted, and gives it.
fn certify(dir: &Path, name: &str, host: &str) -> String {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([host.to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let dir = dir.join("edge").join(name);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("tls.crt"), &certificate).unwrap();
    fs::write(dir.join("tls.key"), key.serialize_pem()).unwrap();
    certificate
}

fn client(trusted: &str, alpn: &[&[u8]], name: &str) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(orlop_identity::provider());
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap()
}

#[test]
fn a_client_is_shown_the_certificate_of_the_listener_it_names_and_gets_no_other_s_routes() {
    let sealed = Sealed::new();
    for (trusted, name, host, status) in [
        (&sealed.one, "one.example", "one.example", 200),
        (&sealed.one, "one.example", "ONE.example:443", 200),
        (&sealed.two, "a.two.example", "a.two.example", 200),
        // The same listener's, and the certificate's.
        (&sealed.two, "a.two.example", "b.two.example", 200),
        (&sealed.one, "one.example", "a.two.example", 421),
        (&sealed.two, "a.two.example", "one.example", 421),
        (&sealed.one, "one.example", "else.example", 404),
    ] {
        let answer = sealed.get(trusted, name, host).unwrap();
        assert_eq!(answer.status, status, "{name} {host}");
    }
    assert_eq!(sealed.server.asked().pop().unwrap().headers["x-forwarded-proto"], "https");
    // Nobody is there for it, and there is no certificate to show.
    assert!(sealed.connect(&sealed.one, "else.example").is_err());
    assert!(sealed.connect(&sealed.two, "one.example").is_err());
    sealed.stage.record(|record| record["reason"] == "certificate_unavailable");
    // In clear there is nothing to be had there, and in TLS nothing where none is spoken.
    let mut plain = sealed.stage.stranger.connect(sealed.address(), TIMEOUT).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: one.example\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = io::Read::read_to_end(&mut plain, &mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    assert_eq!(sealed.stage.get("any.example", "/").status, 200);
}

#[test]
fn http2_is_agreed_on_where_the_client_speaks_it() {
    let sealed = Sealed::new();
    let tcp = sealed.stage.stranger.connect(sealed.address(), TIMEOUT).unwrap();
    let mut tls = StreamOwned::new(client(&sealed.one, &[b"h2", b"http/1.1"], "one.example"), tcp);
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock).unwrap();
    }
    assert_eq!(tls.conn.alpn_protocol(), Some(&b"h2"[..]));
    tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut head = [0; 9];
    io::Read::read_exact(&mut tls, &mut head).unwrap();
    // Its SETTINGS.
    assert_eq!(head[3], 4, "{head:?}");
}

#[test]
fn a_certificate_that_is_renewed_is_shown_from_then_on_and_one_that_is_none_changes_nothing() {
    let sealed = Sealed::new();
    let mut open = sealed.connect(&sealed.one, "one.example").unwrap();
    let renewed = certify(&sealed.dir, "one", "one.example");
    let gets_on = |trusted: &str| sealed.get(trusted, "one.example", "one.example").is_ok();
    assert!(wait_for(TIMEOUT, || gets_on(&renewed)), "the new one is not shown");
    assert!(!gets_on(&sealed.one));
    let head = "GET / HTTP/1.1\r\nhost: one.example\r\n\r\n";
    assert_eq!(request(&mut open, head).unwrap().status, 200, "what was open has ended");
    fs::write(sealed.dir.join("edge/one/tls.crt"), "none").unwrap();
    let told = |log: String| log.contains("its certificate can't be shown");
    assert!(wait_for(TIMEOUT, || told(sealed.stage.gateway.log().unwrap())));
    assert!(gets_on(&renewed));
    for file in ["tls.crt", "tls.key"] {
        fs::remove_file(sealed.dir.join("edge/one").join(file)).unwrap();
    }
    assert!(wait_for(TIMEOUT, || !gets_on(&renewed)), "what is gone is still shown");
    assert_eq!(sealed.get(&sealed.two, "a.two.example", "a.two.example").unwrap().status, 200);
}

#[test]
fn a_certificate_that_no_file_could_be_opened_for_is_shown_once_one_can() {
    let sealed = Sealed::new();
    let gateway = &sealed.stage.gateway;
    gateway.process().limit_files(3).unwrap();
    let renewed = certify(&sealed.dir, "one", "one.example");
    let told = || gateway.log().unwrap().contains("no file can be opened just now");
    assert!(wait_for(TIMEOUT, told), "it has looked at none");
    gateway.process().limit_files(1024).unwrap();
    let gets_on = |trusted: &str| sealed.get(trusted, "one.example", "one.example").is_ok();
    assert!(gets_on(&sealed.one) || gets_on(&renewed), "what was there is not shown any more");
    assert!(wait_for(TIMEOUT, || gets_on(&renewed)), "the new one is not shown");
}

#[test]
fn a_listener_shows_what_it_had_until_what_it_is_to_show_is_there() {
    let sealed = Sealed::new();
    let gets_on = |trusted: &str| sealed.get(trusted, "one.example", "one.example").is_ok();
    sealed.stage.change(|mesh| {
        super::write_gateway(mesh, &LISTENERS.replace("[{name: one}]", "[{name: next}]"));
    });
    let states = |state: &str| sealed.stage.gateway.metric("orlop_gateway_secrets", &[state]).unwrap();
    assert!(gets_on(&sealed.one), "what is mounted is not shown");
    assert_eq!((states("state=\"missing\""), states("state=\"shown\"")), (1.0, 2.0));
    let next = certify(&sealed.dir, "next", "one.example");
    assert!(wait_for(TIMEOUT, || gets_on(&next)), "the new one is not shown");
    assert!(!gets_on(&sealed.one));
    assert_eq!((states("secret=\"one\""), states("state=\"shown\"")), (0.0, 2.0));
    for file in ["tls.crt", "tls.key"] {
        fs::remove_file(sealed.dir.join("edge/next").join(file)).unwrap();
    }
    assert!(wait_for(TIMEOUT, || !gets_on(&next)), "what is gone is still shown");
    assert!(!gets_on(&sealed.one));
}

#[test]
fn an_expression_sees_whether_a_request_came_by_tls() {
    let sealed = Sealed::new();
    let text = "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: all, namespace: edge}\nspec:\n  \
         metrics:\n  - overrides:\n    - match: {metric: REQUEST_COUNT}\n      \
         tagOverrides: {scheme: {value: request.scheme}}\n";
    sealed.stage.change(|mesh| mesh.testbed.world().write("telemetry.yaml", text).unwrap());
    assert_eq!(sealed.get(&sealed.one, "one.example", "one.example").unwrap().status, 200);
    assert_eq!(sealed.stage.get("one.example", "/").status, 200);
    for scheme in ["https", "http"] {
        let label = format!("scheme=\"{scheme}\"");
        await_value(1.0, || sealed.stage.gateway.metric("istio_requests_total", &[&label]).unwrap());
    }
}

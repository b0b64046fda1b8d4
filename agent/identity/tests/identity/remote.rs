//! An authority elsewhere: Istio's certificate service on loopback, and a node that asks it.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use orlop_identity::{
    ALPN_H2, Admission, CertificateAuthority, CertificateInfo, CertificateRequest, CertificateService,
    CertificateState, Clock, DEFAULT_LIFETIME, EmbeddedCa, Gate, HandshakeFailure, Identities, Issuing,
    Refusal, RemoteCa, Signer, provider,
};
use orlop_model::Identity;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::sign::SingleCertAndKey;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::{Handshake, Mesh, TempDir, identity, minutes, now, trust_domain};

/// Admits the bearer of one token, to whatever it asks for but `mallory`.
struct OneToken {
    up: AtomicBool,
    asked: Mutex<Vec<Option<Identity>>>,
}

impl Gate for OneToken {
    fn admit<'a>(&'a self, token: Option<&'a str>, wanted: Option<Identity>) -> Admission<'a> {
        Box::pin(async move {
            self.asked.lock().unwrap().push(wanted.clone());
            if !self.up.load(Ordering::Relaxed) {
                return Err(Refusal::Unavailable("no API server".to_owned()));
            }
            match wanted {
                _ if token != Some("the token") => {
                    Err(Refusal::Unauthenticated("an unknown token".to_owned()))
                }
                Some(wanted) if wanted == identity("mallory") => {
                    Err(Refusal::Denied("no pod of mallory's on this node".to_owned()))
                }
                wanted => Ok(wanted.unwrap_or_else(|| identity("node"))),
            }
        })
    }
}

/// A service, and the files of a node that asks it.
struct Remote {
    mesh: Mesh,
    gate: Arc<OneToken>,
    address: SocketAddr,
    dir: TempDir,
    service: JoinHandle<()>,
}

impl Remote {
    async fn start() -> Self {
        let mesh = Mesh::new();
        let gate = Arc::new(OneToken { up: AtomicBool::new(true), asked: Mutex::default() });
        let dir = TempDir::new();
        fs::create_dir(dir.path()).unwrap();
        fs::copy(mesh.dir.path().join("root-cert.pem"), dir.path().join("root.pem")).unwrap();
        fs::write(dir.path().join("token"), "the token\n").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = serve(&mesh, mesh.ca.clone(), &gate, listener);
        Self { mesh, gate, address, dir, service }
    }

    fn ca(&self) -> Arc<RemoteCa> {
        let address = format!("https://localhost:{}", self.address.port()).parse().unwrap();
        let (root, token) = (self.dir.path().join("root.pem"), self.dir.path().join("token"));
        Arc::new(RemoteCa::open(address, &root, &token, &trust_domain()).unwrap())
    }

    fn node(&self) -> Identities {
        self.node_with_clock(Clock::system())
    }

    fn node_with_clock(&self, clock: Clock) -> Identities {
        let ca = self.ca();
        let node = Identities::with_clock(ca.clone(), trust_domain(), DEFAULT_LIFETIME, clock);
        let renewal = node.clone();
        tokio::spawn(async move { ca.run().await });
        tokio::spawn(async move { renewal.run().await });
        node
    }
}

/// The service as `localhost`, with a certificate of the mesh's own root.
fn serve(
    mesh: &Mesh,
    authority: Arc<dyn CertificateAuthority>,
    gate: &Arc<OneToken>,
    listener: TcpListener,
) -> JoinHandle<()> {
    let signer = signer_of(mesh);
    let serving = signer.serving(&["localhost".to_owned()], minutes(60), now()).unwrap();
    let mut tls = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(serving)));
    tls.alpn_protocols = vec![ALPN_H2.to_vec()];
    let tls = Arc::new(tls);
    let service = Arc::new(CertificateService::new(authority, gate.clone(), DEFAULT_LIFETIME));
    tokio::spawn(service.serve(listener, move || tls.clone()))
}

fn signer_of(mesh: &Mesh) -> Signer {
    let read = |name: &str| fs::read(mesh.dir.path().join(name)).unwrap();
    Signer::from_pem(&read("root-key.pem"), &read("root-cert.pem"), b"", &trust_domain(), now()).unwrap()
}

async fn ensured(node: &Identities, name: &str) -> CertificateInfo {
    node.ensure(&identity(name)).unwrap();
    node.attempted(&identity(name)).await;
    node.dump().into_iter().find(|info| info.identity == identity(name)).unwrap()
}

#[tokio::test]
async fn a_node_gets_the_certificates_that_its_gate_admits() {
    let remote = Remote::start().await;
    let node = remote.node();
    for name in ["alice", "bob"] {
        assert_eq!(ensured(&node, name).await.state, CertificateState::Valid);
    }
    let client = node.client_config(&identity("alice"), &identity("bob")).unwrap();
    assert!(Handshake::run(client, node.server_config(&identity("bob")).unwrap()).succeeded());
    // Peers with the embedded authority are of the same mesh.
    let peer = remote.mesh.node(&["carol"]);
    let client = node.client_config(&identity("alice"), &identity("carol")).unwrap();
    assert!(Handshake::run(client, peer.server_config(&identity("carol")).unwrap()).succeeded());
    assert_eq!(*remote.gate.asked.lock().unwrap(), [Some(identity("alice")), Some(identity("bob"))]);
}

#[tokio::test]
async fn a_refusal_is_kept_with_its_reason() {
    let remote = Remote::start().await;
    let node = remote.node();
    let info = ensured(&node, "mallory").await;
    assert_eq!(info.state, CertificateState::Pending);
    assert!(info.last_error.as_ref().unwrap().contains("no pod of mallory's on this node"), "{info:?}");

    fs::write(remote.dir.path().join("token"), "another").unwrap();
    let info = ensured(&node, "alice").await;
    assert!(info.last_error.as_ref().unwrap().contains("an unknown token"), "{info:?}");
    fs::remove_file(remote.dir.path().join("token")).unwrap();
    let info = ensured(&node, "bob").await;
    assert!(info.last_error.as_ref().unwrap().contains("--ca-token"), "{info:?}");
}

#[tokio::test]
async fn the_token_is_not_shown_to_a_stranger() {
    let (remote, stranger) = (Remote::start().await, Mesh::new());
    // At the same address, with a root that the node doesn't trust.
    remote.service.abort();
    assert!((remote.service.await).unwrap_err().is_cancelled());
    let listener = TcpListener::bind(remote.address).await.unwrap();
    let _service = serve(&stranger, stranger.ca.clone(), &remote.gate, listener);
    let ca = RemoteCa::open(
        format!("https://localhost:{}", remote.address.port()).parse().unwrap(),
        &remote.dir.path().join("root.pem"),
        &remote.dir.path().join("token"),
        &trust_domain(),
    );
    let request = CertificateRequest::new(&identity("alice")).unwrap();
    let issuing = ca.unwrap().issue(&identity("alice"), request.der(), minutes(60), now());
    let Issuing::Asked(answer) = issuing else { panic!("it asks nobody") };
    let error = answer.await.unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");
    assert!(remote.gate.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_leads_to_no_trusted_root_is_not_used() {
    let (remote, other) = (Remote::start().await, Mesh::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // The service is who it should be, and signs with another root.
    let _service = serve(&remote.mesh, other.ca.clone(), &remote.gate, listener);
    let remote = Remote { address, ..remote };
    let info = ensured(&remote.node(), "alice").await;
    assert!(info.last_error.as_ref().unwrap().contains("it leads to no root"), "{info:?}");
}

#[tokio::test]
async fn with_the_authority_down_certificates_go_on_until_they_expire() {
    let remote = Remote::start().await;
    let ahead = Arc::new(Mutex::new(minutes(0)));
    let shared = ahead.clone();
    let clock = Clock::new(move || SystemTime::now() + *shared.lock().unwrap());
    let node = remote.node_with_clock(clock);
    for name in ["alice", "bob"] {
        assert_eq!(ensured(&node, name).await.state, CertificateState::Valid);
    }
    let handshake = || {
        let client = node.client_config(&identity("alice"), &identity("bob")).unwrap();
        Handshake::run(client, node.server_config(&identity("bob")).unwrap())
    };

    remote.gate.up.store(false, Ordering::Relaxed);
    *ahead.lock().unwrap() = minutes(23 * 60);
    // Wakes the loop: a certificate of 23 hours is due.
    node.ensure(&identity("carol")).unwrap();
    node.attempted(&identity("carol")).await;
    assert!(handshake().succeeded());
    *ahead.lock().unwrap() = minutes(25 * 60);
    assert_eq!(handshake().server_failure(), Some(HandshakeFailure::CertificateUnavailable));
}

#[tokio::test]
async fn an_intermediate_signs_and_peers_know_its_root() {
    let remote = Remote::start().await;
    let root = KeyPair::generate().unwrap();
    let mut params = authority_params("plugged-in root");
    let root_certificate = params.self_signed(&root).unwrap();
    let key = KeyPair::generate().unwrap();
    params = authority_params("plugged-in intermediate");
    let certificate =
        params.signed_by(&key, &Issuer::from_params(&authority_params("plugged-in root"), &root)).unwrap();
    let signer = Signer::from_pem(
        key.serialize_pem().as_bytes(),
        certificate.pem().as_bytes(),
        format!("{}{}", certificate.pem(), root_certificate.pem()).as_bytes(),
        &trust_domain(),
        now(),
    )
    .unwrap();
    let request = CertificateRequest::new(&identity("alice")).unwrap();
    let issued = signer.sign(&identity("alice"), request.der(), minutes(60), now()).unwrap();
    // The leaf and the intermediate; the root is the peers' own.
    assert_eq!(issued.certificates.len(), 2);
    assert_eq!(issued.certificates[1], *certificate.der());
    drop(remote);
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

#[tokio::test]
async fn a_new_root_in_the_bundle_renews_every_certificate() {
    let remote = Remote::start().await;
    let node = remote.node();
    let first = ensured(&node, "alice").await.serial;
    let dir = remote.mesh.dir.path();
    EmbeddedCa::begin_rotation(dir, &trust_domain()).unwrap();
    EmbeddedCa::switch_root(dir, &trust_domain()).unwrap();
    remote.mesh.ca.refresh().unwrap();
    let bundle =
        ["root-cert.pem", "previous-cert.pem"].map(|name| fs::read_to_string(dir.join(name)).unwrap());
    let staged = remote.dir.path().join("staged");
    fs::write(&staged, bundle.concat()).unwrap();
    let mut trust = node.trust();
    fs::rename(&staged, remote.dir.path().join("root.pem")).unwrap();
    trust.changed().await.unwrap();
    assert_eq!(trust.borrow().roots().len(), 2);
    while node.dump()[0].serial == first {
        tokio::task::yield_now().await;
    }
    assert_eq!(node.dump()[0].state, CertificateState::Valid);
}

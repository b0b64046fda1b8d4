//! Istio's certificate service as others speak it: what an Istio ztunnel sends is written here by Istio's own definition
//! (istio.io/api, security/v1alpha1/ca.proto) and by nothing of Orlop's.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request};
use orlop_tests::Testbed;
use prost::Message;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::api::Kubernetes;
use super::install::{AUDIENCE, SYSTEM, install, roots};
use super::kubelet::{CA_PORT, Kubelet};
use super::replica::Replica;

const ZTUNNEL: &str = "ztunnel";
const ISTIO: &str = "istio-system";
/// gRPC's.
const PERMISSION_DENIED: i32 = 7;
const UNAUTHENTICATED: i32 = 16;

/// `istio.v1.auth.IstioCertificateRequest`.
#[derive(Clone, PartialEq, Message)]
struct CertificateRequest {
    #[prost(string, tag = "1")]
    csr: String,
    #[prost(int64, tag = "3")]
    validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    metadata: Option<Struct>,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, Message)]
struct Struct {
    #[prost(map = "string, message", tag = "1")]
    fields: HashMap<String, Value>,
}

/// `google.protobuf.Value`, of a string.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, optional, tag = "3")]
    string_value: Option<String>,
}

/// `istio.v1.auth.IstioCertificateResponse`.
#[derive(Clone, PartialEq, Message)]
struct CertificateResponse {
    #[prost(string, repeated, tag = "1")]
    cert_chain: Vec<String>,
}

/// Asks as ztunnel does: over TLS and HTTP/2, for the identity that it impersonates. A refusal is gRPC's status.
async fn create_certificate(roots: &str, token: &str, identity: &str) -> Result<Vec<String>, i32> {
    let mut trusted = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        trusted.add(root.unwrap()).unwrap();
    }
    let mut config = ClientConfig::builder().with_root_certificates(trusted).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(("127.0.0.1", CA_PORT)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let (client, connection) = h2::client::handshake(tls).await.unwrap();
    let connection = tokio::spawn(connection);

    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    let csr = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let identity = Value { string_value: Some(identity.to_owned()) };
    let message = CertificateRequest {
        csr: pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", csr.der().to_vec())),
        validity_duration: 86_400,
        metadata: Some(Struct { fields: HashMap::from([("ImpersonatedIdentity".to_owned(), identity)]) }),
    }
    .encode_to_vec();
    let request = Request::post("https://localhost/istio.v1.auth.IstioCertificateService/CreateCertificate")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {token}"))
        .header("clusterid", "Kubernetes")
        .body(())
        .unwrap();
    let (answer, mut send) = client.ready().await.unwrap().send_request(request, false).unwrap();
    // Not compressed, and so long.
    let head = [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes()].concat();
    send.send_data(Bytes::from([head, message].concat()), true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    let status = |headers: &HeaderMap| {
        headers.get("grpc-status").map(|it| it.to_str().unwrap().parse::<i32>().unwrap())
    };
    if let Some(refused) = status(answer.headers()) {
        return Err(refused);
    }
    let (mut body, mut said) = (answer.into_body(), Vec::new());
    while let Some(part) = body.data().await {
        said.extend_from_slice(&part.unwrap());
    }
    let status = body.trailers().await.unwrap().as_ref().and_then(status);
    connection.abort();
    match status {
        Some(0) => Ok(CertificateResponse::decode(&said[5..]).unwrap().cert_chain),
        status => Err(status.expect("no grpc-status")),
    }
}

#[test]
fn a_ztunnel_gets_the_identities_of_its_own_nodes_pods_and_no_other() {
    let kubernetes = Kubernetes::own();
    install(&kubernetes);
    let testbed = Testbed::new().unwrap();
    let accounts = ["--node-account", "orlop-system/orlop-node", "--node-account", "istio-system/ztunnel"];
    let controller = Replica::start(&kubernetes, "signs", &accounts);
    controller.wait_ready();
    let nodes = ["n1", "n2"].map(|name| Kubelet::start(&kubernetes, &testbed, name));
    let _way = nodes[0].way_to(controller.listen);
    let [here, there] = ["here", "there"].map(|prefix| kubernetes.namespace(prefix, &[]));
    nodes[0].bind(&here, "web", &[]);
    nodes[1].bind(&there, "web", &[]);
    for object in [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ISTIO}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ZTUNNEL, "namespace": ISTIO}}),
    ] {
        kubernetes.apply(&object);
    }
    nodes[0].bind_as(ZTUNNEL, ISTIO, ZTUNNEL, &[]);
    let token = kubernetes.bound_token(ISTIO, ZTUNNEL, ZTUNNEL, AUDIENCE);
    let roots = roots(&kubernetes, SYSTEM);
    let ask = |token: &str, namespace: &str| {
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/default");
        let asked = nodes[0].node.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(create_certificate(&roots, token, &identity))
        });
        asked.unwrap()
    };

    let chain = ask(&token, &here).unwrap();
    // The leaf first, the roots last, each entry PEM as Istio's agents read it.
    assert!(
        chain.len() >= 2 && chain.iter().all(|pem| pem.starts_with("-----BEGIN CERTIFICATE-----")),
        "{chain:?}"
    );
    assert_eq!(chain.last().unwrap().trim(), roots.trim());
    assert_eq!(ask(&token, &there), Err(PERMISSION_DENIED));
    assert_eq!(ask("no token", &here), Err(UNAUTHENTICATED));
    // A pod of another account is no node.
    let other = kubernetes.bound_token(&here, "default", "web", AUDIENCE);
    assert_eq!(ask(&other, &there), Err(PERMISSION_DENIED));
}

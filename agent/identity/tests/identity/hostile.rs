//! One honest end, one that is not. Forged certificates are signed by the mesh's own root unless said
//! otherwise, so that what refuses them is the check under test.

use std::sync::Arc;

use orlop_identity::{HandshakeFailure, Identities, peer_identity, require_h2};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConnection;
use rustls::sign::CertifiedKey;

use crate::support::{
    Handshake, Mesh, certified, identity, leaf_params, minutes, now, raw_uris, rogue_client, rogue_server,
    trust_domain, uri,
};

fn shown_to_server(node: &Identities, key: Arc<CertifiedKey>) -> Handshake {
    Handshake::run(rogue_client(Some(key)), node.server_config(&identity("bob")).unwrap())
}

fn shown_to_client(node: &Identities, key: Arc<CertifiedKey>) -> Handshake {
    Handshake::run(node.client_config(&identity("bob"), &identity("mallory")).unwrap(), rogue_server(key))
}

/// A certificate changed like this is untrusted on both ends.
fn refused_by_both(change: impl Fn(&mut CertificateParams)) {
    let mesh = Mesh::new();
    let node = mesh.node(&["bob"]);
    refused_as_shown(&node, mesh.forge(change));
}

fn refused_as_shown(node: &Identities, key: Arc<CertifiedKey>) {
    let handshake = shown_to_server(node, key.clone());
    assert_eq!(
        handshake.server_failure(),
        Some(HandshakeFailure::UntrustedCertificate),
        "as client: {:?}",
        handshake.server_error
    );
    let handshake = shown_to_client(node, key);
    assert_eq!(
        handshake.client_failure(),
        Some(HandshakeFailure::UntrustedCertificate),
        "as server: {:?}",
        handshake.client_error
    );
}

#[test]
fn the_forgery_itself_works_when_nothing_is_changed() {
    let mesh = Mesh::new();
    let node = mesh.node(&["bob"]);
    let key = mesh.forge(|_| {});
    let handshake = shown_to_server(&node, key.clone());
    assert!(handshake.succeeded(), "{:?}", handshake.server_error);
    let handshake = shown_to_client(&node, key);
    assert!(handshake.succeeded(), "{:?}", handshake.client_error);
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let node = Mesh::new().node(&["bob"]);
    let handshake = Handshake::run(rogue_client(None), node.server_config(&identity("bob")).unwrap());
    assert_eq!(handshake.server_failure(), Some(HandshakeFailure::NoClientCertificate));
    assert_eq!(handshake.client_failure(), Some(HandshakeFailure::RefusedByPeer));
}

#[test]
fn another_trust_domain_is_refused() {
    refused_by_both(|params| params.subject_alt_names = vec![uri("spiffe://elsewhere/ns/shop/sa/mallory")]);
}

#[test]
fn a_self_signed_certificate_with_the_right_name_is_refused() {
    let key = KeyPair::generate().unwrap();
    let certificate = leaf_params(&identity("mallory")).self_signed(&key).unwrap();
    refused_as_shown(&Mesh::new().node(&["bob"]), certified(vec![certificate.der().clone()], &key));
}

#[test]
fn a_root_brought_along_is_not_trusted() {
    let (ours, theirs) = (Mesh::new(), Mesh::new());
    let forged = theirs.forge(|_| {});
    let mut chain = forged.cert.clone();
    chain.push(theirs.root_certificate());
    refused_as_shown(&ours.node(&["bob"]), Arc::new(CertifiedKey::new(chain, forged.key.clone())));
}

#[test]
fn an_expired_certificate_is_refused() {
    refused_by_both(|params| params.not_after = (now() - minutes(1)).into());
}

#[test]
fn a_certificate_from_the_future_is_refused() {
    refused_by_both(|params| params.not_before = (now() + minutes(1)).into());
}

#[test]
fn anything_but_one_workload_uri_is_refused() {
    let dns = || rcgen::SanType::DnsName("mallory.shop".try_into().unwrap());
    let own = || uri(identity("mallory").as_str());
    let cases = [
        vec![],
        vec![dns()],
        vec![own(), uri(identity("alice").as_str())],
        vec![own(), own()],
        vec![own(), uri("https://example.com/")],
        vec![uri("spiffe://cluster.local")],
        vec![uri("spiffe://cluster.local/ns/shop/sa/mallory/")],
        vec![uri("spiffe://cluster.local/ns/shop/sa/")],
        vec![uri("spiffe://cluster.local//ns/shop/sa/mallory")],
        vec![uri("spiffe://CLUSTER.local/ns/shop/sa/mallory")],
        vec![uri("SPIFFE://cluster.local/ns/shop/sa/mallory")],
        vec![uri("spiffe://cluster.local:80/ns/shop/sa/mallory")],
        vec![uri("spiffe://a@cluster.local/ns/shop/sa/mallory")],
        vec![uri("spiffe://cluster.local/ns/shop/../admin/sa/mallory")],
        vec![uri("spiffe://cluster.local/ns/%73hop/sa/mallory")],
        vec![uri("spiffe://cluster.local/ns/shop/sa/mallory?x")],
        vec![uri("spiffe://cluster.local/ns/shop/sa/mallory#x")],
        vec![uri("spiffe://cluster.local/ns/shop/sa/mallory\0")],
        vec![uri("spiffe://cluster.local/ns/shop/sa/mallory\n")],
    ];
    let mesh = Mesh::new();
    let node = mesh.node(&["bob"]);
    for names in cases {
        let key = mesh.forge(|params| params.subject_alt_names = names.clone());
        assert!(peer_identity(&key.cert, &trust_domain()).is_err(), "{names:?}");
        refused_as_shown(&node, key);
    }
}

#[test]
fn a_second_uri_that_is_not_ascii_is_not_overlooked() {
    let own = identity("mallory");
    let san = raw_uris(&[own.as_str().as_bytes(), b"spiffe://cluster.local/ns/shop/sa/\xff"]);
    refused_by_both(|params| {
        params.subject_alt_names = vec![];
        params.custom_extensions = vec![san.clone()];
    });
}

#[test]
fn a_second_name_extension_is_not_overlooked() {
    let san = raw_uris(&[identity("alice").as_str().as_bytes()]);
    refused_by_both(|params| params.custom_extensions = vec![san.clone()]);
}

#[test]
fn the_common_name_is_no_identity() {
    refused_by_both(|params| {
        params.subject_alt_names = vec![];
        params.distinguished_name.push(rcgen::DnType::CommonName, identity("mallory").as_str());
    });
}

#[test]
fn a_certificate_without_extended_key_usage_is_refused() {
    refused_by_both(|params| params.extended_key_usages = vec![]);
}

#[test]
fn a_certificate_for_another_purpose_is_refused() {
    refused_by_both(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]);
}

#[test]
fn each_purpose_holds_for_its_own_end_only() {
    let mesh = Mesh::new();
    let node = mesh.node(&["bob"]);
    let only =
        |purpose: ExtendedKeyUsagePurpose| mesh.forge(|params| params.extended_key_usages = vec![purpose]);
    let server_only = shown_to_server(&node, only(ExtendedKeyUsagePurpose::ServerAuth));
    assert_eq!(server_only.server_failure(), Some(HandshakeFailure::UntrustedCertificate));
    let client_only = shown_to_client(&node, only(ExtendedKeyUsagePurpose::ClientAuth));
    assert_eq!(client_only.client_failure(), Some(HandshakeFailure::UntrustedCertificate));
}

#[test]
fn an_authority_is_no_workload() {
    refused_by_both(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    refused_by_both(|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign));
}

#[test]
fn a_workload_cannot_vouch_for_others() {
    let mesh = Mesh::new();
    let alice = KeyPair::generate().unwrap();
    let mut params = leaf_params(&identity("alice"));
    params.distinguished_name.push(rcgen::DnType::CommonName, "alice");
    let root = mesh.root_certificate();
    let root = Issuer::from_ca_cert_der(&root, mesh.root_key()).unwrap();
    let vouching = params.signed_by(&alice, &root).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = leaf_params(&identity("mallory")).signed_by(&key, &Issuer::new(params, alice)).unwrap();
    let chain = vec![leaf.der().clone(), vouching.der().clone()];
    refused_as_shown(&mesh.node(&["bob"]), certified(chain, &key));
}

#[test]
fn a_certificate_without_its_key_is_refused() {
    let mesh = Mesh::new();
    let node = mesh.node(&["bob"]);
    let victim = mesh.forge(|_| {});
    let other = certified(victim.cert.clone(), &KeyPair::generate().unwrap());
    refused_as_shown(&node, other);
}

#[test]
fn a_peer_that_speaks_another_protocol_is_refused() {
    let mesh = Mesh::new();
    let node = mesh.node(&["bob"]);
    let mut client = rogue_client(Some(mesh.forge(|_| {})));
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    let handshake = Handshake::run(client, node.server_config(&identity("bob")).unwrap());
    assert_eq!(handshake.server_failure(), Some(HandshakeFailure::AlpnMismatch));

    let mut server = rogue_server(mesh.forge(|_| {}));
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    let client = node.client_config(&identity("bob"), &identity("mallory")).unwrap();
    let handshake = Handshake::run(client, server);
    assert_eq!(handshake.client_failure(), Some(HandshakeFailure::AlpnMismatch));
}

#[test]
fn a_peer_that_speaks_no_protocol_is_found_out_by_require_h2() {
    let mesh = Mesh::new();
    let node = mesh.node(&["bob"]);
    let mut client = rogue_client(Some(mesh.forge(|_| {})));
    client.alpn_protocols = vec![];
    let handshake = Handshake::run(client, node.server_config(&identity("bob")).unwrap());
    assert_eq!(require_h2(handshake.server.alpn_protocol()), Err(HandshakeFailure::AlpnMismatch));

    let mut server = rogue_server(mesh.forge(|_| {}));
    server.alpn_protocols = vec![];
    let client = node.client_config(&identity("bob"), &identity("mallory")).unwrap();
    assert_eq!(
        require_h2(Handshake::run(client, server).client.alpn_protocol()),
        Err(HandshakeFailure::AlpnMismatch)
    );
}

/// Feeds `bytes` to a server.
fn server_reads(mut bytes: &[u8]) -> Option<HandshakeFailure> {
    let node = Mesh::new().node(&["bob"]);
    let mut server = ServerConnection::new(node.server_config(&identity("bob")).unwrap()).unwrap();
    while !bytes.is_empty() {
        server.read_tls(&mut bytes).unwrap();
        if let Err(error) = server.process_new_packets() {
            return Some(orlop_identity::classify(&error));
        }
    }
    None
}

#[test]
fn tls_12_is_refused() {
    // ClientHello of RFC 5246 with ECDHE-ECDSA-AES128-GCM-SHA256, x25519 and ecdsa_secp256r1_sha256.
    let extensions =
        b"\x00\x0a\x00\x04\x00\x02\x00\x1d\x00\x0b\x00\x02\x01\x00\x00\x0d\x00\x04\x00\x02\x04\x03";
    let mut body = b"\x03\x03".to_vec();
    body.extend([7; 32]);
    body.extend(b"\x00\x00\x02\xc0\x2b\x01\x00");
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let length = u8::try_from(body.len()).unwrap();
    let mut record = vec![0x16, 0x03, 0x01, 0, length + 4, 0x01, 0, 0, length];
    record.extend(body);
    assert_eq!(server_reads(&record), Some(HandshakeFailure::Other));
}

#[test]
fn what_is_not_tls_is_refused() {
    assert_eq!(server_reads(b"GET / HTTP/1.1\r\nHost: bob\r\n\r\n"), Some(HandshakeFailure::Other));
    assert_eq!(server_reads(&[0xff; 64]), Some(HandshakeFailure::Other));
}

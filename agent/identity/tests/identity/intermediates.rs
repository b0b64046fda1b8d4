//! A foreign authority that signs through intermediates, each with a revocation list of its own.

use std::fs;

use orlop_identity::{CertificateAuthority, HandshakeFailure, PeerChain};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::CertificateDer;

use crate::support::{Handshake, Mesh, certified, identity, leaf_params, minutes, now, rogue_client};

/// An authority's certificate and its key.
struct Authority {
    certificate: Certificate,
    key: KeyPair,
}

impl Authority {
    fn params(name: &str, serial: u64) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from(serial));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now() - minutes(2)).into();
        params.not_after = (now() + minutes(60)).into();
        params
    }

    fn root(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self { certificate: Self::params(name, 1).self_signed(&key).unwrap(), key }
    }

    fn issuer(&self) -> Issuer<'static, &KeyPair> {
        Issuer::from_ca_cert_der(self.certificate.der(), &self.key).unwrap()
    }

    fn intermediate(&self, name: &str, serial: u64) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = Self::params(name, serial).signed_by(&key, &self.issuer()).unwrap();
        Self { certificate, key }
    }

    /// A revocation list of these serial numbers, as PEM.
    fn revokes(&self, serials: &[u64]) -> String {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now().into(),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: (now() - minutes(2)).into(),
            next_update: (now() + minutes(60)).into(),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer()).unwrap().pem().unwrap()
    }
}

/// A mesh that trusts their root too, and a workload's chain that leads there through two intermediates.
struct Theirs {
    mesh: Mesh,
    root: Authority,
    /// The one below the root first; serial numbers 10 and 11.
    intermediates: [Authority; 2],
    /// Serial number 12.
    leaf: (Certificate, KeyPair),
}

impl Theirs {
    fn new() -> Self {
        let root = Authority::root("their root");
        let upper = root.intermediate("upper", 10);
        let lower = upper.intermediate("lower", 11);
        let key = KeyPair::generate().unwrap();
        let mut params = leaf_params(&identity("alice"));
        params.serial_number = Some(SerialNumber::from(12u64));
        let leaf = params.signed_by(&key, &lower.issuer()).unwrap();
        let theirs = Self { mesh: Mesh::new(), root, intermediates: [upper, lower], leaf: (leaf, key) };
        theirs.trust(&[]);
        theirs
    }

    /// Trusts their root, with these revocation lists.
    fn trust(&self, lists: &[String]) {
        let text = self.root.certificate.pem() + &lists.concat();
        fs::write(self.mesh.dir.path().join("trust.pem"), text).unwrap();
        self.mesh.ca.refresh().unwrap();
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        let [upper, lower] = &self.intermediates;
        [&self.leaf.0, &lower.certificate, &upper.certificate].map(|one| one.der().clone()).into()
    }

    /// What our server says to their client; `None` if it is let in.
    fn refusal(&self) -> Option<HandshakeFailure> {
        let key = certified(self.chain(), &self.leaf.1);
        let server = self.mesh.node(&["bob"]).server_config(&identity("bob")).unwrap();
        let handshake = Handshake::run(rogue_client(Some(key)), server);
        assert_eq!(handshake.succeeded(), handshake.server_failure().is_none());
        handshake.server_failure()
    }

    /// What is said of a connection that is open.
    fn standing(&self, chain: &PeerChain) -> Result<(), HandshakeFailure> {
        self.mesh.ca.trust().borrow().judge(chain)
    }
}

#[test]
fn whichever_of_a_chain_is_revoked_it_is_refused_and_what_is_open_falls() {
    let theirs = Theirs::new();
    let [upper, lower] = &theirs.intermediates;
    let chain = PeerChain::of_client(theirs.chain()).unwrap();
    assert_eq!((theirs.refusal(), theirs.standing(&chain)), (None, Ok(())));
    for (authority, serial) in [(&theirs.root, 10), (upper, 11), (lower, 12)] {
        theirs.trust(&[authority.revokes(&[serial])]);
        let revoked = HandshakeFailure::RevokedCertificate;
        assert_eq!((theirs.refusal(), theirs.standing(&chain)), (Some(revoked), Err(revoked)), "{serial}");
    }
    theirs.trust(&[]);
    assert_eq!((theirs.refusal(), theirs.standing(&chain)), (None, Ok(())));
}

#[test]
fn a_list_counts_for_what_its_own_authority_has_signed() {
    let theirs = Theirs::new();
    let [upper, lower] = &theirs.intermediates;
    theirs.trust(&[theirs.root.revokes(&[11, 12]), upper.revokes(&[10, 12]), lower.revokes(&[10, 11, 13])]);
    assert_eq!(theirs.refusal(), None);
    theirs.trust(&[theirs.root.revokes(&[]), upper.revokes(&[]), lower.revokes(&[12])]);
    assert_eq!(theirs.refusal(), Some(HandshakeFailure::RevokedCertificate));
}

#[test]
fn a_list_in_the_name_of_an_authority_that_did_not_sign_it_lets_nobody_in() {
    let theirs = Theirs::new();
    let forger = Authority::root("lower");
    theirs.trust(&[forger.revokes(&[])]);
    assert_eq!(theirs.refusal(), Some(HandshakeFailure::UntrustedCertificate));
}

#[test]
fn without_the_root_what_is_open_falls() {
    let theirs = Theirs::new();
    let chain = PeerChain::of_client(theirs.chain()).unwrap();
    fs::remove_file(theirs.mesh.dir.path().join("trust.pem")).unwrap();
    theirs.mesh.ca.refresh().unwrap();
    assert_eq!(theirs.standing(&chain), Err(HandshakeFailure::UntrustedCertificate));
    // A chain is good for the end that has shown it.
    theirs.trust(&[]);
    assert_eq!(theirs.standing(&chain), Ok(()));
}

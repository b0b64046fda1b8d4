//! The embedded authority: its files and what it signs.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Barrier;
use std::time::Duration;

use orlop_identity::{CertificateAuthority, DEFAULT_LIFETIME, EmbeddedCa, IdentityError, peer_identity};
use orlop_model::{Identity, TrustDomain};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::support::{Mesh, TempDir, identity, minutes, now, trust_domain, uri};

fn open(dir: &Path) -> Result<EmbeddedCa, IdentityError> {
    EmbeddedCa::open(dir, &trust_domain())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_first_opening_makes_a_root_that_the_next_finds() {
    let dir = TempDir::new();
    let nested = dir.path().join("a/b");
    let root = open(&nested).unwrap().roots();
    assert_eq!(open(&nested).unwrap().roots(), root);
    assert_eq!(mode(&nested), 0o700);
    for file in ["root-key.pem", "root-cert.pem"] {
        assert_eq!(mode(&nested.join(file)), 0o600, "{file}");
    }
}

#[test]
fn those_who_open_at_once_share_one_root() {
    for _ in 0..8 {
        let dir = TempDir::new();
        let start = Barrier::new(8);
        let roots: Vec<_> = std::thread::scope(|scope| {
            let open = || {
                start.wait();
                open(dir.path()).unwrap().roots()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(roots.iter().all(|root| *root == roots[0]));
    }
}

#[test]
fn the_root_is_an_authority_of_its_trust_domain_for_ten_years() {
    let mesh = Mesh::new();
    let der = mesh.ca.roots().remove(0);
    let (_, root) = X509Certificate::from_der(&der).unwrap();
    let constraints = root.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let usage = root.key_usage().unwrap().unwrap();
    assert!(usage.value.key_cert_sign() && usage.value.crl_sign() && !usage.value.digital_signature());
    let names = root.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [GeneralName::URI("spiffe://cluster.local")]);
    let begins = root.validity().not_before.timestamp();
    let days = (root.validity().not_after.timestamp() - begins) / (24 * 3600);
    assert_eq!(days, 3650);
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    for exposed in [0o640, 0o604, 0o660] {
        let mesh = Mesh::new();
        let key = mesh.dir.path().join("root-key.pem");
        fs::set_permissions(&key, Permissions::from_mode(exposed)).unwrap();
        let error = open(mesh.dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::KeyExposed { .. }), "{error}");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
}

#[test]
fn a_directory_that_others_can_write_is_refused() {
    let mesh = Mesh::new();
    fs::set_permissions(mesh.dir.path(), Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(open(mesh.dir.path()), Err(IdentityError::DirectoryExposed { .. })));
}

#[test]
fn half_a_root_is_refused_and_left_alone() {
    for (gone, kept) in [("root-key.pem", "root-cert.pem"), ("root-cert.pem", "root-key.pem")] {
        let mesh = Mesh::new();
        let before = fs::read(mesh.dir.path().join(kept)).unwrap();
        fs::remove_file(mesh.dir.path().join(gone)).unwrap();
        assert!(matches!(open(mesh.dir.path()), Err(IdentityError::HalfPresent { .. })), "{gone}");
        assert!(!mesh.dir.path().join(gone).exists());
        assert_eq!(fs::read(mesh.dir.path().join(kept)).unwrap(), before);
    }
}

#[test]
fn a_crash_between_the_two_names_is_made_good() {
    let mesh = Mesh::new();
    let at = |name: &str| mesh.dir.path().join(name);
    fs::rename(at("root-cert.pem"), at(".root-cert.pem.new")).unwrap();
    assert_eq!(open(mesh.dir.path()).unwrap().roots(), mesh.ca.roots());
}

#[test]
fn a_crash_before_the_first_name_leaves_a_fresh_start() {
    let dir = TempDir::new();
    fs::create_dir(dir.path()).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
    fs::write(dir.path().join(".root-cert.pem.new"), "half a certif").unwrap();
    fs::write(dir.path().join(".root-key.pem.new"), "half a k").unwrap();
    open(dir.path()).unwrap();
    assert_eq!(mode(&dir.path().join("root-key.pem")), 0o600);
}

#[test]
fn the_key_of_another_root_is_refused() {
    let (one, two) = (Mesh::new(), Mesh::new());
    fs::copy(one.dir.path().join("root-key.pem"), two.dir.path().join("root-key.pem")).unwrap();
    assert!(matches!(open(two.dir.path()), Err(IdentityError::KeyMismatch { .. })));
}

#[test]
fn files_that_hold_something_else_are_refused() {
    for file in ["root-key.pem", "root-cert.pem"] {
        for content in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let mesh = Mesh::new();
            fs::write(mesh.dir.path().join(file), content).unwrap();
            let error = open(mesh.dir.path()).unwrap_err();
            assert!(matches!(error, IdentityError::Unusable { .. }), "{file}: {error}");
        }
    }
}

#[test]
fn a_certificate_that_may_not_sign_is_no_root() {
    let mesh = Mesh::new();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri("spiffe://cluster.local")];
    let pem = params.self_signed(&mesh.root_key()).unwrap().pem();
    fs::write(mesh.dir.path().join("root-cert.pem"), pem).unwrap();
    assert!(matches!(open(mesh.dir.path()), Err(IdentityError::Unusable { .. })));
}

#[test]
fn a_root_of_another_trust_domain_is_refused() {
    let mesh = Mesh::new();
    let other: TrustDomain = "elsewhere.example".parse().unwrap();
    let error = EmbeddedCa::open(mesh.dir.path(), &other).unwrap_err();
    assert!(matches!(error, IdentityError::RootTrustDomain { .. }), "{error}");
}

#[test]
fn a_root_out_of_its_time_is_refused() {
    let years = |count: u64| Duration::from_secs(count * 366 * 24 * 3600);
    let dir = TempDir::new();
    EmbeddedCa::open_at(dir.path(), &trust_domain(), now() - years(10)).unwrap();
    assert!(matches!(open(dir.path()), Err(IdentityError::RootExpired { .. })));

    let dir = TempDir::new();
    EmbeddedCa::open_at(dir.path(), &trust_domain(), now() + years(1)).unwrap();
    assert!(matches!(open(dir.path()), Err(IdentityError::RootNotYetValid { .. })));
}

#[test]
fn a_directory_that_cannot_be_used_says_which() {
    let dir = TempDir::new();
    fs::write(dir.path(), "a file").unwrap();
    let error = open(&dir.path().join("ca")).unwrap_err();
    assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
    fs::remove_file(dir.path()).unwrap();
}

#[test]
fn a_workload_certificate_names_one_uri_and_nothing_else() {
    let mesh = Mesh::new();
    let made = mesh.obtain("alice", DEFAULT_LIFETIME, now()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&made.chain[0]).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "RFC 5280, 4.1.2.6: so it must be where there is no subject");
    assert_eq!(names.value.general_names, [GeneralName::URI(identity("alice").as_str())]);
    let purposes = leaf.extended_key_usage().unwrap().unwrap();
    assert!(purposes.value.server_auth && purposes.value.client_auth && !purposes.value.any);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 1, "digitalSignature alone");
    assert!(!leaf.is_ca());
    assert_eq!(peer_identity(&made.chain, &trust_domain()), Ok(identity("alice")));
}

#[test]
fn it_begins_two_minutes_ago_and_ends_after_its_lifetime() {
    let mesh = Mesh::new();
    let now = now();
    let made = mesh.obtain("alice", minutes(60), now).unwrap();
    let second = Duration::from_secs(1);
    assert!(now - minutes(2) - second < made.not_before && made.not_before <= now - minutes(2));
    assert!(now + minutes(60) - second < made.not_after && made.not_after <= now + minutes(60));
}

#[test]
fn it_ends_with_the_root_at_the_latest() {
    let mesh = Mesh::new();
    let made = mesh.obtain("alice", Duration::MAX, now()).unwrap();
    let der = mesh.ca.roots().remove(0);
    let root_ends = X509Certificate::from_der(&der).unwrap().1.validity().not_after.timestamp();
    let ends = made.not_after.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(ends, u64::try_from(root_ends).unwrap());
}

#[test]
fn serial_numbers_are_128_random_bits() {
    let mesh = Mesh::new();
    let serials: Vec<String> =
        (0..32).map(|_| mesh.obtain("alice", minutes(60), now()).unwrap().serial).collect();
    let longest = serials.iter().map(String::len).max();
    assert_eq!(longest, Some(32));
    assert_eq!(serials.iter().collect::<std::collections::HashSet<_>>().len(), serials.len());
}

#[test]
fn names_in_the_request_count_for_nothing() {
    let mesh = Mesh::new();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(identity("admin").as_str())];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let issued = mesh.ca.sign(&identity("alice"), request.der(), minutes(60), now()).unwrap();
    assert_eq!(peer_identity(&issued.certificates, &trust_domain()), Ok(identity("alice")));
    assert!(!X509Certificate::from_der(&issued.certificates[0]).unwrap().1.is_ca());
}

#[test]
fn bad_requests_are_refused() {
    let mesh = Mesh::new();
    let request = |key: &KeyPair| CertificateParams::default().serialize_request(key).unwrap().der().to_vec();
    let mut tampered = request(&KeyPair::generate().unwrap());
    *tampered.last_mut().unwrap() ^= 1;
    let requests = [
        b"nonsense".to_vec(),
        Vec::new(),
        tampered,
        request(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap()),
        request(&KeyPair::generate_for(&PKCS_ED25519).unwrap()),
    ];
    for request in requests {
        let refused = mesh.ca.sign(&identity("alice"), &request, minutes(60), now()).err();
        assert!(matches!(refused, Some(IdentityError::Request(_))), "{refused:?}");
    }
}

#[test]
fn another_trust_domain_is_not_signed_for() {
    let mesh = Mesh::new();
    let elsewhere: TrustDomain = "elsewhere.example".parse().unwrap();
    let foreign = Identity::new(&elsewhere, "shop", "alice");
    let request = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let refused = mesh.ca.sign(&foreign, request.der(), minutes(60), now()).err();
    assert!(matches!(refused, Some(IdentityError::ForeignTrustDomain { .. })), "{refused:?}");
}

#[test]
fn nothing_is_signed_after_the_root_has_expired() {
    let mesh = Mesh::new();
    let later = now() + Duration::from_secs(11 * 366 * 24 * 3600);
    let refused = mesh.obtain("alice", minutes(60), later).err();
    assert!(matches!(refused, Some(IdentityError::RootExpired { .. })), "{refused:?}");
}

#[test]
fn debug_output_holds_no_key() {
    let mesh = Mesh::new();
    let node = mesh.node(&["alice", "bob"]);
    let made = mesh.obtain("alice", minutes(60), now()).unwrap();
    let client = node.client_config(&identity("alice"), &identity("bob")).unwrap();
    let server = node.server_config(&identity("bob")).unwrap();
    let printed =
        format!("{:?} {made:?} {:?} {node:?} {:?} {client:?} {server:?}", mesh.ca, made.key, node.dump());

    // PKCS#8 around RFC 5915: the secret is the octet string before the public key.
    let der = mesh.root_key().serialize_der();
    assert_eq!(der[34..36], [0x04, 32]);
    let secret = &der[36..68];
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!printed.contains(&hex) && !printed.contains(&hex.to_uppercase()));
    assert!(!printed.contains(format!("{secret:?}").trim_matches(['[', ']'])));
    assert!(!printed.contains("PRIVATE KEY"));
}

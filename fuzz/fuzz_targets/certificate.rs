//! The names in a peer's certificate. The chain is rustls's to verify; here a byte more or less makes somebody
//! else of a peer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orlop_identity::{fuzzing, peer_identity};
use orlop_model::{Identity, TrustDomain};
use rustls_pki_types::CertificateDer;

fuzz_target!(|input: &[u8]| {
    let ours: TrustDomain = "cluster.local".parse().expect("it is one");
    // As the text of a name...
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(identity) = text.parse::<Identity>()
    {
        let domain: TrustDomain = identity.trust_domain().parse().expect("an identity has a trust domain");
        let again = Identity::new(&domain, identity.namespace(), identity.service_account());
        assert_eq!(again.as_str(), text, "two texts must not be one identity");
    }
    // ...and as a whole certificate.
    let certificate = CertificateDer::from(input);
    let presented = peer_identity(std::slice::from_ref(&certificate), &ours);
    if let Ok(identity) = &presented {
        assert_eq!(identity.trust_domain(), ours.as_str());
    }
    for identity in fuzzing::in_either_role(&certificate, &ours) {
        assert_eq!(presented.as_ref(), Ok(&identity), "the handshake and its user must see the same peer");
    }
});

//! The keys of an issuer, and what they have signed.

use std::fmt;

use aws_lc_rs::signature::{self, ParsedPublicKey, RsaParameters, RsaPublicKeyComponents};
use orlop_model::world::{Algorithm, KeyMaterial, KeySetError, PublicKey, keys_of};

/// The keys of an issuer.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<Key>,
}

/// A key that verifies.
pub(super) struct Key {
    public: PublicKey,
    /// Of a curve. One of RSA is for several algorithms.
    parsed: Option<ParsedPublicKey>,
}

impl KeySet {
    /// Reads a JSON Web Key Set. Keys in it that are of no use here are passed over, as RFC 7517 has it.
    pub fn read(text: &[u8]) -> Result<Self, KeySetError> {
        let keys = keys_of(text)?;
        Ok(Self { keys: keys.into_iter().flatten().filter_map(Key::new).collect() })
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Those that may have signed a token with this `kid`, by this algorithm.
    pub(super) fn candidates(&self, id: Option<&str>, algorithm: Algorithm) -> impl Iterator<Item = &Key> {
        self.keys.iter().filter(move |key| {
            let is_it = match (id, &key.public.id) {
                (Some(wanted), Some(id)) => wanted == id,
                _ => true,
            };
            is_it && key.public.is_for(algorithm)
        })
    }
}

impl Key {
    fn new(public: PublicKey) -> Option<Self> {
        let parsed = match &public.material {
            KeyMaterial::Rsa { n, e } => {
                let key = RsaPublicKeyComponents { n, e };
                key.to_parsed_public_key(&signature::RSA_PKCS1_2048_8192_SHA256).ok()?;
                None
            }
            KeyMaterial::Point(algorithm, point) => {
                Some(ParsedPublicKey::new(of_curve(*algorithm)?, point).ok()?)
            }
        };
        Some(Self { public, parsed })
    }

    /// Whether it has signed this.
    pub fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        if !self.public.is_for(algorithm) {
            return false;
        }
        match &self.public.material {
            KeyMaterial::Rsa { n, e } => {
                let key = RsaPublicKeyComponents { n, e };
                of_rsa(algorithm).is_some_and(|parameters| key.verify(parameters, message, signature).is_ok())
            }
            KeyMaterial::Point(..) => {
                self.parsed.as_ref().is_some_and(|key| key.verify_sig(message, signature).is_ok())
            }
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PublicKey { id, only, .. } = &self.public;
        f.debug_struct("Key").field("id", id).field("only", only).finish_non_exhaustive()
    }
}

fn of_rsa(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    match algorithm {
        Algorithm::Rs256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::Rs384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::Rs512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::Ps256 => Some(&signature::RSA_PSS_2048_8192_SHA256),
        Algorithm::Ps384 => Some(&signature::RSA_PSS_2048_8192_SHA384),
        Algorithm::Ps512 => Some(&signature::RSA_PSS_2048_8192_SHA512),
        Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512 | Algorithm::EdDsa => None,
    }
}

fn of_curve(algorithm: Algorithm) -> Option<&'static dyn signature::VerificationAlgorithm> {
    match algorithm {
        Algorithm::Es256 => Some(&signature::ECDSA_P256_SHA256_FIXED),
        Algorithm::Es384 => Some(&signature::ECDSA_P384_SHA384_FIXED),
        Algorithm::Es512 => Some(&signature::ECDSA_P521_SHA512_FIXED),
        Algorithm::EdDsa => Some(&signature::ED25519),
        _ => None,
    }
}

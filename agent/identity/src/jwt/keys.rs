//! JSON Web Keys (RFC 7517, RFC 7518 section 6, RFC 8037): what may verify a token, each with the algorithms that it is
//! for. A key for anything else, such as one that is secret, is none.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::signature::{self, ParsedPublicKey, RsaParameters, RsaPublicKeyComponents};
use orlop_model::http::Claim;
use orlop_model::world::{KeySetError, keys_of};

use super::base64;

/// Of RSA, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// An algorithm of JWS with a public key (RFC 7518, section 3.1, RFC 8037): no other is ever taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl Algorithm {
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            // RFC 9864 has the second name.
            "EdDSA" | "Ed25519" => Self::EdDsa,
            _ => return None,
        })
    }

    fn of_rsa(self) -> Option<&'static RsaParameters> {
        match self {
            Self::Rs256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
            Self::Ps256 => Some(&signature::RSA_PSS_2048_8192_SHA256),
            Self::Ps384 => Some(&signature::RSA_PSS_2048_8192_SHA384),
            Self::Ps512 => Some(&signature::RSA_PSS_2048_8192_SHA512),
            _ => None,
        }
    }
}

/// The keys of an issuer.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<Key>,
}

/// A key that verifies.
pub(super) struct Key {
    id: Option<String>,
    /// The only algorithm that it is for, where it says so.
    only: Option<Algorithm>,
    material: Material,
}

enum Material {
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    /// Of a curve, and so for one algorithm.
    Curve(Algorithm, ParsedPublicKey),
}

impl KeySet {
    /// Reads a JSON Web Key Set. Keys in it that are of no use here are passed over, as RFC 7517 has it.
    pub fn read(text: &[u8]) -> Result<Self, KeySetError> {
        let keys = keys_of(text)?;
        Ok(Self { keys: keys.iter().filter_map(Key::read).collect() })
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
            let is_it = match (id, &key.id) {
                (Some(wanted), Some(id)) => wanted == id,
                _ => true,
            };
            is_it && key.is_for(algorithm)
        })
    }
}

impl Key {
    fn read(key: &BTreeMap<String, Claim>) -> Option<Self> {
        let text = |name: &str| match key.get(name) {
            None => Some(None),
            Some(Claim::Text(text)) => Some(Some(text.as_str())),
            Some(_) => None,
        };
        if text("use")?.is_some_and(|of| of != "sig") {
            return None;
        }
        match key.get("key_ops") {
            None => {}
            Some(Claim::List(of)) if of.contains(&Claim::Text("verify".to_owned())) => {}
            Some(_) => return None,
        }
        let only = match text("alg")? {
            Some(name) => Some(Algorithm::named(name)?),
            None => None,
        };
        let bytes = |name: &str| base64::decode(text(name)??.as_bytes());
        let material = match (text("kty")??, text("crv")?) {
            ("RSA", _) => Material::rsa(bytes("n")?, bytes("e")?)?,
            ("EC", Some("P-256")) => {
                let point = point(&bytes("x")?, &bytes("y")?, 32)?;
                Material::curve(Algorithm::Es256, &signature::ECDSA_P256_SHA256_FIXED, &point)?
            }
            ("EC", Some("P-384")) => {
                let point = point(&bytes("x")?, &bytes("y")?, 48)?;
                Material::curve(Algorithm::Es384, &signature::ECDSA_P384_SHA384_FIXED, &point)?
            }
            ("EC", Some("P-521")) => {
                let point = point(&bytes("x")?, &bytes("y")?, 66)?;
                Material::curve(Algorithm::Es512, &signature::ECDSA_P521_SHA512_FIXED, &point)?
            }
            ("OKP", Some("Ed25519")) => {
                let point = bytes("x")?;
                if point.len() != 32 {
                    return None;
                }
                Material::curve(Algorithm::EdDsa, &signature::ED25519, &point)?
            }
            _ => return None,
        };
        let key = Self { id: text("kid")?.map(str::to_owned), only, material };
        only.is_none_or(|algorithm| key.is_for(algorithm)).then_some(key)
    }

    /// What a token says that it is signed by must be what this key is for.
    fn is_for(&self, algorithm: Algorithm) -> bool {
        let can = match &self.material {
            Material::Rsa(_) => algorithm.of_rsa().is_some(),
            Material::Curve(of, _) => *of == algorithm,
        };
        can && self.only.is_none_or(|only| only == algorithm)
    }

    /// Whether it has signed this.
    pub fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        if !self.is_for(algorithm) {
            return false;
        }
        match &self.material {
            Material::Rsa(key) => algorithm
                .of_rsa()
                .is_some_and(|parameters| key.verify(parameters, message, signature).is_ok()),
            Material::Curve(_, key) => key.verify_sig(message, signature).is_ok(),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("only", &self.only).finish_non_exhaustive()
    }
}

impl Material {
    fn rsa(n: Vec<u8>, e: Vec<u8>) -> Option<Self> {
        let (n, e) = (without_zeros(n), without_zeros(e));
        let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
        // With an exponent of 1 whatever is written is its own signature.
        let is_odd = e.last()? % 2 == 1;
        if !RSA_BITS.contains(&bits) || !is_odd || e == [1] || e.len() > 4 {
            return None;
        }
        let key = RsaPublicKeyComponents { n, e };
        key.to_parsed_public_key(&signature::RSA_PKCS1_2048_8192_SHA256).ok()?;
        Some(Self::Rsa(key))
    }

    fn curve(
        algorithm: Algorithm,
        verification: &'static dyn signature::VerificationAlgorithm,
        point: &[u8],
    ) -> Option<Self> {
        Some(Self::Curve(algorithm, ParsedPublicKey::new(verification, point).ok()?))
    }
}

/// A point in its uncompressed form (SEC 1, section 2.3.3).
fn point(x: &[u8], y: &[u8], length: usize) -> Option<Vec<u8>> {
    (x.len() == length && y.len() == length).then(|| [&[4], x, y].concat())
}

fn without_zeros(mut bytes: Vec<u8>) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    bytes
}

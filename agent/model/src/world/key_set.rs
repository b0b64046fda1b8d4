//! JSON Web Keys (RFC 7517, RFC 7518 section 6, RFC 8037): what may verify a token, each with the algorithms that it is
//! for. A key for anything else, such as one that is secret, is none.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::base64;
use crate::http::Claim;
use crate::json;

/// A key set may be this long, in bytes.
pub const MAX_KEY_SET: usize = 256 << 10;
/// A set of more keys is refused.
pub const MAX_KEYS: usize = 100;
/// Of RSA, in bits.
const RSA_BITS: RangeInclusive<usize> = 2048..=8192;
/// Values in one.
const MAX_VALUES: usize = 10_000;

/// A text is no key set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Too long.
    #[error("it is longer than {MAX_KEY_SET} bytes")]
    TooLong,
    /// Not JSON, or not such as can be read in one way only.
    #[error("it {0}")]
    Json(String),
    /// Something else.
    #[error("it has no list of keys, written {{\"keys\": […]}}")]
    NoKeys,
    /// Too many.
    #[error("it has more than {MAX_KEYS} keys")]
    TooMany,
}

/// An algorithm of JWS with a public key (RFC 7518, section 3.1, RFC 8037): no other is ever taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// The same with SHA-384.
    Rs384,
    /// The same with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// The same with SHA-384.
    Ps384,
    /// The same with SHA-512.
    Ps512,
    /// ECDSA of P-256 with SHA-256.
    Es256,
    /// ECDSA of P-384 with SHA-384.
    Es384,
    /// ECDSA of P-521 with SHA-512.
    Es512,
    /// Ed25519.
    EdDsa,
}

/// A public key, as it is written: whether its point is on the curve sees whoever verifies by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// `kid`
    pub id: Option<String>,
    /// The only algorithm that it is for, where it says so.
    pub only: Option<Algorithm>,
    /// What it consists of.
    pub material: KeyMaterial,
}

/// What a public key consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyMaterial {
    /// Of RSA, without zeros in front.
    Rsa {
        /// The modulus.
        n: Vec<u8>,
        /// The exponent.
        e: Vec<u8>,
    },
    /// A point of a curve, and so for one algorithm.
    Point(Algorithm, Vec<u8>),
}

/// What a JSON Web Key Set (RFC 7517, section 5) has as keys: `None` for each that nobody here could verify a token by, and
/// for what is no key at all, which are passed over.
pub fn keys_of(text: &[u8]) -> Result<Vec<Option<PublicKey>>, KeySetError> {
    if text.len() > MAX_KEY_SET {
        return Err(KeySetError::TooLong);
    }
    let mut set = json::object(text, MAX_VALUES).map_err(KeySetError::Json)?;
    let Some(Claim::List(keys)) = set.remove("keys") else { return Err(KeySetError::NoKeys) };
    if keys.len() > MAX_KEYS {
        return Err(KeySetError::TooMany);
    }
    let keys = keys.iter().map(|key| match key {
        Claim::Object(key) => PublicKey::read(key),
        _ => None,
    });
    Ok(keys.collect())
}

impl Algorithm {
    /// By its `alg`.
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

    fn is_of_rsa(self) -> bool {
        matches!(self, Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 | Self::Ps384 | Self::Ps512)
    }
}

impl PublicKey {
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
            ("RSA", _) => KeyMaterial::rsa(bytes("n")?, bytes("e")?)?,
            ("EC", Some("P-256")) => {
                KeyMaterial::Point(Algorithm::Es256, point(&bytes("x")?, &bytes("y")?, 32)?)
            }
            ("EC", Some("P-384")) => {
                KeyMaterial::Point(Algorithm::Es384, point(&bytes("x")?, &bytes("y")?, 48)?)
            }
            ("EC", Some("P-521")) => {
                KeyMaterial::Point(Algorithm::Es512, point(&bytes("x")?, &bytes("y")?, 66)?)
            }
            ("OKP", Some("Ed25519")) => {
                KeyMaterial::Point(Algorithm::EdDsa, bytes("x").filter(|x| x.len() == 32)?)
            }
            _ => return None,
        };
        let id = text("kid")?.map(str::to_owned);
        only.is_none_or(|algorithm| material.is_for(algorithm)).then_some(Self { id, only, material })
    }

    /// What a token says that it is signed by must be what this key is for.
    pub fn is_for(&self, algorithm: Algorithm) -> bool {
        self.material.is_for(algorithm) && self.only.is_none_or(|only| only == algorithm)
    }
}

impl KeyMaterial {
    fn rsa(n: Vec<u8>, e: Vec<u8>) -> Option<Self> {
        let (n, e) = (without_zeros(n), without_zeros(e));
        let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
        // With an exponent of 1 whatever is written is its own signature.
        let is_odd = e.last()? % 2 == 1;
        (RSA_BITS.contains(&bits) && is_odd && e != [1] && e.len() <= 4).then_some(Self::Rsa { n, e })
    }

    fn is_for(&self, algorithm: Algorithm) -> bool {
        match self {
            Self::Rsa { .. } => algorithm.is_of_rsa(),
            Self::Point(of, _) => *of == algorithm,
        }
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

//! What is in the Secret of the root: pure.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

/// A root that the controller made: its key and its certificate, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct RootPair {
    /// PKCS#8.
    pub key: Vec<u8>,
    /// Self-signed.
    pub certificate: Vec<u8>,
}

/// What signs, and whom everybody is to trust.
#[derive(Clone, PartialEq, Eq)]
pub struct RootSecret {
    /// PEM: PKCS#8, PKCS#1 or SEC1.
    pub key: Vec<u8>,
    /// The certificate that it signs with, PEM.
    pub certificate: Vec<u8>,
    /// From that certificate to its root, PEM.
    pub chain: Vec<u8>,
    /// Every root that is trusted, PEM: that of the certificate first.
    pub roots: Vec<u8>,
}

/// What only somebody can tell who reads certificates.
pub trait RootJudge {
    /// A new root; `None` after an error, which is logged.
    fn generate(&self) -> Option<RootPair>;
    /// The same with the root first that its certificate leads to, or why nothing can be signed with it.
    fn usable(&self, root: &RootSecret) -> Result<RootSecret, String>;
}

impl RootSecret {
    /// Reads Istio's layout of `cacerts`, or cert-manager's of `kubernetes.io/tls`; of the controller's own Secret also
    /// what is trusted beside what signs.
    pub fn read(secret: &Secret) -> Result<Self, String> {
        let signing = Self::signing(secret)?;
        let next = Self::next(secret).map(|next| next.roots);
        let roots = [Some(signing.roots.clone()), next, get(secret, PREVIOUS)];
        Ok(Self { roots: lines(roots.into_iter().flatten()), ..signing })
    }

    /// What signs now, and its own roots alone.
    pub(super) fn signing(secret: &Secret) -> Result<Self, String> {
        let need = |name: &str| get(secret, name).ok_or_else(|| format!("{name} is missing"));
        if get(secret, CURRENT.certificate).is_none() && get(secret, "tls.crt").is_some() {
            let chain = need("tls.crt")?;
            let (key, roots) = (need("tls.key")?, need("ca.crt")?);
            return Ok(Self { key, certificate: chain.clone(), chain, roots });
        }
        let certificate = need(CURRENT.certificate)?;
        let roots = need(CURRENT.roots)?;
        let chain = get(secret, CURRENT.chain).unwrap_or_else(|| certificate.clone());
        Ok(Self { key: need(CURRENT.key)?, certificate, chain, roots })
    }

    /// What is trusted already and does not sign yet.
    pub(super) fn next(secret: &Secret) -> Option<Self> {
        let (key, certificate) = (get(secret, NEXT.key)?, get(secret, NEXT.certificate)?);
        let or_itself = |name: &str| get(secret, name).unwrap_or_else(|| certificate.clone());
        let (chain, roots) = (or_itself(NEXT.chain), or_itself(NEXT.roots));
        Some(Self { key, certificate, chain, roots })
    }

    /// Whether the same key signs with the same certificate.
    pub(super) fn signs_as(&self, other: &Self) -> bool {
        self.key.trim_ascii() == other.key.trim_ascii()
            && certificates(&self.certificate) == certificates(&other.certificate)
    }

    /// Whether it says the same in other bytes.
    pub(super) fn is_alike(&self, other: &Self) -> bool {
        self.signs_as(other)
            && certificates(&self.chain) == certificates(&other.chain)
            && certificates(&self.roots) == certificates(&other.roots)
    }
}

impl From<RootPair> for RootSecret {
    fn from(RootPair { key, certificate }: RootPair) -> Self {
        Self { key, chain: certificate.clone(), roots: certificate.clone(), certificate }
    }
}

/// Has it sign from now on, in a Secret that has not signed before.
pub(super) fn make(secret: &mut Secret, root: &RootSecret) {
    secret.type_ = Some(TYPE.to_owned());
    put(secret, &CURRENT, root);
    mark(secret);
}

/// Says that what is there is what signs, whatever is plugged in.
pub(super) fn mark(secret: &mut Secret) {
    secret.metadata.annotations.get_or_insert_default().insert(SIGNS.to_owned(), "true".to_owned());
}

/// Whether that is said: earlier versions left a root there unused where another was plugged in.
pub(super) fn is_marked(secret: &Secret) -> bool {
    secret.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(SIGNS))
}

/// Has it sign from now on, instead of what signed and what was to sign next.
pub(super) fn sign_with(secret: &mut Secret, root: &RootSecret) {
    put(secret, &CURRENT, root);
    remove_next(secret);
}

/// Has it be trusted from now on, and sign nothing.
pub(super) fn put_next(secret: &mut Secret, root: &RootSecret) {
    put(secret, &NEXT, root);
}

pub(super) fn remove_next(secret: &mut Secret) {
    let data = secret.data.get_or_insert_default();
    for name in [NEXT.key, NEXT.certificate, NEXT.chain, NEXT.roots] {
        data.remove(name);
    }
}

/// The roots of those that signed before.
pub(super) fn previous(secret: &Secret) -> Vec<String> {
    get(secret, PREVIOUS).map(|roots| certificates(&roots)).unwrap_or_default()
}

/// Has them be trusted still.
pub(super) fn put_previous(secret: &mut Secret, roots: &[String]) {
    let data = secret.data.get_or_insert_default();
    if roots.is_empty() {
        data.remove(PREVIOUS);
    } else {
        data.insert(PREVIOUS.to_owned(), ByteString(roots.concat().into_bytes()));
    }
}

/// The certificates of a PEM text, each as it would be written by itself; what stands between them is left out.
pub(super) fn certificates(pem: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(pem);
    let parts = text.split(BEGIN).skip(1).filter_map(|part| part.split_once(END));
    let mut found = Vec::new();
    for (body, _) in parts {
        let lines: Vec<_> = body.split_ascii_whitespace().collect();
        let one = format!("{BEGIN}\n{}\n{END}\n", lines.join("\n"));
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

fn put(secret: &mut Secret, names: &Names, root: &RootSecret) {
    let data = secret.data.get_or_insert_default();
    let RootSecret { key, certificate, chain, roots } = root;
    for (name, value) in
        [(names.key, key), (names.certificate, certificate), (names.chain, chain), (names.roots, roots)]
    {
        data.insert(name.to_owned(), ByteString(value.clone()));
    }
}

fn get(secret: &Secret, name: &str) -> Option<Vec<u8>> {
    let data: &BTreeMap<_, _> = secret.data.as_ref()?;
    data.get(name).map(|bytes| bytes.0.clone()).filter(|bytes| !bytes.is_empty())
}

/// One after the other, each ending with a line break.
fn lines(parts: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut all = Vec::new();
    for part in parts {
        all.extend(part.trim_ascii());
        all.push(b'\n');
    }
    all
}

/// What an authority's parts are called in a Secret.
struct Names {
    key: &'static str,
    certificate: &'static str,
    chain: &'static str,
    roots: &'static str,
}

/// Istio's layout.
const CURRENT: Names =
    Names { key: "ca-key.pem", certificate: "ca-cert.pem", chain: "cert-chain.pem", roots: "root-cert.pem" };
const NEXT: Names = Names {
    key: "next-key.pem",
    certificate: "next-cert.pem",
    chain: "next-chain.pem",
    roots: "next-root.pem",
};
const PREVIOUS: &str = "previous-cert.pem";
const SIGNS: &str = "orlop.dev/signs";
const TYPE: &str = "orlop.dev/ca-root";

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cert_managers_layout_is_read_too() {
        let data = [("tls.crt", "issuer\nroot"), ("tls.key", "key"), ("ca.crt", "root")];
        let data = data.map(|(name, value)| (name.to_owned(), ByteString(value.as_bytes().to_vec())));
        let found = RootSecret::read(&Secret { data: Some(data.into()), ..Secret::default() }).unwrap();
        assert_eq!((found.key, found.roots), (b"key".to_vec(), b"root\n".to_vec()));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(RootSecret::read(&Secret::default()).err().unwrap(), "ca-cert.pem is missing");
    }

    #[test]
    fn certificates_are_told_by_what_is_in_them_alone() {
        let text =
            format!("subject=one\n{BEGIN}\r\nAA\r\nBB\r\n{END}\n{BEGIN}\nCC\n{END}{BEGIN}\nAA\nBB\n{END}");
        let of = |body: &str| format!("{BEGIN}\n{body}\n{END}\n");
        assert_eq!(certificates(text.as_bytes()), [of("AA\nBB"), of("CC")]);
        for odd in ["", "\u{fffd}", BEGIN, END] {
            assert!(certificates(odd.as_bytes()).is_empty(), "{odd:?}");
        }
    }
}

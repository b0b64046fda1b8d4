//! What is in the Secret of the root, and how its rotation goes on: pure.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;

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

/// The next step of a rotation that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootStep {
    /// Make the next root, which is trusted and signs nothing.
    Begin,
    /// Have it sign.
    Switch,
    /// Trust the previous one no more.
    Finish,
}

/// How long the steps of a rotation are apart.
#[derive(Clone, Copy, Debug)]
pub struct RotationTiming {
    /// Until every node has a new bundle of roots.
    pub spread: Duration,
    /// Until no certificate of the previous root is in use: the lifetime of a workload's.
    pub lifetime: Duration,
}

impl RootSecret {
    /// Reads Istio's layout of `cacerts`, or cert-manager's of `kubernetes.io/tls`.
    pub fn read(secret: &Secret) -> Result<Self, String> {
        let none = BTreeMap::new();
        let data = secret.data.as_ref().unwrap_or(&none);
        let get = |name: &str| data.get(name).map(|bytes| bytes.0.clone()).filter(|bytes| !bytes.is_empty());
        let need = |name: &str| get(name).ok_or_else(|| format!("{name} is missing"));
        if !data.contains_key(CERTIFICATE) && data.contains_key("tls.crt") {
            let chain = need("tls.crt")?;
            return Ok(Self {
                key: need("tls.key")?,
                certificate: chain.clone(),
                chain,
                roots: need("ca.crt")?,
            });
        }
        let certificate = need(CERTIFICATE)?;
        let roots = [Some(need(ROOT)?), get(NEXT_CERTIFICATE), get(PREVIOUS_CERTIFICATE)];
        let chain = get(CHAIN).unwrap_or_else(|| certificate.clone());
        Ok(Self { key: need(KEY)?, certificate, chain, roots: lines(roots.into_iter().flatten()) })
    }
}

/// A Secret with a new root in it.
pub(super) fn make(secret: &mut Secret, root: &RootPair) {
    secret.type_ = Some(TYPE.to_owned());
    let data = secret.data.get_or_insert_default();
    data.insert(KEY.to_owned(), ByteString(root.key.clone()));
    for name in [CERTIFICATE, ROOT, CHAIN] {
        data.insert(name.to_owned(), ByteString(root.certificate.clone()));
    }
}

/// What is due at `now`. A rotation is asked for by changing the annotation `orlop.dev/rotate`.
pub(super) fn due(secret: &Secret, now: Timestamp, timing: RotationTiming) -> Option<RootStep> {
    let has = |name: &str| secret.data.as_ref().is_some_and(|data| data.contains_key(name));
    let since = |name: &str| {
        // One that can't be read was just made: it is the safe side.
        let at: Timestamp = annotation(secret, name)?.parse().ok()?;
        Duration::try_from(now.duration_since(at)).ok()
    };
    if has(PREVIOUS_CERTIFICATE) {
        return since(SWITCHED).filter(|since| *since >= timing.lifetime).map(|_| RootStep::Finish);
    }
    if has(NEXT_CERTIFICATE) {
        return since(BEGUN).filter(|since| *since >= timing.spread).map(|_| RootStep::Switch);
    }
    let asked = annotation(secret, ROTATE);
    (asked.is_some() && asked != annotation(secret, ROTATED)).then_some(RootStep::Begin)
}

/// Takes a step that is due. `next` is for [`RootStep::Begin`].
pub(super) fn step(secret: &mut Secret, step: RootStep, next: Option<&RootPair>, now: Timestamp) {
    let asked = annotation(secret, ROTATE).map(str::to_owned);
    let data = secret.data.get_or_insert_default();
    let annotations = secret.metadata.annotations.get_or_insert_default();
    match step {
        RootStep::Begin => {
            let Some(next) = next else { return };
            data.insert(NEXT_KEY.to_owned(), ByteString(next.key.clone()));
            data.insert(NEXT_CERTIFICATE.to_owned(), ByteString(next.certificate.clone()));
            annotations.insert(BEGUN.to_owned(), now.to_string());
            annotations.insert(ROTATED.to_owned(), asked.unwrap_or_default());
        }
        RootStep::Switch => {
            let (Some(key), Some(certificate)) = (data.remove(NEXT_KEY), data.remove(NEXT_CERTIFICATE))
            else {
                return;
            };
            if let Some(previous) = data.insert(CERTIFICATE.to_owned(), certificate.clone()) {
                data.insert(PREVIOUS_CERTIFICATE.to_owned(), previous);
            }
            data.insert(KEY.to_owned(), key);
            data.insert(ROOT.to_owned(), certificate.clone());
            data.insert(CHAIN.to_owned(), certificate);
            annotations.remove(BEGUN);
            annotations.insert(SWITCHED.to_owned(), now.to_string());
        }
        RootStep::Finish => {
            data.remove(PREVIOUS_CERTIFICATE);
            annotations.remove(SWITCHED);
        }
    }
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(name).map(String::as_str)
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

const TYPE: &str = "orlop.dev/ca-root";
const KEY: &str = "ca-key.pem";
const CERTIFICATE: &str = "ca-cert.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOT: &str = "root-cert.pem";
const NEXT_KEY: &str = "next-key.pem";
const NEXT_CERTIFICATE: &str = "next-cert.pem";
const PREVIOUS_CERTIFICATE: &str = "previous-cert.pem";

const ROTATE: &str = "orlop.dev/rotate";
const ROTATED: &str = "orlop.dev/rotated";
const BEGUN: &str = "orlop.dev/rotation-begun";
const SWITCHED: &str = "orlop.dev/root-switched";

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: RotationTiming =
        RotationTiming { spread: Duration::from_secs(600), lifetime: Duration::from_secs(86_400) };

    fn pair(name: &str) -> RootPair {
        RootPair { key: format!("{name} key").into_bytes(), certificate: format!("{name} cert").into_bytes() }
    }

    fn secret() -> Secret {
        let mut secret = Secret::default();
        make(&mut secret, &pair("first"));
        secret
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn roots(secret: &Secret) -> String {
        String::from_utf8(RootSecret::read(secret).unwrap().roots).unwrap()
    }

    fn ask(secret: &mut Secret, word: &str) {
        secret.metadata.annotations.get_or_insert_default().insert(ROTATE.to_owned(), word.to_owned());
    }

    #[test]
    fn nothing_is_due_before_somebody_asks() {
        assert_eq!(due(&secret(), at(0), TIMING), None);
        assert_eq!(due(&secret(), at(1 << 30), TIMING), None);
    }

    #[test]
    fn a_rotation_overlaps_both_roots() {
        let mut secret = secret();
        ask(&mut secret, "2026");
        assert_eq!(due(&secret, at(0), TIMING), Some(RootStep::Begin));
        step(&mut secret, RootStep::Begin, Some(&pair("second")), at(0));
        assert_eq!(roots(&secret), "first cert\nsecond cert\n");
        assert_eq!(RootSecret::read(&secret).unwrap().key, b"first key");

        assert_eq!(due(&secret, at(599), TIMING), None);
        assert_eq!(due(&secret, at(600), TIMING), Some(RootStep::Switch));
        step(&mut secret, RootStep::Switch, None, at(600));
        assert_eq!(roots(&secret), "second cert\nfirst cert\n");
        assert_eq!(RootSecret::read(&secret).unwrap().key, b"second key");

        assert_eq!(due(&secret, at(600 + 86_399), TIMING), None);
        assert_eq!(due(&secret, at(600 + 86_400), TIMING), Some(RootStep::Finish));
        step(&mut secret, RootStep::Finish, None, at(87_000));
        assert_eq!(roots(&secret), "second cert\n");
        // The same word asks for nothing further.
        assert_eq!(due(&secret, at(1 << 30), TIMING), None);
        ask(&mut secret, "2027");
        assert_eq!(due(&secret, at(1 << 30), TIMING), Some(RootStep::Begin));
    }

    #[test]
    fn a_time_that_cannot_be_read_ends_no_overlap() {
        let mut secret = secret();
        step(&mut secret, RootStep::Begin, Some(&pair("second")), at(0));
        secret.metadata.annotations.as_mut().unwrap().insert(BEGUN.to_owned(), "yesterday".to_owned());
        assert_eq!(due(&secret, at(1 << 30), TIMING), None);
    }

    #[test]
    fn cert_managers_layout_is_read_too() {
        let data = [("tls.crt", "issuer\nroot"), ("tls.key", "key"), ("ca.crt", "root")];
        let data = data.map(|(name, value)| (name.to_owned(), ByteString(value.as_bytes().to_vec())));
        let found = RootSecret::read(&Secret { data: Some(data.into()), ..Secret::default() }).unwrap();
        assert_eq!((found.key, found.roots), (b"key".to_vec(), b"root".to_vec()));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(RootSecret::read(&Secret::default()).err().unwrap(), "ca-cert.pem is missing");
    }
}

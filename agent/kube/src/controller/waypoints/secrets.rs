//! Whether the Secrets that the listeners of a gateway name have certificates that can be shown.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, Error};
use orlop_model::world::gateway::Listener;
use tokio::time::timeout;

use super::gateway::Fault;

/// Whether these are a certificate and its key, both PEM. More is not told to who may not read the Secret.
pub type CertificateCheck = fn(certificate: &[u8], key: &[u8]) -> bool;

/// For all of a gateway's Secrets.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is known of a gateway's Secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Secrets {
    /// Nothing: the controller is not to read them, or could not.
    Unread,
    /// Of each that can't be shown, by its name, what is wrong.
    Read(BTreeMap<String, String>),
}

/// What is wrong with the Secrets of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SecretsFault {
    pub fault: Fault,
    /// Whether there is another that can be shown.
    pub is_open: bool,
}

impl Secrets {
    /// Looks at those of these names. What they hold is dropped at once. One that can't be read holds up nothing else.
    pub async fn read(
        client: &Client,
        namespace: &str,
        names: &BTreeSet<String>,
        check: Option<CertificateCheck>,
    ) -> Self {
        let Some(check) = check.filter(|_| !names.is_empty()) else { return Self::Unread };
        let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
        let read = async {
            let mut problems = BTreeMap::new();
            for name in names {
                if let Err(problem) = judge(secrets.get_opt(name).await?.as_ref(), check) {
                    problems.insert(name.clone(), problem);
                }
            }
            Ok::<_, Error>(problems)
        };
        match timeout(TIMEOUT, read).await {
            Ok(Ok(problems)) => Self::Read(problems),
            Ok(Err(error)) => {
                tracing::warn!(%error, namespace, "Secrets of a Gateway can't be looked at");
                Self::Unread
            }
            Err(_) => {
                tracing::warn!(namespace, "Secrets of a Gateway were not looked at in time");
                Self::Unread
            }
        }
    }

    /// What is wrong with those of a listener, or else what there is to say of what it refers to.
    pub fn of(&self, listener: &Listener) -> Result<&'static str, SecretsFault> {
        let names: Vec<_> = listener.certificates().map(|name| &*name.name).collect();
        let problems = match self {
            _ if names.is_empty() => return Ok("it refers to nothing"),
            Self::Unread => {
                return Ok(
                    "its pods' logs tell whether its Secrets are good: the controller has not read them",
                );
            }
            Self::Read(problems) => problems,
        };
        let known = |name: &&str| problems.get(*name).map(|problem| format!("Secret {name}: {problem}"));
        let found: Vec<_> = names.iter().filter_map(known).collect();
        if found.is_empty() {
            return Ok("each Secret has a certificate and its key");
        }
        let is_open = found.len() < names.len();
        Err(SecretsFault { fault: Fault::new("InvalidCertificateRef", found.join("; ")), is_open })
    }
}

fn judge(secret: Option<&Secret>, check: CertificateCheck) -> Result<(), String> {
    let make = "make it with `kubectl create secret tls`";
    let Some(secret) = secret else {
        return Err(format!("there is none of this name in the Gateway's namespace: {make}"));
    };
    let part = |key: &str| {
        let data = secret.data.as_ref().and_then(|data| data.get(key));
        data.map(|bytes| &*bytes.0).ok_or_else(|| format!("it has no {key}: {make}"))
    };
    if check(part("tls.crt")?, part("tls.key")?) {
        return Ok(());
    }
    Err("tls.crt is no certificate in PEM, or tls.key is not its key: put others in their place".to_owned())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use orlop_model::NamespacedName;
    use orlop_model::world::gateway::{CertificateRef, ListenerTls};

    use super::*;

    fn secret(keys: &[&str]) -> Secret {
        let data = keys.iter().map(|key| ((*key).to_owned(), ByteString(b"x".to_vec())));
        Secret { data: Some(data.collect()), ..Secret::default() }
    }

    #[test]
    fn what_is_wrong_with_a_secret_is_told() {
        let good: CertificateCheck = |_, _| true;
        let bad: CertificateCheck = |_, _| false;
        let whole = secret(&["tls.crt", "tls.key"]);
        assert_eq!(judge(Some(&whole), good), Ok(()));
        assert!(judge(None, good).unwrap_err().contains("there is none of this name"));
        assert!(judge(Some(&secret(&["tls.crt"])), good).unwrap_err().contains("it has no tls.key"));
        assert!(judge(Some(&Secret::default()), good).unwrap_err().contains("it has no tls.crt"));
        assert!(judge(Some(&whole), bad).unwrap_err().contains("tls.key is not its key"));
    }

    #[test]
    fn a_listener_is_open_by_one_good_certificate_and_told_of_each_bad_one() {
        let refs = ["good", "bad"].map(|name| CertificateRef {
            kind: "Secret".to_owned(),
            name: NamespacedName::new("edge", name),
            ..CertificateRef::default()
        });
        let listener = |certificates: &[CertificateRef]| Listener {
            protocol: "HTTPS".to_owned(),
            tls: Some(ListenerTls { certificates: certificates.to_vec(), ..ListenerTls::default() }),
            ..Listener::default()
        };
        let secrets = Secrets::Read([("bad".to_owned(), "no key".to_owned())].into());
        assert!(secrets.of(&listener(&refs[..1])).is_ok());
        let both = secrets.of(&listener(&refs)).unwrap_err();
        assert_eq!((both.fault.reason, both.is_open), ("InvalidCertificateRef", true));
        assert_eq!(both.fault.message, "Secret bad: no key");
        assert!(!secrets.of(&listener(&refs[1..])).unwrap_err().is_open);
        assert!(Secrets::Unread.of(&listener(&refs)).unwrap().contains("the controller has not read them"));
    }
}

//! Whether the Secrets that the listeners of a gateway name have certificates that can be shown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, Error};
use orlop_model::NamespacedName;
use orlop_model::world::gateway::Listener;
use tokio::time::{sleep, timeout};

use super::AT_ONCE;
use super::gateway::Fault;

/// Whether these are a certificate and its key, both PEM. More is not told to who may not read the Secret.
pub type CertificateCheck = fn(certificate: &[u8], key: &[u8]) -> bool;

/// For all of a gateway's Secrets.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at the Secrets of gateways, of which nobody tells: this, and up to a half more.
const LOOK: Duration = Duration::from_secs(60);

/// What is known of a gateway's Secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Secrets {
    /// Nothing: the controller is not to read them, or could not.
    Unread,
    /// Of each that can't be shown, by its name, what is wrong.
    Read(BTreeMap<String, String>),
}

/// What was found last in the Secrets of each gateway that names some.
#[derive(Default)]
pub(super) struct Looks(Mutex<BTreeMap<NamespacedName, Look>>);

#[derive(Clone)]
struct Look {
    names: BTreeSet<String>,
    found: Secrets,
}

impl Looks {
    /// A gateway names these, in which that was found.
    pub fn found(&self, gateway: NamespacedName, names: BTreeSet<String>, found: Secrets) {
        let mut looks = self.lock();
        if names.is_empty() {
            looks.remove(&gateway);
        } else {
            looks.insert(gateway, Look { names, found });
        }
    }

    /// Looks again and again at the Secrets of gateways that are still `ours`, and at nothing else. Tells when something
    /// is found that was not before.
    pub async fn repeat(
        &self,
        client: &Client,
        check: CertificateCheck,
        ours: impl Fn() -> BTreeSet<NamespacedName>,
        tell: impl Fn(),
    ) {
        loop {
            sleep(LOOK.mul_f64(1.0 + 0.5 * fastrand::f64())).await;
            let read = |namespace: String, names: BTreeSet<String>| async move {
                Secrets::read(client, &namespace, &names, check).await
            };
            if self.again(&ours(), read).await {
                tell();
            }
        }
    }

    /// Looks once. Whether something differs from what was found before, which a look that failed is not.
    async fn again<R: Future<Output = Secrets>>(
        &self,
        ours: &BTreeSet<NamespacedName>,
        read: impl Fn(String, BTreeSet<String>) -> R,
    ) -> bool {
        self.lock().retain(|gateway, _| ours.contains(gateway));
        let looks = self.lock().clone();
        let looks = looks.into_iter().map(|(gateway, Look { names, found })| {
            let reading = read(gateway.namespace.to_string(), names.clone());
            async move {
                let now = reading.await;
                let differs = now != found && now != Secrets::Unread;
                if differs {
                    self.found(gateway, names, now);
                }
                differs
            }
        });
        let looks = stream::iter(looks).buffer_unordered(AT_ONCE.into());
        looks.fold(false, async |before, differs| before | differs).await
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NamespacedName, Look>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        check: CertificateCheck,
    ) -> Self {
        if names.is_empty() {
            return Self::Unread;
        }
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

    #[tokio::test]
    async fn a_look_tells_of_what_is_otherwise_once_and_of_nobody_else_s() {
        let looks = Looks::default();
        let [edge, gone] = ["edge", "gone"].map(|namespace| NamespacedName::new(namespace, "gate"));
        let names = || BTreeSet::from(["web".to_owned()]);
        let good = || Secrets::Read(BTreeMap::new());
        for gateway in [&edge, &gone] {
            looks.found(gateway.clone(), names(), good());
        }
        let ours = BTreeSet::from([edge.clone()]);
        let look = async |now: Secrets| {
            let read = |namespace: String, names: BTreeSet<String>| {
                assert_eq!((&*namespace, names.len()), ("edge", 1));
                std::future::ready(now.clone())
            };
            looks.again(&ours, read).await
        };
        let bad = Secrets::Read([("web".to_owned(), "no key".to_owned())].into());
        for (now, differs) in [
            (good(), false),
            (bad.clone(), true),
            (bad.clone(), false),
            (Secrets::Unread, false),
            (bad.clone(), false),
            (good(), true),
        ] {
            assert_eq!(look(now.clone()).await, differs, "{now:?}");
        }
        // What names none any more is not looked at.
        looks.found(edge.clone(), BTreeSet::new(), Secrets::Unread);
        assert!(looks.lock().is_empty());
        assert!(!look(bad).await);
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

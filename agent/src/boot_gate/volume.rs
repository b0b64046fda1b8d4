//! Requests about volumes, checked: pure.

use std::path::{Path, PathBuf};

use tonic::Status;

use super::messages::Publish;
use crate::sandboxes::is_uid;

/// What the admission policy calls the volume.
pub const NAME: &str = "orlop-gate";

/// Where kubelet wants a volume of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The pod's.
    pub uid: String,
    /// The directory.
    pub path: PathBuf,
}

impl Target {
    /// The path must be one that kubelet makes below its directory:
    /// `pods/UID/volumes/kubernetes.io~csi/VOLUME/mount`.
    pub fn parse(kubelet: &Path, path: &str) -> Result<Self, Status> {
        let refused = || {
            Status::invalid_argument(format!(
                "target_path {:?} is not {}/pods/UID/volumes/kubernetes.io~csi/VOLUME/mount; is --kubelet-dir kubelet's \
                 --root-dir?",
                path.chars().take(MAX_SHOWN).collect::<String>(),
                kubelet.display(),
            ))
        };
        let below = kubelet.to_str().and_then(|kubelet| path.strip_prefix(kubelet)).ok_or_else(refused)?;
        let parts: Vec<_> = below.split('/').collect();
        let ["", "pods", uid, "volumes", "kubernetes.io~csi", volume, "mount"] = parts[..] else {
            return Err(refused());
        };
        // RFC 1123's label, as the API has it for volumes.
        let is_label = !volume.is_empty()
            && volume.len() <= 63
            && volume.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !is_uid(uid) || !is_label {
            return Err(refused());
        }
        Ok(Self { uid: uid.to_owned(), path: PathBuf::from(path) })
    }

    /// Of the volume that the admission policy gives a pod.
    pub fn of(kubelet: &Path, uid: &str) -> PathBuf {
        kubelet.join("pods").join(uid).join("volumes/kubernetes.io~csi").join(NAME).join("mount")
    }
}

/// The target of an ephemeral volume for the pod that it is in.
pub fn published(kubelet: &Path, request: &Publish) -> Result<Target, Status> {
    let target = Target::parse(kubelet, &request.target_path)?;
    let context = |key: &str| request.volume_context.get(&format!("csi.storage.k8s.io/{key}"));
    match (context("ephemeral").map(String::as_str), context("pod.uid")) {
        (Some("true"), Some(uid)) if *uid == target.uid => {}
        (_, None) => {
            return Err(Status::invalid_argument(
                "the request does not say whose volume it is: the CSIDriver gate.orlop.dev needs podInfoOnMount",
            ));
        }
        (Some("true"), Some(_)) => {
            return Err(Status::invalid_argument("target_path is another pod's than pod.uid"));
        }
        _ => {
            return Err(Status::invalid_argument(
                "gate.orlop.dev has ephemeral volumes alone: write it into the pod's own volumes",
            ));
        }
    }
    if !request.readonly {
        // It is a directory of the node's file system.
        return Err(Status::invalid_argument("a volume of gate.orlop.dev must be readOnly"));
    }
    Ok(target)
}

/// So much of what somebody else wrote is said again.
const MAX_SHOWN: usize = 256;

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    const UID: &str = "8f3a1c52-7c0e-4a59-9d2c-3f0a6b1e2d4c";

    fn path(uid: &str, volume: &str) -> String {
        format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/{volume}/mount")
    }

    fn request(path: String) -> Publish {
        let context = [("ephemeral", "true"), ("pod.uid", UID), ("pod.name", "web")];
        let context = context.map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value.to_owned()));
        Publish { target_path: path, readonly: true, volume_context: context.into() }
    }

    fn publish(request: &Publish) -> Result<Target, Code> {
        published(Path::new("/var/lib/kubelet"), request).map_err(|status| status.code())
    }

    #[test]
    fn kubelets_own_request_is_taken() {
        let target = publish(&request(path(UID, NAME))).unwrap();
        assert_eq!(target.uid, UID);
        assert_eq!(target.path, Target::of(Path::new("/var/lib/kubelet"), UID));
    }

    #[test]
    fn no_other_path_is() {
        let long = "a".repeat(100_000);
        for wrong in [
            String::new(),
            "/".to_owned(),
            "/etc".to_owned(),
            path("..", NAME),
            path(".", NAME),
            path("", NAME),
            path(UID, ".."),
            path(UID, "."),
            path(UID, ""),
            path(UID, "a b"),
            path(UID, "a\0b"),
            path(UID, "Ü"),
            path(&long, NAME),
            path(UID, &long),
            path(&format!("{UID}/../{UID}"), NAME),
            path(UID, NAME) + "/",
            path(UID, NAME) + "/../../../../x",
            path(UID, NAME).replace("/mount", "/mount2"),
            path(UID, NAME).replace("//", "/").replace("/pods", "//pods"),
            path(UID, NAME).replace("/var/lib/kubelet", "/var/lib/kubelet2"),
            path(UID, NAME).replace("/var/lib/kubelet", "/var/lib/kubelet/.."),
            path(UID, NAME).replace("kubernetes.io~csi", "kubernetes.io~secret"),
            path(UID, NAME)[1..].to_owned(),
        ] {
            assert_eq!(publish(&request(wrong.clone())), Err(Code::InvalidArgument), "{wrong}");
        }
    }

    #[test]
    fn whose_volume_it_is_must_be_said_and_be_true() {
        let with = |key: &str, value: Option<&str>| {
            let mut request = request(path(UID, NAME));
            let key = format!("csi.storage.k8s.io/{key}");
            match value {
                Some(value) => request.volume_context.insert(key, value.to_owned()),
                None => request.volume_context.remove(&key),
            };
            publish(&request)
        };
        assert!(with("pod.name", None).is_ok());
        for (key, value) in [
            ("pod.uid", None),
            ("pod.uid", Some("")),
            ("pod.uid", Some("another")),
            ("ephemeral", None),
            ("ephemeral", Some("false")),
        ] {
            assert_eq!(with(key, value), Err(Code::InvalidArgument), "{key} {value:?}");
        }
        let writable = Publish { readonly: false, ..request(path(UID, NAME)) };
        assert_eq!(publish(&writable), Err(Code::InvalidArgument));
    }
}

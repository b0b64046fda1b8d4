//! What kubelet calls the cgroups that it makes, by either of its drivers.
//!
//! | driver | a pod's cgroup |
//! | --- | --- |
//! | cgroupfs | `kubepods/[burstable/]podUID` |
//! | systemd | `kubepods.slice/[kubepods-burstable.slice/]kubepods[-burstable]-podUID.slice`, with `_` for the UID's `-` |
//!
//! kubelet's `--cgroup-root` puts something before that: with systemd the name of each slice begins with its
//! parent's, as in `kubelet.slice/kubelet-kubepods.slice`. Below a pod's cgroup the runtime has its own names:
//! `cri-containerd-ID.scope`, `crio-ID.scope` or just the container's ID.

/// Whether all pods' cgroups are below the cgroup of this name.
pub fn is_pods_root(name: &str) -> bool {
    matches!(name, "kubepods" | "kubepods.slice") || name.ends_with("-kubepods.slice")
}

/// Whether it is for the pods of one quality of service: those that are guaranteed what they ask for have none.
pub fn is_quality(name: &str) -> bool {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    ["burstable", "besteffort"].iter().any(|quality| {
        name.strip_suffix(quality).is_some_and(|before| before.is_empty() || before.ends_with("kubepods-"))
    })
}

/// The UID of the pod whose cgroup is called this.
pub fn pod_uid(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod")?.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    is_uid(&uid).then_some(uid)
}

/// Whether a pod's UID may be this: a UUID, or a hash of a static pod's.
pub fn is_uid(uid: &str) -> bool {
    !uid.is_empty() && uid.len() <= 64 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Whether the pod with this UID is static: kubelet makes a hash for it, and the API server UUIDs.
pub fn is_static(uid: &str) -> bool {
    !uid.contains('-')
}

/// What the cgroup of the pod with this UID may be called, in the one that all pods' are below and is called `root`:
/// one name for each quality of service.
pub fn pod_cgroups(root: &str, uid: &str) -> [String; 3] {
    let quality = ["", "burstable", "besteffort"];
    match root.strip_suffix(".slice") {
        Some(root) => quality.map(|quality| match quality {
            "" => format!("{root}-pod{}.slice", uid.replace('-', "_")),
            _ => format!("{root}-{quality}.slice/{root}-{quality}-pod{}.slice", uid.replace('-', "_")),
        }),
        None => quality.map(|quality| match quality {
            "" => format!("pod{uid}"),
            _ => format!("{quality}/pod{uid}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "8f3a1c52-7c0e-4a59-9d2c-3f0a6b1e2d4c";
    const SLICE: &str = "8f3a1c52_7c0e_4a59_9d2c_3f0a6b1e2d4c";

    #[test]
    fn both_drivers_name_pods() {
        let names = [
            format!("pod{UID}"),
            format!("kubepods-pod{SLICE}.slice"),
            format!("kubepods-burstable-pod{SLICE}.slice"),
            format!("kubelet-kubepods-besteffort-pod{SLICE}.slice"),
        ];
        for name in names {
            assert_eq!(pod_uid(&name).as_deref(), Some(UID), "{name}");
        }
    }

    #[test]
    fn a_pods_cgroup_is_named_as_it_is_read() {
        for root in ["kubepods", "kubepods.slice", "kubelet-kubepods.slice"] {
            for path in pod_cgroups(root, UID) {
                let mut names: Vec<_> = path.split('/').collect();
                assert_eq!(names.pop().and_then(pod_uid).as_deref(), Some(UID), "{path}");
                assert!(names.into_iter().all(is_quality), "{path}");
            }
        }
    }

    #[test]
    fn nothing_else_is_a_pod() {
        for name in [
            "kubepods.slice",
            "kubepods-burstable.slice",
            "cri-containerd-0f.scope",
            "crio-0f.scope",
            "pod",
            "kubepods-pod.slice",
            "podman-1.scope",
            "pod/x",
            "system.slice",
        ] {
            assert_eq!(pod_uid(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_above_pods_is_known() {
        for name in ["kubepods", "kubepods.slice", "kubelet-kubepods.slice"] {
            assert!(is_pods_root(name) && !is_quality(name), "{name}");
        }
        for name in
            ["burstable", "besteffort", "kubepods-burstable.slice", "kubelet-kubepods-besteffort.slice"]
        {
            assert!(is_quality(name) && !is_pods_root(name), "{name}");
        }
        assert!(!is_pods_root("system.slice") && !is_quality("user-burstable.slice"));
    }
}

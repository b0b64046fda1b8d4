//! The static pods that kubelet has, as its disk tells: before anything of them runs, and without an API server.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    io::{self, ErrorKind},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use orlop_kube::read_world;
use orlop_model::{NamespacedName, World, world::Pod};

use crate::cli::StaticPodArguments;

/// No file system's time is coarser.
const TICK: Duration = Duration::from_secs(2);

/// Where kubelet tells of them.
pub struct StaticPods {
    manifests: PathBuf,
    logs: PathBuf,
    node: String,
    /// What was found in the directory as it is since then.
    listed: Option<(SystemTime, Arc<BTreeSet<StaticPod>>)>,
}

/// A static pod, by the name of its object and the UID that its cgroup has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StaticPod {
    name: NamespacedName,
    pub uid: Arc<str>,
}

impl StaticPods {
    pub fn new(arguments: &StaticPodArguments, node: &str) -> Self {
        let StaticPodArguments { static_pod_path, pod_logs_dir } = arguments.clone();
        Self { manifests: static_pod_path, logs: pod_logs_dir, node: node.to_owned(), listed: None }
    }

    /// Those for whose logs kubelet has made a directory, which it does before the sandbox. Some may be gone.
    pub fn found(&mut self) -> io::Result<Arc<BTreeSet<StaticPod>>> {
        let changed = match fs::metadata(&self.logs) {
            // kubelet has not made it.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Arc::default()),
            metadata => metadata?.modified()?,
        };
        if let Some((since, found)) = &self.listed
            && *since == changed
        {
            return Ok(Arc::clone(found));
        }
        let now = SystemTime::now();
        let entries = fs::read_dir(&self.logs)?;
        let found =
            entries.filter_map(|entry| entry.map(|entry| StaticPod::of(&entry.file_name())).transpose());
        let found = Arc::new(found.collect::<io::Result<_>>()?);
        // Another change right after this one may have the same time.
        let is_settled = now.duration_since(changed).is_ok_and(|age| age > TICK);
        self.listed = is_settled.then(|| (changed, Arc::clone(&found)));
        Ok(found)
    }

    /// What can be said of them: with the labels of their manifests, where these are found.
    pub fn pods(&self, found: &BTreeSet<StaticPod>) -> Vec<Arc<Pod>> {
        let manifests = read_world(&self.manifests).unwrap_or_else(|errors| {
            if let Some(error) = errors.first() {
                let error = error.to_string();
                tracing::warn!(error, "static pods are judged by the labels of their namespaces alone");
            }
            World::default()
        });
        // kubelet names the object so.
        let suffix = format!("-{}", self.node.to_lowercase());
        let pod = |found: &StaticPod| {
            let name = found.name.name.strip_suffix(&*suffix).unwrap_or(&found.name.name);
            let manifest = manifests.pods.get(&NamespacedName::new(&found.name.namespace, name));
            let manifest = manifest.map(|pod| Pod::clone(pod)).unwrap_or_default();
            let node = Some(self.node.as_str().into());
            Arc::new(Pod { name: found.name.clone(), uid: Arc::clone(&found.uid), node, ..manifest })
        };
        found.iter().map(pod).collect()
    }
}

impl StaticPod {
    /// Of the name `NAMESPACE_NAME_UID` of its directory. All other pods' UIDs are UUIDs.
    fn of(directory: &OsStr) -> Option<Self> {
        let mut parts = directory.to_str()?.split('_');
        let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
        let is_hash = uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit());
        (is_hash && parts.next().is_none())
            .then(|| Self { name: NamespacedName::new(namespace, name), uid: uid.into() })
    }
}

#[cfg(test)]
mod tests {
    use std::{env, process};

    use super::*;

    const HASH: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn static_pods_are_told_by_their_directories_and_labelled_by_their_manifests() {
        let directory = env::temp_dir().join(format!("orlop-static-{}", process::id()));
        let (manifests, logs) = (directory.join("manifests"), directory.join("logs"));
        let arguments = StaticPodArguments { static_pod_path: manifests.clone(), pod_logs_dir: logs.clone() };
        let mut pods = StaticPods::new(&arguments, "Node");
        assert!(pods.found().unwrap().is_empty());

        let other = HASH.replace('0', "f");
        let entries = [
            format!("shop_web-node_{HASH}"),
            format!("shop_old-node_{other}"),
            "shop_web-1_8f3a1c52-7c0e-4a59-9d2c-3f0a6b1e2d4c".to_owned(),
            format!("shop_web-node_{HASH}_more"),
            format!("web-node_{HASH}"),
            "lost+found".to_owned(),
        ];
        entries.iter().for_each(|entry| fs::create_dir_all(logs.join(entry)).unwrap());
        let found = pods.found().unwrap();
        assert_eq!(pods.found().unwrap(), found);
        let names = |pods: &[Arc<Pod>]| -> Vec<_> {
            pods.iter().map(|pod| (pod.name.to_string(), pod.uid.to_string(), pod.labels.len())).collect()
        };
        let of = |web| {
            let pod = |name: &str, uid: &str, labels| (name.to_owned(), uid.to_owned(), labels);
            [pod("shop/old-node", &other, 0), pod("shop/web-node", HASH, web)]
        };
        assert_eq!(names(&pods.pods(&found)), of(0));
        fs::create_dir(&manifests).unwrap();
        let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: web, labels: {a: b}}";
        fs::write(manifests.join("web.yaml"), manifest).unwrap();
        let labelled = pods.pods(&found);
        assert_eq!(names(&labelled), of(1));
        assert!(labelled.iter().all(|pod| pod.node.as_deref() == Some("Node")));
        // What kubelet can't read either.
        fs::write(manifests.join("broken.yaml"), "{").unwrap();
        assert_eq!(names(&pods.pods(&found)), of(0));
        fs::remove_dir_all(directory).unwrap();
    }
}

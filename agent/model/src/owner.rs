use std::sync::{Arc, LazyLock};

use serde::Serialize;

use crate::text::{Pool, Text};
use crate::world::{Labels, Pod};

/// Names that group a workload with its likes, in logs and metrics; those that have the same share them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Names {
    /// What made the pod: the Deployment, CronJob or other controller, else the pod itself.
    pub owner: Text,
    /// The canonical service, as Istio names it.
    pub canonical_service: Text,
    /// The canonical revision, as Istio names it; `latest` where no label says.
    pub canonical_revision: Text,
    /// Label `app`, else the canonical service.
    pub app: Text,
    /// Label `version`, else the canonical revision.
    pub version: Text,
    /// The cluster's name.
    pub cluster: Text,
}

static KNOWN: LazyLock<Pool<Arc<Names>>> = LazyLock::new(Pool::of_shared);

/// Reads the names of a pod as Istio does, so that its dashboards work.
pub(crate) fn names(pod: &Pod, cluster: &str) -> Arc<Names> {
    names_of(&pod.labels, owner(pod), cluster)
}

/// The names of what `owner` has made with these labels.
pub(crate) fn names_of(labels: &Labels, owner: Text, cluster: &str) -> Arc<Names> {
    let label =
        |keys: &[&str]| keys.iter().find_map(|&key| labels.get(key).filter(|v| !v.is_empty())).cloned();
    let canonical_service = label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
        .unwrap_or_else(|| owner.clone());
    let canonical_revision =
        label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"])
            .unwrap_or_else(|| Text::from("latest"));
    let names = Names {
        cluster: cluster.into(),
        app: label(&["app"]).unwrap_or_else(|| canonical_service.clone()),
        version: label(&["version"]).unwrap_or_else(|| canonical_revision.clone()),
        owner,
        canonical_service,
        canonical_revision,
    };
    KNOWN.get::<Names, _>(names, Arc::new)
}

fn owner(pod: &Pod) -> Text {
    let Some(owner) = &pod.owner else {
        return pod.name.name.clone();
    };
    let name = match owner.kind.as_str() {
        "ReplicaSet" => deployment(pod, &owner.name),
        "Job" => cron_job(&owner.name),
        _ => None,
    };
    name.map_or_else(|| owner.name.clone(), Text::from)
}

fn deployment<'a>(pod: &Pod, replica_set: &'a str) -> Option<&'a str> {
    let hash = pod.labels.get("pod-template-hash").filter(|hash| !hash.is_empty())?;
    replica_set.strip_suffix(hash.as_str())?.strip_suffix('-').filter(|name| !name.is_empty())
}

/// A CronJob names its Jobs after the scheduled minute; left in, each run would be a metric series of its own.
fn cron_job(job: &str) -> Option<&str> {
    let (name, minute) = job.rsplit_once('-')?;
    let is_minute = (8..=10).contains(&minute.len()) && minute.bytes().all(|b| b.is_ascii_digit());
    (is_minute && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::NamespacedName;
    use crate::world::Owner;

    #[test]
    fn a_replica_set_stands_for_its_deployment() {
        let hash = ("pod-template-hash", "5d4f8c7b9");
        assert_eq!(named(Some(("ReplicaSet", "web-5d4f8c7b9")), &[hash]).owner, "web");
        assert_eq!(named(Some(("ReplicaSet", "web-5d4f8c7b9")), &[]).owner, "web-5d4f8c7b9");
        assert_eq!(named(Some(("ReplicaSet", "web-other")), &[hash]).owner, "web-other");
        assert_eq!(named(Some(("ReplicaSet", "-5d4f8c7b9")), &[hash]).owner, "-5d4f8c7b9");
    }

    #[test]
    fn a_dated_job_stands_for_its_cron_job() {
        assert_eq!(named(Some(("Job", "backup-29012345")), &[]).owner, "backup");
        assert_eq!(named(Some(("Job", "backup-2")), &[]).owner, "backup-2");
    }

    #[test]
    fn other_owners_keep_their_name_and_a_bare_pod_its_own() {
        assert_eq!(named(Some(("StatefulSet", "db")), &[]).owner, "db");
        assert_eq!(named(None, &[]).owner, "web-0");
    }

    #[test]
    fn canonical_names_come_from_the_first_label_there_is() {
        let labels = [
            ("service.istio.io/canonical-name", "one"),
            ("app.kubernetes.io/name", "two"),
            ("app", "three"),
            ("service.istio.io/canonical-revision", "v1"),
            ("app.kubernetes.io/version", "v2"),
            ("version", "v3"),
        ];
        let of = |labels: &[(&str, &str)]| {
            let names = named(Some(("StatefulSet", "db")), labels);
            (names.canonical_service.clone(), names.canonical_revision.clone())
        };
        let pair = |service: &str, revision: &str| (Text::from(service), Text::from(revision));
        assert_eq!(of(&labels), pair("one", "v1"));
        assert_eq!(of(&[labels[1], labels[2], labels[4], labels[5]]), pair("two", "v2"));
        assert_eq!(of(&[labels[2], labels[5]]), pair("three", "v3"));
        assert_eq!(of(&[]), pair("db", "latest"));
        assert_eq!(of(&[("app", ""), ("version", "")]), pair("db", "latest"));
    }

    #[test]
    fn app_and_version_fall_back_to_the_canonical_names() {
        let names = named(None, &[("app.kubernetes.io/name", "shop")]);
        assert_eq!((names.app.as_str(), names.version.as_str()), ("shop", "latest"));
        let names = named(None, &[("app.kubernetes.io/name", "shop"), ("app", "web"), ("version", "v3")]);
        assert_eq!((names.app.as_str(), names.version.as_str()), ("web", "v3"));
    }

    fn named(owner: Option<(&str, &str)>, labels: &[(&str, &str)]) -> Arc<Names> {
        names(
            &Pod {
                name: NamespacedName::new("default", "web-0"),
                owner: owner.map(|(kind, name)| Owner { kind: kind.into(), name: name.into() }),
                labels: labels.iter().copied().collect(),
                ..Pod::default()
            },
            "Kubernetes",
        )
    }
}

use crate::text::Text;
use crate::world::Labels;

/// Label of namespaces and pods: `enabled` or `disabled`.
const MESH: &str = "orlop.dev/mesh";
/// Istio's label of the same meaning: `ambient` or `none`.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// Whether a pod's labels, or else its namespace's, ask for the mesh. Values other than the known ones count as
/// absent; without any label a pod stays outside.
pub fn opted_in(namespace: &Labels, pod: &Labels) -> bool {
    wish(pod).or_else(|| wish(namespace)).unwrap_or(false)
}

fn wish(labels: &Labels) -> Option<bool> {
    let own = match labels.get(MESH).map(Text::as_str) {
        Some("enabled") => Some(true),
        Some("disabled") => Some(false),
        _ => None,
    };
    own.or_else(|| match labels.get(DATAPLANE_MODE).map(Text::as_str) {
        Some("ambient") => Some(true),
        Some("none") => Some(false),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_wins_over_namespace_and_ours_over_istios() {
        let on = &[(MESH, "enabled")][..];
        let off = &[(MESH, "disabled")][..];
        let ambient = &[(DATAPLANE_MODE, "ambient")][..];
        let none = &[(DATAPLANE_MODE, "none")][..];
        let table = [
            (&[][..], &[][..], false),
            (on, &[], true),
            (ambient, &[], true),
            (off, &[], false),
            (none, &[], false),
            (&[], on, true),
            (&[], ambient, true),
            (&[], off, false),
            (on, off, false),
            (on, none, false),
            (ambient, off, false),
            (ambient, none, false),
            (off, on, true),
            (off, ambient, true),
            (none, ambient, true),
            (&[(MESH, "disabled"), (DATAPLANE_MODE, "ambient")], &[], false),
            (&[(MESH, "enabled"), (DATAPLANE_MODE, "none")], &[], true),
            (on, &[(MESH, "enabled"), (DATAPLANE_MODE, "none")], true),
            (on, &[(MESH, "disabled"), (DATAPLANE_MODE, "ambient")], false),
            (on, &[(MESH, "")], true),
            (on, &[(MESH, "Disabled")], true),
            (&[(MESH, "ambient")], &[], false),
            (&[(MESH, "true")], ambient, true),
            (&[], &[(MESH, "maybe"), (DATAPLANE_MODE, "ambient")], true),
        ];
        for (namespace, pod, want) in table {
            assert_eq!(
                opted_in(&labels(namespace), &labels(pod)),
                want,
                "namespace {namespace:?} pod {pod:?}"
            );
        }
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

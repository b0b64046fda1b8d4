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

/// Why a pod whose labels and whose namespace's are these is outside the mesh, if it is, and what would have it in.
pub(crate) fn outside(namespace: &Labels, pod: &Labels) -> Option<String> {
    let refusal = |labels: &Labels| {
        let (key, value) =
            if wish_of(labels, MESH).is_some() { (MESH, "disabled") } else { (DATAPLANE_MODE, "none") };
        format!("{key}={value}")
    };
    match (wish(pod), wish(namespace)) {
        (Some(true), _) | (None, Some(true)) => None,
        (Some(false), _) => Some(format!("its label {} says so", refusal(pod))),
        (None, Some(false)) => Some(format!("the label {} of its namespace says so", refusal(namespace))),
        (None, None) => Some(format!("nothing asks for it: label its namespace {MESH}=enabled")),
    }
}

fn wish(labels: &Labels) -> Option<bool> {
    wish_of(labels, MESH).or_else(|| wish_of(labels, DATAPLANE_MODE))
}

fn wish_of(labels: &Labels, key: &str) -> Option<bool> {
    match (key, labels.get(key).map(Text::as_str)) {
        (MESH, Some("enabled")) | (DATAPLANE_MODE, Some("ambient")) => Some(true),
        (MESH, Some("disabled")) | (DATAPLANE_MODE, Some("none")) => Some(false),
        _ => None,
    }
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

    #[test]
    fn a_pod_outside_says_why_and_what_would_have_it_in() {
        let why =
            |namespace: &[(&str, &str)], pod: &[(&str, &str)]| outside(&labels(namespace), &labels(pod));
        assert_eq!(why(&[(MESH, "enabled")], &[]), None);
        assert_eq!(why(&[(MESH, "disabled")], &[(DATAPLANE_MODE, "ambient")]), None);
        for (namespace, pod, text) in [
            (&[][..], &[][..], "nothing asks for it: label its namespace orlop.dev/mesh=enabled"),
            (&[(MESH, "enabled")], &[(MESH, "disabled")], "its label orlop.dev/mesh=disabled says so"),
            (
                &[(MESH, "enabled")],
                &[(DATAPLANE_MODE, "none")],
                "its label istio.io/dataplane-mode=none says so",
            ),
            (&[(MESH, "disabled")], &[], "the label orlop.dev/mesh=disabled of its namespace says so"),
            (
                &[(DATAPLANE_MODE, "none")],
                &[],
                "the label istio.io/dataplane-mode=none of its namespace says so",
            ),
        ] {
            assert_eq!(why(namespace, pod).as_deref(), Some(text));
        }
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

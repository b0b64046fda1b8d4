//! Holds `Groups` against an obvious reference.

use std::collections::BTreeSet;

use orlop_model::http::{Groups, Whereabouts};
use orlop_model::world::routing::{Distribute, LocalityBalancing, LocalityPattern};
use orlop_model::world::{Labels, Locality};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

const DRAWS: u64 = 2000;

#[derive(Clone, Debug)]
struct Place {
    locality: Locality,
    node: String,
    labels: Labels,
}

impl Place {
    fn of(&self) -> Whereabouts<'_> {
        Whereabouts { locality: &self.locality, node: &self.node, labels: Some(&self.labels) }
    }

    fn label(&self, name: &str) -> String {
        let text = |text: &Option<_>| text.as_ref().map(|text: &orlop_model::Text| text.to_string());
        let value = match name {
            "topology.kubernetes.io/region" => text(&self.locality.region),
            "topology.kubernetes.io/zone" => text(&self.locality.zone),
            "kubernetes.io/hostname" => Some(self.node.clone()),
            _ => self.labels.get(name).map(ToString::to_string),
        };
        value.unwrap_or_default()
    }

    /// `REGION/ZONE/SUBZONE`
    fn path(&self) -> [String; 3] {
        let Locality { region, zone, subzone } = &self.locality;
        [region, zone, subzone].map(|part| part.as_ref().map(ToString::to_string).unwrap_or_default())
    }
}

fn any_place() -> impl Strategy<Value = Place> {
    let part = || option::weighted(0.8, select(vec!["a", "b", "c"]));
    let labels = option::of(select(vec!["1", "2"]));
    ((part(), part(), part()), select(vec!["n1", "n2"]), labels).prop_map(
        |((region, zone, subzone), node, version)| Place {
            locality: Locality {
                region: region.map(Into::into),
                zone: zone.map(Into::into),
                subzone: subzone.map(Into::into),
            },
            node: node.to_owned(),
            labels: version.map(|version| ("version".to_owned(), version.to_owned())).into_iter().collect(),
        },
    )
}

fn any_setting() -> impl Strategy<Value = LocalityBalancing> {
    let part = || option::weighted(0.6, select(vec!["a", "b", "c"]));
    let pattern = move || {
        (part(), part(), part())
            .prop_map(|(a, b, c)| LocalityPattern([a, b, c].map(|part| part.map(Into::into))))
    };
    let distribute = vec((pattern(), vec((pattern(), 1..=100_u32), 1..4)), 0..3);
    let region = || select(vec!["a", "b", "c"]).prop_map(str::to_owned);
    let names = select(vec![
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
        "version",
    ]);
    let priority = vec((names, option::of(select(vec!["a", "1"]))), 0..4);
    (any::<bool>(), any::<bool>(), distribute, vec((region(), region()), 0..3), priority).prop_map(
        |(enabled, distributes, distribute, failover, priority)| LocalityBalancing {
            enabled: enabled || distributes,
            distribute: if distributes {
                distribute.into_iter().map(|(from, to)| Distribute { from, to }).collect()
            } else {
                Vec::new()
            },
            failover,
            priority: priority
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.map(str::to_owned)))
                .collect(),
        },
    )
}

fn includes(pattern: &LocalityPattern, place: &Place) -> bool {
    let wanted = pattern.0.iter().map(|part| part.as_ref().map_or("*", |part| part.as_str()));
    wanted.zip(place.path()).all(|(wanted, is)| wanted == "*" || wanted == is)
}

/// What part of the requests each endpoint gets; `None` where all that are well are alike.
fn shares(
    setting: &LocalityBalancing,
    fails_over: bool,
    here: &Place,
    all: &[(Place, bool)],
) -> Option<Vec<f64>> {
    if !setting.enabled {
        return None;
    }
    let health = |of: &[usize]| {
        let well = of.iter().filter(|at| all[**at].1).count();
        if of.is_empty() { 0.0 } else { (140.0 * well as f64 / of.len() as f64).floor().min(100.0) }
    };
    let mut groups: Vec<(Vec<usize>, f64)> = Vec::new();
    if setting.distribute.is_empty() {
        if !fails_over || (setting.priority.is_empty() && here.locality.region.is_none()) {
            return None;
        }
        let mut ranked: Vec<(usize, usize)> = Vec::new();
        for (at, (place, _)) in all.iter().enumerate() {
            let matches = |(name, value): &(String, Option<String>)| {
                value.clone().unwrap_or_else(|| here.label(name)) == place.label(name)
            };
            let in_a_row = setting.priority.iter().take_while(|of| matches(of)).count();
            let mut rank = (setting.priority.len() - in_a_row) * 5;
            if setting.priority.is_empty() || !setting.failover.is_empty() {
                let same = here.path().iter().zip(place.path()).take_while(|(a, b)| **a == *b).count();
                rank += 3 - same;
                let to = setting.failover.iter().find(|(from, _)| *from == here.path()[0]);
                if same == 0 && to.is_some_and(|(_, to)| *to != place.path()[0]) {
                    rank += 1;
                }
            }
            ranked.push((rank, at));
        }
        ranked.sort_unstable();
        for chunk in ranked.chunk_by(|a, b| a.0 == b.0) {
            groups.push((chunk.iter().map(|(_, at)| *at).collect(), 0.0));
        }
        if groups.len() < 2 {
            return None;
        }
        let healths: Vec<_> = groups.iter().map(|(of, _)| health(of)).collect();
        let whole = healths.iter().sum::<f64>().min(100.0);
        let mut left = 100.0;
        for ((_, load), health) in groups.iter_mut().zip(&healths) {
            *load = if whole == 0.0 { 0.0 } else { (health * 100.0 / whole).floor().min(left) };
            left -= *load;
        }
        let first = groups.iter_mut().find(|(_, load)| *load > 0.0);
        first.into_iter().for_each(|(_, load)| *load += left);
    } else {
        let to = &setting.distribute.iter().find(|of| includes(&of.from, here))?.to;
        for (n, (pattern, weight)) in to.iter().enumerate() {
            let earlier = |place: &Place| to[..n].iter().any(|(earlier, _)| includes(earlier, place));
            let is_in = |place: &Place| includes(pattern, place) && !earlier(place);
            let of: Vec<_> = (0..all.len()).filter(|at| is_in(&all[*at].0)).collect();
            let load = f64::from(*weight) * health(&of);
            groups.push((of, load));
        }
    }
    let sum: f64 = groups.iter().map(|(_, load)| load).sum();
    let mut found = vec![0.0; all.len()];
    for (of, load) in groups {
        for at in &of {
            found[*at] = if sum == 0.0 { 0.0 } else { load / sum / of.len() as f64 };
        }
    }
    Some(found)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// A group's endpoints share what it gets, so that each of them tells what that is.
    #[test]
    fn localities_get_what_the_reference_says(
        setting in any_setting(),
        fails_over in any::<bool>(),
        here in any_place(),
        all in vec((any_place(), proptest::bool::weighted(0.6)), 0..12),
    ) {
        let wanted = shares(&setting, fails_over, &here, &all);
        let groups = Groups::new(&setting, fails_over, here.of(), all.iter().map(|(place, _)| place.of()));
        prop_assert_eq!(groups.is_some(), wanted.is_some());
        let (Some(groups), Some(wanted)) = (groups, wanted) else { return Ok(()) };
        let unwell = |group: usize| groups.members()[group].iter().filter(|at| !all[**at].1).count();
        let mut counts = vec![0_u64; groups.members().len()];
        for n in 0..DRAWS {
            if let Some(group) = groups.pick(unwell, |_| 0, u64::MAX / DRAWS * n) {
                counts[group] += 1;
            }
        }
        for (at, wanted) in wanted.iter().enumerate() {
            let found = groups.group_of(at).map_or(0.0, |group| {
                counts[group] as f64 / DRAWS as f64 / groups.members()[group].len() as f64
            });
            prop_assert!((found - wanted).abs() <= 2.0 / DRAWS as f64, "{} {} {}", at, found, wanted);
        }
    }
}

#[test]
fn a_retry_passes_over_the_localities_that_were_tried_most() {
    let place = |zone: &str| Place {
        locality: Locality { region: Some("a".into()), zone: Some(zone.into()), subzone: None },
        node: String::new(),
        labels: Labels::new(),
    };
    let (here, there) = (place("1"), place("2"));
    let all = [here.of(), here.of(), there.of()];
    let groups = Groups::new(&LocalityBalancing::DEFAULT, true, here.of(), all.into_iter()).unwrap();
    let retried = |unwell: [usize; 2], tries: [usize; 2]| {
        let draws = (0..100).map(|n| u64::MAX / 100 * n);
        let picked: BTreeSet<_> =
            draws.map(|draw| groups.pick(|group| unwell[group], |group| tries[group], draw)).collect();
        assert_eq!(picked.len(), 1);
        picked.into_iter().next().unwrap()
    };
    assert_eq!(retried([0, 0], [0, 0]), Some(0));
    assert_eq!(retried([0, 0], [1, 0]), Some(1));
    assert_eq!(retried([0, 0], [1, 1]), Some(0));
    assert_eq!(retried([0, 0], [2, 1]), Some(1));
    // Nobody there could answer, or nobody anywhere.
    assert_eq!(retried([0, 1], [1, 0]), Some(0));
    assert_eq!(retried([2, 1], [1, 0]), None);

    // Shares are no order.
    let any = LocalityPattern([None, None, None]);
    let zone = |zone: &str| LocalityPattern([None, Some(zone.into()), None]);
    let to = vec![(zone("1"), 100), (zone("2"), 0)];
    let setting =
        LocalityBalancing { distribute: vec![Distribute { from: any, to }], ..LocalityBalancing::DEFAULT };
    let groups = Groups::new(&setting, true, here.of(), all.into_iter()).unwrap();
    assert_eq!(groups.pick(|_| 0, |group| usize::from(group == 0), 0), Some(0));
}

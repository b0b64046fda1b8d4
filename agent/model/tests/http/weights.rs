//! Destinations get what their weights say, of few requests and of many.

use orlop_model::http::{Action, Split};
use orlop_model::world::routing::{Destination, HttpRule, RuleAction, WeightedDestination};
use proptest::prelude::*;

use crate::support::*;

/// The golden ratio's part of 2⁶⁴: what proxies step by from one request to the next.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

proptest! {
    #[test]
    fn over_all_draws_each_gets_exactly_its_weight(
        weights in prop::collection::vec(0u32..2000, 1..9), times in 1u64..4,
    ) {
        let total: u64 = weights.iter().copied().map(u64::from).sum();
        prop_assume!(total > 0);
        let draws = u128::from(total * times);
        let even = (0..draws).map(|nth| ((nth << 64).div_ceil(draws)) as u64);
        let found = counted(&weights, even);
        let wanted: Vec<u64> = weights.iter().map(|&weight| u64::from(weight) * times).collect();
        prop_assert_eq!(found, wanted);
    }

    #[test]
    fn however_the_draws_begin_few_requests_are_shared_as_many_are(
        weights in prop::collection::vec(0u32..2000, 1..9), start: u64, draws in 1u64..5000,
    ) {
        let total: u64 = weights.iter().copied().map(u64::from).sum();
        prop_assume!(total > 0);
        let steps = (1..=draws).map(|nth| start.wrapping_add(GOLDEN.wrapping_mul(nth)));
        for (found, &weight) in counted(&weights, steps).into_iter().zip(&weights) {
            let wanted = draws as f64 * f64::from(weight) / total as f64;
            prop_assert!((found as f64 - wanted).abs() < 8.0, "{found} of {draws}, not {wanted}, by {weight} of {total}");
            prop_assert!(weight > 0 || found == 0);
        }
    }
}

/// How often each destination is drawn.
fn counted(weights: &[u32], draws: impl Iterator<Item = u64>) -> Vec<u64> {
    let to = |(nth, &weight): (usize, &u32)| WeightedDestination {
        destination: Destination { host: format!("host-{nth}"), ..Destination::default() },
        weight,
        ..WeightedDestination::default()
    };
    let action = RuleAction::Route(weights.iter().enumerate().map(to).collect());
    let mut world = world();
    add(&mut world, routes("r", [HttpRule { action, ..rule("r", []) }]));
    let snapshot = compiled(&world);
    let Action::Route(split) = &chosen(&snapshot, &get("/")).action else { panic!() };
    let mut found = vec![0; weights.len()];
    draws.for_each(|draw| found[nth(split, draw)] += 1);
    found
}

fn nth(split: &Split, draw: u64) -> usize {
    let host = &split.pick(draw).unwrap().cluster.host;
    host["host-".len()..].split('.').next().unwrap().parse().unwrap()
}

//! What two arms of a round are sent, and when its latencies are void.

use super::*;
use crate::identity::Item;

/// Scenario: what two arms of one round are sent.
/// Guarantees: the same bytes but for the ids, of which neither's is one of the other's.
#[test]
fn arms_have_the_same_load_and_other_ids() {
    let scenario = Scenario::load("mixed").unwrap();
    let profile = Profile::parse(scenario.profile.text()).unwrap();
    let [one, other, again] =
        ["direct", "pillion", "direct"].map(|arm| plan(&profile, &scenario, 5, ids_seed(arm, &scenario, 5)).unwrap());
    for signal in Signal::ALL {
        let templates = [&one, &other].map(|plan| format!("{:?}", plan.templates(signal)));
        assert_eq!(templates[0], templates[1]);
        let item = Item { pod: 1, variant: 0, slot: 3, sequence: 9 };
        let id = one.ids.encode(signal, item);
        assert_ne!(other.ids.decode(signal, id), Some(item));
        assert_eq!(again.ids.decode(signal, id), Some(item));
    }
}

/// Scenario: a generator that was late by different times, beside different latencies.
/// Guarantees: only what is both above a millisecond and a large part of the latency makes it void, and the words name the
/// lateness, its limit, who else was busy and what helps.
#[test]
fn lateness_voids_latencies_that_it_is_a_large_part_of() {
    let late = |late: f64, latency: Option<f64>| {
        let of = |p99| Percentiles { p99, ..Percentiles::default() };
        let cpu = Cpu { machine: 1.25, stolen: 0.25, wall: 1.0, ..Cpu::default() };
        lateness_voids(&of(Some(late)), &of(latency), &cpu)
    };
    assert_eq!(late(0.9, Some(1.0)), None, "below the limit");
    assert_eq!(late(3.0, Some(40.0)), None, "a small part of what was measured");
    let why = late(3.0, Some(5.0)).unwrap();
    for words in ["3.0 ms late", "at most 1 ms", "1.2 processors", "17 % of the CPU time", "--rate"] {
        assert!(why.contains(words), "{words}: {why}");
    }
    assert!(late(3.0, None).is_some(), "no latency to be a part of");
}

use super::*;
use crate::cell::Percentiles;

fn cell(arm: &str, round: usize, p50: f64, p999: f64) -> Cell {
    let latency = Percentiles {
        p50: Some(p50),
        p99: Some(p999 / 2.0),
        p999: Some(p999),
        max: Some(p999),
        ..Percentiles::default()
    };
    Cell { arm: arm.to_owned(), round, latency, ..Cell::default() }
}

/// Scenario: a figure that is a fifth smaller in each of eight rounds, and one that is as often larger as smaller.
/// Guarantees: the first is told with its interval, the second is no verdict, and neither is with four rounds.
#[test]
fn noise_is_no_verdict() {
    let lower: Vec<(f64, f64)> = (0..8).map(|n| (0.8 + 0.01 * f64::from(n % 3), 1.0)).collect();
    let noise: Vec<(f64, f64)> = (0..8).map(|n| (if n % 2 == 0 { 0.7 } else { 1.4 }, 1.0)).collect();

    let sure = Ratio::of(&lower, 1).unwrap();
    assert!(sure.is_decided() && sure.low > 0.79 && sure.high < 0.83, "{sure:?}");
    assert!(sentence("CPU", "a", "b", &lower, 1).starts_with("CPU: a takes 0.81x of what b takes"));
    let unsure = Ratio::of(&noise, 1).unwrap();
    assert!(!unsure.is_decided() && unsure.low < 1.0 && unsure.high > 1.0, "{unsure:?}");
    assert!(sentence("CPU", "a", "b", &noise, 1).contains("no verdict"));
    assert!(sentence("CPU", "a", "b", &lower[..4], 1).contains("no verdict"));
    assert_eq!(Ratio::of(&lower, 1), Ratio::of(&lower, 1), "the seed decides");
}

/// Scenario: two arms that do not differ, compared six hundred times in five rounds each.
/// Guarantees: a verdict is told about as often as an interval of 95 % promises, not once in seven times.
#[test]
fn five_rounds_of_nothing_are_seldom_a_verdict() {
    let mut rng = fastrand::Rng::with_seed(7);
    // The sum of twelve uniform numbers is near enough to a normal one.
    let mut noise = move || ((0..12).map(|_| rng.f64()).sum::<f64>() - 6.0) * 0.1;
    let told = (0..600u64)
        .filter(|seed| {
            let pairs: Vec<(f64, f64)> = (0..5).map(|_| (noise().exp(), 1.0)).collect();
            Ratio::of(&pairs, *seed).unwrap().is_decided()
        })
        .count();
    assert!((10..60).contains(&told), "{told} of 600");
}

/// Scenario: an arm that refuses most of the load, and one that leaves most of it without an answer in one round.
/// Guarantees: neither is compared, and the second is told.
#[test]
fn who_does_less_is_not_compared() {
    let mut cells =
        vec![cell("a", 0, 1.0, 2.0), cell("b", 0, 2.0, 4.0), cell("a", 1, 1.0, 2.0), cell("b", 1, 2.0, 4.0)];
    cells.push(cell("a", 2, 1.0, 2.0));
    cells.iter_mut().for_each(|cell| (cell.requests.due, cell.requests.acknowledged) = (100, 100));
    assert_eq!(pairs(&cells, "a", "b", |cell| cell.latency.p50).len(), 2, "the third round has one arm only");
    cells[2].requests.acknowledged = 5;
    assert_eq!(pairs(&cells, "a", "b", |cell| cell.latency.p50), [(1.0, 2.0)]);
    let never = Percentiles { count: 2_000, unanswered: 1_500, ..Percentiles::default() };
    assert_eq!(
        (never.p50(), never.p99(), never.max()),
        (Some(f64::INFINITY), Some(f64::INFINITY), Some(f64::INFINITY))
    );
    assert_eq!(Percentiles { count: 20, unanswered: 9, ..never }.p99(), None, "too few to tell");
    let told = sentence("p50", "a", "b", &[(1.0, 2.0), (f64::INFINITY, 2.0)], 1);
    assert!(told.contains("in 1 of 2 rounds too many requests of a had no answer"), "{told}");
}

/// Scenario: five rounds, in one of which the machine answered ten times as late without an agent.
/// Guarantees: that round is known, and without a run without an agent nothing is.
#[test]
fn a_disturbed_round_is_known() {
    let cells: Vec<Cell> =
        (0..5).map(|round| cell("direct", round, 0.1, if round == 3 { 10.0 } else { 1.0 })).collect();
    assert_eq!(disturbed(&cells), [3]);
    assert!(disturbed(&cells[..2]).is_empty());
    assert!(disturbed(&[cell("a", 0, 1.0, 1.0)]).is_empty());
}

/// Scenario: a tail that is slow beside the same round without an agent; one that is slow in both; one in one round of two.
/// Guarantees: only the first is called out.
#[test]
fn a_slow_tail_is_the_arms_own() {
    let scenario = Scenario::load("quick").unwrap();
    let told = |arms: &[(f64, f64)]| {
        let cells: Vec<Cell> = arms
            .iter()
            .enumerate()
            .flat_map(|(round, (own, without))| [cell("a", round, 0.5, *own), cell("direct", round, 0.5, *without)])
            .collect();
        mistakes("a", &cells, &scenario)
    };
    assert!(told(&[(200.0, 2.0), (150.0, 2.0)])[0].contains("slow tail"));
    assert!(told(&[(200.0, 120.0), (150.0, 100.0)]).is_empty());
    assert!(told(&[(200.0, 2.0), (3.0, 2.0)]).is_empty());
}

/// Scenario: a slow tail on a cluster's quiet node, and on one where others keep a processor busy in the run or in the one without an
/// agent.
/// Guarantees: only the first is held against the arm: nothing has processors of its own there.
#[test]
fn a_busy_nodes_slow_tail_is_nobodys() {
    let scenario = Scenario::load("quick").unwrap();
    let told = |busy: f64, busy_without: f64| {
        let on_cluster = |cell: Cell, machine| {
            let cpu = crate::cell::Cpu { machine, wall: 1.0, ..cell.cpu };
            Cell { on_cluster: Some(crate::kubernetes::OnCluster::default()), cpu, ..cell }
        };
        let cells = [on_cluster(cell("a", 0, 0.5, 200.0), busy), on_cluster(cell("direct", 0, 0.5, 2.0), busy_without)];
        mistakes("a", &cells, &scenario)
    };
    assert!(told(0.1, 0.1)[0].contains("slow tail"));
    assert_eq!((told(1.0, 0.1), told(0.1, 1.0)), (Vec::new(), Vec::new()));
}

/// Scenario: an agent is killed in a scenario that makes repeats fair, and loses and repeats.
/// Guarantees: only the loss is held against it.
#[test]
fn what_a_scenario_makes_fair_is_no_mistake() {
    let scenario = Scenario::load("agent-killed").unwrap();
    let account = Account { lost: 3, duplicated: 9, ..Account::default() };
    let cells = [Cell { account, ..cell("a", 0, 1.0, 1.0) }];
    assert_eq!(mistakes("a", &cells, &scenario), ["3 items were acknowledged and lost"]);
}

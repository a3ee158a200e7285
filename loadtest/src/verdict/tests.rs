use super::*;
use crate::cell::Percentiles;

fn cell(arm: &str, round: usize, p50: f64, p999: f64) -> Cell {
    let latency = Percentiles { p50: Some(p50), p99: Some(p999 / 2.0), p999: Some(p999), max: Some(p999) };
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
    assert!(sentence("CPU", "a", "b", Some(sure)).starts_with("CPU: a takes 0.81x of what b takes"));
    let unsure = Ratio::of(&noise, 1).unwrap();
    assert!(!unsure.is_decided() && unsure.low < 1.0 && unsure.high > 1.0, "{unsure:?}");
    assert!(sentence("CPU", "a", "b", Some(unsure)).contains("no verdict"));
    let few = Ratio::of(&lower[..4], 1);
    assert!(sentence("CPU", "a", "b", few).contains("no verdict"));
    assert_eq!(Ratio::of(&lower, 1), Ratio::of(&lower, 1), "the seed decides");
}

/// Scenario: an arm with one run that was void, and one round that the other arm has not.
/// Guarantees: only rounds that both have, and that count, are compared.
#[test]
fn void_runs_are_not_compared() {
    let mut cells =
        vec![cell("a", 0, 1.0, 2.0), cell("b", 0, 2.0, 4.0), cell("a", 1, 1.0, 2.0), cell("b", 1, 2.0, 4.0)];
    cells.push(cell("a", 2, 1.0, 2.0));
    cells[2].void = Some("late".to_owned());
    assert_eq!(pairs(&cells, "a", "b", |cell| cell.latency.p50), [(1.0, 2.0)]);
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

/// Scenario: an agent is killed in a scenario that makes repeats fair, and loses and repeats.
/// Guarantees: only the loss is held against it.
#[test]
fn what_a_scenario_makes_fair_is_no_mistake() {
    let scenario = Scenario::load("agent-killed").unwrap();
    let account = Account { lost: 3, duplicated: 9, ..Account::default() };
    let cells = [Cell { account, ..cell("a", 0, 1.0, 1.0) }];
    assert_eq!(mistakes("a", &cells, &scenario), ["3 items were acknowledged and lost"]);
}

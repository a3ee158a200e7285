//! What Pillion promises, beside what was measured and what others take: a row for each promise that the results can tell.

use super::words::{neighbour_pairs, undisturbed};
use super::{Beside, FIGURES};
use crate::cell::Cell;
use crate::compare::{CALM, Comparison};
use crate::saturate::Saturation;
use crate::scenario::Allowed;
use crate::verdict::{ROUNDS_MIN, Ratio, pairs};

/// Arms that Pillion replaces, by what they promise at an acknowledgement.
const PEERS: [(&str, &str); 5] = [
    ("pillion", "otelcol"),
    ("pillion", "otelcol-minimal"),
    ("pillion", "otelcol-daemonset"),
    ("pillion", "rotel"),
    ("pillion-durable", "otelcol-file"),
];

/// Items a second at which latencies are promised, with room for what a draw of arrivals does.
const STEADY: std::ops::RangeInclusive<f64> = 9_000.0..=11_000.0;

/// Thousands of spans a CPU-second, by spans a request: of ack memory, and of ack durable.
const SPANS: [(usize, f64, f64); 4] =
    [(512, 1_400.0, 800.0), (100, 1_100.0, 600.0), (10, 300.0, 150.0), (1, 40.0, 20.0)];

/// Of the floor's CPU.
const FLOOR: f64 = 1.6;

/// How far a victim's latency may be moved by a neighbour, either way.
const NEIGHBOUR: f64 = 0.05;

/// Pods, and KiB of PSS for each: 1.0 MB.
const IDLE: (usize, f64) = (110, 1e6 / 1024.0);

/// Of a run's CPU.
const GENERATOR: f64 = 15.0;

/// One promise.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// Of what.
    pub(super) what: String,
    /// The figure that is promised; "-": it is told, not promised.
    pub(super) target: String,
    /// What was measured.
    pub(super) measured: String,
    /// What others take, beside it.
    pub(super) peers: String,
    /// Whether it is kept; `None`: nothing is promised, or the runs do not say.
    pub(super) is_kept: Option<bool>,
}

/// What the results do not tell, and what does.
const ELSEWHERE: [(&str, &str); 5] = [
    ("ack latency", "compare steady --arms direct,pillion,pillion-durable,otelcol,rotel"),
    ("spans per CPU-second", "saturate"),
    ("PSS of 110 idle pods", "sweep pods=5,20,50,110,250 --name idle"),
    ("neighbour", "compare noisy-neighbour --arms direct,pillion"),
    ("donated", "cargo bench -p pillion-loadtest --bench ways -- --out DIR"),
];

/// The rows, and a sentence on what is told elsewhere; no rows: the results tell of no promise.
pub(super) fn targets(comparison: &Comparison, beside: &Beside) -> (Vec<Row>, Option<String>) {
    let all: Vec<&Comparison> = [comparison].into_iter().chain(&beside.comparisons).collect();
    let mut rows = vec![kept(&all)];
    for comparison in &all {
        rows.extend(latencies(comparison));
        rows.extend(neighbour(comparison));
    }
    let mut idle: Vec<&&Comparison> = all.iter().filter(|comparison| comparison.name == "idle").collect();
    idle.sort_by_key(|comparison| comparison.scenario.pods);
    rows.extend(idle.into_iter().filter_map(|comparison| pss(comparison)));
    rows.extend(beside.saturation.iter().flat_map(spans));
    rows.extend(beside.ways.iter().flat_map(|ways| &ways.ratios).map(|ratio| {
        let is_promised = ratio.what.starts_with("donated / direct, p");
        Row {
            what: format!("{}, {} spans a request", ratio.what, ratio.spans),
            target: if is_promised { "at most 1.0x".to_owned() } else { "-".to_owned() },
            measured: format!("{:.2}x ({:.2} to {:.2})", ratio.median, ratio.lowest, ratio.highest),
            peers: ratio.verdict().to_owned(),
            is_kept: is_promised.then_some(ratio.lowest <= 1.0),
        }
    }));
    let rows: Vec<Row> = rows.into_iter().filter(|row| !row.measured.is_empty()).collect();
    let missing: Vec<String> = ELSEWHERE
        .iter()
        .filter(|(what, _)| !rows.iter().any(|row| row.what.contains(what)))
        .map(|(what, command)| format!("{what}: `{command}`"))
        .collect();
    let missing = (!missing.is_empty()).then(|| format!("Not measured here: {}.", missing.join("; ")));
    (rows, missing)
}

/// Whatever happened: what is acknowledged arrives, where the scenario does not make a loss fair.
fn kept(all: &[&Comparison]) -> Row {
    let strict = all.iter().filter(|comparison| !comparison.scenario.allow.contains(&Allowed::Lost));
    let cells: Vec<&Cell> =
        strict.flat_map(|comparison| &comparison.cells).filter(|cell| cell.arm.starts_with("pillion")).collect();
    let sum = |of: fn(&Cell) -> u64| cells.iter().map(|cell| of(cell)).sum::<u64>();
    let (acknowledged, lost) = (sum(|cell| cell.account.acknowledged), sum(|cell| cell.account.lost));
    Row {
        what: "items acknowledged by Pillion and lost".to_owned(),
        target: "none".to_owned(),
        measured: if acknowledged > 0 { format!("{lost} of {acknowledged}") } else { String::new() },
        peers: String::new(),
        is_kept: Some(lost == 0),
    }
}

/// At the rate at which they are promised.
fn latencies(comparison: &Comparison) -> Vec<Row> {
    let scenario = &comparison.scenario;
    let rate = scenario.pods as f64 * scenario.requests_per_second * scenario.items_per_request();
    let is_steady = scenario.phases.is_empty() && scenario.events.is_empty() && scenario.noisy.is_none();
    if !is_steady || !STEADY.contains(&rate) || comparison.cells.iter().any(|cell| cell.on_cluster.is_some()) {
        return Vec::new();
    }
    // Of a run of which most rounds are void the others are no measure: what made those void was there.
    let is_heard = |arm: &str| {
        let rounds = comparison.of(arm).filter(|cell| heard(cell).is_some()).count();
        2 * rounds > comparison.of(arm).count()
    };
    let told = |value: Option<f64>, unit: &str| value.map_or_else(String::new, |value| format!("{value:.2}{unit}"));
    let memory = comparison.median("pillion", heard);
    let of_disk = comparison.median("pillion-durable", |cell| Some(heard(cell)? / cell.bare_sync?.p99?));
    let share = comparison.cells.iter().filter(|cell| cell.cpu.arm > 0.0);
    let share = share
        .map(|cell| cell.generator_share() * 100.0)
        .fold(None, |most: Option<f64>, share| Some(most.map_or(share, |most| most.max(share))));
    vec![
        Row {
            what: "ack latency p99 at 10,000 items a second, ack memory".to_owned(),
            target: "at most 1 ms".to_owned(),
            measured: told(memory, " ms"),
            peers: beside_peers(comparison, "pillion", heard),
            is_kept: memory.map(|p99| p99 <= 1.0).filter(|_| is_heard("pillion")),
        },
        Row {
            what: "ack latency p99 at 10,000 items a second, ack durable".to_owned(),
            target: "at most 2x a bare write and fdatasync".to_owned(),
            measured: told(of_disk, "x"),
            peers: beside_peers(comparison, "pillion-durable", heard),
            is_kept: of_disk.map(|ratio| ratio <= 2.0).filter(|_| is_heard("pillion-durable")),
        },
        Row {
            what: "the generator's share of a run's CPU, the largest".to_owned(),
            target: format!("under {GENERATOR} %"),
            measured: told(share, " %"),
            peers: String::new(),
            is_kept: share.map(|share| share < GENERATOR),
        },
    ]
}

/// Of a run whose latencies say something.
fn heard(cell: &Cell) -> Option<f64> {
    cell.latency.p99().filter(|_| cell.void.is_none())
}

/// Of the arms of a comparison that promise the same, what Pillion takes of what they take.
fn beside_peers(comparison: &Comparison, own: &str, figure: impl Fn(&Cell) -> Option<f64>) -> String {
    let quiet = undisturbed(comparison);
    let peers = PEERS.iter().filter(|(one, other)| *one == own && comparison.of(other).next().is_some());
    let told = peers.filter_map(|(_, other)| {
        let ratio = Ratio::of(&pairs(&quiet, own, other, &figure), comparison.seed)?;
        let interval = format!("{:.2} to {:.2}, {} rounds", ratio.low, ratio.high, ratio.rounds);
        let doubt = if ratio.is_decided() { "" } else { ": no verdict" };
        Some(format!("{:.2}x of {other} ({interval}{doubt})", ratio.mean))
    });
    told.collect::<Vec<_>>().join("; ")
}

/// What pods beside a noisy one notice of it.
fn neighbour(comparison: &Comparison) -> Option<Row> {
    let calm = format!("pillion{CALM}");
    comparison.of(&calm).next()?;
    let quiet = undisturbed(comparison);
    let ratio = Ratio::of(&neighbour_pairs(&quiet, "pillion", &calm, &heard), comparison.seed)?;
    let (low, high) = (1.0 - NEIGHBOUR, 1.0 + NEIGHBOUR);
    let unanswered: u64 = comparison.of("pillion").map(|cell| cell.latency.unanswered).sum();
    let is_told = ratio.rounds >= ROUNDS_MIN;
    let is_within = ratio.low >= low && ratio.high <= high;
    let is_outside = ratio.low > high || ratio.high < low;
    Some(Row {
        what: "a neighbour at 50x its quota: p99 of the other pods".to_owned(),
        target: "within 5 % of the same without it, all acknowledged".to_owned(),
        measured: format!("{:.2}x ({:.2} to {:.2}, {} rounds)", ratio.mean, ratio.low, ratio.high, ratio.rounds),
        peers: if unanswered == 0 { "all acknowledged".to_owned() } else { format!("{unanswered} not acknowledged") },
        is_kept: match (is_told && is_within, unanswered > 0 || (is_told && is_outside)) {
            (_, true) => Some(false),
            (true, false) => Some(true),
            (false, false) => None,
        },
    })
}

/// Of pods that send next to nothing.
fn pss(comparison: &Comparison) -> Option<Row> {
    let figure = FIGURES.iter().find(|figure| figure.key == "pss_idle_kib_per_pod")?;
    let own = figure.of_arm(comparison, "pillion")?;
    let peers = PEERS.iter().filter(|(own, _)| *own == "pillion").filter_map(|(_, other)| {
        let others = figure.of_arm(comparison, other)?;
        Some(format!("{:.3}x of {other} ({others:.0} KiB)", own / others))
    });
    let pods = comparison.scenario.pods;
    let is_promised = pods == IDLE.0;
    Some(Row {
        what: format!("PSS of {pods} idle pods, each, shims and both DaemonSets included"),
        target: if is_promised { "at most 1.0 MB".to_owned() } else { "-".to_owned() },
        measured: format!("{own:.0} KiB"),
        peers: peers.collect::<Vec<_>>().join("; "),
        is_kept: is_promised.then_some(own <= IDLE.1),
    })
}

/// Saturated, both ways of acknowledging.
fn spans(saturation: &Saturation) -> Vec<Row> {
    let mut rows = Vec::new();
    for (size, memory, durable) in SPANS {
        for (arm, floor, promised) in [("pillion", "floor", memory), ("pillion-durable", "floor-durable", durable)] {
            let Some(own) = saturation.median(arm, size) else { continue };
            let peers = PEERS
                .iter()
                .filter(|(own, _)| *own == arm)
                .filter_map(|(_, other)| Some(format!("{:.1}x of {other}", own / saturation.median(other, size)?)));
            let plural = if size == 1 { "" } else { "s" };
            rows.push(Row {
                what: format!("spans per CPU-second, {size} span{plural} a request, {arm}"),
                target: format!("at least {promised} k"),
                measured: format!("{own:.0} k"),
                peers: peers.collect::<Vec<_>>().join("; "),
                is_kept: Some(own >= promised),
            });
            let Some(least) = saturation.median(floor, size) else { continue };
            rows.push(Row {
                what: format!("its CPU against the floor's, {size} span{plural} a request, {arm}"),
                target: format!("at most {FLOOR}x"),
                measured: format!("{:.2}x", least / own),
                peers: format!("{floor}: {least:.0} k"),
                is_kept: Some(least / own <= FLOOR),
            });
        }
    }
    rows
}

/// The same in words, a line each.
pub(super) fn lines(comparison: &Comparison, beside: &Beside) -> Vec<String> {
    let (rows, missing) = targets(comparison, beside);
    let line = |row: Row| {
        let peers = if row.peers.is_empty() { String::new() } else { format!("; {}", row.peers) };
        format!("{} {}: {}, promised {}{peers}", row.word(), row.what, row.measured, row.target)
    };
    rows.into_iter().map(line).chain(missing).collect()
}

impl Row {
    /// What became of it.
    pub(super) fn word(&self) -> &'static str {
        match (self.is_kept, self.target.as_str()) {
            (Some(true), _) => "KEPT",
            (Some(false), _) => "MISSED",
            (None, "-") => "TOLD",
            (None, _) => "NO VERDICT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Percentiles;
    use crate::compare::About;
    use crate::report::tests_comparison;
    use crate::saturate::Run;
    use crate::scenario::Scenario;
    use crate::ways::{WayRatio, Ways};

    /// The row of that promise; what a test asks for is there.
    fn row<'a>(rows: &'a [Row], what: &str) -> &'a Row {
        rows.iter().find(|row| row.what.contains(what)).unwrap_or_else(|| panic!("no {what} in {rows:#?}"))
    }

    /// Six rounds at the promised rate, of ack memory, ack durable and the Collector.
    fn steady(p99: f64, bare: f64) -> Comparison {
        let mut comparison = tests_comparison();
        comparison.scenario = Scenario::load("steady").unwrap();
        let heard = |p99| Percentiles { p50: Some(0.1), p99: Some(p99), ..Percentiles::default() };
        let durable = comparison.of("pillion").cloned().map(|mut cell| {
            "pillion-durable".clone_into(&mut cell.arm);
            cell.bare_sync = Some(heard(bare));
            cell
        });
        let durable: Vec<Cell> = durable.collect();
        comparison.cells.extend(durable);
        for cell in comparison.cells.iter_mut().filter(|cell| cell.arm.starts_with("pillion")) {
            cell.latency = heard(p99 * (1.0 + 0.01 * cell.round as f64));
        }
        comparison.arms.push(About { name: "pillion-durable".into(), about: String::new(), is_durable: true });
        comparison
    }

    /// Scenario: acknowledgements faster and slower than is promised, at the promised rate and at another one; one is lost.
    /// Guarantees: each promise is kept or missed by its own figure, beside what the peer takes; at another rate nothing is said, and
    /// where half of the rounds are void there is no verdict.
    #[test]
    fn latencies_are_held_against_what_is_promised() {
        let (rows, _) = targets(&steady(0.5, 0.3), &Beside::default());
        let memory = row(&rows, "ack memory");
        assert_eq!((memory.is_kept, memory.measured.as_str()), (Some(true), "0.51 ms"));
        assert!(memory.peers.starts_with("0.43x of otelcol ("), "{memory:?}");
        let durable = row(&rows, "ack durable");
        assert_eq!((durable.is_kept, durable.measured.as_str()), (Some(true), "1.71x"));
        assert_eq!(row(&rows, "lost").is_kept, Some(true));

        let mut slow = steady(1.2, 0.3);
        slow.cells.iter_mut().find(|cell| cell.arm == "pillion").unwrap().account.lost = 1;
        let (rows, _) = targets(&slow, &Beside::default());
        for what in ["ack memory", "ack durable", "lost"] {
            assert_eq!(row(&rows, what).is_kept, Some(false), "{what}");
        }
        for cell in slow.cells.iter_mut().filter(|cell| cell.round < 3) {
            cell.void = Some("late".to_owned());
        }
        let (rows, _) = targets(&slow, &Beside::default());
        assert_eq!(row(&rows, "ack memory").word(), "NO VERDICT", "half of the rounds are void");
        assert_eq!(row(&rows, "ack durable").word(), "NO VERDICT");
        slow.scenario.requests_per_second *= 2.0;
        let (rows, missing) = targets(&slow, &Beside::default());
        assert!(!rows.iter().any(|row| row.what.contains("ack latency")), "{rows:#?}");
        assert!(missing.is_some_and(|text| text.contains("compare steady")));
    }

    /// Scenario: a noisy neighbour moves the others' p99 not at all, by a fifth, and in too few rounds to say.
    /// Guarantees: kept, missed, and no verdict.
    #[test]
    fn a_neighbour_is_told_by_five_rounds_or_not_at_all() {
        let with = |factor: f64, rounds: usize| {
            let mut comparison = steady(0.5, 0.3);
            let calm = comparison.of("pillion").cloned().map(|mut cell| {
                cell.arm = format!("pillion{CALM}");
                (cell.latency.p99, cell.latency.count) = (cell.latency.p99.map(|p99| p99 / factor), 10);
                cell
            });
            let calm: Vec<Cell> = calm.collect();
            comparison.cells.extend(calm);
            comparison.cells.iter_mut().for_each(|cell| cell.latency.count = 10);
            comparison.cells.retain(|cell| cell.round < rounds);
            row(&targets(&comparison, &Beside::default()).0, "neighbour").is_kept
        };
        assert_eq!(with(1.0, 6), Some(true));
        assert_eq!(with(1.2, 6), Some(false));
        assert_eq!(with(1.0, 3), None);
    }

    /// Scenario: 110 idle pods of which each takes less than is promised, and more; 20 pods, of which nothing is promised.
    /// Guarantees: memory is held against the promise with as many pods as it was made for, and told otherwise.
    #[test]
    fn memory_is_promised_for_a_full_node() {
        let of = |pods: usize, kib: u64| {
            let mut comparison = tests_comparison();
            "idle".clone_into(&mut comparison.name);
            comparison.scenario.pods = pods;
            for cell in &mut comparison.cells {
                (cell.pods, cell.memory.idle.pss) = (pods, kib * pods as u64);
                cell.cpu.arm = cell.cpu.arm.max(0.1);
            }
            targets(&comparison, &Beside::default()).0
        };
        assert_eq!(row(&of(110, 900), "PSS").is_kept, Some(true));
        assert_eq!(row(&of(110, 1_000), "PSS").is_kept, Some(false));
        assert_eq!(row(&of(20, 1_000), "PSS").word(), "TOLD");
    }

    /// Scenario: results of `saturate` and of the bench `ways` stand beside a comparison, read from their directory.
    /// Guarantees: spans per CPU-second, the floor and the donated path are held against what is promised; a directory without
    /// any result is refused by name.
    #[test]
    fn what_stands_beside_is_told() {
        let run = |arm: &str, spans, accepted| Run {
            arm: arm.to_owned(),
            round: 0,
            spans,
            accepted,
            refused: 0,
            cpu: 1.0,
            p50_us: 1,
            p99_us: 2,
            arrived: 1.0,
        };
        let saturation = Saturation {
            machine: String::new(),
            limits: String::new(),
            command: String::new(),
            arms: Vec::new(),
            missing: Vec::new(),
            sizes: vec![10, 1],
            runs: vec![
                run("pillion", 10, 31_000),
                run("floor", 10, 62_000),
                run("pillion", 1, 39_000),
                run("otelcol", 10, 3_100),
            ],
        };
        let ways = Ways {
            command: String::new(),
            ratios: WayRatio::of(10, "donated / direct, p50", vec![1.2, 1.1, 1.3]).into_iter().collect(),
        };
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(crate::saturate::FILE), serde_json::to_string(&saturation).unwrap()).unwrap();
        std::fs::write(dir.path().join(crate::ways::FILE), serde_json::to_string(&ways).unwrap()).unwrap();
        let mut beside = Beside::default();
        beside.read(dir.path()).unwrap();
        let comparison = tests_comparison();
        let (rows, missing) = targets(&comparison, &beside);
        let spans = row(&rows, "10 spans a request, pillion");
        assert_eq!((spans.is_kept, spans.peers.as_str()), (Some(true), "10.0x of otelcol"));
        assert_eq!(row(&rows, "1 span a request, pillion").is_kept, Some(false));
        let floor = row(&rows, "floor's, 10 spans");
        assert_eq!((floor.is_kept, floor.measured.as_str()), (Some(false), "2.00x"));
        assert_eq!(row(&rows, "donated").is_kept, Some(false));
        assert!(missing.is_some_and(|text| text.contains("sweep") && !text.contains("bench ways")));
        assert!(lines(&comparison, &beside).iter().any(|line| line.starts_with("MISSED donated / direct, p50")));

        let empty = tempfile::tempdir().unwrap();
        let error = beside.read(empty.path()).unwrap_err().to_string();
        assert!(error.contains("has no result") && error.contains("saturation.json"), "{error}");
    }
}

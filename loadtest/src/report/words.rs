//! The verdict in words.

use crate::cell::Cell;
use crate::compare::{About, Comparison};
use crate::verdict::{OTHERS_MAX, ROUNDS_MIN, Ratio, disturbed, mistakes, pairs, sentence};

/// A generator that takes more than this of a run's CPU should be read beside its figures.
const GENERATOR_SHARE_MAX: f64 = 0.15;

/// Of an arm's answers, how many may come at a time that the kernel does not tell, without a word: it begins a moment late.
const UNSTAMPED_MAX: f64 = 0.01;

/// Of what a machine asks for; with more the reader is told.
const STOLEN_MAX: f64 = 0.05;

/// The least of them in the largest, for ways of counting memory to agree.
const MEMORY_AGREES: f64 = 0.8;

/// What is compared of each arm with the first one that has processes.
type Compared = (&'static str, fn(&Cell) -> Option<f64>);

const COMPARED: [Compared; 5] = [
    // By what was acknowledged: refusing is cheap.
    ("CPU of the agents", |cell| Some(cell.cpu.arm / cell.requests.acknowledged as f64).filter(|cpu| cpu.is_finite())),
    ("PSS after the load", |cell| Some(cell.memory.after.pss as f64)),
    ("PSS at idle", |cell| Some(cell.memory.idle.pss as f64)),
    ("ack latency p50", |cell| cell.latency.p50().filter(|_| cell.void.is_none())),
    ("ack latency p99", |cell| cell.latency.p99().filter(|_| cell.void.is_none())),
];

/// The same on a cluster.
const COMPARED_ON_CLUSTER: [Compared; 6] = [
    ("CPU of the agents", |cell| Some(cell.cpu.arm / cell.requests.acknowledged as f64).filter(|cpu| cpu.is_finite())),
    ("working set after the load", |cell| Some(cell.held_after.working_set? as f64)),
    ("working set at idle", |cell| Some(cell.held_idle.working_set? as f64)),
    ("time until a pod is Ready, p50", |cell| Some(cell.on_cluster.as_ref()?.ready_ms.0)),
    ("ack latency p50", |cell| cell.latency.p50().filter(|_| cell.void.is_none())),
    ("ack latency p99", |cell| cell.latency.p99().filter(|_| cell.void.is_none())),
];

/// Sentences: what is missing, what is wrong, what is sure.
pub fn verdict(comparison: &Comparison) -> Vec<String> {
    let mut out = findings(comparison);
    let ratios = ratios(comparison);
    out.extend(ratios.all.into_iter().map(|told| told.sentence).chain(ratios.notes));
    out
}

/// All of that but ratios.
pub(super) fn findings(comparison: &Comparison) -> Vec<String> {
    let mut out = Vec::new();
    for missing in &comparison.missing {
        out.push(format!("MISSING {}: {}", missing.arm, missing.why));
    }
    for arm in &comparison.arms {
        let found = mistakes(&arm.name, &comparison.cells, &comparison.scenario);
        let runs = comparison.of(&arm.name).count();
        match (runs, found.as_slice()) {
            (0, _) => {}
            (_, []) => {
                out.push(account(comparison, &arm.name));
            }
            (_, found) => out.extend(found.iter().map(|what| format!("FAULT {}: {what}", arm.name))),
        }
        let unanswered: u64 = comparison.of(&arm.name).map(|cell| cell.requests.due - cell.requests.acknowledged).sum();
        if unanswered > 0 {
            out.push(format!(
                "{}: {unanswered} requests were not acknowledged{}",
                arm.name,
                reasons(comparison, &arm.name)
            ));
        }
    }
    out.extend(noise(comparison));
    let share =
        comparison.cells.iter().filter(|cell| cell.cpu.arm > 0.0).map(Cell::generator_share).fold(0.0, f64::max);
    if share > GENERATOR_SHARE_MAX {
        out.push(format!(
            "the generator took up to {:.0} % of a run's CPU (agents, sink and generator): the agents are cheap beside it",
            share * 100.0
        ));
    }
    out.extend(comparison.arms.iter().filter_map(|arm| unstamped(comparison, &arm.name)));
    out.extend(comparison.arms.iter().filter_map(|arm| disagreement(comparison, &arm.name)));
    out.extend(neighbours(comparison));
    if !comparison.has_collector_sidecars() {
        out.push(
            "Nothing is said about full sidecars as such: the Collector's arm is not in this run, and what is said of another \
             agent holds for that agent"
                .to_owned(),
        );
    }
    out
}

/// Answers that have a later time than others would have.
fn unstamped(comparison: &Comparison, arm: &str) -> Option<String> {
    let sum = |of: fn(&Cell) -> u64| comparison.of(arm).map(of).sum::<u64>();
    let (unstamped, answers) = (sum(|cell| cell.requests.unstamped), sum(|cell| cell.requests.acknowledged));
    (unstamped as f64 > UNSTAMPED_MAX * answers as f64).then(|| {
        format!(
            "STAMPS {arm}: the kernel did not tell when {unstamped} of {answers} answers arrived: they count from when they were \
             read, and the generator was woken for each, which makes it dearer"
        )
    })
}

/// Three ways of counting one arm's memory that differ by more than a fifth: none of them is simply right.
fn disagreement(comparison: &Comparison, arm: &str) -> Option<String> {
    let of = |what: &'static str, figure: fn(&Cell) -> Option<f64>| {
        let value = comparison.median(arm, |cell| Some(figure(cell)? / cell.pods as f64));
        value.map(|value| (what, value))
    };
    let ways: Vec<(&str, f64)> = [
        of("PSS", |cell| Some(cell.memory.after.pss as f64)),
        of("working set", |cell| Some(cell.held_after.working_set? as f64)),
        of("MemAvailable", |cell| Some(cell.held_after.unavailable? as f64)),
    ]
    .into_iter()
    .flatten()
    .collect();
    let (least, most) =
        ways.iter().fold((f64::MAX, f64::MIN), |(least, most), (_, value)| (least.min(*value), most.max(*value)));
    let has_processes = ways.first().is_some_and(|(_, pss)| *pss > 0.0);
    (has_processes && least < MEMORY_AGREES * most).then(|| {
        let ways: Vec<String> = ways.iter().map(|(what, value)| format!("{what} {value:.0}")).collect();
        format!(
            "MEMORY {arm}, KiB a pod after the load: {}. They differ by more than 20 %: of the page cache PSS has what is mapped, and it has no memory of the \
             kernel, a working set has no pages that others had read from the disk before, and MemAvailable has whatever else \
             happened on the machine",
            ways.join(", ")
        )
    })
}

/// What spoils which figures, and what to do about it.
fn noise(comparison: &Comparison) -> Vec<String> {
    let mut out = Vec::new();
    let runs = comparison.cells.len();
    let void: Vec<&String> = comparison.cells.iter().filter_map(|cell| cell.void.as_ref()).collect();
    if let [first, ..] = void.as_slice() {
        out.push(format!(
            "VOID latencies of {} of {runs} runs (CPU, memory and the account hold): in the first of them {first}",
            void.len()
        ));
    }
    let disturbed = disturbed(&comparison.cells);
    if !disturbed.is_empty() {
        out.push(format!(
            "NOISE in {} of {} rounds the run without an agent answered much later than in the others: their latencies are not compared",
            disturbed.len(),
            comparison.rounds
        ));
    }
    let others = comparison.cells.iter().map(|cell| cell.cpu.others()).fold(0.0, f64::max);
    if others > OTHERS_MAX {
        out.push(format!(
            "NOISE up to {others:.1} processors were busy with other work during a run: times of the whole machine say little, \
             and caches were shared; end what else runs here and run it again"
        ));
    }
    let stolen = comparison.cells.iter().map(|cell| cell.cpu.stolen_share()).fold(0.0, f64::max);
    if stolen > STOLEN_MAX {
        out.push(format!(
            "NOISE a hypervisor gave up to {:.0} % of the CPU time that this machine asked for in a run to others: whatever waits for a \
             processor waits longer, in every arm; on a host that is less busy latencies are lower",
            stolen * 100.0
        ));
    }
    out
}

/// What became of the items of an arm without a mistake. What a scenario makes fair is told all the same.
fn account(comparison: &Comparison, arm: &str) -> String {
    let sum = |of: fn(&Cell) -> u64| comparison.of(arm).map(of).sum::<u64>();
    let items = sum(|cell| cell.account.acknowledged);
    let (lost, repeated) = (sum(|cell| cell.account.lost), sum(|cell| cell.account.duplicated));
    if items == 0 {
        return format!("{arm}: nothing was acknowledged");
    }
    if lost + repeated == 0 {
        return format!("{arm}: all {items} acknowledged items arrived once, unchanged, under their pod's name");
    }
    format!(
        "{arm}: of {items} acknowledged items {lost} were lost and {repeated} arrived once more, which this scenario makes fair; \
         the others arrived once, unchanged, under their pod's name"
    )
}

fn reasons(comparison: &Comparison, arm: &str) -> String {
    let mut parts = Vec::new();
    let mut add = |what: String, count: u64| {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    };
    let sum = |of: fn(&Cell) -> u64| comparison.of(arm).map(of).sum::<u64>();
    add("refused".to_owned(), sum(|cell| cell.requests.refused.values().sum()));
    add("in part".to_owned(), sum(|cell| cell.requests.partly));
    add("on broken connections".to_owned(), sum(|cell| cell.requests.failed));
    add("without an answer in time".to_owned(), sum(|cell| cell.requests.timed_out));
    add("never sent".to_owned(), sum(|cell| cell.requests.unsent));
    let example = comparison.of(arm).find_map(|cell| cell.requests.examples.first());
    let example = example.map(|example| format!(" (for example: {example})")).unwrap_or_default();
    format!(": {}{example}", parts.join(", "))
}

/// The runs of rounds whose latencies may be compared.
pub(super) fn undisturbed(comparison: &Comparison) -> Vec<Cell> {
    let disturbed = disturbed(&comparison.cells);
    comparison.cells.iter().filter(|cell| !disturbed.contains(&cell.round)).cloned().collect()
}

/// What the pods beside a noisy one notice: each arm beside its own runs without noise.
fn neighbours(comparison: &Comparison) -> Vec<String> {
    let quiet = undisturbed(comparison);
    let answered = |arm: &str| {
        let (mut answered, mut due) = (0, 0);
        comparison.of(arm).for_each(|cell| {
            due += cell.latency.count;
            answered += cell.latency.count - cell.latency.unanswered;
        });
        (due > 0).then(|| 100.0 * answered as f64 / due as f64)
    };
    let mut out = Vec::new();
    for (calm, noisy) in comparison.arms.iter().filter_map(|arm| Some((arm.name.as_str(), arm.noisy()?))) {
        if let Some((with, without)) = answered(noisy).zip(answered(calm)) {
            out.push(format!(
                "NEIGHBOURS {noisy}: {with:.2} % of the other pods' requests were acknowledged beside the noise, {without:.2} % without it"
            ));
        }
        for (what, figure) in COMPARED.iter().filter(|(what, _)| what.contains("latency")) {
            let pairs = neighbour_pairs(&quiet, noisy, calm, figure);
            let said = sentence(&format!("other pods' {what}"), noisy, calm, &pairs, comparison.seed);
            let within = Ratio::of(&pairs, comparison.seed)
                .filter(|ratio| ratio.rounds >= ROUNDS_MIN && ratio.low > 0.95 && ratio.high < 1.05);
            out.push(format!("NEIGHBOURS {said}{}", within.map_or("", |_| ": the same within 5 %")));
        }
    }
    out
}

/// The noisy pod may be refused what is above its quota: only the figures of the others are compared.
pub(super) fn neighbour_pairs(
    cells: &[Cell],
    noisy: &str,
    calm: &str,
    figure: &dyn Fn(&Cell) -> Option<f64>,
) -> Vec<(f64, f64)> {
    let others: Vec<Cell> = cells
        .iter()
        .cloned()
        .map(|mut cell| {
            cell.requests.due = cell.latency.count;
            cell.requests.acknowledged = cell.latency.count - cell.latency.unanswered;
            cell
        })
        .collect();
    pairs(&others, noisy, calm, figure)
}

/// Of those that promise the same at an acknowledgement, the first with processes against each other one.
pub(super) fn ratios(comparison: &Comparison) -> Ratios {
    let has_processes = |name: &str| comparison.of(name).any(|cell| cell.cpu.arm > 0.0);
    let is_faultless = |arm: &str| mistakes(arm, &comparison.cells, &comparison.scenario).is_empty();
    let is_on_cluster = comparison.cells.iter().any(|cell| cell.on_cluster.is_some());
    let compared: &[Compared] = if is_on_cluster { &COMPARED_ON_CLUSTER } else { &COMPARED };
    let quiet = undisturbed(comparison);
    let mut out = Ratios::default();
    for is_durable in [false, true] {
        let is_like = |arm: &&About| arm.is_durable == is_durable && arm.noisy().is_none() && has_processes(&arm.name);
        let mut like = comparison.arms.iter().filter(is_like);
        let Some(first) = like.next() else { continue };
        for other in like {
            let (one, other) = (&first.name, &other.name);
            if let Some(wrong) = [one, other].into_iter().find(|arm| !is_faultless(arm)) {
                out.notes
                    .push(format!("{one} and {other}: no ratios, {wrong} has a fault: who does less has it easier"));
                continue;
            }
            out.all.extend(compared.iter().map(|(what, figure)| {
                // A disturbed machine spoils latencies; the rest is counted, not timed.
                let cells = if what.contains("latency") { &quiet } else { &comparison.cells };
                let pairs = pairs(cells, one, other, figure);
                let sentence = sentence(what, one, other, &pairs, comparison.seed);
                let ratio = Ratio::of(&pairs, comparison.seed);
                Told { what, one: one.clone(), other: other.clone(), ratio, sentence }
            }));
        }
    }
    let told = out.all.iter().filter(|told| told.ratio.is_some_and(|ratio| ratio.is_decided())).count();
    if told > 0 {
        out.notes.push(format!(
            "of {} ratios {told} are told; where there is no difference, one in twenty is told by chance",
            out.all.len()
        ));
    }
    out
}

/// What may be said of pairs of arms.
#[derive(Debug, Default)]
pub(super) struct Ratios {
    /// A pair and a figure each.
    pub(super) all: Vec<Told>,
    /// What is to be known of them, and of pairs that are not compared.
    pub(super) notes: Vec<String>,
}

/// One figure of two arms.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) what: &'static str,
    pub(super) one: String,
    pub(super) other: String,
    /// `None`: no round can be compared.
    pub(super) ratio: Option<Ratio>,
    /// It, or why there is no verdict.
    pub(super) sentence: String,
}

//! What may be said of the arms of a comparison, in words: mistakes for certain, ratios only where they are not noise.
//!
//! ```text
//! mistakes   what the judge counted, in any round, unless the scenario makes it fair
//! ratio      of two arms in the same round, each round one; geometric mean, and a 95 % interval by bootstrap-t over the rounds
//!            (studentized: of few rounds, resampled means alone make intervals that are too short, and one verdict in seven from
//!            nothing). No verdict where the interval includes 1, or from fewer than five rounds. Rounds in which either run was
//!            void, or one acknowledged less of the load than the other, are not compared; one without an answer ends the matter.
//! slow tail  p99.9 (of a short run, p99) against p50 at least TAIL times worse than without an agent in the same round, in every round, and above
//!            TAIL_MS: some requests wait for something that is not the load. On a cluster, only where others kept at most OTHERS_MAX
//!            processors busy
//! ```

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::cell::Cell;
use crate::judge::Account;
use crate::scenario::{Allowed, Scenario};

#[cfg(test)]
mod tests;

/// Fewer pairs than this decide nothing.
pub const ROUNDS_MIN: usize = 5;

const RESAMPLES: usize = 2_000;

/// Shares of the load that two arms acknowledged, to be compared at all.
const ACKNOWLEDGED_ALIKE: f64 = 0.01;

/// The p99 without an agent, in terms of its median over the rounds, from which a round says nothing about latency.
const DISTURBED: f64 = 3.0;

const TAIL: f64 = 5.0;
/// Processors that others may keep busy before the reader is told.
pub(crate) const OTHERS_MAX: f64 = 0.25;

const TAIL_MS: f64 = 10.0;

/// How much more of something one arm takes than another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Geometric mean over the rounds.
    pub mean: f64,
    /// The lower end of the 95 % interval.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// Rounds that it is made of.
    pub rounds: usize,
}

impl Ratio {
    /// From pairs of the same round, of positive figures; `None` without any, or when one is infinite.
    pub fn of(pairs: &[(f64, f64)], seed: u64) -> Option<Self> {
        let logs: Vec<f64> = pairs.iter().map(|(one, other)| (one / other).ln()).collect();
        if logs.is_empty() || !logs.iter().all(|log| log.is_finite()) {
            return None;
        }
        let (mean, error) = mean_and_error(&logs);
        let mut rng = Rng::with_seed(seed);
        let mut distances: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let resample: Vec<f64> = logs.iter().map(|_| logs[rng.usize(..logs.len())]).collect();
                let (its_mean, its_error) = mean_and_error(&resample);
                // In its own standard errors; a resample of one value over and over is as far away as can be.
                let away = its_mean - mean;
                if away == 0.0 { 0.0 } else { away / its_error }
            })
            .collect();
        distances.sort_by(f64::total_cmp);
        let at = |share: usize| distances[(RESAMPLES - 1) * share / 1_000];
        // Of rounds that do not differ at all there is no interval but the point.
        let end = |distance: f64| if error > 0.0 { (mean - distance * error).exp() } else { mean.exp() };
        Some(Self { mean: mean.exp(), low: end(at(975)), high: end(at(25)), rounds: logs.len() })
    }

    /// Whether it says anything.
    pub fn is_decided(&self) -> bool {
        self.rounds >= ROUNDS_MIN && (self.low > 1.0 || self.high < 1.0)
    }
}

fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0).max(1.0) / count).sqrt())
}

/// What an arm did wrong, a sentence each.
pub fn mistakes(arm: &str, cells: &[Cell], scenario: &Scenario) -> Vec<String> {
    let mut sum = Account::default();
    for account in cells.iter().filter(|cell| cell.arm == arm).map(|cell| &cell.account) {
        sum.lost += account.lost;
        sum.duplicated += account.duplicated;
        sum.corrupted += account.corrupted;
        sum.misattributed += account.misattributed;
        sum.foreign += account.foreign;
        sum.malformed += account.malformed;
    }
    for allowed in &scenario.allow {
        match allowed {
            Allowed::Lost => sum.lost = 0,
            Allowed::Duplicated => sum.duplicated = 0,
        }
    }
    let mut found = sum.mistakes();
    found.extend(slow_tail(arm, cells));
    found
}

/// Whether some requests wait for something that is not the load: judged against no agent in the same round.
fn slow_tail(arm: &str, cells: &[Cell]) -> Option<String> {
    // A short run has too few requests to tell one of a thousand.
    let slow = |cell: &Cell| cell.latency.p999.or(cell.latency.p99);
    let tail = |cell: &Cell| Some((slow(cell)?, slow(cell)? / cell.latency.p50?));
    let mut worst: f64 = 0.0;
    let mut rounds = 0;
    for cell in cells.iter().filter(|cell| cell.arm == arm && arm != "direct") {
        let direct = cells.iter().find(|other| other.arm == "direct" && other.round == cell.round)?;
        // Nothing has processors of its own on a cluster: where others work as well, a tail may be theirs.
        if [cell, direct].iter().any(|cell| cell.on_cluster.is_some() && cell.cpu.others() > OTHERS_MAX) {
            return None;
        }
        let ((p999, own), (_, without)) = (tail(cell)?, tail(direct)?);
        if p999 < TAIL_MS || own < TAIL * without.max(1.0) {
            return None;
        }
        worst = worst.max(p999);
        rounds += 1;
    }
    (rounds > 0).then(|| {
        format!(
            "a slow tail: the slowest requests take {worst:.0} ms or longer, which neither load nor machine explains"
        )
    })
}

/// Pairs of one figure of two arms, by round; rounds in which one has no such figure, or acknowledged less of the load than the
/// other, are left out: who does less has it easier.
pub fn pairs(cells: &[Cell], one: &str, other: &str, figure: impl Fn(&Cell) -> Option<f64>) -> Vec<(f64, f64)> {
    let of = |arm: &str, round: usize| cells.iter().find(|cell| cell.arm == arm && cell.round == round);
    let rounds = cells.iter().map(|cell| cell.round).max().map_or(0, |last| last + 1);
    let alike = (0..rounds).filter_map(|round| of(one, round).zip(of(other, round))).filter(|(one, other)| {
        let acknowledged = [one, other].map(|cell| cell.requests.acknowledged as f64 / cell.requests.due.max(1) as f64);
        (acknowledged[0] - acknowledged[1]).abs() <= ACKNOWLEDGED_ALIKE
    });
    alike
        .filter_map(|(one, other)| figure(one).zip(figure(other)))
        .filter(|(one, other)| one.min(*other) > 0.0)
        .collect()
}

/// Rounds in which the machine itself answered much later than in the others, as the run without an agent shows.
pub fn disturbed(cells: &[Cell]) -> Vec<usize> {
    let direct: Vec<(usize, f64)> = cells
        .iter()
        .filter(|cell| cell.arm == "direct" && cell.void.is_none())
        .filter_map(|cell| Some((cell.round, cell.latency.p99?)))
        .collect();
    let mut sorted: Vec<f64> = direct.iter().map(|(_, p99)| *p99).collect();
    sorted.sort_by(f64::total_cmp);
    let Some(median) = sorted.get(sorted.len() / 2).filter(|_| sorted.len() >= 3) else { return Vec::new() };
    direct.iter().filter(|(_, p99)| *p99 > DISTURBED * median).map(|(round, _)| *round).collect()
}

/// A sentence about one figure of two arms: who takes less, how sure that is, or why nothing can be said.
pub fn sentence(what: &str, one: &str, other: &str, pairs: &[(f64, f64)], seed: u64) -> String {
    let never = |of: fn(&(f64, f64)) -> f64| pairs.iter().filter(|pair| of(pair).is_infinite()).count();
    for (arm, rounds) in [(one, never(|pair| pair.0)), (other, never(|pair| pair.1))] {
        if rounds > 0 {
            return format!(
                "{what}: no verdict, in {rounds} of {} rounds too many requests of {arm} had no answer",
                pairs.len()
            );
        }
    }
    let Some(ratio) = Ratio::of(pairs, seed) else {
        return format!("{what}: no verdict, no round has it of both {one} and {other}, with as much acknowledged");
    };
    let interval = format!("{:.2} to {:.2}, {} rounds", ratio.low, ratio.high, ratio.rounds);
    if ratio.rounds < ROUNDS_MIN {
        return format!(
            "{what}: no verdict from fewer than {ROUNDS_MIN} rounds; {one} took {:.2}x of {other}'s ({interval})",
            ratio.mean
        );
    }
    if !ratio.is_decided() {
        return format!("{what}: no verdict, {one} and {other} do not differ by more than the noise ({interval})");
    }
    format!("{what}: {one} takes {:.2}x of what {other} takes ({interval})", ratio.mean)
}

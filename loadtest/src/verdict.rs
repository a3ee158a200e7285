//! What may be said of the arms of a comparison, in words: mistakes for certain, ratios only where they are not noise.
//!
//! ```text
//! mistakes   what the judge counted, in any round, unless the scenario makes it fair
//! ratio      of two arms in the same round, each round one; geometric mean, and a 95 % interval by bootstrap over the rounds.
//!            No verdict where the interval includes 1, where there are fewer than five rounds, or where a run was void.
//! slow tail  p99.9 against p50 at least TAIL times worse than without an agent in the same round, in every round, and above
//!            TAIL_MS: some requests wait for something that is not the load
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
const TAIL: f64 = 5.0;
const TAIL_MS: f64 = 10.0;

/// How much more of something one arm takes than another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Geometric mean over the rounds.
    pub mean: f64,
    /// 95 % of the resamples are above.
    pub low: f64,
    /// 95 % of the resamples are below, as many as are above `low`.
    pub high: f64,
    /// Rounds that it is made of.
    pub rounds: usize,
}

impl Ratio {
    /// From pairs of the same round, of positive figures; `None` without any.
    pub fn of(pairs: &[(f64, f64)], seed: u64) -> Option<Self> {
        let logs: Vec<f64> =
            pairs.iter().map(|(one, other)| (one / other).ln()).filter(|log| log.is_finite()).collect();
        if logs.is_empty() {
            return None;
        }
        let mean_of = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / logs.len() as f64;
        let mut rng = Rng::with_seed(seed);
        let mut means: Vec<f64> =
            (0..RESAMPLES).map(|_| mean_of(&mut (0..logs.len()).map(|_| logs[rng.usize(..logs.len())]))).collect();
        means.sort_by(f64::total_cmp);
        let at = |share: usize| means[(RESAMPLES - 1) * share / 1_000].exp();
        let mean = mean_of(&mut logs.iter().copied()).exp();
        Some(Self { mean, low: at(25), high: at(975), rounds: logs.len() })
    }

    /// Whether it says anything.
    pub fn is_decided(&self) -> bool {
        self.rounds >= ROUNDS_MIN && (self.low > 1.0 || self.high < 1.0)
    }
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
    let tail = |cell: &Cell| Some((cell.latency.p999?, cell.latency.p999? / cell.latency.p50?));
    let mut worst: f64 = 0.0;
    let mut rounds = 0;
    for cell in cells.iter().filter(|cell| cell.arm == arm && arm != "direct") {
        let direct = cells.iter().find(|other| other.arm == "direct" && other.round == cell.round)?;
        let ((p999, own), (_, without)) = (tail(cell)?, tail(direct)?);
        if p999 < TAIL_MS || own < TAIL * without.max(1.0) {
            return None;
        }
        worst = worst.max(p999);
        rounds += 1;
    }
    (rounds > 0).then(|| {
        format!("a slow tail: one of a thousand requests takes {worst:.0} ms or longer, which neither load nor machine explains")
    })
}

/// Pairs of one figure of two arms, by round; rounds in which either run was void, or has no such figure, are left out.
pub fn pairs(cells: &[Cell], one: &str, other: &str, figure: impl Fn(&Cell) -> Option<f64>) -> Vec<(f64, f64)> {
    let of = |arm: &str, round: usize| {
        let cell = cells.iter().find(|cell| cell.arm == arm && cell.round == round && cell.void.is_none())?;
        figure(cell).filter(|value| *value > 0.0)
    };
    let rounds = cells.iter().map(|cell| cell.round).max().map_or(0, |last| last + 1);
    (0..rounds).filter_map(|round| of(one, round).zip(of(other, round))).collect()
}

/// A sentence about one figure of two arms: who takes less, how sure that is, or why nothing can be said.
pub fn sentence(what: &str, one: &str, other: &str, ratio: Option<Ratio>) -> String {
    let Some(ratio) = ratio else { return format!("{what}: no verdict, no round has it of both {one} and {other}") };
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

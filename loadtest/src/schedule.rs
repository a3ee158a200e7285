//! When each request is due: an open loop, decided by the seed alone and by nothing that an agent does.
//!
//! ```text
//! pod p   arrivals at rate(p, t) = requests a second x factor of the phase that t is in
//!         Poisson: gaps of operational time (the integral of the rate) are exponential with mean 1
//!         constant: gaps of 1, the first at a random share of it, so that pods do not march in step
//! all     the earliest of the pods' next ones
//! ```

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::identity::Signal;

/// How gaps between requests are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// As from many independent users.
    #[default]
    Poisson,
    /// Evenly.
    Constant,
}

/// From `at` seconds on, rates are multiplied by `factor`, until the next phase.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Seconds after the start.
    pub at: f64,
    /// At least 0.
    pub factor: f64,
}

/// What is to be sent.
#[derive(Debug, Clone)]
pub struct Rates {
    /// Requests a second of each pod, in the phases with factor 1.
    pub pods: Vec<f64>,
    /// Shares of the three signals, of any sum above 0.
    pub shares: [f64; 3],
    /// In order of time; before the first the factor is 1.
    pub phases: Vec<Phase>,
    /// Seconds.
    pub duration: f64,
    /// How gaps are drawn.
    pub arrivals: Arrivals,
}

/// One request that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    /// Nanoseconds after the start.
    pub at: u64,
    /// Whose.
    pub pod: u16,
    /// Of what.
    pub signal: Signal,
}

/// All requests of a run in the order of their times.
#[derive(Debug)]
pub struct Schedule {
    rates: Rates,
    rng: Rng,
    /// When each pod is next due, in nanoseconds, and its number.
    next: BinaryHeap<Reverse<(u64, u16)>>,
    /// Of each pod's next request, in operational time.
    operational: Vec<f64>,
}

impl Schedule {
    /// The same arguments make the same schedule.
    pub fn new(rates: Rates, seed: u64) -> Self {
        let operational = vec![0.0; rates.pods.len()];
        let mut schedule = Self { rates, rng: Rng::with_seed(seed), next: BinaryHeap::new(), operational };
        for pod in 0..schedule.rates.pods.len() {
            let first = match schedule.rates.arrivals {
                Arrivals::Constant => schedule.rng.f64(),
                Arrivals::Poisson => 0.0,
            };
            schedule.operational[pod] = first;
            if schedule.rates.arrivals == Arrivals::Poisson {
                schedule.advance(pod);
            } else {
                schedule.push(pod);
            }
        }
        schedule
    }

    /// When the next request is due, in nanoseconds after the start.
    pub fn peek(&self) -> Option<u64> {
        self.next.peek().map(|Reverse((at, _))| *at)
    }

    fn advance(&mut self, pod: usize) {
        self.operational[pod] += match self.rates.arrivals {
            Arrivals::Constant => 1.0,
            // 1 - f64() is above 0, so the logarithm is a number.
            Arrivals::Poisson => -(1.0 - self.rng.f64()).ln(),
        };
        self.push(pod);
    }

    fn push(&mut self, pod: usize) {
        let at = self.rates.time_of(pod, self.operational[pod]);
        if let (Some(at), Ok(number)) = (at, u16::try_from(pod)) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 0 and the run's duration"
            )]
            self.next.push(Reverse(((at * 1e9) as u64, number)));
        }
    }

    fn signal(&mut self) -> Signal {
        let [traces, metrics, logs] = self.rates.shares;
        let drawn = self.rng.f64() * (traces + metrics + logs);
        match drawn {
            drawn if drawn < traces => Signal::Traces,
            drawn if drawn < traces + metrics => Signal::Metrics,
            _ => Signal::Logs,
        }
    }
}

impl Iterator for Schedule {
    type Item = Due;

    fn next(&mut self) -> Option<Due> {
        let Reverse((at, pod)) = self.next.pop()?;
        let signal = self.signal();
        self.advance(usize::from(pod));
        Some(Due { at, pod, signal })
    }
}

impl Rates {
    /// Seconds after the start at which the integral of a pod's rate reaches `operational`; `None`: not within the run.
    fn time_of(&self, pod: usize, operational: f64) -> Option<f64> {
        let mut left = operational;
        let mut from = 0.0;
        let mut factor = 1.0;
        let ends = self.phases.iter().map(|phase| (phase.at, phase.factor)).chain([(self.duration, 0.0)]);
        for (end, next_factor) in ends {
            let end = end.clamp(from, self.duration);
            let rate = self.pods[pod] * factor;
            let gained = rate * (end - from);
            if left < gained {
                return Some(from + left / rate);
            }
            left -= gained;
            (from, factor) = (end, next_factor);
        }
        None
    }

    /// Requests that are due in all, on average.
    pub fn expected(&self) -> f64 {
        let mut total = 0.0;
        let (mut from, mut factor) = (0.0, 1.0);
        for (end, next_factor) in self.phases.iter().map(|p| (p.at, p.factor)).chain([(self.duration, 0.0)]) {
            let end = end.clamp(from, self.duration);
            total += factor * (end - from);
            (from, factor) = (end, next_factor);
        }
        total * self.pods.iter().sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(arrivals: Arrivals) -> Rates {
        let phases = vec![Phase { at: 4.0, factor: 20.0 }, Phase { at: 5.0, factor: 1.0 }];
        Rates { pods: vec![100.0, 50.0, 0.0], shares: [0.5, 0.25, 0.25], phases, duration: 10.0, arrivals }
    }

    /// Scenario: two pods at 100 and 50 a second for ten seconds, twenty times that in the fifth one, a third pod silent.
    /// Guarantees: times never go back, every second of every pod has its share, and so has each signal.
    #[test]
    fn a_schedule_keeps_to_its_rates() {
        for arrivals in [Arrivals::Constant, Arrivals::Poisson] {
            let due: Vec<Due> = Schedule::new(rates(arrivals), 5).collect();
            assert!(due.is_sorted_by_key(|due| due.at));
            for (pod, rate) in [(0, 100.0), (1, 50.0), (2, 0.0)] {
                for second in 0..10u64 {
                    let expected: f64 = if second == 4 { rate * 20.0 } else { rate };
                    let count =
                        due.iter().filter(|due| due.pod == pod && due.at / 1_000_000_000 == second).count() as f64;
                    let tolerance = if arrivals == Arrivals::Constant { 1.0 } else { 5.0 * expected.sqrt() };
                    assert!((count - expected).abs() <= tolerance, "{arrivals:?} pod {pod} second {second}: {count}");
                }
            }
            let traces = due.iter().filter(|due| due.signal == Signal::Traces).count() as f64;
            assert!((0.45..0.55).contains(&(traces / due.len() as f64)));
        }
        assert!((rates(Arrivals::Poisson).expected() - 150.0 * 29.0).abs() < 1e-6);
    }

    /// Scenario: Poisson arrivals of one pod.
    /// Guarantees: gaps vary as they do among independent users: as much as their mean.
    #[test]
    fn poisson_gaps_vary_as_they_should() {
        let rates = Rates { pods: vec![1_000.0], phases: Vec::new(), ..rates(Arrivals::Poisson) };
        let due: Vec<f64> = Schedule::new(rates, 9).map(|due| due.at as f64 / 1e9).collect();
        let gaps: Vec<f64> = due.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((0.95..1.05).contains(&(mean * 1_000.0)), "{mean}");
        assert!((0.9..1.1).contains(&(variance.sqrt() / mean)), "{variance}");
    }

    /// Scenario: the same seed twice, and another.
    /// Guarantees: a run can be repeated.
    #[test]
    fn the_seed_decides_everything() {
        let of = |seed| Schedule::new(rates(Arrivals::Poisson), seed).collect::<Vec<_>>();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }
}

//! Rounds of runs: every arm once a round, in shuffled order, so that what drifts on the machine hits all of them.

use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::arm::Arm;
use crate::cell::{self, Cell, DRAIN_MAX, Options};
use crate::generator::Live;
use crate::limits::Limits;
use crate::network::Network;
use crate::scenario::Scenario;

/// All there is to know of a comparison; what a report is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Comparison {
    /// The scenario's name or file.
    pub name: String,
    /// What was done.
    pub scenario: Scenario,
    /// Decides load, contents and order.
    pub seed: u64,
    /// Rounds of it.
    pub rounds: usize,
    /// Seconds since 1970 at its start.
    pub started: u64,
    /// Where.
    pub machine: String,
    /// What each agent may have.
    #[serde(default)]
    pub limits: String,
    /// The command that makes it again.
    pub command: String,
    /// What was compared, in the order that was asked for.
    pub arms: Vec<About>,
    /// What was asked for and is not there, with the reason.
    pub missing: Vec<Missing>,
    /// Every run.
    pub cells: Vec<Cell>,
}

/// An arm that was run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct About {
    /// Its name.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Whether it acknowledges only what is on the disk.
    #[serde(default)]
    pub is_durable: bool,
}

/// An arm, or a run of it, that is not there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Missing {
    /// Its name.
    pub arm: String,
    /// Why.
    pub why: String,
}

/// What to compare, and how often.
#[derive(Debug)]
pub struct Request<'a> {
    /// The scenario's name or file.
    pub name: &'a str,
    /// What is done.
    pub scenario: Scenario,
    /// Runs of each arm.
    pub rounds: usize,
    /// Decides load, contents and order.
    pub seed: u64,
    /// The command that was given.
    pub command: String,
    /// What was asked for and cannot be run.
    pub missing: Vec<Missing>,
    /// Where data of the runs may lie meanwhile.
    pub scratch: &'a Path,
}

/// Where a comparison is.
#[derive(Debug)]
pub struct Progress<'a> {
    /// From 0.
    pub round: usize,
    /// The arm that runs.
    pub arm: &'a str,
    /// Seconds of load so far.
    pub seconds: f64,
    /// The generator's figures.
    pub live: &'a Live,
}

/// Runs them all. What fails is in the result, and does not keep the others from running.
pub fn run(request: Request<'_>, arms: &[Box<dyn Arm>], watch: &mut dyn FnMut(&Progress<'_>)) -> Result<Comparison> {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let Request { name, scenario, rounds, seed, command, mut missing, scratch } = request;
    let network = Network::of_pods(scenario.pods)?;
    let limits = Limits::find();
    let mut rng = Rng::with_seed(seed);
    let mut cells = Vec::new();
    for round in 0..rounds {
        let mut order: Vec<&dyn Arm> = arms.iter().map(Box::as_ref).collect();
        rng.shuffle(&mut order);
        for arm in order {
            let dir = tempfile::Builder::new().prefix("pl-").tempdir_in(scratch).context("a directory for the run")?;
            let options = Options {
                network: &network,
                limits: &limits,
                dir: dir.path(),
                seed: seed ^ (round as u64) << 32,
                round,
                drain: DRAIN_MAX,
            };
            let mut on_tick = |live: &Live, seconds: f64| watch(&Progress { round, arm: arm.name(), seconds, live });
            match cell::run(arm, &scenario, options, &mut on_tick) {
                Ok(cell) => cells.push(cell),
                Err(error) => {
                    missing
                        .push(Missing { arm: arm.name().to_owned(), why: format!("round {}: {error:#}", round + 1) });
                }
            }
        }
    }
    let arms = arms.iter().map(|arm| About::of(arm.as_ref())).collect();
    let (name, started, machine, limits) = (name.to_owned(), since_1970.as_secs(), machine(), limits.about());
    Ok(Comparison { name, scenario, seed, rounds, started, machine, limits, command, arms, missing, cells })
}

/// Processors and kernel in words.
pub fn machine() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processors = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unknown processor", |(_, model)| model);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{processors} processors ({model}), Linux {}", kernel.trim())
}

impl About {
    /// What an arm says of itself.
    pub fn of(arm: &dyn Arm) -> Self {
        Self { name: arm.name().to_owned(), about: arm.about(), is_durable: arm.is_durable() }
    }
}

impl Comparison {
    /// The runs of one arm.
    pub fn of<'a>(&'a self, arm: &'a str) -> impl Iterator<Item = &'a Cell> {
        self.cells.iter().filter(move |cell| cell.arm == arm)
    }

    /// The median of one figure over an arm's rounds; `None`: no round has it.
    pub fn median(&self, arm: &str, figure: impl Fn(&Cell) -> Option<f64>) -> Option<f64> {
        let mut values: Vec<f64> = self.of(arm).filter_map(figure).collect();
        values.sort_by(f64::total_cmp);
        let (lower, upper) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
        Some(f64::midpoint(*lower, *upper))
    }

    /// Whether a Collector in each pod was run: without one, nothing is said about full sidecars.
    pub fn has_collector_sidecars(&self) -> bool {
        let is_one = |arm: &&About| arm.name.starts_with("otelcol") && arm.name != "otelcol-daemonset";
        self.arms.iter().filter(is_one).any(|arm| self.of(&arm.name).next().is_some())
    }

    /// Items of a request on average, by the shares of the signals.
    pub fn items_per_request(&self) -> f64 {
        self.scenario.items_per_request()
    }
}

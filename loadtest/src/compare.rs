//! Rounds of runs: every arm once a round, in shuffled order, so that what drifts on the machine hits all of them.

use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::arm::Arm;
use crate::cell::{self, Cell, DRAIN_MAX, Options};
use crate::generator::Live;
use crate::interrupt;
use crate::limits::Limits;
use crate::network::Network;
use crate::scenario::Scenario;

/// Of the memory that is free, for agents: the rest is for the load, the sink and what the kernel holds for them.
const FITS: f64 = 0.8;

/// What the name of an arm ends with in runs without noise.
pub const CALM: &str = "-calm";

/// Of each file that is kept.
const FILE_BYTES_MAX: u64 = 256 << 10;

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
    /// Where configurations and logs of the first round, and of runs that failed, are kept: a directory for each arm.
    pub keep: Option<&'a Path>,
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

/// One run that is due.
#[derive(Debug)]
pub struct Turn<'a> {
    /// Which of the arms.
    pub arm: usize,
    /// The name of its runs of this kind.
    pub name: &'a str,
    /// What is done, with or without noise.
    pub scenario: &'a Scenario,
    /// From 0.
    pub round: usize,
    /// Decides load and contents.
    pub seed: u64,
    /// An empty directory.
    pub dir: &'a Path,
}

/// Runs them all in network namespaces.
pub fn run(request: Request<'_>, arms: &[Box<dyn Arm>], watch: &mut dyn FnMut(&Progress<'_>)) -> Result<Comparison> {
    let network = Network::of_pods(request.scenario.pods)?;
    let limits = Limits::find();
    let about: Vec<About> = arms.iter().map(|arm| About::of(arm.as_ref())).collect();
    rounds(request, &about, (machine(), limits.about()), &mut |turn| {
        let Turn { arm, name, scenario, round, seed, dir } = turn;
        let options = Options { network: &network, limits: &limits, dir, seed, round, drain: DRAIN_MAX };
        watch(&Progress { round, arm: name, seconds: 0.0, live: &Live::default() });
        let mut on_tick = |live: &Live, seconds: f64| watch(&Progress { round, arm: name, seconds, live });
        cell::run(arms[arm].as_ref(), scenario, options, &mut on_tick)
    })
}

/// Runs every arm once a round, and once more without noise where there is any, in shuffled order. What fails is in the result, and
/// does not keep the others from running. Machine and limits are words for the report.
pub fn rounds(
    request: Request<'_>,
    arms: &[About],
    (machine, limits): (String, String),
    one: &mut dyn FnMut(Turn<'_>) -> Result<Cell>,
) -> Result<Comparison> {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let Request { name, scenario, rounds, seed, command, mut missing, scratch, keep } = request;
    let calm = scenario.calm();
    let kinds: Vec<(&Scenario, &str)> =
        [(&scenario, "")].into_iter().chain(calm.iter().map(|calm| (calm, CALM))).collect();
    let mut rng = Rng::with_seed(seed);
    let mut cells = Vec::new();
    for round in 0..rounds {
        let mut order: Vec<_> = (0..arms.len())
            .flat_map(|arm| kinds.iter().map(move |(scenario, suffix)| (arm, *scenario, *suffix)))
            .collect();
        rng.shuffle(&mut order);
        for (arm, scenario, suffix) in order {
            let name = format!("{}{suffix}", arms[arm].name);
            let dir = tempfile::Builder::new().prefix("pl-").tempdir_in(scratch).context("a directory for the run")?;
            let seed = seed ^ (round as u64) << 32;
            let result = one(Turn { arm, name: &name, scenario, round, seed, dir: dir.path() });
            interrupt::check()?;
            if let Some(keep) = keep.filter(|_| round == 0 || result.is_err()) {
                keep_files(dir.path(), &keep.join(&name))?;
            }
            match result {
                Ok(cell) => cells.push(Cell { arm: name, ..cell }),
                Err(error) => missing.push(Missing { arm: name, why: format!("round {}: {error:#}", round + 1) }),
            }
        }
    }
    subtract_direct(&mut cells);
    let arms = arms.iter().flat_map(|arm| kinds.iter().map(|(_, suffix)| arm.of_kind(suffix))).collect();
    let (name, started) = (name.to_owned(), since_1970.as_secs());
    Ok(Comparison { name, scenario, seed, rounds, started, machine, limits, command, arms, missing, cells })
}

/// What is left of the machine's time without an agent, in the same round, is not the agent's.
fn subtract_direct(cells: &mut [Cell]) {
    let rest = |cell: &Cell| cell.cpu.machine - cell.cpu.generator - cell.cpu.sink;
    let direct = |cell: &&Cell| cell.arm == "direct" && cell.cpu.wall > 0.0;
    // By second, since a run that drains for longer has more of it.
    let rates: Vec<(usize, f64)> =
        cells.iter().filter(direct).map(|cell| (cell.round, rest(cell) / cell.cpu.wall)).collect();
    for cell in cells.iter_mut().filter(|cell| cell.arm != "direct") {
        let rate = rates.iter().find(|(round, _)| *round == cell.round).map(|(_, rate)| *rate);
        cell.cpu_beyond_direct = rate.map(|rate| rest(cell) - rate * cell.cpu.wall);
    }
}

/// Copies what says how an arm was configured, and what it said, to beside the report. The last part of a long log is left out.
fn keep_files(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let is_told =
            path.extension().is_some_and(|kind| ["yaml", "arguments", "log"].iter().any(|told| kind == *told));
        let Some(name) = path.file_name().filter(|_| is_told && path.is_file()) else { continue };
        let mut text = Vec::new();
        std::fs::File::open(&path)?.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
        std::fs::write(to.join(name), text)?;
    }
    Ok(())
}

/// Agents that would not fit with so many pods, by what each pod's took in the run before; `available` in KiB. The largest number
/// that fits is run, and no machine is driven into its swap or its OOM killer for a figure.
pub fn too_large(before: &[Comparison], pods: usize, available: u64) -> Vec<Missing> {
    let Some(last) = before.last() else { return Vec::new() };
    let asked = last.arms.iter().map(|arm| arm.name.as_str()).chain(last.missing.iter().map(|one| one.arm.as_str()));
    let needs = |arm: &str| {
        let measured = before
            .iter()
            .rev()
            .find_map(|one| one.median(arm, |cell| Some(cell.memory.after.pss as f64 / cell.pods as f64)));
        Some((arm.to_owned(), measured? * pods as f64))
    };
    let too_much = |(_, kib): &(String, f64)| *kib > FITS * available as f64;
    let told = |(arm, kib): (String, f64)| Missing {
        arm,
        why: format!(
            "{pods} of them would take about {:.0} MiB of the {:.0} MiB that are free: not run",
            kib / 1024.0,
            available as f64 / 1024.0
        ),
    };
    asked.filter_map(needs).filter(too_much).map(told).collect()
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

    /// The same; with [`CALM`], of its runs without noise.
    fn of_kind(&self, suffix: &str) -> Self {
        let about = if suffix == CALM { "the same, and no pod is noisy" } else { &self.about };
        Self { name: format!("{}{suffix}", self.name), about: about.to_owned(), is_durable: self.is_durable }
    }

    /// The arm with noise whose runs without it these are.
    pub fn noisy(&self) -> Option<&str> {
        self.name.strip_suffix(CALM)
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
        // An infinite one is a round without an answer: it counts.
        let (lower, upper) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
        Some(f64::midpoint(*lower, *upper))
    }

    /// Whether a Collector in each pod was run: without one, nothing is said about full sidecars.
    pub fn has_collector_sidecars(&self) -> bool {
        let is_one = |arm: &&About| matches!(arm.name.as_str(), "otelcol" | "otelcol-minimal");
        self.arms.iter().filter(is_one).any(|arm| self.of(&arm.name).next().is_some())
    }

    /// Items of a request on average, by the shares of the signals.
    pub fn items_per_request(&self) -> f64 {
        self.scenario.items_per_request()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: rounds of a run without an agent and one with it, which took longer; a third one has no run without.
    /// Guarantees: what the machine did without an agent is taken off by the second; where that is unknown, nothing is said.
    #[test]
    fn what_the_machine_does_without_an_agent_is_not_the_agents() {
        let cell = |arm: &str, round, machine, wall| {
            let mut cell = Cell { arm: arm.to_owned(), round, ..Cell::default() };
            (cell.cpu.machine, cell.cpu.generator, cell.cpu.sink, cell.cpu.wall) = (machine, 0.5, 0.5, wall);
            cell
        };
        let mut cells = [cell("direct", 0, 2.0, 10.0), cell("pillion", 0, 6.0, 20.0), cell("pillion", 1, 6.0, 20.0)];
        subtract_direct(&mut cells);
        let beyond = cells.map(|cell| cell.cpu_beyond_direct);
        assert_eq!(beyond[0], None);
        assert!((beyond[1].unwrap() - 3.0).abs() < 1e-9, "{beyond:?}");
        assert_eq!(beyond[2], None);
    }

    /// Scenario: five pods took 10 MiB each of one agent and 1 MiB of another; 50 are asked for where 100 MiB are free, then 60.
    /// Guarantees: only what does not fit is left out, also after it was left out once, with what it would take.
    #[test]
    fn what_does_not_fit_is_not_run() {
        let mut before = crate::report::tests_comparison();
        for cell in &mut before.cells {
            cell.memory.after.pss = 5 * 1024 * if cell.arm == "otelcol" { 10 } else { 1 };
        }
        let left_out = |before: &[Comparison], pods| too_large(before, pods, 100 << 10);
        assert!(left_out(std::slice::from_ref(&before), 8).is_empty());
        let found = left_out(std::slice::from_ref(&before), 50);
        assert_eq!(found.len(), 1);
        assert!(found[0].arm == "otelcol" && found[0].why.contains("about 500 MiB of the 100 MiB"), "{found:?}");
        let mut without = crate::report::tests_comparison();
        without.cells.retain(|cell| cell.arm != "otelcol");
        without.arms.pop();
        without.missing = found;
        assert_eq!(left_out(&[before, without], 60).iter().filter(|one| one.arm == "otelcol").count(), 1);
    }

    /// Scenario: a run's directory with a configuration, a long log, data and a directory.
    /// Guarantees: configuration and log are kept, the log up to its limit, and no data.
    #[test]
    fn configurations_and_logs_are_kept_and_data_are_not() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(from.path().join("data.yaml")).unwrap();
        for (name, length) in [("a.yaml", 10), ("b.log", 300 << 10), ("c.data", 10)] {
            std::fs::write(from.path().join(name), vec![b'x'; length]).unwrap();
        }
        let kept = to.path().join("arm");
        keep_files(from.path(), &kept).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a.yaml", "b.log"]);
        assert_eq!(std::fs::metadata(kept.join("b.log")).unwrap().len(), FILE_BYTES_MAX);
    }
}

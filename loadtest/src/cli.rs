//! The command line: what is asked for, the namespaces to do it in, and what is printed.

mod arguments;
mod arms;
mod kubernetes;

use std::io::{self, IsTerminal, Write, stderr, stdout};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use self::arguments::{Arguments, Load, Places, Task};
use crate::arm::{Programs, Quota};
use crate::assert::Assertions;
use crate::baselines::Baseline;
use crate::compare::{self, Comparison, Missing, Progress, Request};
use crate::floor;
use crate::interrupt;
use crate::kubernetes::share;
use crate::limits::Seat;
use crate::measure;
use crate::report::{self, Beside};
use crate::saturate;
use crate::scenario::{COMMITTED, Scenario};
use crate::verdict;

/// An arm made a mistake.
const FAULT: u8 = 3;

/// Characters of a bar that shows how far a run is.
const BAR: usize = 20;

/// An assertion does not hold.
const BROKEN: u8 = 4;

/// Runs the command; 0 is well, 1 it or one of its runs failed, 2 wrong arguments, 3 an arm lost, repeated, changed or
/// misattributed items, 4 an assertion does not hold, 130 and 143 ended by SIGINT and SIGTERM.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let heard = if arguments.inside { interrupt::listen() } else { Ok(()) };
    match heard.and_then(|()| run(arguments)) {
        Ok(code) => code,
        Err(error) => {
            tell(format_args!("pillion-loadtest: {error:#}"));
            interrupt::asked().map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.task {
        Task::List => {
            for (name, _) in COMMITTED {
                let scenario = Scenario::load(name)?;
                print(format_args!("{name:16} {}\n{:16} {}", scenario.about, "", scenario.shape()))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Task::Baselines { only, cache } => baselines(&only, cache),
        Task::Report { old, new, assertions, beside, out } => {
            let mut found = Beside::default();
            beside.iter().try_for_each(|dir| found.read(dir))?;
            tell_again(&old, new.as_deref(), assertions.as_deref(), &found, out.as_deref())
        }
        Task::Cost { result, cluster } => {
            print(format_args!("{}", report::cost(&report::read(&result)?, &cluster.cluster())))?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Compare { quick: true, ref load, ref kubernetes, .. } if !arguments.inside && !kubernetes.kubernetes => {
            // The network has nothing to do while it is built.
            std::thread::scope(|scope| {
                scope.spawn(|| get_rotel(load));
                get_pillion(load)
            })?;
            enter_namespaces()
        }
        Task::Compare { ref kubernetes, .. } if kubernetes.kubernetes && !arguments.inside => {
            // So that Ctrl-C ends neither kubectl nor, before its namespaces are deleted, the run.
            let mut run = Command::new(std::env::current_exe().context("the path of this program")?);
            run.arg("--inside").args(std::env::args_os().skip(1));
            interrupt::supervise(&mut run)
        }
        Task::Compare { name, rounds, quick, kubernetes, load } if kubernetes.kubernetes => {
            kubernetes::compare(scenario_name(name, quick), rounds, &kubernetes, &load)
        }
        Task::Run { .. } | Task::Compare { .. } | Task::Sweep { .. } | Task::Saturate { .. } if !arguments.inside => {
            enter_namespaces()
        }
        Task::Run { name, load } => one(&name, 1, &load),
        Task::Compare { name, rounds, quick, load, .. } => one(&scenario_name(name, quick), rounds, &load),
        Task::Saturate { sizes, arms, seconds, rounds, seed, places } => {
            let seed = seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
            saturate(sizes, &arms, (seconds, rounds, seed), &places)
        }
        Task::Pod { number, run, conductor, target } => {
            share::run(share::Pod { number, run, conductor, target })?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Floor { mode, listen, backend, data } => be_the_floor(&mode, listen, backend, data),
        Task::Sweep { name, numbers, rounds, load } => sweep(&name, &numbers, rounds, &load),
    }
}

/// A comparison that was made, or what changed since; the exit status is that of the last one.
fn tell_again(
    old: &Path,
    new: Option<&Path>,
    assertions: Option<&Path>,
    beside: &Beside,
    out: Option<&Path>,
) -> Result<ExitCode> {
    let assertions = assertions.map(Assertions::load).transpose()?;
    let old = report::read(old)?;
    let last = match new {
        Some(new) => {
            let new = report::read(new)?;
            print(format_args!("{}", report::change(&old, &new)))?;
            new
        }
        None => {
            let (words, promises) = (report::verdict(&old).join("\n"), report::promises(&old, beside).join("\n"));
            print(format_args!("{}\n{words}\n\n{promises}", report::table(&old)))?;
            old
        }
    };
    if let Some(out) = out {
        report::write(&last, beside, out)?;
    }
    exit(&[last], assertions.as_ref())
}

/// Tells of each assertion whether it holds; true when all do.
fn check(assertions: Option<&Assertions>, comparisons: &[&Comparison]) -> Result<bool> {
    let mut all = true;
    for (assertions, comparison) in assertions.iter().flat_map(|one| comparisons.iter().map(move |other| (one, other)))
    {
        let (lines, holds) = assertions.check(comparison);
        print(format_args!("{}", lines.join("\n")))?;
        all &= holds;
    }
    Ok(all)
}

/// Gets them, and fails when one is missing.
fn baselines(only: &[String], cache: Option<PathBuf>) -> Result<ExitCode> {
    let unknown = only.iter().find(|name| Baseline::ALL.iter().all(|baseline| baseline.name() != *name));
    if let Some(unknown) = unknown {
        bail!("no baseline is called {unknown:?}: there are {}", Baseline::ALL.map(Baseline::name).join(", "));
    }
    let programs = Programs::find(None, None, cache)?;
    let mut code = ExitCode::SUCCESS;
    for baseline in
        Baseline::ALL.into_iter().filter(|one| only.is_empty() || only.iter().any(|name| name == one.name()))
    {
        match baseline.get(&programs, &mut |line| tell(format_args!("{}: {line}", baseline.name()))) {
            Ok((path, version)) => print(format_args!("{}: {version}, {}", baseline.name(), path.display()))?,
            Err(error) => {
                print(format_args!("MISSING {}: {error:#}", baseline.name()))?;
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Before the first comparison, and only by way of `cargo run`: who got here with cargo can be spared its second command.
fn get_pillion(load: &Load) -> Result<()> {
    let is_wanted =
        load.arms(&arms::DEFAULT).iter().any(|arm| arm.starts_with("pillion")) && load.places.pillion.is_none();
    let from_cargo = std::env::var_os("CARGO").zip(std::env::var_os("CARGO_MANIFEST_DIR"));
    let Some((cargo, dir)) = from_cargo.filter(|_| is_wanted) else { return Ok(()) };
    let release = if cfg!(debug_assertions) { &[][..] } else { &["--release"] };
    tell(format_args!("building pillion as well"));
    let status = Command::new(cargo)
        .args(["build", "--locked", "--package", "pillion-gateway"])
        .args(release)
        .current_dir(dir)
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "pillion could not be built: {status}");
    Ok(())
}

/// Before the first comparison. Without it the arm is reported as missing.
fn get_rotel(load: &Load) {
    if load.places.rotel.is_some() || !load.arms(&arms::DEFAULT).iter().any(|arm| arm == "rotel") {
        return;
    }
    let got = Programs::find(None, None, load.places.cache.clone())
        .and_then(|programs| Baseline::Rotel.get(&programs, &mut |line| tell(format_args!("rotel: {line}"))));
    if let Err(error) = got {
        tell(format_args!("rotel could not be got: {error:#}"));
    }
}

/// Starts this command again where it is root of namespaces of its own, and where all that it starts ends with it.
fn enter_namespaces() -> Result<ExitCode> {
    let own = std::env::current_exe().context("the path of this program")?;
    let _seat = Seat::take();
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    unshare.arg(own).arg("--inside").args(std::env::args_os().skip(1));
    interrupt::supervise(&mut unshare).context("`unshare` of util-linux makes the pods' networks")
}

fn scenario_name(name: String, is_quick: bool) -> String {
    if is_quick { "quick".to_owned() } else { name }
}

fn one(name: &str, rounds: usize, load: &Load) -> Result<ExitCode> {
    let assertions = load.places.assertions.as_deref().map(Assertions::load).transpose()?;
    let comparison = compare(name, Scenario::load(name)?, rounds, load, Vec::new(), load.places.out.as_deref())?;
    finish(comparison, load, assertions.as_ref())
}

/// Writes what was made, and says by the exit status what came of it.
fn finish(comparison: Comparison, load: &Load, assertions: Option<&Assertions>) -> Result<ExitCode> {
    if let Some(dir) = &load.places.out {
        for path in report::write(&comparison, &Beside::default(), dir)? {
            tell(format_args!("wrote {}", path.display()));
        }
    }
    exit(&[comparison], assertions)
}

fn sweep(name: &str, pods: &[usize], rounds: usize, load: &Load) -> Result<ExitCode> {
    ensure!(!pods.is_empty(), "a sweep needs numbers of pods: pods=5,20,50");
    let assertions = load.places.assertions.as_deref().map(Assertions::load).transpose()?;
    let mut all: Vec<Comparison> = Vec::new();
    for pods in pods {
        let scenario = Scenario { pods: *pods, ..Scenario::load(name)? };
        let out = load.places.out.as_ref().map(|dir| dir.join(format!("{}{pods}", report::PODS)));
        let too_large = compare::too_large(&all, *pods, measure::memory_available()?);
        let comparison = compare(name, scenario, rounds, load, too_large, out.as_deref())?;
        if let Some(dir) = &out {
            report::write(&comparison, &Beside::default(), dir)?;
        }
        all.push(comparison);
    }
    let table = report::by_pods(&all);
    print(format_args!("{table}"))?;
    if let Some(dir) = &load.places.out {
        std::fs::write(dir.join("sweep.txt"), table).with_context(|| format!("writing to {}", dir.display()))?;
    }
    exit(&all, assertions.as_ref())
}

/// What the arguments of a comparison come to, wherever it is made.
struct Asked<'a> {
    /// The scenario's name or file.
    name: &'a str,
    scenario: Scenario,
    rounds: usize,
    missing: Vec<Missing>,
    out: Option<&'a Path>,
}

/// Has it made by `run`, and prints what came of it.
fn make(asked: Asked<'_>, load: &Load, run: impl FnOnce(Request<'_>) -> Result<Comparison>) -> Result<Comparison> {
    let Asked { name, scenario, rounds, missing, out } = asked;
    let scratch = load.places.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let seed = load.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let keep = out.map(|dir| dir.join("arms"));
    let (scratch, keep, command) = (scratch.as_path(), keep.as_deref(), command(seed));
    let comparison = run(Request { name, scenario, rounds, seed, command, missing, scratch, keep })?;
    print(format_args!("{}\n{}", report::table(&comparison), report::verdict(&comparison).join("\n")))?;
    Ok(comparison)
}

fn compare(
    name: &str,
    scenario: Scenario,
    rounds: usize,
    load: &Load,
    too_large: Vec<Missing>,
    out: Option<&Path>,
) -> Result<Comparison> {
    let scenario = load.apply(scenario)?;
    let arms = load.arms(&arms::DEFAULT);
    let fitting: Vec<String> = arms.into_iter().filter(|arm| too_large.iter().all(|one| one.arm != *arm)).collect();
    let (arms, mut missing) = arms::of(&fitting, &load.places, Quota::Default)?;
    missing.extend(too_large);
    ensure!(!arms.is_empty(), "none of the arms can be run: {missing:?}");
    let (is_watched, length) = (stderr().is_terminal(), scenario.seconds);
    make(Asked { name, scenario, rounds, missing, out }, load, |request| {
        let made = compare::run(request, &arms, &mut |progress| {
            if is_watched {
                show(progress, rounds, length);
            } else if progress.seconds == 0.0 {
                tell(format_args!("round {}/{rounds}  {}", progress.round + 1, progress.arm));
            }
        })?;
        if is_watched {
            drop(write!(stderr(), "\r\x1b[K"));
        }
        Ok(made)
    })
}

fn saturate(
    sizes: Vec<usize>,
    names: &[String],
    (seconds, rounds, seed): (f64, usize, u64),
    places: &Places,
) -> Result<ExitCode> {
    let (arms, missing) = arms::of(names, places, Quota::Open)?;
    let scratch = places.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let request = saturate::Request { sizes, seconds, rounds, seed, command: command(seed), scratch: &scratch };
    let saturation = saturate::run(request, &arms, missing, &mut |arm, spans, round| {
        tell(format_args!("round {}/{rounds}  {arm}, {spans} spans a request", round + 1));
    })?;
    print(format_args!("\n{}", saturation.table()))?;
    if let Some(dir) = &places.out {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        std::fs::write(dir.join(saturate::FILE), serde_json::to_string_pretty(&saturation)?)?;
        std::fs::write(dir.join("saturation.txt"), saturation.table())?;
        tell(format_args!("wrote {}", dir.join(saturate::FILE).display()));
    }
    let all = rounds * saturation.sizes.len() * saturation.arms.len();
    Ok(if saturation.runs.len() < all.max(1) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn be_the_floor(mode: &str, listen: SocketAddr, backend: SocketAddr, data: PathBuf) -> Result<ExitCode> {
    let mode = match mode {
        "floor" => floor::Mode::Merged,
        "floor-one-for-one" => floor::Mode::OneForOne,
        "floor-durable" => floor::Mode::Durable(data),
        other => bail!("no floor is called {other:?}"),
    };
    floor::run(TcpListener::bind(listen)?, backend, mode)?;
    Ok(ExitCode::SUCCESS)
}

/// The command as it was given, with the seed.
fn command(seed: u64) -> String {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--inside").collect();
    let seeded = arguments.iter().any(|argument| argument.starts_with("--seed"));
    let seed = if seeded { String::new() } else { format!(" --seed {seed}") };
    format!("pillion-loadtest {}{seed}", arguments.join(" "))
}

fn show(progress: &Progress<'_>, rounds: usize, length: f64) {
    let (due, acknowledged) =
        (progress.live.due.load(Ordering::Relaxed), progress.live.acknowledged.load(Ordering::Relaxed));
    // Starting, warming up, and then the load; what is left over is the wait for what was acknowledged.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and BAR")]
    let done = (progress.seconds / length * BAR as f64).clamp(0.0, BAR as f64) as usize;
    let line = format!(
        "round {}/{rounds}  {:18} [{}{}] {:5.1}/{length} s  {due} due, {acknowledged} acknowledged",
        progress.round + 1,
        progress.arm,
        "#".repeat(done),
        "-".repeat(BAR - done),
        progress.seconds
    );
    // Whoever cannot see it misses nothing.
    drop(write!(stderr(), "\r\x1b[K{line}"));
}

/// A mistake of an arm weighs more than a run that failed, which weighs more than an assertion: less was measured for it.
fn exit(comparisons: &[Comparison], assertions: Option<&Assertions>) -> Result<ExitCode> {
    let is_wrong = |comparison: &Comparison| {
        let mut arms = comparison.arms.iter();
        arms.any(|arm| !verdict::mistakes(&arm.name, &comparison.cells, &comparison.scenario).is_empty())
    };
    let is_short =
        |comparison: &Comparison| comparison.cells.len() < (comparison.rounds * comparison.arms.len()).max(1);
    let holds = check(assertions, &comparisons.iter().collect::<Vec<_>>())?;
    Ok(match (comparisons.iter().any(is_wrong), comparisons.iter().any(is_short), holds) {
        (true, _, _) => ExitCode::from(FAULT),
        (false, true, _) => ExitCode::FAILURE,
        (false, false, false) => ExitCode::from(BROKEN),
        (false, false, true) => ExitCode::SUCCESS,
    })
}

/// A line of what was asked for. A reader that has gone has read enough: the run goes on, for its files and its exit status.
fn print(line: std::fmt::Arguments<'_>) -> Result<()> {
    match writeln!(stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("writing to standard output"),
        _ => Ok(()),
    }
}

/// A line for whoever looks on; nobody may.
fn tell(line: std::fmt::Arguments<'_>) {
    drop(writeln!(stderr(), "{line}"));
}

/// Numbers of pods as `pods=5,20,50`.
fn pods_list(text: &str) -> Result<Vec<usize>, String> {
    let list = text.strip_prefix("pods=").unwrap_or(text);
    list.split(',').map(|number| number.parse().map_err(|_| format!("{number:?} is no number of pods"))).collect()
}

/// An amount of something in a cluster.
fn amount(text: &str) -> Result<f64, String> {
    number(text, 0.0, 1e9)
}

/// How long a load lasts: at most a day.
fn seconds(text: &str) -> Result<f64, String> {
    number(text, 0.001, 86_400.0)
}

fn number(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("{text:?} is no number from {least} to {most}"))
}

/// A path that outlives a change of directory.
fn absolute(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| error.to_string())
}

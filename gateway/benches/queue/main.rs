//! What the queue costs: beside other engines, over the number of tenants, with a long backlog.
//!
//! `cargo bench -p pillion-gateway --bench queue` prints all tables, and at the end what was aimed at beside what was measured. It
//! asserts nothing.
//!
//! ```text
//! -- engines | tenants | latency | backlog | instructions    one of the tables, or some
//! --rounds N     of each table, 5 by default: the arms of a round run one after the other, so that noise meets all of them
//! --quick        3 rounds of a third of the records, one backlog, and only starts that find its footers
//! --dir DIR      which disk is measured, by default the target directory's, since /tmp is often in memory
//! ```
//! Every arm is a process of its own. CPU time is the user and system time of all its threads; what the kernel's own threads
//! do for it (writeback, journal) is in nobody's figure. Ratios are those of the arms of one round; a table gives their
//! median, and the lowest and the highest.

mod aims;
mod arm;
mod backlog;
mod engines;
mod instructions;
mod pillion;

use std::path::{Path, PathBuf};
use std::process::Command;

use aims::{Aim, median};
use arm::{Load, Measured};

/// As in the gateway: memory is measured too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const TABLES: [&str; 5] = ["engines", "tenants", "latency", "backlog", "instructions"];

/// How much of it.
#[derive(Debug, Clone, Copy)]
struct Extent<'a> {
    base: &'a Path,
    rounds: usize,
    quick: bool,
}

impl Extent<'_> {
    /// A number of records.
    fn of(&self, records: u64) -> u64 {
        if self.quick { records / 3 } else { records }
    }

    /// All arms in turn, as often as there are rounds. One list of rounds for each arm.
    fn measure(&self, arms: &[(&str, Load)]) -> anyhow::Result<Vec<Vec<Measured>>> {
        let mut measured = vec![Vec::new(); arms.len()];
        for _ in 0..self.rounds {
            for ((name, load), measured) in arms.iter().zip(&mut measured) {
                measured.push(arm::run(self.base, name, load)?);
            }
        }
        Ok(measured)
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.first().map(String::as_str) {
        Some("arm") => return arm::child(&arguments[1..]),
        Some("fill") => return backlog::fill(&arguments[1..]),
        Some("serve") => return backlog::serve(&arguments[1..]),
        _ => {}
    }
    let value = |name: &str| arguments.iter().skip_while(|argument| *argument != name).nth(1);
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let rounds = value("--rounds").map_or(Ok(if quick { 3 } else { 5 }), |text| text.parse())?;
    anyhow::ensure!(rounds > 0, "at least one round");
    let base = value("--dir").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let extent = Extent { base: &base, rounds, quick };
    let wanted = |table: &&str| {
        TABLES.iter().all(|any| !arguments.contains(&(*any).to_owned())) || arguments.contains(&(*table).to_owned())
    };
    println!("{rounds} rounds; load average {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    let mut aims = Vec::new();
    for table in TABLES.iter().filter(|table| wanted(table)) {
        aims.extend(match *table {
            "engines" => engines(extent)?,
            "tenants" => tenants(extent)?,
            "latency" => latency(extent)?,
            "backlog" => backlog::table(&base, quick)?,
            _ => instructions::table(&base)?,
        });
    }
    aims::print(&aims);
    println!("load average {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    Ok(())
}

/// Beside other engines and the floor, as in a node: many tenants, groups of 32, everything delivered at once.
///
/// The queue takes what waits, so twice as many records are on their way as a group has: one group is written while the next one
/// comes together. If the sender once falls behind, all of them are one group from then on. So the floor is measured twice: in groups
/// of 32, and in groups as large as the queue's were in the same round, since half as many fdatasyncs would be another
/// task. The latter is the one that is aimed at. Its next group is always there, while the queue's comes from another thread.
fn engines(extent: Extent<'_>) -> anyhow::Result<Vec<Aim>> {
    println!("\n16 KiB a record, 110 tenants, an fsync for each group of 32, delivered records removed");
    let (warm_up, records) = (extent.of(20_000), extent.of(32_000));
    let load = Load { tenants: 110, record_bytes: 16 << 10, group: 32, in_flight: 64, warm_up, records };
    let names = ["pillion", "bare", "bare", "sled", "fjall", "redb"];
    let mut measured = vec![Vec::new(); names.len()];
    for _ in 0..extent.rounds {
        let pillion = arm::run(extent.base, "pillion", &load)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive number below the 64 in flight"
        )]
        let group = pillion.group.round().max(1.0) as usize;
        measured[0].push(pillion);
        measured[1].push(arm::run(extent.base, "bare", &Load { group, ..load })?);
        for (name, measured) in names.iter().zip(&mut measured).skip(2) {
            measured.push(arm::run(extent.base, name, &load)?);
        }
    }
    print_rows(&names.map(|name| (name, load)), &measured);
    let [pillion, same_groups, bare, sled, ..] = &measured[..] else { anyhow::bail!("an arm is missing") };
    let rate = Measured::megabytes_per_second;
    Ok(vec![
        Aim::at_least("MB/s at 16 KiB, of sled's", 3.5, ratios(pillion, sled, rate)),
        Aim::at_least("MB/s at 16 KiB, of the floor's in groups as large", 0.85, ratios(pillion, same_groups, rate)),
        Aim::told("MB/s at 16 KiB, of the floor's in groups of 32", ratios(pillion, bare, rate)),
        Aim::at_most("CPU-seconds a GB", 1.6, pillion.iter().map(Measured::cpu_s_per_gigabyte).collect()),
    ])
}

/// What a record costs with many tenants.
fn tenants(extent: Extent<'_>) -> anyhow::Result<Vec<Aim>> {
    println!("\n1 KiB a record, groups of 32, delivered records removed");
    let (warm_up, records) = (extent.of(180_000), extent.of(210_000));
    let load = |tenants| Load { tenants, record_bytes: 1 << 10, group: 32, in_flight: 64, warm_up, records };
    let arms = [("bare", load(1)), ("pillion", load(1)), ("pillion", load(250))];
    let measured = extent.measure(&arms)?;
    print_rows(&arms, &measured);
    let cpu = ratios(&measured[2], &measured[1], Measured::cpu_us_per_record);
    Ok(vec![Aim::at_most("CPU a record of 1 KiB, 250 tenants / 1", 1.1, cpu)])
}

/// One record at a time.
fn latency(extent: Extent<'_>) -> anyhow::Result<Vec<Aim>> {
    println!("\n1 KiB a record, one at a time");
    let records = extent.of(1_500);
    let load = Load { tenants: 1, record_bytes: 1 << 10, group: 1, in_flight: 1, warm_up: 200, records };
    let arms = [("bare", load), ("pillion", load)];
    let measured = extent.measure(&arms)?;
    print_rows(&arms, &measured);
    let p50 = ratios(&measured[1], &measured[0], |measured| measured.p50_us);
    Ok(vec![Aim::at_most("commit p50, of a bare fdatasync's", 1.3, p50)])
}

fn print_rows(arms: &[(&str, Load)], measured: &[Vec<Measured>]) {
    println!(
        "{:<24} {:>6} {:>8} {:>9} {:>10} {:>9} {:>8} {:>8} {:>7}  notes",
        "medians", "group", "MB/s", "us/rec", "CPU us/rec", "CPU s/GB", "p50 us", "p99 us", "RSS MB"
    );
    for ((name, load), rounds) in arms.iter().zip(measured) {
        let median = |of: fn(&Measured) -> f64| median(rounds.iter().map(of).collect());
        println!(
            "{:<24} {:>6.1} {:>8.0} {:>9.2} {:>10.2} {:>9.2} {:>8.0} {:>8.0} {:>7.1}  {}",
            format!("{name}, {} tenants", load.tenants),
            median(|measured| measured.group),
            median(Measured::megabytes_per_second),
            median(|measured| measured.wall_us / measured.records),
            median(Measured::cpu_us_per_record),
            median(Measured::cpu_s_per_gigabyte),
            median(|measured| measured.p50_us),
            median(|measured| measured.p99_us),
            median(Measured::rss_megabytes),
            rounds.last().map_or("", |measured| &measured.note),
        );
    }
}

/// The ratio within each round: what disturbs a round disturbs both.
fn ratios(of: &[Measured], to: &[Measured], figure: fn(&Measured) -> f64) -> Vec<f64> {
    of.iter().zip(to).map(|(of, to)| figure(of) / figure(to)).collect()
}

/// This program again, as something else.
fn again(arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    Ok(command)
}

//! What the queue costs: beside other engines, over the number of tenants, with a long backlog.
//!
//! `cargo bench -p pillion-gateway --bench queue` prints all tables and asserts nothing.
//!
//! ```text
//! -- engines | tenants | latency | backlog    one of the tables
//! --rounds N     of each table, 5 by default: the arms of a round run one after the other, so that noise meets all of them
//! --dir DIR      which disk is measured, by default the target directory's, since /tmp is often in memory
//! ```
//! Every arm is a process of its own. CPU time is the user and system time of all its threads; what the kernel's own threads
//! do for it (writeback, journal) is in nobody's figure. Ratios are those of the arms of one round; a table gives their
//! median, and the lowest and the highest.

mod arm;
mod backlog;
mod engines;
mod pillion;

use std::path::{Path, PathBuf};
use std::process::Command;

use arm::{Load, Measured};

/// As in the gateway: memory is measured too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const TABLES: [&str; 4] = ["engines", "tenants", "latency", "backlog"];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.first().map(String::as_str) {
        Some("arm") => return arm::child(&arguments[1..]),
        Some("fill") => return backlog::fill(&arguments[1..]),
        Some("serve") => return backlog::serve(&arguments[1..]),
        _ => {}
    }
    let value = |name: &str| arguments.iter().skip_while(|argument| *argument != name).nth(1);
    let rounds = value("--rounds").map_or(Ok(5), |text| text.parse())?;
    let base = value("--dir").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let wanted = |table: &&str| {
        TABLES.iter().all(|any| !arguments.contains(&(*any).to_owned())) || arguments.contains(&(*table).to_owned())
    };
    println!("{rounds} rounds; load average {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    for table in TABLES.iter().filter(|table| wanted(table)) {
        match *table {
            "engines" => engines(&base, rounds)?,
            "tenants" => tenants(&base, rounds)?,
            "latency" => latency(&base, rounds)?,
            _ => backlog::table(&base)?,
        }
    }
    Ok(())
}

/// Beside other engines and the floor, as in a node: many tenants, groups of 32, everything delivered at once.
fn engines(base: &Path, rounds: usize) -> anyhow::Result<()> {
    println!("\n16 KiB a record, 110 tenants, an fsync for each group of 32, delivered records removed");
    let load =
        Load { tenants: 110, record_bytes: 16 << 10, group: 32, in_flight: 32, warm_up: 20_000, records: 32_000 };
    let names = ["bare", "pillion", "sled", "fjall", "redb"];
    let arms = names.map(|name| (name, load));
    let measured = arm::rounds(base, rounds, &arms)?;
    print_rows(&arms, &measured);
    print_ratio("pillion / sled, MB/s", &measured[1], &measured[2], Measured::megabytes_per_second);
    print_ratio("pillion / bare, MB/s", &measured[1], &measured[0], Measured::megabytes_per_second);
    Ok(())
}

/// What a record costs with many tenants.
fn tenants(base: &Path, rounds: usize) -> anyhow::Result<()> {
    println!("\n1 KiB a record, groups of 32, delivered records removed");
    let load =
        |tenants| Load { tenants, record_bytes: 1 << 10, group: 32, in_flight: 32, warm_up: 260_000, records: 200_000 };
    let arms = [("bare", load(1)), ("pillion", load(1)), ("pillion", load(250))];
    let measured = arm::rounds(base, rounds, &arms)?;
    print_rows(&arms, &measured);
    print_ratio("250 tenants / 1, CPU", &measured[2], &measured[1], Measured::cpu_us_per_record);
    Ok(())
}

/// One record at a time.
fn latency(base: &Path, rounds: usize) -> anyhow::Result<()> {
    println!("\n1 KiB a record, one at a time");
    let load = Load { tenants: 1, record_bytes: 1 << 10, group: 1, in_flight: 1, warm_up: 200, records: 1_500 };
    let arms = [("bare", load), ("pillion", load)];
    let measured = arm::rounds(base, rounds, &arms)?;
    print_rows(&arms, &measured);
    print_ratio("pillion / bare, p50", &measured[1], &measured[0], |measured| measured.p50_us);
    Ok(())
}

fn print_rows(arms: &[(&str, Load)], measured: &[Vec<Measured>]) {
    println!(
        "{:<24} {:>8} {:>9} {:>9} {:>9} {:>8} {:>8} {:>7}  notes",
        "medians", "MB/s", "us/rec", "CPU us/rec", "CPU s/GB", "p50 us", "p99 us", "RSS MB"
    );
    for ((name, load), rounds) in arms.iter().zip(measured) {
        let median = |of: fn(&Measured) -> f64| median(rounds.iter().map(of).collect());
        println!(
            "{:<24} {:>8.0} {:>9.2} {:>10.2} {:>9.2} {:>8.0} {:>8.0} {:>7.1}  {}",
            format!("{name}, {} tenants", load.tenants),
            median(Measured::megabytes_per_second),
            median(|measured| measured.wall_us / measured.records),
            median(Measured::cpu_us_per_record),
            median(|measured| measured.cpu_us * 1e3 / measured.bytes),
            median(|measured| measured.p50_us),
            median(|measured| measured.p99_us),
            median(|measured| measured.rss_kib * 1024.0 / 1e6),
            rounds.last().map_or("", |measured| &measured.note),
        );
    }
}

/// The ratio within each round: what disturbs a round disturbs both.
fn print_ratio(name: &str, of: &[Measured], to: &[Measured], figure: fn(&Measured) -> f64) {
    let mut ratios: Vec<f64> = of.iter().zip(to).map(|(of, to)| figure(of) / figure(to)).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    println!("{name:<24} {:>8.2}  ({:.2} to {:.2})", median(ratios.clone()), ratios[0], ratios[ratios.len() - 1]);
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// This program again, as something else.
fn again(arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    Ok(command)
}

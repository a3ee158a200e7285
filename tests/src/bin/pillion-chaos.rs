//! Kills the gateway with SIGKILL at random moments under load, then says where every acknowledged item is.
//!
//! usage: pillion-chaos [--kills N] [--seed N] [--node PROGRAM] [-o table|json]
//!
//! 200 kills unless told otherwise. Ends with 1 when an acknowledged item is missing or anything else is not as promised.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use pillion_tests::chaos::{self, Options, Report};

const USAGE: &str = "usage: pillion-chaos [--kills N] [--seed N] [--node PROGRAM] [-o table|json]";

fn main() -> ExitCode {
    let (options, as_json) = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error:#}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    eprintln!("seed {}: {} kills of {}", options.seed, options.kills, options.node);
    match chaos::run(&options) {
        Ok(report) => {
            match as_json {
                true => println!("{}", serde_json::to_string_pretty(&report).expect("numbers and names are JSON")),
                false => print(&report),
            }
            if report.breaches.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<(Options, bool)> {
    let node = std::env::current_exe()?.with_file_name("pillion-node").display().to_string();
    let mut options = Options { node, kills: 200, seed: fastrand::u64(..), is_talkative: true };
    let mut as_json = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} takes a value"))?;
        let wrong = || format!("{name} {value}");
        match name.as_str() {
            "--kills" => options.kills = value.parse().with_context(wrong)?,
            "--seed" => options.seed = value.parse().with_context(wrong)?,
            "--node" => options.node = value,
            "-o" => match value.as_str() {
                "json" => as_json = true,
                "table" => as_json = false,
                _ => bail!("-o is table or json"),
            },
            _ => bail!("unknown option {name}"),
        }
    }
    Ok((options, as_json))
}

fn print(report: &Report) {
    let [serving, starting, supervisors] = report.kills;
    println!(
        "seed {}: {} kills in {:.0} s: {serving} of a serving worker, {starting} of a starting one, {supervisors} of the supervisor with \
         its worker",
        report.seed,
        report.kills.iter().sum::<u32>(),
        report.seconds
    );
    println!(
        "applications: refused {:?}, unanswered {}, not connected {}",
        report.refused, report.unanswered, report.unconnected
    );
    for (name, [taken, refused]) in &report.answers {
        println!("destination {name}: {taken} requests taken, {refused} refused");
    }
    println!(
        "\n{:<9} {:<9} {:<5} {:>12} {:>10} {:>8} {:>7} {:>8} {:>11} {:>9} {:>21}",
        "tenant",
        "ack",
        "to",
        "acknowledged",
        "delivered",
        "queued",
        "dead",
        "missing",
        "unanswered",
        "repeated",
        "by one kill (at most)"
    );
    for row in &report.rows {
        println!(
            "{:<9} {:<9} {:<5} {:>12} {:>10} {:>8} {:>7} {:>8} {:>11} {:>9} {:>12} ({:>6})",
            row.tenant,
            row.ack,
            row.destination,
            row.acknowledged,
            row.delivered,
            row.queued,
            row.dead,
            row.missing,
            row.unanswered,
            row.repeated_records,
            row.repeated_by_one_kill,
            row.repeated_by_one_kill_max
        );
    }
    println!(
        "\nitems, but `repeated`, which are records; what is acknowledged from memory may be missing after a kill; lost by any reason: {}",
        report.lost
    );
    match &report.breaches[..] {
        [] => println!("acknowledged = delivered + queued + dead, item by item"),
        breaches => breaches.iter().for_each(|breach| println!("BROKEN: {breach}")),
    }
}

//! Instructions a record, counted by callgrind: the figure that neither the disk nor other processes change.
//!
//! An arm runs twice, with so many records and with twice as many; the difference is what those cost, without the start and
//! the end. What counts are the writer's steps (its loop around them may be inlined into the thread's beginning), and the loop of whoever appends (this bench, so what it does itself is in it). The
//! thread that saves metadata does so once a second, and a second has few instructions under callgrind: it is left out.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::aims::Aim;
use super::arm::Load;

const WRITER: &str = ":pillion_gateway::queue::log::Log<D>::step";
const SENDER: &str = ":<queue::pillion::Pillion as queue::arm::Engine>::run";

/// Whole runs, or differences of them.
#[derive(Debug, Clone, Copy)]
struct Counts {
    writer: f64,
    sender: f64,
}

/// Prints the table. Nothing without valgrind.
pub(crate) fn table(base: &Path) -> Result<Vec<Aim>> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("\nvalgrind is not there: no instructions are counted");
        return Ok(Vec::new());
    }
    println!("\ninstructions a record, 64 on their way, delivered records removed");
    println!("{:<32} {:>10} {:>10}", "", "writer", "sender");
    // A whole number of segments' worth, so that both runs begin the same share of new ones.
    let arms = [(1, 16 << 10, 4_096), (250, 16 << 10, 4_096), (1, 1 << 10, 61_440), (250, 1 << 10, 61_440)];
    let mut counted = Vec::new();
    for (tenants, record_bytes, records) in arms {
        let load = Load { tenants, record_bytes, group: 32, in_flight: 64, warm_up: 0, records };
        let (once, twice) = (count(base, &load)?, count(base, &Load { records: 2 * records, ..load })?);
        let a_record = |once: f64, twice: f64| (twice - once) / records as f64;
        let cost = Counts { writer: a_record(once.writer, twice.writer), sender: a_record(once.sender, twice.sender) };
        let name = format!("{} KiB, {tenants} tenants", record_bytes >> 10);
        println!("{name:<32} {:>10.0} {:>10.0}", cost.writer, cost.sender);
        counted.push(cost);
    }
    let [large, large_of_many, small, small_of_many] = counted[..] else { return Ok(Vec::new()) };
    let ratio = |many: Counts, one: Counts| (many.writer + many.sender) / (one.writer + one.sender);
    Ok(vec![
        Aim::told("instructions a record of 16 KiB, writer", vec![large.writer]),
        Aim::told("instructions a record of 1 KiB, writer", vec![small.writer]),
        Aim::at_most("instructions, 250 tenants / 1, 16 KiB", 1.1, vec![ratio(large_of_many, large)]),
        Aim::at_most("instructions, 250 tenants / 1, 1 KiB", 1.1, vec![ratio(small_of_many, small)]),
    ])
}

fn count(base: &Path, load: &Load) -> Result<Counts> {
    let (dir, out) = (tempfile::tempdir_in(base)?, tempfile::tempdir_in(base)?);
    let profile = out.path().join("profile");
    let counted = Command::new("valgrind")
        .args(["--tool=callgrind", "--fair-sched=yes"])
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(std::env::current_exe()?)
        .args(["arm", "pillion"])
        .arg(dir.path())
        .args(load.arguments())
        .output()?;
    ensure!(counted.status.success(), "{}", String::from_utf8_lossy(&counted.stderr));
    let told = Command::new("callgrind_annotate")
        .args(["--inclusive=yes", "--threshold=100", "--auto=no"])
        .arg(&profile)
        .output()?;
    let text = String::from_utf8_lossy(&told.stdout);
    Ok(Counts { writer: of(WRITER, &text)?, sender: of(SENDER, &text)? })
}

/// What a function and all that it calls took. It has a line for each file that was inlined into it: the first one is its own.
fn of(function: &str, annotated: &str) -> Result<f64> {
    let line = annotated.lines().find(|line| line.contains(function));
    let count =
        line.and_then(|line| line.split_ascii_whitespace().next()).context(format!("no count of {function}"))?;
    Ok(count.replace(',', "").parse()?)
}

//! A long backlog: how soon a start serves, and how much memory that takes.
//!
//! Nine of ten tenants are stuck, the others keep up, so that segments hold checkpoints too. The process that writes it ends
//! without closing, so the first start meets a segment without a footer; the last one meets no footer at all.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use pillion_gateway::base::Sequence;
use pillion_gateway::base::handoff::Handoff;
use pillion_loadtest::measure;
use rustix::fs::Advice;

use super::aims::Aim;
use super::arm::{Engine, Latencies, Load};
use super::{again, pillion};

/// Tenants, and GiB that wait.
const BACKLOGS: [(u32, u64); 2] = [(1, 2), (250, 10)];
const DISK_BYTES_MAX: u64 = 16 << 30;
const TRAILER_BYTES: i64 = 64;

/// How a start finds the log.
const STATES: [&str; 3] = ["the last segment unsealed", "all segments sealed", "no footer at all"];

/// What a start cost, as far as it is aimed at.
#[derive(Debug, Clone, Copy)]
struct Served {
    first_read_ms: f64,
    rss_kib: f64,
}

/// Prints the table. `quick`: the larger backlog only, with its footers.
pub(crate) fn table(base: &Path, quick: bool) -> Result<Vec<Aim>> {
    println!("\na backlog, 16 KiB a record, no file of it in the page cache");
    println!(
        "{:<48} {:>9} {:>9} {:>12} {:>9} {:>9}  notes",
        "", "open ms", "CPU ms", "first read", "RSS MB", "peak MB"
    );
    let empty = tempfile::tempdir_in(base)?;
    let nothing = start(empty.path(), "nothing queued")?;
    let (mut first_reads, mut rss) = (Vec::new(), Vec::new());
    for (tenants, gibibytes) in BACKLOGS.into_iter().skip(usize::from(quick)) {
        let dir = tempfile::tempdir_in(base)?;
        let path = dir.path().to_str().context("a path in UTF-8")?;
        let filled = again(&["fill", path, &tenants.to_string(), &gibibytes.to_string()])?.status()?;
        ensure!(filled.success(), "the backlog could not be written");
        for state in STATES.into_iter().take(if quick { 2 } else { 3 }) {
            if state == STATES[2] {
                segments(dir.path())?.iter().try_for_each(|segment| cut_trailer(segment))?;
            }
            drop_cache(dir.path())?;
            let served = start(dir.path(), &format!("{gibibytes} GiB, {tenants} tenants, {state}"))?;
            if (tenants, gibibytes) == BACKLOGS[1] && state != STATES[2] {
                first_reads.push(served.first_read_ms / 1e3);
                rss.push(served.rss_kib * 1024.0 / 1e6);
            }
        }
    }
    Ok(vec![
        Aim::at_most("10 GiB of backlog: seconds until the first read", 2.0, first_reads),
        Aim::at_most("10 GiB of backlog: RSS, MB", 20.0, rss),
        Aim::told("nothing queued: RSS, MB", vec![nothing.rss_kib * 1024.0 / 1e6]),
    ])
}

/// A start in a process of its own, and its row.
fn start(dir: &Path, name: &str) -> Result<Served> {
    let path = dir.to_str().context("a path in UTF-8")?;
    let output = again(&["serve", path])?.stderr(Stdio::piped()).output()?;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{log}");
    let text = String::from_utf8_lossy(&output.stdout);
    let (numbers, note) = text.trim().split_once(';').context("numbers; note")?;
    let numbers = numbers.split_ascii_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    let [opened_ms, cpu_ms, first_read_ms, rss_kib, peak_kib] = numbers[..] else { bail!("it said {text:?}") };
    let progress = log.lines().filter(|line| line.contains("recovering")).count();
    let progress = if progress > 0 { format!(", progress logged {progress} times") } else { String::new() };
    let megabytes = |kib: f64| kib * 1024.0 / 1e6;
    println!(
        "{name:<48} {opened_ms:>9.0} {cpu_ms:>9.0} {first_read_ms:>12.0} {:>9.1} {:>9.1}  {}{progress}",
        megabytes(rss_kib),
        megabytes(peak_kib),
        note.trim()
    );
    Ok(Served { first_read_ms, rss_kib })
}

/// The process that writes the backlog. Ends without closing.
pub(crate) fn fill(arguments: &[String]) -> Result<()> {
    let [dir, tenants, gibibytes] = arguments else { anyhow::bail!("usage: fill DIRECTORY TENANTS GIBIBYTES") };
    let tenants = tenants.parse::<u32>()?;
    let load = Load { tenants, record_bytes: 16 << 10, group: 32, in_flight: 256, warm_up: 0, records: 0 };
    let stuck = (tenants as usize * 9).div_ceil(10);
    let mut queue = pillion::Pillion::with_backlog(Path::new(dir), &load, DISK_BYTES_MAX, stuck)?;
    let bytes = gibibytes.parse::<u64>()? << 30;
    queue.run(bytes / load.record_bytes as u64, &mut Latencies::default())?;
    std::mem::forget(queue);
    Ok(())
}

/// The process that starts with it.
pub(crate) fn serve(arguments: &[String]) -> Result<()> {
    let [dir] = arguments else { anyhow::bail!("usage: serve DIRECTORY") };
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let pid = std::process::id();
    let started = Instant::now();
    let (queue, recovery) = pillion::open(Path::new(dir), DISK_BYTES_MAX, Arc::new(Handoff::new(16 << 20)))?;
    let (opened, cpu) = (started.elapsed(), measure::cpu_time(pid)?);
    let mut records = 0;
    if let Some(first) = recovery.tenants.first() {
        records += queue.read(first.id, Sequence::ZERO, 1 << 20)?.records.len();
    }
    let read = started.elapsed();
    for tenant in &recovery.tenants {
        records += queue.read(tenant.id, Sequence::ZERO, 64 << 10)?.records.len();
    }
    let pending: u64 = recovery.tenants.iter().map(|tenant| tenant.pending_items[0]).sum();
    let [opened, cpu, read] = [opened, cpu, read].map(|time| time.as_secs_f64() * 1e3);
    let (rss, peak, damaged) = (measure::memory(pid)?.rss, peak_kib()?, recovery.damaged_records);
    println!("{opened} {cpu} {read} {rss} {peak}; {pending} items pending, {records} records read, {damaged} damaged");
    Ok(queue.close()?)
}

fn peak_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("the kernel tells the peak")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn segments(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir.join("log"))?.collect::<std::io::Result<Vec<_>>>()?;
    Ok(entries
        .iter()
        .map(std::fs::DirEntry::path)
        .filter(|path| path.extension().is_some_and(|is| is == "seg"))
        .collect())
}

fn cut_trailer(path: &Path) -> Result<()> {
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    file.seek(SeekFrom::End(-TRAILER_BYTES))?;
    let mut trailer = Vec::new();
    file.read_to_end(&mut trailer)?;
    ensure!(trailer.starts_with(b"PILLNEND"), "{} has no trailer", path.display());
    file.seek(SeekFrom::End(-TRAILER_BYTES))?;
    Ok(file.write_all(&[0; 64])?)
}

/// As after a restart of the node.
fn drop_cache(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir.join("log"))?.chain(std::fs::read_dir(dir.join("meta"))?) {
        let path = entry?.path();
        if path.is_file() {
            let file = std::fs::File::open(path)?;
            file.sync_all()?;
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

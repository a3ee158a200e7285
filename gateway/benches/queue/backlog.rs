//! A long backlog: how soon a start serves, and how much memory that takes.
//!
//! Nine of ten tenants are stuck, the others keep up, so that segments hold checkpoints too. The process that writes it ends
//! without closing, so the first start meets a segment without a footer; the last one meets no footer at all.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pillion_gateway::base::Sequence;
use pillion_gateway::base::handoff::Handoff;
use pillion_loadtest::measure;
use rustix::fs::Advice;

use super::arm::{Engine, Latencies, Load};
use super::{again, pillion};

/// Tenants, and GiB that wait.
const BACKLOGS: [(u32, u64); 2] = [(1, 2), (250, 10)];
const DISK_BYTES_MAX: u64 = 16 << 30;
const TRAILER_BYTES: i64 = 64;

/// Prints the table.
pub(crate) fn table(base: &Path) -> Result<()> {
    println!("\na backlog, 16 KiB a record, no file of it in the page cache");
    println!(
        "{:<48} {:>9} {:>9} {:>12} {:>9} {:>9}  notes",
        "", "open ms", "CPU ms", "first read", "RSS MB", "peak MB"
    );
    for (tenants, gibibytes) in BACKLOGS {
        let dir = tempfile::tempdir_in(base)?;
        let path = dir.path().to_str().context("a path in UTF-8")?;
        let filled = again(&["fill", path, &tenants.to_string(), &gibibytes.to_string()])?.status()?;
        ensure!(filled.success(), "the backlog could not be written");
        for state in ["the last segment unsealed", "all segments sealed", "no footer at all"] {
            if state == "no footer at all" {
                segments(dir.path())?.iter().try_for_each(|segment| cut_trailer(segment))?;
            }
            drop_cache(dir.path())?;
            let served = again(&["serve", path])?.stderr(Stdio::piped()).output()?;
            let log = String::from_utf8_lossy(&served.stderr);
            ensure!(served.status.success(), "{log}");
            let progress = log.lines().filter(|line| line.contains("recovering")).count();
            let name = format!("{gibibytes} GiB, {tenants} tenants, {state}");
            print!("{name:<48} {}", String::from_utf8_lossy(&served.stdout).trim_end());
            println!("{}", if progress > 0 { format!(", progress logged {progress} times") } else { String::new() });
        }
    }
    Ok(())
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
    let first = recovery.tenants.first().context("there are tenants")?;
    records += queue.read(first.id, Sequence::ZERO, 1 << 20)?.records.len();
    let read = started.elapsed();
    for tenant in &recovery.tenants {
        records += queue.read(tenant.id, Sequence::ZERO, 64 << 10)?.records.len();
    }
    let pending: u64 = recovery.tenants.iter().map(|tenant| tenant.pending_items[0]).sum();
    let memory = measure::memory(pid)?;
    let megabytes = |kib: u64| kib as f64 * 1024.0 / 1e6;
    println!(
        "{:>9.0} {:>9.0} {:>12.0} {:>9.1} {:>9.1}  {pending} items pending, {records} records read, {} damaged",
        opened.as_secs_f64() * 1e3,
        cpu.as_secs_f64() * 1e3,
        read.as_secs_f64() * 1e3,
        megabytes(memory.rss),
        megabytes(peak_kib()?),
        recovery.damaged_records
    );
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

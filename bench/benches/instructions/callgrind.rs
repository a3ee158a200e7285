//! A program under callgrind, and what each of its threads took.

use std::ffi::OsString;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// What to put before a command line: counts into files of `dir`, one for each thread and section, and nothing outside functions of these
/// names, none of which may call another one.
pub(crate) fn command(dir: &Path, within: &[&str]) -> Vec<OsString> {
    let file = format!("--callgrind-out-file={}", dir.join("profile").display());
    let fixed = ["valgrind", "--tool=callgrind", "--separate-threads=yes", "--fair-sched=yes", "--quiet", &file];
    let within = within.iter().map(|function| format!("--toggle-collect={function}"));
    fixed.map(OsString::from).into_iter().chain(within.map(OsString::from)).collect()
}

/// Ends a section of a running program: what comes now is counted from zero.
pub(crate) fn end_section(pid: u32) -> Result<()> {
    let told = Command::new("vgdb").args(["--wait=60", &format!("--pid={pid}"), "dump"]).output().context("vgdb")?;
    ensure!(told.status.success(), "vgdb: {}", String::from_utf8_lossy(&told.stderr));
    Ok(())
}

/// What that thread took in the section in which it took least.
pub(crate) fn lowest(function: &str, sections: RangeInclusive<u32>, dir: &Path) -> Result<f64> {
    let taken = sections.map(|section| thread_of(function, section, dir)).collect::<Result<Vec<_>>>()?;
    taken.into_iter().min_by(f64::total_cmp).context("at least one section")
}

/// What the thread took in a section, counted from 1, that alone calls a function whose name contains `function` in it.
fn thread_of(function: &str, section: u32, dir: &Path) -> Result<f64> {
    let mut found = Vec::new();
    for text in profiles(&format!("profile.{section}-"), dir)? {
        // A name is written out where it comes first, be it as the caller or as the called one.
        let is_it = |line: &str| (line.starts_with("fn=") || line.starts_with("cfn=")) && line.contains(function);
        if text.lines().any(is_it) {
            found.push(total(&text)?);
        }
    }
    let [total] = found[..] else {
        bail!("{} threads have called {function}, which was to tell one from the others", found.len())
    };
    Ok(total)
}

/// What all threads took, in a program that was left to its end.
pub(crate) fn all(dir: &Path) -> Result<f64> {
    profiles("profile-", dir)?.iter().map(|text| total(text)).sum()
}

fn profiles(prefix: &str, dir: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for file in fs::read_dir(dir)? {
        let file = file?;
        if file.file_name().to_string_lossy().starts_with(prefix) {
            texts.push(fs::read_to_string(file.path())?);
        }
    }
    Ok(texts)
}

fn total(profile: &str) -> Result<f64> {
    let line = profile.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(line.context("a profile without a total")?.trim().parse()?)
}

//! A look at everything in a data directory that changes no byte of it.
//!
//! Owns what is found wrong, and the order: who may touch the directory, its format, each segment from its header to its
//! trailer, whose its records are, and sled, of which a copy is opened. It holds the lock, if there is one to hold, so that no
//! gateway writes meanwhile; it keeps nothing of a segment once it has gone on to the next.
//!
//! ```text
//! note     nothing is lost and nothing is wrong with the disk: a segment that a crash left open, a spare, a stranger's file
//! damage   bytes that were written are not there any more, or say something else
//! ```

mod files;
mod segment;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use files::ReadOnly;

use super::directory::{self, DirectoryLock};
use super::format::{RELOCATED, SegmentHeader};
use super::meta::Meta;
use super::meta::sled::SledMeta;
use super::recovery::{RecoverError, Survey};
use super::{OpenError, format};
use crate::base::TenantId;

/// What is listed; what is above is counted.
const FINDINGS_MAX: usize = 1_000;

/// Of sled's files, which are copied to be opened. They are a few hundred KiB.
const META_BYTES_MAX: u64 = 256 << 20;

/// What a check found.
#[derive(Debug, Default)]
pub struct Checked {
    /// Files of the log with records; those of them that are closed with an index; files that wait for their next life.
    pub segments: u64,
    /// See `segments`.
    pub sealed: u64,
    /// See `segments`.
    pub spares: u64,
    /// Bytes of all of these files.
    pub bytes: u64,
    /// Data records that are intact, and their items.
    pub records: u64,
    /// See `records`.
    pub items: u64,
    /// Dead letters that are intact, those included that were dropped, purged or replayed since.
    pub dead_letters: u64,
    /// Tenants whose names are known.
    pub tenants: u64,
    /// At most a thousand.
    pub findings: Vec<Finding>,
    /// Above that, of either severity.
    pub left_out: u64,
    damages: u64,
}

/// Something that a person should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether something is broken.
    pub severity: Severity,
    /// Below the data directory.
    pub file: String,
    /// In words.
    pub what: String,
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Harmless.
    Note,
    /// Not what was written.
    Damage,
}

impl Checked {
    /// Whether nothing is damaged.
    pub fn is_intact(&self) -> bool {
        self.damages == 0
    }

    /// Damages found, listed or not.
    pub fn damages(&self) -> u64 {
        self.damages
    }

    fn note(&mut self, file: &str, what: impl Into<String>) {
        self.add(Severity::Note, file, what.into());
    }

    fn damage(&mut self, file: &str, what: impl Into<String>) {
        self.damages += 1;
        self.add(Severity::Damage, file, what.into());
    }

    fn add(&mut self, severity: Severity, file: &str, what: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { severity, file: file.to_owned(), what });
        } else {
            self.left_out += 1;
        }
    }
}

/// Whose records are there, over all segments.
#[derive(Debug, Default)]
struct Owners {
    named: HashSet<TenantId>,
    /// Records of each tenant, and a segment that has some.
    data: BTreeMap<TenantId, (u64, String)>,
    highest: u64,
}

/// Checks a directory that no gateway uses: [`OpenError::Locked`] if one does. Blocking.
pub fn verify(dir: &Path) -> Result<Checked, OpenError> {
    let metadata = std::fs::metadata(dir).map_err(|source| directory::failure("looking at", dir, source))?;
    if !metadata.is_dir() {
        return Err(directory::failure("looking at", dir, std::io::ErrorKind::NotADirectory.into()));
    }
    let _lock = DirectoryLock::look(dir)?;
    let mut checked = Checked::default();
    if let Some(problem) = directory::exposed(dir)? {
        checked.note(".", problem);
    }
    let log_path = dir.join("log");
    let failed = |error| match error {
        RecoverError::Newer(found) => OpenError::NewerFormat { dir: dir.to_owned(), found, known: format::VERSION },
        RecoverError::Io(action, name, source) => directory::failure(action, &log_path.join(name), source),
    };
    let log_id = directory::read_format(dir)?;
    let survey = match log_path.is_dir() {
        true => {
            let disk = ReadOnly::new(log_path.clone());
            let survey = Survey::of(&disk).map_err(failed)?;
            check_format(&mut checked, log_id, survey.log_id());
            check_log(&mut checked, &disk, &survey).map_err(failed)?;
            survey
        }
        false => {
            checked.note("log", "there is no log: nothing was ever queued here");
            Survey::default()
        }
    };
    if let Some(log_id) = log_id.or(survey.log_id()) {
        check_meta(&mut checked, &dir.join("meta"), log_id);
    }
    Ok(checked)
}

fn check_format(checked: &mut Checked, file: Option<u64>, segments: Option<u64>) {
    match (file, segments) {
        (None, Some(_)) => checked.damage("format", "missing or damaged; the next start writes it anew"),
        (Some(file), Some(segments)) if file != segments => checked.damage(
            "format",
            format!(
                "names log {file:016x}, the segments are of log {segments:016x}: files of two directories are mixed"
            ),
        ),
        _ => {}
    }
}

fn check_log(checked: &mut Checked, disk: &ReadOnly, survey: &Survey) -> Result<(), RecoverError> {
    for name in disk.strangers().map_err(|error| RecoverError::Io("listing", String::new(), error))? {
        checked.note(&format!("log/{name}"), "not a file of Pillion: it is left alone");
    }
    checked.spares = survey.spares().len() as u64;
    let mut owners = Owners::default();
    // What is relocated has its name only when it is complete.
    let appended = |header: &Option<SegmentHeader>| header.is_none_or(|header| header.class != RELOCATED);
    let newest = survey.segments().iter().rfind(|(_, header)| appended(header)).map(|(key, _)| *key);
    for (key, header) in survey.segments() {
        let is_newest = newest == Some(*key);
        segment::check(checked, &mut owners, disk, (*key, header.as_ref(), survey.log_id(), is_newest))?;
    }
    for key in survey.spares() {
        checked.bytes += disk.length_of(&key.free_name()).unwrap_or(0);
    }
    checked.tenants = owners.named.len() as u64;
    for (tenant, (records, file)) in &owners.data {
        if !owners.named.contains(tenant) {
            let what =
                format!("{records} records are of tenant {}, whose name is lost: they cannot be delivered", tenant.0);
            checked.damage(file, what);
        }
    }
    Ok(())
}

/// sled changes its files when it opens them, so a copy is opened. Nothing depends on it: what is missing is in the log.
fn check_meta(checked: &mut Checked, meta: &Path, log_id: u64) {
    if !meta.exists() {
        return checked.note("meta", "missing; the next start makes it from the log");
    }
    let copy = match Copy::of(meta) {
        Ok(copy) => copy,
        Err(error) => return checked.note("meta", format!("not checked, since it could not be copied: {error}")),
    };
    match SledMeta::new(copy.0.join("meta"), log_id).load() {
        Ok(Some(_)) => {}
        Ok(None) => checked.note("meta", "empty; the next start fills it from the log"),
        Err(problem) => checked.damage("meta", format!("{problem}; the next start makes it anew from the log")),
    }
}

/// A temporary copy, removed when dropped.
struct Copy(PathBuf);

impl Copy {
    fn of(meta: &Path) -> std::io::Result<Self> {
        let copy = Self(std::env::temp_dir().join(format!("pillion-verify-{:016x}", fastrand::u64(..))));
        let mut left = META_BYTES_MAX;
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&copy.0)?;
        copy_below(meta, &copy.0.join("meta"), &mut left)?;
        Ok(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // What stays is small, and in the directory for what may be removed.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn copy_below(from: &Path, to: &Path, left: &mut u64) -> std::io::Result<()> {
    let metadata = std::fs::symlink_metadata(from)?;
    if metadata.is_file() {
        *left = left.checked_sub(metadata.len()).ok_or_else(|| std::io::Error::other("it is too large"))?;
        return std::fs::copy(from, to).map(drop);
    }
    if !metadata.is_dir() {
        return Ok(());
    }
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        copy_below(&entry.path(), &to.join(entry.file_name()), left)?;
    }
    Ok(())
}

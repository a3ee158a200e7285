//! Results that a report stands beside: other comparisons, sweeps, `saturate`, and the bench `ways`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;

use crate::compare::Comparison;
use crate::saturate::{self, Saturation};
use crate::ways::{self, Ways};

/// What else was measured.
#[derive(Debug, Default)]
pub struct Beside {
    /// Comparisons, those of a sweep among them.
    pub comparisons: Vec<Comparison>,
    /// Spans per CPU-second.
    pub saturation: Option<Saturation>,
    /// Donated and relayed, against direct.
    pub ways: Option<Ways>,
}

impl Beside {
    /// Adds what `--out` wrote into a directory: a comparison, those of a sweep below it, `saturation.json`, `ways.json`.
    /// Refuses a directory that has none of them.
    pub fn read(&mut self, dir: &Path) -> Result<()> {
        let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
        let mut below = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        below.sort();
        let before = self.comparisons.len();
        for dir in [dir].into_iter().chain(below.iter().map(|path| path.as_path()).filter(|path| is_of_a_sweep(path))) {
            if dir.join(super::COMPARISON).is_file() {
                self.comparisons.push(super::read(dir)?);
            }
        }
        let saturation = one(&dir.join(saturate::FILE))?;
        let ways = one(&dir.join(ways::FILE))?;
        ensure!(
            self.comparisons.len() > before || saturation.is_some() || ways.is_some(),
            "{} has no result: neither {} (of a sweep: in {}N) nor {} nor {}",
            dir.display(),
            super::COMPARISON,
            super::PODS,
            saturate::FILE,
            ways::FILE
        );
        self.saturation = saturation.or(self.saturation.take());
        self.ways = ways.or(self.ways.take());
        Ok(())
    }
}

fn is_of_a_sweep(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(super::PODS))
}

/// `None`: there is no such file.
fn one<T: DeserializeOwned>(file: &Path) -> Result<Option<T>> {
    if !file.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let value =
        serde_json::from_str(&text).with_context(|| format!("{} is no result of this version", file.display()))?;
    Ok(Some(value))
}

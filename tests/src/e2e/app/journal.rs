//! A file of lines that survives the process: written before anything is answered, read again at the start.
//!
//! It is not synced: what it has to survive is kill -9, not power loss.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use anyhow::{Context, Result};

/// The open file.
#[derive(Debug)]
pub(super) struct Journal(File);

impl Journal {
    /// Hands every whole line to `replay`, then opens the file for more.
    pub(super) fn open(path: &Path, mut replay: impl FnMut(&str)) -> Result<Self> {
        if let Ok(file) = File::open(path) {
            BufReader::new(file).lines().map_while(Result::ok).for_each(|line| replay(&line));
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self(file.with_context(|| format!("opening {}", path.display()))?))
    }

    /// One write for a line, so that a kill leaves all of it or nothing.
    pub(super) fn append(&mut self, line: &str) -> std::io::Result<()> {
        self.0.write_all(format!("{line}\n").as_bytes())
    }
}

//! What is told of a comparison: a table, a verdict in words, a page, and files.

mod beside;
mod change;
mod cost;
mod html;
mod table;
mod targets;
mod words;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use self::beside::Beside;
pub use self::change::change;
pub use self::cost::{Cluster, Cost, Measured, cost};
pub use self::html::html;
pub use self::table::{FIGURES, Figure, by_pods, csv, table};
pub use self::words::verdict;
use crate::compare::Comparison;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use self::tests::comparison as tests_comparison;

/// A comparison, for this program.
pub(crate) const COMPARISON: &str = "comparison.json";

/// What the directories of a sweep's comparisons begin with.
pub const PODS: &str = "pods-";

/// Writes `report.html`, `comparison.json`, `runs.csv` and `report.txt` into a directory; returns their paths. What is `beside` it is told
/// where promises are.
pub fn write(comparison: &Comparison, beside: &Beside, dir: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let text = format!(
        "{}\n{}\n\n{}",
        table(comparison),
        verdict(comparison).join("\n"),
        promises(comparison, beside).join("\n")
    );
    let files = [
        ("report.html", html(comparison, beside)),
        (COMPARISON, serde_json::to_string_pretty(comparison)?),
        ("runs.csv", csv(comparison)),
        ("report.txt", text),
    ];
    let mut paths = Vec::new();
    for (name, text) in files {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        paths.push(path);
    }
    Ok(paths)
}

/// What Pillion promises, as far as the results tell: a line each, and one about what they do not tell.
pub fn promises(comparison: &Comparison, beside: &Beside) -> Vec<String> {
    targets::lines(comparison, beside)
}

/// The day of a time in seconds since 1970, in UTC, as YYYY-MM-DD.
fn day(unix: u64) -> String {
    // Years that begin in March end with the day that leap years have more. 146,097 days are 400 years.
    let days = unix / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + u64::from(month <= 2))
}

/// Reads a comparison that was written, from its directory or its file.
pub fn read(path: &Path) -> Result<Comparison> {
    let file = if path.is_dir() { path.join(COMPARISON) } else { path.to_owned() };
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no comparison of this version", file.display()))
}

//! One mistake in a configuration, said so that it can be mended: where, what, and what is accepted.
//!
//! Never shows a value that may be a credential: expanded variables, headers and endpoints with user names stay out.

use std::fmt;

/// A mistake. [`fmt::Display`] is one line, `file:line:column: path: message; help`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct ConfigError {
    /// As it was given.
    pub file: String,
    /// From 1; 0 when no place in the file is meant.
    pub line: usize,
    /// From 1, in characters; 0 when no place in the file is meant.
    pub column: usize,
    /// Dotted, for example `defaults.limits.memory`; empty for the whole file.
    pub path: String,
    /// What is wrong, and what is accepted.
    pub message: String,
    /// What to do; may be empty.
    pub help: String,
}

impl ConfigError {
    /// The place, as editors and terminals recognise it.
    pub fn place(&self) -> String {
        match self.line {
            0 => self.file.clone(),
            line => format!("{}:{line}:{}", self.file, self.column),
        }
    }

    /// Path and message.
    pub fn what(&self) -> String {
        if self.path.is_empty() { self.message.clone() } else { format!("{}: {}", self.path, self.message) }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.what())?;
        if self.help.is_empty() { Ok(()) } else { write!(f, "; {}", self.help) }
    }
}

impl std::error::Error for ConfigError {}

/// The known name that `written` was probably meant to be: at most a third of its letters differ.
pub(super) fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The distance costs the product of the lengths, and nobody misspells a key at such length.
    if written.len() > 64 {
        return None;
    }
    let simple = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let wanted = simple(written);
    let reach = (wanted.chars().count() / 3).clamp(1, 4);
    known
        .into_iter()
        .map(|name| (distance(&wanted, &simple(name)), name))
        .filter(|(distance, _)| *distance <= reach)
        .min()
        .map(|(_, name)| name)
}

/// Insertions, deletions, substitutions and swaps of neighbours that lead from one to the other.
fn distance(from: &str, to: &str) -> usize {
    let from: Vec<char> = from.chars().collect();
    let to: Vec<char> = to.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let substituted = last[j - 1] + usize::from(from[i - 1] != to[j - 1]);
            let mut best = substituted.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                best = best.min(before_last[j - 2] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 4] = ["bytes_per_second", "requests_per_second", "connections", "memory"];

    /// Scenario: keys with a typing mistake, another case, another separator, and keys that are something else.
    /// Guarantees: a mistake leads to the key that was meant; a strange word leads to none, which would only mislead.
    #[test]
    fn the_nearest_key_is_offered_only_when_it_is_near() {
        for (written, meant) in [
            ("byte_per_second", Some("bytes_per_second")),
            ("bytes-per-second", Some("bytes_per_second")),
            ("Connections", Some("connections")),
            ("memroy", Some("memory")),
            ("mem", None),
            ("receivers", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, KNOWN), meant, "{written}");
        }
        assert_eq!(nearest(&"x".repeat(100_000), KNOWN), None);
    }

    /// Scenario: pairs of words with known distances.
    /// Guarantees: a swap of neighbours counts once, as a person sees it.
    #[test]
    fn distance_counts_edits() {
        for (from, to, edits) in
            [("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("abc", "acb", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(from, to), edits, "{from} -> {to}");
        }
    }
}

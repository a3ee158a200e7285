//! What must hold of a comparison: a small file for a gate in CI.
//!
//! ```toml
//! [[assert]]
//! figure = "agent_cpu_s_per_million"   # a key of the CSV
//! arm = "pillion"
//! against = "otelcol"                  # a ratio to this arm, geometric mean over the rounds; without it, the arm's median, or
//!                                      # the sum of all rounds of what was lost, repeated, changed, misattributed, reordered
//! at_most = 0.5                        # or at_least
//! ```

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::cell::Cell;
use crate::compare::Comparison;
use crate::report::{FIGURES, Figure};
use crate::verdict::{Ratio, pairs};

/// A file of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assertions {
    assert: Vec<Assertion>,
}

/// One of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Assertion {
    figure: String,
    arm: String,
    against: Option<String>,
    at_most: Option<f64>,
    at_least: Option<f64>,
}

impl Assertions {
    /// Reads a file, before anything is run.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("the assertions of {}", path.display()))
    }

    /// Reads a file's text; refuses a figure that there is not, and one without a limit.
    pub fn parse(text: &str) -> Result<Self> {
        let assertions: Self = toml::from_str(text)?;
        for one in &assertions.assert {
            ensure!(one.figure().is_some(), "no figure is called {:?}: they are the columns of runs.csv", one.figure);
            ensure!(one.at_most.is_some() || one.at_least.is_some(), "{} needs at_most or at_least", one.what());
        }
        Ok(assertions)
    }

    /// A line for each, and whether all of them hold. What was not measured does not hold.
    pub fn check(&self, comparison: &Comparison) -> (Vec<String>, bool) {
        let mut all = true;
        let lines = self.assert.iter().map(|one| {
            let value = one.value(comparison);
            let holds = value.is_some_and(|value| {
                one.at_most.is_none_or(|most| value <= most) && one.at_least.is_none_or(|least| value >= least)
            });
            all &= holds;
            let word = if holds { "HOLDS" } else { "BROKEN" };
            let value = value.map_or("not measured".to_owned(), |value| format!("{value:.4}"));
            format!("{word} {}: {value}, {}", one.what(), one.limit())
        });
        (lines.collect(), all)
    }
}

impl Assertion {
    fn figure(&self) -> Option<&'static Figure> {
        FIGURES.iter().find(|figure| figure.key == self.figure)
    }

    fn what(&self) -> String {
        let against = self.against.as_ref().map(|other| format!(" against {other}")).unwrap_or_default();
        format!("{} of {}{against}", self.figure, self.arm)
    }

    fn limit(&self) -> String {
        let most = self.at_most.map(|most| format!("at most {most}"));
        let least = self.at_least.map(|least| format!("at least {least}"));
        most.into_iter().chain(least).collect::<Vec<_>>().join(", ")
    }

    fn value(&self, comparison: &Comparison) -> Option<f64> {
        let (figure, items) = (self.figure()?, comparison.items_per_request());
        let of = |cell: &Cell| figure.value(cell, items);
        let Some(other) = &self.against else { return figure.of_arm(comparison, &self.arm) };
        // A void run has no latency, which `value` knows; its other figures count.
        Some(Ratio::of(&pairs(&comparison.cells, &self.arm, other, of), comparison.seed)?.mean)
    }
}

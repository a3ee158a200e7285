//! What each path of a request may take, beside what it takes: a committed file, and the comparison with it.
//!
//! Owns no measuring. Instructions are counted elsewhere; here they are held against their budget, both ways: a path that has become
//! cheaper without its budget would hide the next one that becomes dearer.
//!
//! ```text
//! rustc = "1.95.0"             figures of another compiler are other figures: none of them is judged
//! target = "x86_64"
//! [[path]]
//! name = "..."
//! instructions = 12345         of one request, record or call
//! because = "..."              why it is what it is, since its last change
//! ```

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// By how much a path may be dearer or cheaper than its budget. The same for all: who needs more counts something else than its work.
pub const TOLERANCE: f64 = 0.02;

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// The compiler of the figures: a version, as `rustc --version` tells it.
    pub rustc: String,
    /// The architecture of the figures.
    pub target: String,
    /// Every path that is measured.
    #[serde(rename = "path")]
    pub paths: Vec<Budget>,
}

/// One path.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// What is counted.
    pub name: String,
    /// How much of it there may be.
    pub instructions: u64,
    /// Why it is as much.
    pub because: String,
}

/// What was counted.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    /// As in the file.
    pub name: &'static str,
    /// Of one request, record or call.
    pub instructions: f64,
}

/// With what they were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Build<'a> {
    /// The version of the compiler.
    pub rustc: &'a str,
    /// The architecture.
    pub target: &'a str,
}

/// The table, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// For people.
    pub table: String,
    /// One sentence for each fault, with what to do. Empty: every budget is kept.
    pub faults: Vec<String>,
}

impl Budgets {
    /// Reads the file's text. Every path needs a name of its own, a figure, and a reason.
    pub fn parse(text: &str) -> Result<Self> {
        let budgets: Self = toml::from_str(text)?;
        for (index, budget) in budgets.paths.iter().enumerate() {
            ensure!(budget.instructions > 0, "{}: a budget is a positive number", budget.name);
            ensure!(!budget.because.trim().is_empty(), "{}: a budget has a reason", budget.name);
            ensure!(!budgets.paths[..index].iter().any(|other| other.name == budget.name), "{} is twice", budget.name);
        }
        Ok(budgets)
    }

    /// Compares. `file` is where the budgets are, for the sentences. With `partial`, paths that were not counted are nobody's fault.
    pub fn judge(&self, counted: &[Counted], build: Build<'_>, file: &str, partial: bool) -> Report {
        let mut table = format!("{:<44} {:>10} {:>10} {:>8}\n", "instructions", "budget", "now", "change");
        let mut faults = Vec::new();
        let is_comparable = self.rustc == build.rustc && self.target == build.target;
        if !is_comparable {
            faults.push(format!(
                "nothing is judged: the budgets are of rustc {} on {}, this is rustc {} on {}. Run it with `cargo +{}` on {}, or, to \
                 change over, take all figures anew from a commit that kept its budgets, and say so in {file}",
                self.rustc, self.target, build.rustc, build.target, self.rustc, self.target
            ));
        }
        for Counted { name, instructions: now } in counted {
            let Some(budget) = self.paths.iter().find(|budget| budget.name == *name) else {
                let _ = writeln!(table, "{name:<44} {:>10} {now:>10.0} {:>8}", "-", "-");
                faults.push(format!("{name} takes {now:.0} and has no budget: add it to {file}"));
                continue;
            };
            let limit = budget.instructions as f64;
            let change = now / limit - 1.0;
            let _ = writeln!(table, "{name:<44} {limit:>10.0} {now:>10.0} {:>+7.2}%", change * 100.0);
            if is_comparable {
                faults.extend(fault(budget, *now, change, file));
            }
        }
        let missing = self.paths.iter().filter(|budget| !partial && !counted.iter().any(|c| c.name == budget.name));
        faults.extend(missing.map(|budget| format!("{} has a budget in {file} and was not counted", budget.name)));
        Report { table, faults }
    }
}

fn fault(budget: &Budget, now: f64, change: f64, file: &str) -> Option<String> {
    let Budget { name, instructions, .. } = budget;
    let percent = change.abs() * 100.0;
    if change > TOLERANCE {
        Some(format!(
            "{name} takes {now:.0} instructions, {percent:.1} % more than the {instructions} of its budget. Make it cheaper, or, if it \
             is worth that, raise `instructions` in {file} to {now:.0} and say under `because` what it is worth"
        ))
    } else if change < -TOLERANCE {
        Some(format!(
            "{name} takes {now:.0} instructions, {percent:.1} % less than the {instructions} of its budget. Keep what was gained: lower \
             `instructions` in {file} to {now:.0} and say under `because` what did it"
        ))
    } else {
        None
    }
}

/// The version in what `rustc --version` prints.
pub fn version(printed: &str) -> Result<&str> {
    printed.split_ascii_whitespace().nth(1).with_context(|| format!("rustc calls itself {printed:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "budgets.toml";
    const BUILD: Build<'_> = Build { rustc: "1.95.0", target: "x86_64" };

    fn budgets() -> Budgets {
        let text = r#"
            rustc = "1.95.0"
            target = "x86_64"
            [[path]]
            name = "intake"
            instructions = 1000
            because = "first taken"
        "#;
        Budgets::parse(text).expect("it is whole")
    }

    fn faults(counted: &[(&'static str, f64)], build: Build<'_>) -> Vec<String> {
        let counted: Vec<_> = counted.iter().map(|(name, now)| Counted { name, instructions: *now }).collect();
        budgets().judge(&counted, build, FILE, false).faults
    }

    /// Scenario: a path takes as much as its budget, a little more, a little less, and too much of either.
    /// Guarantees: up to two percent is nothing; beyond, the fault names path, figures and file, and says what to do.
    #[test]
    fn a_path_that_leaves_its_budget_is_told_with_its_figures_and_the_file() {
        for now in [981.0, 1000.0, 1019.0] {
            assert_eq!(faults(&[("intake", now)], BUILD), Vec::<String>::new(), "{now}");
        }
        let dearer = faults(&[("intake", 1021.0)], BUILD).concat();
        for part in ["intake takes 1021", "2.1 % more than the 1000", "raise", FILE] {
            assert!(dearer.contains(part), "{part}: {dearer}");
        }
        let cheaper = faults(&[("intake", 979.0)], BUILD).concat();
        for part in ["intake takes 979", "2.1 % less than the 1000", "lower", FILE] {
            assert!(cheaper.contains(part), "{part}: {cheaper}");
        }
    }

    /// Scenario: a path is measured that the file does not have, and one of the file is not measured.
    /// Guarantees: either is a fault, so no path leaves the guard unseen; but who asks for some paths is not told of the others.
    #[test]
    fn no_path_goes_unguarded() {
        let told = faults(&[("export", 5.0)], BUILD);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told[0].contains("export takes 5 and has no budget") && told[1].contains("intake has a budget"),
            "{told:?}"
        );

        assert_eq!(budgets().judge(&[], BUILD, FILE, true).faults, Vec::<String>::new());
    }

    /// Scenario: another compiler, another architecture.
    /// Guarantees: it fails by that, with both versions and the way out, and judges no figure.
    #[test]
    fn figures_of_another_compiler_are_not_judged_and_do_not_pass() {
        for build in [Build { rustc: "1.96.0", ..BUILD }, Build { target: "aarch64", ..BUILD }] {
            let told = faults(&[("intake", 2000.0)], build);
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].contains("nothing is judged") && told[0].contains("cargo +1.95.0"), "{told:?}");
        }
        assert_eq!(version("rustc 1.95.0 (59807616e 2026-04-14)").expect("a version"), "1.95.0");
    }

    /// Scenario: a budget without a reason, one that is there twice, a misspelt key, a line that gives itself more than two percent.
    /// Guarantees: the file is refused.
    #[test]
    fn a_budget_without_a_reason_is_none() {
        let head = "rustc = \"1\"\ntarget = \"x\"\n";
        let path = |because: &str| format!("[[path]]\nname = \"a\"\ninstructions = 1\nbecause = \"{because}\"\n");
        assert!(Budgets::parse(&[head, &path("it is")].concat()).is_ok());
        let loose = path("it is") + "within_percent = 5\n";
        for wrong in [path(" "), path("it is").repeat(2), path("it is").replace("because", "reason"), loose] {
            assert!(Budgets::parse(&[head, &wrong].concat()).is_err(), "{wrong}");
        }
    }
}

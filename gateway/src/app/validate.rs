//! `pillion validate`, and how mistakes in a configuration are shown everywhere else.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use super::cli::{Output, ValidateArgs};
use super::exit::Exit;
use super::output;
use crate::config::{Config, ConfigError};

/// Checks the file and prints the outcome: a valid one to stdout, mistakes to stderr, JSON always to stdout.
pub fn run(args: &ValidateArgs) -> ExitCode {
    let outcome = Config::load(&args.file);
    let exit = if outcome.is_ok() { Exit::Ok } else { Exit::Config };
    match (args.output, &outcome) {
        (Output::Json, outcome) => output::line(json(&args.file, outcome)),
        (Output::Text, Ok(config)) => {
            for warning in config.warnings() {
                eprintln!("warning: {}: {warning}", args.file.display());
            }
            output::line(summary(&args.file, config));
        }
        (Output::Text, Err(errors)) => print_errors(errors),
    }
    exit.into()
}

/// Prints mistakes to stderr, in colour only on a terminal.
pub fn print_errors(errors: &[ConfigError]) {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    eprint!("{}", text(errors, colour));
}

fn text(errors: &[ConfigError], colour: bool) -> String {
    let (red, bold, dim, reset) = if colour { ("\x1b[31m", "\x1b[1m", "\x1b[2m", "\x1b[0m") } else { ("", "", "", "") };
    let mut out = String::new();
    for error in errors {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{red}error{reset}: {bold}{}{reset}: {}", error.place(), error.what());
        if !error.help.is_empty() {
            let _ = writeln!(out, "       {dim}{}{reset}", error.help);
        }
    }
    let _ = match errors.len() {
        1 => writeln!(out, "1 mistake"),
        count => writeln!(out, "{count} mistakes"),
    };
    out
}

fn json(file: &Path, outcome: &Result<Config, Vec<ConfigError>>) -> serde_json::Value {
    let (errors, warnings) = match outcome {
        Ok(config) => (&[][..], config.warnings()),
        Err(errors) => (errors.as_slice(), Vec::new()),
    };
    serde_json::json!({
        "file": file.display().to_string(),
        "valid": outcome.is_ok(),
        "errors": errors,
        "warnings": warnings,
    })
}

fn summary(file: &Path, config: &Config) -> String {
    let plural = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    format!(
        "{} is valid: {}, {}",
        file.display(),
        plural(config.tenants.len(), "tenant"),
        plural(config.destinations.len(), "destination"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_errors() -> Vec<ConfigError> {
        Config::parse("nod: 1\nnode: {workers: 0}\n", "a.yaml", &|_| None).expect_err("two mistakes")
    }

    /// Scenario: two mistakes, to a terminal and to a file.
    /// Guarantees: each has its place first, as editors and terminals find it, and its help below; no colour goes to a file.
    #[test]
    fn mistakes_are_shown_with_place_and_help() {
        let known = "did you mean node? known: node, defaults, destinations, tenants";
        let expected = format!(
            "error: a.yaml:1:1: nod: unknown key\n       {known}\n\
             error: a.yaml:2:17: node.workers: \"0\" is neither auto nor a number from 1 to 64\n2 mistakes\n"
        );
        assert_eq!(text(&two_errors(), false), expected);
        let coloured = text(&two_errors(), true);
        assert!(coloured.contains("\x1b[31merror\x1b[0m: \x1b[1ma.yaml:1:1\x1b[0m"), "{coloured:?}");
    }

    /// Scenario: the same, for a program, and a valid file.
    /// Guarantees: the fields that scripts rely on.
    #[test]
    fn json_has_every_field() {
        let value = json(Path::new("a.yaml"), &Err(two_errors()));
        assert_eq!(value["valid"], false);
        assert_eq!(value["errors"][0]["line"], 1);
        assert_eq!(value["errors"][0]["column"], 1);
        assert_eq!(value["errors"][0]["path"], "nod");
        assert_eq!(value["errors"][0]["message"], "unknown key");
        assert_eq!(value["errors"][1]["path"], "node.workers");
        let value = json(Path::new("a.yaml"), &Ok(Config::default()));
        assert_eq!((&value["valid"], value["errors"].as_array().map(Vec::len)), (&true.into(), Some(0)));
        assert_eq!(value["warnings"].as_array().map(Vec::len), Some(1));
    }
}

//! Logs of the gateway itself, on standard error.
//!
//! `PILLION_LOG` (else `RUST_LOG`) filters, in the syntax of tracing-subscriber's `EnvFilter`; the default is `info`.
//! `PILLION_LOG_FORMAT=json` writes one JSON object a line; otherwise lines are for people, in colour on a terminal.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Starts logging. Called once; a second call changes nothing. A filter that cannot be parsed is reported and ignored.
pub fn init() {
    let (filter, problem) = filter(["PILLION_LOG", "RUST_LOG"].into_iter().find_map(|name| std::env::var(name).ok()));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if std::env::var("PILLION_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().flatten_event(true).with_current_span(false).try_init()
    } else {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        builder.with_ansi(colour).with_target(false).try_init()
    };
    if let (Ok(()), Some(problem)) = (started, problem) {
        tracing::warn!("{problem}");
    }
}

/// The filter that was asked for, or the default and what was wrong with what was asked for.
fn filter(asked: Option<String>) -> (EnvFilter, Option<String>) {
    let default = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    let Some(asked) = asked.filter(|asked| !asked.trim().is_empty()) else {
        return (default.parse_lossy(""), None);
    };
    match EnvFilter::builder().parse(&asked) {
        Ok(filter) => (filter, None),
        Err(error) => {
            (default.parse_lossy(""), Some(format!("PILLION_LOG or RUST_LOG is {asked:?}: {error}; logging at info")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: nothing is set, something sensible, something misspelt.
    /// Guarantees: it logs at info unless told otherwise; a mistake is told and silences nothing.
    #[test]
    fn a_wrong_filter_is_told_and_silences_nothing() {
        for (asked, level, told) in [
            (None, LevelFilter::INFO, false),
            (Some(" "), LevelFilter::INFO, false),
            (Some("debug"), LevelFilter::DEBUG, false),
            (Some("error,pillion_gateway=trace"), LevelFilter::TRACE, false),
            (Some("info,=="), LevelFilter::INFO, true),
        ] {
            let (filter, problem) = filter(asked.map(str::to_owned));
            assert_eq!((filter.max_level_hint(), problem.is_some()), (Some(level), told), "{asked:?}");
        }
    }
}

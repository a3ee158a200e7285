//! `pillion queue inspect`: dead letters and their data in words.

use std::io::Write as _;

use serde_json::json;

use super::Failed;
use super::choose::choose;
use super::place::Place;
use super::table::size;
use crate::admin::queue::LetterRow;
use crate::app::cli::Output;
use crate::app::cli::queue::InspectArgs;
use crate::app::exit::Exit;
use crate::base::Signal;
use crate::readable::{self, age, printable};

pub(super) fn run(args: &InspectArgs) -> Result<Exit, Failed> {
    let place = Place::find(&args.place)?;
    let chosen = choose(&place, &args.filter)?;
    let mut out = std::io::stdout().lock();
    if chosen.is_empty() && args.output == Output::Text {
        eprintln!("no dead letters");
    }
    for letter in &chosen {
        // Dropped or replayed meanwhile: then there is nothing to show.
        let Some(data) = place.data(letter.id)? else { continue };
        let signal = signal_of(letter);
        let text = match args.output {
            Output::Json => {
                let data = readable::json(&data, signal).unwrap_or_else(|error| json!({"error": error.to_string()}));
                let mut object = serde_json::to_value(letter).map_err(|error| Failed::new(error.to_string()))?;
                object["data"] = data;
                format!("{object}\n")
            }
            Output::Text => {
                let lines = readable::lines(&data, signal, args.items).unwrap_or_else(|error| format!("{error}\n"));
                format!("{}{}\n", head(letter), indented(&lines))
            }
        };
        if out.write_all(text.as_bytes()).is_err() {
            // The pipe is closed: whoever read it has enough.
            break;
        }
    }
    Ok(Exit::Ok)
}

/// The letter's signal. A gateway names no other.
pub(super) fn signal_of(letter: &LetterRow) -> Signal {
    Signal::ALL.into_iter().find(|signal| signal.name() == letter.signal).unwrap_or(Signal::Traces)
}

fn head(letter: &LetterRow) -> String {
    let LetterRow { id, tenant, destination, items, .. } = letter;
    let pod = letter.pod_uid.as_ref().map_or_else(String::new, |uid| format!(" (pod {uid})"));
    let again = if letter.replay { ", to be replayed" } else { "" };
    format!(
        "dead letter {id}: {items} {} of {tenant}{pod}, {}{again}\n  refused by {destination} {} times: {}\n  first {} ago, last {} ago; accepted from the application {} ago\n",
        readable::words(signal_of(letter)),
        size(letter.bytes),
        letter.attempts,
        printable(&letter.message, 1_024),
        age(letter.first_age_ms),
        age(letter.last_age_ms),
        age(letter.data_age_ms),
    )
}

fn indented(lines: &str) -> String {
    lines.lines().map(|line| format!("  {line}\n")).collect()
}

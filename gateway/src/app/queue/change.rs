//! `pillion queue replay` and `purge`: what is to become of dead letters.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use serde_json::json;

use super::Failed;
use super::choose::{choose, is_everything};
use super::place::Place;
use super::table::size;
use crate::admin::queue::{LetterId, LetterRow};
use crate::app::cli::Output;
use crate::app::cli::queue::{ChangeArgs, FilterArgs, PurgeArgs};
use crate::app::exit::Exit;
use crate::app::output;
use crate::queue::Verdict;

pub(super) fn replay(args: &ChangeArgs) -> Result<Exit, Failed> {
    let (place, chosen) = chosen("replay", args)?;
    if args.dry_run {
        return Ok(say(args.output, "would be replayed", &chosen, None));
    }
    let changed = place.change(&ids(&chosen), Verdict::Again)?;
    let when =
        if place.is_running() { "are being replayed" } else { "will be replayed after the gateway's next start" };
    Ok(say(args.output, when, &chosen, Some(changed)))
}

pub(super) fn purge(args: &PurgeArgs) -> Result<Exit, Failed> {
    let (place, chosen) = chosen("purge", &args.change)?;
    let format = args.change.output;
    if args.change.dry_run {
        return Ok(say(format, "would be purged", &chosen, None));
    }
    if !args.yes && !chosen.is_empty() && !is_confirmed(&chosen)? {
        return Err(Failed::new("nothing was purged"));
    }
    let changed = place.change(&ids(&chosen), Verdict::Gone)?;
    Ok(say(format, "were purged", &chosen, Some(changed)))
}

fn chosen(verb: &str, args: &ChangeArgs) -> Result<(Place, Vec<LetterRow>), Failed> {
    check_meant(verb, &args.filter, args.all)?;
    let place = Place::find(&args.place)?;
    let letters = choose(&place, &args.filter)?;
    Ok((place, letters))
}

fn check_meant(verb: &str, filter: &FilterArgs, all: bool) -> Result<(), Failed> {
    match (is_everything(filter), all) {
        (true, false) => Err(Failed {
            exit: Exit::Usage,
            message: format!(
                "{verb} what? name dead letters, filter them (--tenant, --destination, --reason, --older-than), or say --all"
            ),
        }),
        (false, true) => {
            Err(Failed { exit: Exit::Usage, message: "--all and a filter contradict each other".to_owned() })
        }
        _ => Ok(()),
    }
}

fn ids(chosen: &[LetterRow]) -> Vec<LetterId> {
    chosen.iter().map(|letter| letter.id).collect()
}

fn is_confirmed(chosen: &[LetterRow]) -> Result<bool, Failed> {
    if !std::io::stdin().is_terminal() {
        return Err(Failed {
            exit: Exit::Usage,
            message: "nobody can be asked here: say --yes, or look with --dry-run".to_owned(),
        });
    }
    eprint!("{} would be purged for good. Go on? [y/N] ", sum(chosen));
    // A terminal that does not show the question answers nothing.
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|error| Failed::new(error.to_string()))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn sum(chosen: &[LetterRow]) -> String {
    let items: u64 = chosen.iter().map(|letter| u64::from(letter.items)).sum();
    let bytes: u64 = chosen.iter().map(|letter| letter.bytes).sum();
    format!("{} dead letters with {items} items, {}", chosen.len(), size(bytes))
}

fn say(format: Output, what: &str, chosen: &[LetterRow], changed: Option<u64>) -> Exit {
    match format {
        Output::Json => output::line(json!({"letters": ids(chosen), "changed": changed})),
        Output::Text => {
            output::line(format_args!("{} {what}", sum(chosen)));
            if let Some(changed) = changed.filter(|changed| *changed < chosen.len() as u64) {
                output::line(format_args!("{changed} of them: the others were so already, or are gone"));
            }
        }
    }
    Exit::Ok
}

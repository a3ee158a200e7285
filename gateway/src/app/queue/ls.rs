//! `pillion queue ls`: what waits, and what was refused.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;

use super::Failed;
use super::choose::is_tenant;
use super::place::Place;
use super::table::{columns, size};
use crate::admin::queue::{LetterRow, TenantRow};
use crate::app::cli::Output;
use crate::app::cli::queue::LsArgs;
use crate::app::exit::Exit;
use crate::app::output;
use crate::readable::{age, printable};

/// Of a message, in the table.
const MESSAGE_BYTES_MAX: usize = 100;

/// Dead letters of one tenant that were refused in the same words.
#[derive(Debug, Serialize)]
struct Refused<'a> {
    tenant: &'a str,
    destination: &'a str,
    status: &'a str,
    message: &'a str,
    letters: u64,
    items: u64,
    bytes: u64,
    oldest_age_ms: u64,
    replay: u64,
}

pub(super) fn run(args: &LsArgs) -> Result<Exit, Failed> {
    let place = Place::find(&args.place)?;
    let mut tenants = place.overview()?.tenants;
    let mut letters = place.letters()?;
    if let Some(wanted) = &args.tenant {
        tenants.retain(|tenant| is_tenant(&tenant.tenant, wanted));
        letters.retain(|letter| is_tenant(&letter.tenant, wanted));
    }
    let refused = by_reason(&letters);
    match args.output {
        Output::Json => output::line(json!({"tenants": tenants, "dead_letters": refused})),
        Output::Text => output::print(&text(&tenants, &refused)),
    }
    Ok(Exit::Ok)
}

fn by_reason(letters: &[LetterRow]) -> Vec<Refused<'_>> {
    let mut all: BTreeMap<_, Refused<'_>> = BTreeMap::new();
    for letter in letters {
        let (tenant, destination) = (letter.tenant.as_str(), letter.destination.as_str());
        let (status, message) = (letter.status.as_str(), letter.message.as_str());
        let refused = all.entry((tenant, destination, status, message)).or_insert(Refused {
            tenant,
            destination,
            status,
            message,
            letters: 0,
            items: 0,
            bytes: 0,
            oldest_age_ms: 0,
            replay: 0,
        });
        refused.letters += 1;
        refused.items += u64::from(letter.items);
        refused.bytes += letter.bytes;
        refused.oldest_age_ms = refused.oldest_age_ms.max(letter.first_age_ms);
        refused.replay += u64::from(letter.replay);
    }
    all.into_values().collect()
}

fn text(tenants: &[TenantRow], refused: &[Refused<'_>]) -> String {
    let rows = tenants.iter().flat_map(|tenant| {
        tenant.destinations.iter().map(|at| {
            [
                tenant.tenant.clone(),
                at.destination.clone(),
                at.spans.to_string(),
                at.metric_points.to_string(),
                at.log_records.to_string(),
                size(at.bytes),
                at.oldest_age_ms.map_or_else(|| "-".to_owned(), age),
            ]
        })
    });
    let rows: Vec<_> = rows.collect();
    let mut out = match rows.is_empty() {
        true => "no tenants\n".to_owned(),
        false => columns(["TENANT", "DESTINATION", "SPANS", "POINTS", "LOGS", "SIZE", "OLDEST"], &rows),
    };
    if refused.is_empty() {
        return out + "\nno dead letters\n";
    }
    let rows = refused.iter().map(|refused| {
        let again = if refused.replay > 0 { format!("{} to be replayed", refused.replay) } else { String::new() };
        [
            refused.tenant.to_owned(),
            refused.destination.to_owned(),
            refused.status.to_owned(),
            refused.letters.to_string(),
            refused.items.to_string(),
            size(refused.bytes),
            age(refused.oldest_age_ms),
            again,
            printable(refused.message, MESSAGE_BYTES_MAX).into_owned(),
        ]
    });
    let head = ["DEAD LETTERS OF", "DESTINATION", "STATUS", "LETTERS", "ITEMS", "SIZE", "OLDEST", "REPLAY", "MESSAGE"];
    out.push('\n');
    out.push_str(&columns(head, &rows.collect::<Vec<_>>()));
    out
}

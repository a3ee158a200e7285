//! `pillion queue verify`: the outcome in words or as JSON.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::super::cli::Output;
use super::super::cli::queue::VerifyArgs;
use super::super::exit::Exit;
use super::super::output;
use super::Failed;
use crate::queue::{self, Checked, OpenError, Severity};

pub(super) fn run(args: &VerifyArgs) -> Result<Exit, Failed> {
    let checked = queue::verify(&args.dir).map_err(|error| match error {
        OpenError::Locked { dir, holder } => Failed {
            exit: Exit::DataDirLocked,
            message: format!(
                "{} is in use by process {holder}: verify reads a directory at rest. Stop the gateway, or verify a copy",
                dir.display()
            ),
        },
        error => error.into(),
    })?;
    match args.output {
        Output::Text => output::print(&text(&args.dir, &checked)),
        Output::Json => output::line(as_json(&args.dir, &checked)),
    }
    Ok(if checked.is_intact() { Exit::Ok } else { Exit::Damaged })
}

fn text(dir: &Path, checked: &Checked) -> String {
    let mut out = String::new();
    for finding in &checked.findings {
        let severity = match finding.severity {
            Severity::Note => "note",
            Severity::Damage => "damage",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{severity}: {}: {}", finding.file, finding.what);
    }
    if checked.left_out > 0 {
        let _ = writeln!(out, "... and {} more findings", checked.left_out);
    }
    let Checked { segments, sealed, spares, bytes, records, items, dead_letters, tenants, .. } = checked;
    let _ = writeln!(
        out,
        "{}: {segments} segments ({sealed} closed), {spares} spare, {} MiB; {tenants} tenants, {records} records with {items} \
         items, {dead_letters} dead letters",
        dir.display(),
        bytes >> 20
    );
    let _ = match checked.damages() {
        0 => writeln!(out, "intact: every checksum is right"),
        1 => writeln!(out, "1 damage: the gateway starts all the same, and delivers what is intact"),
        many => writeln!(out, "{many} damages: the gateway starts all the same, and delivers what is intact"),
    };
    out
}

fn as_json(dir: &Path, checked: &Checked) -> Value {
    let finding = |finding: &queue::Finding| {
        let damage = finding.severity == Severity::Damage;
        json!({"damage": damage, "file": finding.file, "what": finding.what})
    };
    json!({
        "dir": dir,
        "intact": checked.is_intact(),
        "damages": checked.damages(),
        "segments": checked.segments,
        "sealed": checked.sealed,
        "spares": checked.spares,
        "bytes": checked.bytes,
        "tenants": checked.tenants,
        "records": checked.records,
        "items": checked.items,
        "dead_letters": checked.dead_letters,
        "findings": checked.findings.iter().map(finding).collect::<Vec<_>>(),
        "findings_left_out": checked.left_out,
    })
}

//! `pillion inject`: manifests in, manifests with shims out, and a word about each object.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use super::cli::{InjectArgs, ManifestOutput};
use super::exit::{Exit, Refusal};
use crate::inject::Defaults;
use crate::inject::manifest::{self, Injected, ManifestError, Outcome, Report, Surroundings};

/// No API server takes an object of more than 3 MiB; a stream of twenty such is no manifest.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Reads, injects, prints. After a mistake stdout stays empty, so that no half of a stream is applied.
pub fn run(args: &InjectArgs) -> ExitCode {
    let file = if args.filename.as_os_str() == "-" { "stdin".to_owned() } else { args.filename.display().to_string() };
    match inject(args, &file) {
        Ok((text, reports)) => {
            for report in &reports {
                eprintln!("{file}, {}", line(report));
            }
            if let Err(error) = io::stdout().lock().write_all(text.as_bytes()) {
                let message = format!("stdout: {error}; is the reader of the pipe gone?");
                return Refusal { exit: Exit::Failure, message }.print();
            }
            if reports.iter().any(Report::is_refusal) { Exit::NotInjected.into() } else { Exit::Ok.into() }
        }
        Err(refusal) => refusal.print(),
    }
}

fn inject(args: &InjectArgs, file: &str) -> Result<(String, Vec<Report>), Refusal> {
    let refuse = |message: String| Refusal { exit: Exit::Failure, message };
    let input = read(args)
        .map_err(|error| refuse(format!("{file}: {error}; name a file of manifests with -f, or - for stdin")))?;
    let surroundings = Surroundings {
        namespace: args.namespace.clone(),
        namespace_labels: args.namespace_labels.iter().cloned().collect(),
        defaults: args.image.clone().map_or_else(Defaults::default, |image| Defaults { image }),
    };
    let mistakes = |errors: Vec<ManifestError>| {
        let lines: Vec<String> = errors.iter().map(|error| format!("{file}: {error}")).collect();
        refuse(lines.join("\nerror: "))
    };
    let Injected { text, reports } = manifest::inject(&input, &surroundings).map_err(mistakes)?;
    let text = match args.output {
        None | Some(ManifestOutput::Yaml) => text,
        Some(ManifestOutput::Json) => format!("{:#}\n", manifest::to_json(&text).map_err(mistakes)?),
    };
    Ok((text, reports))
}

fn read(args: &InjectArgs) -> io::Result<String> {
    let source: Box<dyn io::Read> =
        if args.filename.as_os_str() == "-" { Box::new(io::stdin()) } else { Box::new(File::open(&args.filename)?) };
    let mut text = String::new();
    source.take(BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {} MiB", BYTES_MAX >> 20)));
    }
    Ok(text)
}

/// What became of an object, and the next step where something is in the way.
fn line(report: &Report) -> String {
    let mut out = format!("document {}, {}: ", report.document, report.object);
    match &report.outcome {
        Outcome::Injected => out.push_str("injected"),
        Outcome::Passed => out.push_str("passed on as it is"),
        Outcome::Skipped(reason) => {
            out.push_str(&format!("skipped: {reason}"));
            if !reason.next_step().is_empty() {
                out.push_str(&format!("; {}", reason.next_step()));
            }
        }
    }
    if let Some(misplaced) = &report.misplaced {
        out.push_str(&format!(
            "; pillion.dev/inject: {} stands in {}, where it has no effect: move it to {}",
            misplaced.value, misplaced.found, misplaced.wanted
        ));
    }
    out
}

//! `pillion queue`: its arguments and its help.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::Output;
use crate::admin::queue::LetterId;
use crate::base::Signal;

const QUEUE_HELP: &str = "\
All but `verify` work on a gateway that runs, through the socket in its data directory, and on a directory that no gateway
uses, as its next start would find it. Run them as the gateway's user (in its container), or as root while it runs.

A dead letter is data that a destination refused for good because of its content, kept with the refusal. It stays until it is
replayed and accepted, purged, or dropped because newer ones of its tenant need the room (node.dead_letters).

Examples:
  pillion queue ls                                            what waits, for whom, since when; what was refused, and why
  pillion queue inspect --tenant shop/cart-0                  the refused data in words
  pillion queue export --to letters                           the same as files that a Collector reads
  pillion queue replay --destination backend                  after the backend was mended
  pillion queue purge --older-than 7d --dry-run               what would go; without --dry-run it asks
  pillion queue verify /var/lib/pillion                       check every byte of a directory at rest
  kubectl -n pillion-system exec ds/pillion-gateway -- /pillion queue ls --data-dir /var/lib/pillion";

const LS_HELP: &str = "\
The first table has what is accepted and not delivered yet, for each tenant and destination; ages are counted on the queue's
clock, which stands still while no gateway runs. What was delivered within the last second may still be listed. The second
table has dead letters by the refusal.

Examples:
  pillion queue ls
  pillion queue ls -o json | jq '.tenants[] | select(.dead_letters > 0) | .tenant'";

const INSPECT_HELP: &str = "\
Shows each chosen dead letter: the refusal, then its data. With -o json one object a letter and line, `data` being OTLP/JSON.

Examples:
  pillion queue inspect                                       all of them, 20 items of each
  pillion queue inspect 3-1099511627790 --items 1000          one of them, wholly
  pillion queue inspect --reason 'HTTP 400' -o json | jq -r .message | sort | uniq -c";

const EXPORT_HELP: &str = "\
Writes DIR/traces.jsonl, DIR/metrics.jsonl and DIR/logs.jsonl, as many as are needed, in the format of OTLP's file exporter:
one request a line, as OTLP/JSON. A Collector reads them with its otlpjsonfile receiver:

  receivers: {otlpjsonfile: {include: [letters/*.jsonl], start_at: beginning}}

With --format proto the files are called .binpb and hold the same requests as protobuf, each after its length (a varint).
A file that exists is not overwritten. The letters stay where they are: purge them when they have arrived.

Examples:
  pillion queue export --to letters
  pillion queue export --to letters --tenant shop/cart-0 --format proto";

const REPLAY_HELP: &str = "\
Marks dead letters to be sent again, to the destination that refused them and to no other. The mark is durable; a letter
stays one until its destination has accepted it, so a crash in between loses nothing, and at worst repeats it. One that is
refused again stays a dead letter, with the new refusal in the gateway's log. A gateway that runs begins at once; in a
directory at rest the letters are sent after the next start.

Examples:
  pillion queue replay --destination backend --reason INVALID_ARGUMENT
  pillion queue replay 3-1099511627790
  pillion queue replay --all --dry-run";

const PURGE_HELP: &str = "\
Removes dead letters for good. It shows what it would remove and asks, unless --yes says so beforehand.

Examples:
  pillion queue purge --older-than 7d --dry-run
  pillion queue purge --tenant shop/cart-0 --yes
  pillion queue purge --all";

const VERIFY_HELP: &str = "\
Reads every segment from its header to its trailer, checks all checksums, compares each index with its records, looks whose
the records are, and opens a copy of the metadata. No byte of the directory is changed. A gateway that uses it has to be
stopped first.

Examples:
  pillion queue verify /var/lib/pillion
  pillion queue verify -o json ./pillion-data | jq -r '.findings[] | .file + \": \" + .what'

Exit status: 0 everything is as it was written, 10 something is damaged, 4 a gateway uses the directory, 5 it cannot be read
or is of a newer release.";

/// `pillion queue`
#[derive(Debug, Clone, Args)]
#[command(after_help = QUEUE_HELP, arg_required_else_help = true)]
pub struct QueueArgs {
    /// What to do
    #[command(subcommand)]
    pub verb: QueueVerb,
}

/// `pillion queue VERB`
#[derive(Debug, Clone, Subcommand)]
pub enum QueueVerb {
    /// List what waits for each destination, and what was refused and why
    #[command(after_help = LS_HELP)]
    Ls(LsArgs),
    /// Show dead letters and their data in words
    #[command(after_help = INSPECT_HELP)]
    Inspect(InspectArgs),
    /// Write the data of dead letters to files that a Collector reads
    #[command(after_help = EXPORT_HELP)]
    Export(ExportArgs),
    /// Send dead letters again to the destination that refused them
    #[command(after_help = REPLAY_HELP)]
    Replay(ChangeArgs),
    /// Remove dead letters for good
    #[command(after_help = PURGE_HELP)]
    Purge(PurgeArgs),
    /// Check every byte of a data directory that no gateway uses, and change none
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArgs),
}

/// Where the queue is.
#[derive(Debug, Clone, Args)]
pub struct PlaceArgs {
    /// The gateway's data directory [default: ./pillion-data, else /var/lib/pillion]
    #[arg(long, value_name = "DIR", env = "PILLION_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Which dead letters: all that fit every one of these.
#[derive(Debug, Clone, Default, Args)]
pub struct FilterArgs {
    /// These only, by the id that `inspect` shows
    #[arg(value_name = "ID")]
    pub ids: Vec<LetterId>,
    /// Of this tenant: namespace/pod, or all of a namespace with namespace/
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// Refused by this destination
    #[arg(long, value_name = "NAME")]
    pub destination: Option<String>,
    /// With this text in status or message
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Of this signal
    #[arg(long, value_name = "SIGNAL", value_parser = signal)]
    pub signal: Option<Signal>,
    /// Refused for the last time at least so long ago: 90s, 15m, 12h, 7d
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub older_than: Option<Duration>,
}

/// `pillion queue ls`
#[derive(Debug, Clone, Args)]
pub struct LsArgs {
    /// Where the queue is
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Of this tenant: namespace/pod, or all of a namespace with namespace/
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// How to print the result
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// `pillion queue inspect`
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Where the queue is
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Which dead letters
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Items to show of each letter
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub items: usize,
    /// How to print the result
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// `pillion queue export`
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// Where the queue is
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Which dead letters
    #[command(flatten)]
    pub filter: FilterArgs,
    /// A directory for the files; made if it is absent
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// What the files hold
    #[arg(long, value_enum, default_value_t = FileFormat::Json)]
    pub format: FileFormat,
}

/// `export --format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// OTLP/JSON, one request a line
    Json,
    /// Protobuf, each request after its length
    Proto,
}

/// What `replay` and `purge` are about.
#[derive(Debug, Clone, Args)]
pub struct ChangeArgs {
    /// Where the queue is
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Which dead letters
    #[command(flatten)]
    pub filter: FilterArgs,
    /// All of them
    #[arg(long)]
    pub all: bool,
    /// Only say which
    #[arg(long)]
    pub dry_run: bool,
    /// How to print the result
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// `pillion queue purge`
#[derive(Debug, Clone, Args)]
pub struct PurgeArgs {
    /// What to remove
    #[command(flatten)]
    pub change: ChangeArgs,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// `pillion queue verify`
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The data directory
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// How to print the result
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

fn signal(text: &str) -> Result<Signal, String> {
    let found = Signal::ALL.into_iter().find(|signal| signal.name() == text);
    found.ok_or_else(|| format!("{text:?} is no signal: traces, metrics or logs"))
}

/// `90s`, `15m`, `12h`, `7d`
fn age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no age: write 90s, 15m, 12h or 7d");
    let (number, seconds) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3_600),
        Some((at, 'd')) => (&text[..at], 86_400),
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

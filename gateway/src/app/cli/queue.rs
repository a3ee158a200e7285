//! `pillion queue`: its arguments and its help.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Output;

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
pub struct QueueArgs {
    /// What to do
    #[command(subcommand)]
    pub verb: QueueVerb,
}

/// `pillion queue VERB`
#[derive(Debug, Clone, Subcommand)]
pub enum QueueVerb {
    /// Check every byte of a data directory that no gateway uses, and change none
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArgs),
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

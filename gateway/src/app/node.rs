//! The worker: builds every part from the configuration, runs until it is told to stop, drains.

use std::process::ExitCode;

use crate::config::Config;

/// What the supervisor tells its worker.
#[derive(Debug, Clone, Default)]
pub struct WorkerOptions {
    /// How often a worker was started again since the supervisor's start.
    pub restarts: u32,
    /// Why the one before this one ended, for example `killed by SIGKILL`.
    pub last_reason: Option<String>,
    /// Whether to print the banner and the summary, for a person at a terminal.
    pub standalone: bool,
}

/// Runs the worker.
pub fn run(config: Config, options: WorkerOptions) -> ExitCode {
    let _ = (config, options);
    ExitCode::SUCCESS
}

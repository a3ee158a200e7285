//! The end-to-end suite: Pillion as it is installed, on a real cluster.
//!
//! - [`app`] is what runs in the suite's own pods: a backend, a real SDK, load, and small helpers.
//! - [`ranges`] is how both sides write down thousands of ids.
//! - [`options`] reads the command line; [`cluster`] and [`node`] are the two things that it acts on, [`wait`] how it waits.
//! - [`install`] puts everything into the cluster, [`pods`] makes the applications, [`load`] is one under load.
//! - [`scenarios`] say what must be true; [`suite`] runs them and tells what was seen.

pub mod app;
pub mod cluster;
pub mod install;
pub mod load;
pub mod node;
pub mod options;
pub mod pods;
pub mod ranges;
pub mod scenarios;
pub mod suite;
pub mod wait;

use std::process::ExitCode;

use options::Action;

/// Runs the suite; arguments without the program's name.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    match run(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pillion-e2e: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: impl Iterator<Item = String>) -> anyhow::Result<bool> {
    let (options, action) = options::parse(arguments)?;
    match action {
        Action::Help => println!("{}", options::USAGE),
        Action::List => scenarios::SCENARIOS.iter().for_each(|one| println!("{:16} {}", one.name, one.what)),
        Action::Install => drop(suite::Suite::start(options)?),
        Action::Run(names) => return suite::Suite::start(options)?.run(&names),
    }
    Ok(true)
}

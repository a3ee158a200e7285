//! From names to arms, or to the reason why there is none.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::arguments::Load;
use crate::arm::{Ack, Arm, Direct, Otelcol, Pillion, Placement, Programs, Rotel};
use crate::compare::Missing;

/// What can be run, and what cannot.
type Found = (Vec<Box<dyn Arm>>, Vec<Missing>);

/// The arms of those names, and what is not there.
pub(super) fn of(names: &[String], load: &Load) -> Result<Found> {
    let programs = Programs::find(load.pillion.clone(), load.shim.clone(), load.cache.clone())?;
    let mut arms: Vec<Box<dyn Arm>> = Vec::new();
    let mut missing = Vec::new();
    for name in names {
        match one(name, &programs, load)? {
            Ok(arm) => arms.push(arm),
            Err(why) => missing.push(Missing { arm: name.clone(), why }),
        }
    }
    Ok((arms, missing))
}

fn one(name: &str, programs: &Programs, load: &Load) -> Result<Result<Box<dyn Arm>, String>> {
    let pillion = |ack| -> Result<Box<dyn Arm>, String> {
        let program =
            existing(programs.pillion.clone(), "pillion", "build it with cargo build --release, or say --pillion")?;
        Ok(Box::new(Pillion { program, shim: programs.shim.clone(), ack }))
    };
    let otelcol = |placement| -> Result<Box<dyn Arm>, String> {
        let found = load.otelcol.clone().or_else(|| programs.cached("otelcol"));
        Ok(Box::new(Otelcol {
            program: existing(found, "otelcol", "run `pillion-loadtest baselines`, or say --otelcol")?,
            placement,
        }))
    };
    Ok(match name {
        "direct" => Ok(Box::new(Direct)),
        "pillion" => pillion(Ack::Memory),
        "pillion-durable" => pillion(Ack::Durable),
        "otelcol" => otelcol(Placement::Sidecar),
        "otelcol-daemonset" => otelcol(Placement::Daemonset),
        "rotel" => {
            let found = load.rotel.clone().or_else(|| programs.cached("rotel-agent"));
            existing(found, "rotel-agent", "run `pillion-loadtest baselines`, or say --rotel")
                .map(|program| Box::new(Rotel { program }) as Box<dyn Arm>)
        }
        other => bail!("no arm is called {other:?}"),
    })
}

fn existing(path: Option<PathBuf>, what: &str, remedy: &str) -> Result<PathBuf, String> {
    path.filter(|path| path.is_file()).ok_or_else(|| format!("{what} is not there: {remedy}"))
}

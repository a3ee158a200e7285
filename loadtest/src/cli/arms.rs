//! From names to arms, or to the reason why there is none.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::arguments::Places;
use crate::arm::{Ack, Arm, Build, Direct, Floor, FloorMode, Kind, Otelcol, Pillion, Programs, Quota, Rotel};
use crate::compare::Missing;

/// All of them.
pub(super) const NAMES: [&str; 14] = [
    "direct",
    "floor",
    "floor-one-for-one",
    "floor-durable",
    "pillion",
    "pillion-unmerged",
    "pillion-durable",
    "pillion-durable-unmerged",
    "otelcol",
    "otelcol-minimal",
    "otelcol-file",
    "otelcol-minimal-file",
    "otelcol-daemonset",
    "rotel",
];

/// Those that are run when none is named.
pub(super) const DEFAULT: [&str; 6] = ["direct", "pillion", "otelcol", "otelcol-minimal", "otelcol-daemonset", "rotel"];

/// What can be run, and what cannot.
type Found = (Vec<Box<dyn Arm>>, Vec<Missing>);

/// The arms of those names, and what is not there.
pub(super) fn of(names: &[String], places: &Places, quota: Quota) -> Result<Found> {
    let programs = Programs::find(places.pillion.clone(), places.shim.clone(), places.cache.clone())?;
    let mut arms: Vec<Box<dyn Arm>> = Vec::new();
    let mut missing = Vec::new();
    for name in names {
        match one(name, &programs, places, quota)? {
            Ok(arm) => arms.push(arm),
            Err(why) => missing.push(Missing { arm: name.clone(), why }),
        }
    }
    Ok((arms, missing))
}

fn one(name: &str, programs: &Programs, places: &Places, quota: Quota) -> Result<Result<Box<dyn Arm>, String>> {
    let pillion = |ack, merge| -> Result<Box<dyn Arm>, String> {
        let remedy = "build it with `cargo build --release -p pillion-gateway`, or say --pillion";
        let program = existing(programs.pillion.clone(), "pillion", remedy)?;
        Ok(Box::new(Pillion { program, shim: programs.shim.clone(), ack, merge, quota }))
    };
    let own = std::env::current_exe()?;
    let floor = |mode| -> Result<Box<dyn Arm>, String> { Ok(Box::new(Floor { program: own.clone(), mode })) };
    let otelcol = |build, kind| -> Result<Box<dyn Arm>, String> {
        let (named, file) = match build {
            Build::Ordinary => (places.otelcol.clone(), "otelcol"),
            Build::Minimal => (None, "otelcol-minimal"),
        };
        let found = named.or_else(|| programs.cached(file));
        let program = existing(found, file, "run `pillion-loadtest baselines`, or say --otelcol")?;
        Ok(Box::new(Otelcol { program, build, kind }))
    };
    Ok(match name {
        "floor" => floor(FloorMode::Merged),
        "floor-one-for-one" => floor(FloorMode::OneForOne),
        "floor-durable" => floor(FloorMode::Durable),
        "direct" => Ok(Box::new(Direct)),
        "pillion" => pillion(Ack::Memory, true),
        "pillion-unmerged" => pillion(Ack::Memory, false),
        "pillion-durable" => pillion(Ack::Durable, true),
        "pillion-durable-unmerged" => pillion(Ack::Durable, false),
        "otelcol" => otelcol(Build::Ordinary, Kind::Sidecar),
        "otelcol-file" => otelcol(Build::Ordinary, Kind::File),
        "otelcol-minimal" => otelcol(Build::Minimal, Kind::Sidecar),
        "otelcol-minimal-file" => otelcol(Build::Minimal, Kind::File),
        "otelcol-daemonset" => otelcol(Build::Ordinary, Kind::Daemonset),
        "rotel" => {
            let found = places.rotel.clone().or_else(|| programs.cached("rotel-agent"));
            existing(found, "rotel-agent", "run `pillion-loadtest baselines`, or say --rotel")
                .map(|program| Box::new(Rotel { program }) as Box<dyn Arm>)
        }
        other => bail!("no arm is called {other:?}: there are {}", NAMES.join(", ")),
    })
}

fn existing(path: Option<PathBuf>, what: &str, remedy: &str) -> Result<PathBuf, String> {
    path.filter(|path| path.is_file()).ok_or_else(|| format!("{what} is not there: {remedy}"))
}

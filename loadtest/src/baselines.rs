//! What others make, got from package registries into the cache: built or unpacked, and started once to see that it runs.
//!
//! ```text
//! CACHE/otelcol        built by its own builder from baselines/otelcol.yaml: needs Go, and some minutes
//! CACHE/rotel-agent    from its npm package: needs npm and tar
//! CACHE/build/NAME/    where that was done; may be removed
//! ```
//!
//! What is there is not got again. It never runs in the namespaces of a run: those reach nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::arm::Programs;

const COLLECTOR_BUILDER: &str = "go.opentelemetry.io/collector/cmd/builder@v0.160.0";
const COLLECTOR_MANIFEST: &str = include_str!("../baselines/otelcol.yaml");
const ROTEL_PACKAGE: &str = "@streamfold/rotel-linux-x64@0.0.8-alpha";

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Baseline {
    /// The OpenTelemetry Collector.
    Otelcol,
    /// rotel.
    Rotel,
}

impl Baseline {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Otelcol, Self::Rotel];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Otelcol => "otelcol",
            Self::Rotel => "rotel",
        }
    }

    /// Its file in the cache.
    pub fn file(self) -> &'static str {
        match self {
            Self::Otelcol => "otelcol",
            Self::Rotel => "rotel-agent",
        }
    }

    /// Gets it unless it is there; returns its path and the version that it tells.
    pub fn get(self, programs: &Programs) -> Result<(PathBuf, String)> {
        let path = programs.cache.join(self.file());
        if !path.is_file() {
            let build = programs.cache.join("build").join(self.name());
            fs::create_dir_all(&build).with_context(|| format!("making {}", build.display()))?;
            let made = match self {
                Self::Otelcol => build_collector(&build)?,
                Self::Rotel => unpack_rotel(&build)?,
            };
            // Under its name only when it is complete.
            let part = path.with_extension("part");
            fs::copy(&made, &part).with_context(|| format!("copying {}", made.display()))?;
            fs::rename(&part, &path)?;
        }
        let version = output(Command::new(&path).arg("--version")).context("it is there, and does not run")?;
        Ok((path, version.trim().to_owned()))
    }
}

fn build_collector(build: &Path) -> Result<PathBuf> {
    fs::write(build.join("otelcol.yaml"), COLLECTOR_MANIFEST)?;
    let mut command = Command::new("go");
    command.args(["run", COLLECTOR_BUILDER, "--config", "otelcol.yaml"]).env("CGO_ENABLED", "0").current_dir(build);
    output(&mut command)?;
    Ok(build.join("out/otelcol"))
}

fn unpack_rotel(build: &Path) -> Result<PathBuf> {
    ensure!(cfg!(all(target_os = "linux", target_arch = "x86_64")), "the package is for x86-64 only");
    let packed = output(Command::new("npm").args(["pack", "--silent", ROTEL_PACKAGE]).current_dir(build))?;
    let archive = packed.lines().last().context("npm names the file that it made")?;
    output(Command::new("tar").args(["-xzf", archive]).current_dir(build))?;
    Ok(build.join("package/bin/rotel-agent"))
}

/// What a command says, when it ends well.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = said.lines().rev().take(5).collect();
        bail!("{name} ended with {}: {}", output.status, last.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

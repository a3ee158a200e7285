//! What others make, got from package registries into the cache: built or unpacked, and started once to see that it runs.
//!
//! ```text
//! CACHE/otelcol           built by its own builder from baselines/otelcol.yaml: needs Go, and some minutes
//! CACHE/otelcol-minimal   the same from baselines/otelcol-minimal.yaml
//! CACHE/rotel-agent       from its npm package: needs npm and tar
//! CACHE/build/NAME/       where that was done; may be removed
//! ```
//!
//! What is there is not got again. It never runs in the namespaces of a run: those reach nothing.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::arm::Programs;

const COLLECTOR_BUILDER: &str = "go.opentelemetry.io/collector/cmd/builder@v0.160.0";
const ROTEL_PACKAGE: &str = "@streamfold/rotel-linux-x64@0.0.8-alpha";

/// A tool that says nothing for so long is said to be at it still.
const SILENCE: Duration = Duration::from_secs(15);

/// Lines of a failed tool that are told.
const LAST_LINES: usize = 5;

/// Is told what happens meanwhile, line by line.
pub type Say<'a> = dyn FnMut(&str) + 'a;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Baseline {
    /// rotel.
    Rotel,
    /// The OpenTelemetry Collector with what a sidecar needs and nothing else: its best case.
    OtelcolMinimal,
    /// The OpenTelemetry Collector with the components of an ordinary build.
    Otelcol,
}

impl Baseline {
    /// All of them; what is got soonest first.
    pub const ALL: [Self; 3] = [Self::Rotel, Self::OtelcolMinimal, Self::Otelcol];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rotel => "rotel",
            Self::OtelcolMinimal => "otelcol-minimal",
            Self::Otelcol => "otelcol",
        }
    }

    /// Its file in the cache.
    pub fn file(self) -> &'static str {
        match self {
            Self::Rotel => "rotel-agent",
            Self::OtelcolMinimal | Self::Otelcol => self.name(),
        }
    }

    /// The Collector's manifest.
    fn manifest(self) -> Option<&'static str> {
        match self {
            Self::Rotel => None,
            Self::OtelcolMinimal => Some(include_str!("../baselines/otelcol-minimal.yaml")),
            Self::Otelcol => Some(include_str!("../baselines/otelcol.yaml")),
        }
    }

    /// Gets it unless it is there; returns its path and the version that it tells.
    pub fn get(self, programs: &Programs, say: &mut Say<'_>) -> Result<(PathBuf, String)> {
        let path = programs.cache.join(self.file());
        if !path.is_file() {
            let build = programs.cache.join("build").join(self.name());
            fs::create_dir_all(&build).with_context(|| format!("making {}", build.display()))?;
            let made = match self.manifest() {
                Some(manifest) => build_collector(self.name(), manifest, &build, say)?,
                None => unpack_rotel(&build, say)?,
            };
            // Under its name only when it is complete.
            let part = path.with_extension("part");
            fs::copy(&made, &part).with_context(|| format!("copying {}", made.display()))?;
            fs::rename(&part, &path)?;
        }
        let version = self.check(&path).with_context(|| format!("{} is there, and does not run", path.display()))?;
        Ok((path, version))
    }

    /// Starts it: it tells its version, and the Collector has the storage that its durable arm needs.
    fn check(self, path: &Path) -> Result<String> {
        let quiet = &mut |_: &str| {};
        let version = output(Command::new(path).arg("--version"), quiet)?;
        if self.manifest().is_some() {
            let components = output(Command::new(path).arg("components"), quiet)?;
            ensure!(components.contains("file_storage"), "it has no file_storage: remove it, and it is built again");
        }
        Ok(version.trim().to_owned())
    }
}

fn build_collector(name: &str, manifest: &str, build: &Path, say: &mut Say<'_>) -> Result<PathBuf> {
    have("go", "Go 1.25 or newer builds the Collector: install it, or name a program with --otelcol")?;
    say("building it with Go's builder: seconds when Go has its parts already, up to half an hour when not");
    fs::write(build.join("manifest.yaml"), manifest)?;
    let mut command = Command::new("go");
    command.args(["run", COLLECTOR_BUILDER, "--config", "manifest.yaml"]).env("CGO_ENABLED", "0").current_dir(build);
    output(&mut command, say)?;
    Ok(build.join("out").join(name))
}

fn unpack_rotel(build: &Path, say: &mut Say<'_>) -> Result<PathBuf> {
    ensure!(cfg!(all(target_os = "linux", target_arch = "x86_64")), "the package is for x86-64 only");
    have("npm", "npm gets rotel's package: install it, or name a program with --rotel")?;
    say(&format!("getting {ROTEL_PACKAGE}"));
    let packed = output(Command::new("npm").args(["pack", "--silent", ROTEL_PACKAGE]).current_dir(build), say)?;
    let archive = packed.lines().last().context("npm names the file that it made")?;
    output(Command::new("tar").args(["-xzf", archive]).current_dir(build), say)?;
    Ok(build.join("package/bin/rotel-agent"))
}

/// Whether a tool can be started at all; if not, what to do.
fn have(tool: &str, remedy: &str) -> Result<()> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let is_there = std::env::split_paths(&search).any(|dir| dir.join(tool).is_file());
    ensure!(is_there, "`{tool}` is not there. {remedy}");
    Ok(())
}

/// What a command writes to its output, when it ends well; meanwhile what it says beside it is passed on.
fn output(command: &mut Command, say: &mut Say<'_>) -> Result<String> {
    let name = command.get_program().display().to_string();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
    let (mut out, err) = (child.stdout.take().context("piped")?, child.stderr.take().context("piped")?);
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).map(|_| text)
    });
    let (line, lines) = sync_channel(16);
    let saying = std::thread::spawn(move || {
        BufReader::new(err).lines().map_while(Result::ok).all(|said| line.send(said).is_ok());
    });
    let (started, mut last) = (Instant::now(), Vec::new());
    loop {
        match lines.recv_timeout(SILENCE) {
            Ok(said) => {
                say(&said);
                last.push(said);
                if last.len() > LAST_LINES {
                    last.remove(0);
                }
            }
            Err(RecvTimeoutError::Timeout) => say(&format!("{name} is at it for {} s", started.elapsed().as_secs())),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    drop(saying.join());
    let status = child.wait()?;
    let text = reading.join().expect("reading does not panic").with_context(|| format!("the output of {name}"))?;
    if !status.success() {
        bail!("{name} ended with {status}: {}", last.join("\n"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a tool that says three lines and fails, one that ends well, and one that is not there.
    /// Guarantees: what is said is passed on as it comes; a failure has its last words; what is missing is named with a remedy.
    #[test]
    fn a_tool_is_heard_and_its_failure_told() {
        let mut heard = Vec::new();
        let script = "echo out; for n in 1 2 3 4 5 6; do echo line $n >&2; done; exit $0";
        let mut run =
            |code: &str| output(Command::new("sh").args(["-c", script, code]), &mut |line| heard.push(line.to_owned()));
        assert_eq!(run("0").unwrap(), "out\n");
        let why = format!("{:#}", run("7").unwrap_err());
        assert!(why.contains('7') && why.contains("line 2\nline 3") && !why.contains("line 1"), "{why}");
        assert_eq!((heard.len(), heard[0].as_str()), (12, "line 1"));
        let missing = format!("{:#}", have("a-tool-that-nobody-has", "Install it").unwrap_err());
        assert_eq!(missing, "`a-tool-that-nobody-has` is not there. Install it");
    }

    /// Scenario: a program of that name that is no Collector with file_storage is in the cache.
    /// Guarantees: it is not taken for one.
    #[test]
    fn what_is_in_the_cache_is_tried() {
        let dir = tempfile::tempdir().unwrap();
        let programs = Programs { pillion: None, shim: None, cache: dir.path().to_owned() };
        let path = dir.path().join("otelcol");
        for (program, words) in [("true", "file_storage"), ("false", "does not run")] {
            // A link: what was just written cannot be executed while another test's child still has it open.
            drop(fs::remove_file(&path));
            std::os::unix::fs::symlink(Path::new("/bin").join(program), &path).unwrap();
            let told = format!("{:#}", Baseline::Otelcol.get(&programs, &mut |_| {}).unwrap_err());
            assert!(told.contains(words), "{words}: {told}");
        }
    }
}

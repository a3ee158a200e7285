//! The same limits for every agent, and one place that counts an arm's memory as a kubelet would.
//!
//! ```text
//! cgroup v2   OWN/pl-RANDOM/agent-M   memory.max; OWN is this process's group, if it may have children with a memory controller
//! cgroup v1   the same below /sys/fs/cgroup/memory, memory.limit_in_bytes
//! neither     ulimit -d: private writable memory only, and nobody counts the arm's memory
//! ```
//!
//! An agent is a sidecar, a shim, or what all pods share. Processors are limited by pinning: every arm has the same ones.
//! Groups end with the run that they were made for.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// What each agent may have, as a container's limit would say: MiB.
pub const AGENT_MEMORY_MIB: u64 = 512;

/// What agents have started, and has not ended by then, is left.
const PATIENCE: Duration = Duration::from_secs(2);

/// The group of this process, where it may not stay in its parent.
const LOAD_GROUP: &str = "pl-load";

/// How agents are limited on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Limits {
    /// By groups below this one.
    Groups(Version, PathBuf),
    /// By `ulimit -d`; why there are no groups.
    Ulimit(String),
}

/// Of the memory controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One tree of its own.
    V1,
    /// The unified tree.
    V2,
}

/// The limits of one run. Its groups are removed when dropped, after its processes have ended.
#[derive(Debug)]
pub struct Cage {
    limits: Limits,
    dir: PathBuf,
    agents: AtomicU64,
}

/// Where a run's memory is read, if somebody counts it.
#[derive(Debug, Clone, Default)]
pub(crate) struct WorkingSet(Option<(Version, PathBuf)>);

impl Limits {
    /// What this machine permits, tried once.
    pub fn find() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::below(Path::new("/sys/fs/cgroup"), &own)
    }

    /// The same with groups mounted at `mount` and this process in `own`, as /proc/self/cgroup has it.
    fn below(mount: &Path, own: &str) -> Self {
        let mut why = Vec::new();
        for line in own.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            // Where an earlier look has moved this process.
            let path = path.trim_start_matches('/').trim_end_matches(LOAD_GROUP);
            let (version, dir) = match controllers {
                "" => (Version::V2, mount.join(path)),
                _ if controllers.split(',').any(|name| name == "memory") => {
                    (Version::V1, mount.join("memory").join(path))
                }
                _ => continue,
            };
            match try_groups(version, &dir) {
                Ok(()) => return Self::Groups(version, dir),
                Err(error) => why.push(format!("{}: {error:#}", dir.display())),
            }
        }
        Self::Ulimit(if why.is_empty() { "no memory controller".to_owned() } else { why.join("; ") })
    }

    /// For the report.
    pub fn about(&self) -> String {
        let processors = "all arms on the same processors";
        match self {
            Self::Groups(version, _) => {
                let version = if *version == Version::V1 { 1 } else { 2 };
                format!("{AGENT_MEMORY_MIB} MiB of memory an agent (cgroup v{version}), {processors}")
            }
            Self::Ulimit(why) => format!(
                "{AGENT_MEMORY_MIB} MiB of private writable memory an agent (ulimit -d: no memory cgroup could be made: {why}; \
                 `systemd-run --user --scope -p Delegate=yes` or root permits one), {processors}"
            ),
        }
    }

    /// For one run.
    pub fn cage(&self) -> Result<Cage> {
        let mut dir = PathBuf::new();
        if let Self::Groups(version, own) = self {
            dir = own.join(group_name());
            fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
            if *version == Version::V2 {
                fs::write(dir.join("cgroup.subtree_control"), "+memory").context("a memory controller for agents")?;
            }
        }
        Ok(Cage { limits: self.clone(), dir, agents: AtomicU64::new(0) })
    }
}

/// Whether groups with a memory controller can be made there; leaves none behind.
fn try_groups(version: Version, own: &Path) -> Result<()> {
    if version == Version::V2 {
        let has = fs::read_to_string(own.join("cgroup.controllers")).context("cgroup.controllers")?;
        anyhow::ensure!(has.split_ascii_whitespace().any(|name| name == "memory"), "no memory controller");
        // A group with processes gives its children no controllers: so this one moves out of the way.
        let load = own.join(LOAD_GROUP);
        match fs::create_dir(&load) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error).context("a group"),
            _ => fs::write(load.join("cgroup.procs"), "0").context("moving into a group")?,
        }
        fs::write(own.join("cgroup.subtree_control"), "+memory").context("a memory controller for children")?;
    }
    let group = own.join(group_name());
    fs::create_dir(&group).context("making a group")?;
    let limit = fs::metadata(group.join(limit_file(version))).context("the limit of a group");
    fs::remove_dir(&group).context("removing a group")?;
    limit.map(|_| ())
}

/// By chance: process numbers repeat, since each run has a namespace for them.
fn group_name() -> String {
    format!("pl-{:016x}", fastrand::u64(..))
}

fn limit_file(version: Version) -> &'static str {
    match version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    }
}

impl Cage {
    /// A command that is one agent, within its limit from its first instruction on. Arguments are added as to any command.
    pub fn command(&self, program: &Path) -> Result<Command> {
        let mut command = Command::new("sh");
        match &self.limits {
            Limits::Groups(version, _) => {
                let number = self.agents.fetch_add(1, Ordering::Relaxed);
                let group = self.dir.join(format!("agent-{number}"));
                fs::create_dir(&group).with_context(|| format!("making {}", group.display()))?;
                let limit = (AGENT_MEMORY_MIB << 20).to_string();
                fs::write(group.join(limit_file(*version)), limit).context("the limit of an agent's memory")?;
                command.args(["-c", "echo 0 >\"$0\" && exec \"$@\""]).arg(group.join("cgroup.procs"));
            }
            Limits::Ulimit(_) => {
                command.args(["-c", "ulimit -d \"$0\" && exec \"$@\""]).arg((AGENT_MEMORY_MIB << 10).to_string());
            }
        }
        command.arg(program);
        Ok(command)
    }

    /// Memory of all agents that the kernel could not take back at once, as the kubelet counts it: KiB.
    pub fn working_set(&self) -> Option<u64> {
        self.working_set_file().read()
    }

    /// The same for whoever looks more than once.
    pub(crate) fn working_set_file(&self) -> WorkingSet {
        match self.limits {
            Limits::Groups(version, _) => WorkingSet(Some((version, self.dir.clone()))),
            Limits::Ulimit(_) => WorkingSet(None),
        }
    }
}

impl WorkingSet {
    /// Now, in KiB.
    pub(crate) fn read(&self) -> Option<u64> {
        let (version, dir) = self.0.as_ref()?;
        let (usage, inactive) = match version {
            Version::V1 => ("memory.usage_in_bytes", "total_inactive_file"),
            Version::V2 => ("memory.current", "inactive_file"),
        };
        let used: u64 = fs::read_to_string(dir.join(usage)).ok()?.trim().parse().ok()?;
        let stat = fs::read_to_string(dir.join("memory.stat")).ok()?;
        let inactive = stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse::<u64>().ok())?;
        Some(used.saturating_sub(inactive) >> 10)
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        if matches!(self.limits, Limits::Groups(..)) {
            let deadline = Instant::now() + PATIENCE;
            for number in 0..*self.agents.get_mut() {
                let group = self.dir.join(format!("agent-{number}"));
                // What agents have started dies soon after them. A group that is in use even then is left, empty in the end.
                while fs::remove_dir(&group).is_err_and(|error| error.kind() == ErrorKind::ResourceBusy)
                    && Instant::now() < deadline
                {
                    std::thread::yield_now();
                }
            }
            drop(fs::remove_dir(&self.dir));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: machines without any memory controller, with one that gives no group, and this one.
    /// Guarantees: an agent starts under the limit that is told, whatever the machine permits, and the report says which.
    #[test]
    fn an_agent_starts_under_the_limit_that_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let none = Limits::below(dir.path(), "1:cpu:/x\n");
        assert_eq!(none, Limits::Ulimit("no memory controller".to_owned()));
        let refused = Limits::below(dir.path(), "4:memory:/x\n0::/y\n");
        assert!(
            matches!(&refused, Limits::Ulimit(why) if why.contains("/memory/x") && why.contains("/y")),
            "{refused:?}"
        );
        for limits in [none, refused, Limits::find()] {
            let cage = limits.cage().unwrap();
            let mut command = cage.command(Path::new("sh")).unwrap();
            let output =
                command.args(["-c", "ulimit -d; cat /proc/self/cgroup; echo $0", "argument"]).output().unwrap();
            let told = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success() && told.ends_with("argument\n"), "{told} {:?}", output.stderr);
            match &limits {
                Limits::Ulimit(_) => assert!(told.starts_with("524288\n"), "{told}"),
                Limits::Groups(..) => {
                    assert!(told.contains("/agent-0\n") && cage.working_set().is_some(), "{told}");
                    let group = cage.dir.clone();
                    drop(cage);
                    assert!(!group.exists(), "groups end with the run");
                }
            }
            assert!(limits.about().contains("512 MiB"));
        }
    }
}

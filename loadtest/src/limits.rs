//! The same limits for every agent, and one place that counts an arm's memory as a kubelet would.
//!
//! ```text
//! cgroup v2   OWN/pl-RANDOM/agent-M   memory.max; OWN is this process's group, if it may have children with a memory controller
//! cgroup v1   the same below /sys/fs/cgroup/memory, memory.limit_in_bytes
//! neither     ulimit -d: private writable memory only, and nobody counts the arm's memory
//! ```
//!
//! An agent is a sidecar, a shim, or what all pods share. Processors are limited by pinning: every arm has the same ones; and by
//! workers: every agent has as many. What is not an agent (generator, sink, the supervisor) is in `OWN/pl-load-RANDOM` with v2.
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

/// Processors that each agent has workers for, if the arm has so many: what Pillion takes by itself at most. Left alone, a Go program
/// or a runtime of tokio takes all that there are, in each pod.
pub const AGENT_PROCESSORS: usize = 4;

/// How the group of the load begins, where it may not stay in its parent: see [`Seat`].
const LOAD_GROUP: &str = "pl-load-";

/// Of cgroup v2.
const CONTROLLER: &str = "memory";

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
    processors: usize,
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
            let path = Path::new(path.trim_start_matches('/'));
            // Where a seat has moved this process.
            let is_seat =
                path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(LOAD_GROUP.as_bytes()));
            let path = path.parent().filter(|_| is_seat).unwrap_or(path);
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
        let processors =
            format!("all arms on the same processors, each agent with workers for at most {AGENT_PROCESSORS} of them");
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
        // Of this thread, whose processors are the arm's.
        let processors = std::thread::available_parallelism().map_or(1, usize::from).min(AGENT_PROCESSORS);
        Ok(Cage { limits: self.clone(), processors, dir, agents: AtomicU64::new(0) })
    }
}

/// Whether groups with a memory controller can be made there; leaves none behind.
fn try_groups(version: Version, own: &Path) -> Result<()> {
    if version == Version::V2 {
        let has = fs::read_to_string(own.join("cgroup.controllers")).context("cgroup.controllers")?;
        anyhow::ensure!(names(&has, CONTROLLER), "no memory controller");
        let given = fs::read_to_string(own.join("cgroup.subtree_control")).context("cgroup.subtree_control")?;
        anyhow::ensure!(
            names(&given, CONTROLLER),
            "no memory controller for its children, since other processes are in it"
        );
    }
    let group = own.join(group_name());
    fs::create_dir(&group).context("making a group")?;
    let limit = fs::metadata(group.join(limit_file(version))).context("the limit of a group");
    fs::remove_dir(&group).context("removing a group")?;
    limit.map(|_| ())
}

fn names(list: &str, controller: &str) -> bool {
    list.split_ascii_whitespace().any(|name| name == controller)
}

/// Where a command is while its runs have groups, with cgroup v2: a group with processes in it gives its children no controllers, so
/// the command leaves its own for a child of it before it starts anything. Goes back when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    own: PathBuf,
    group: PathBuf,
    controller: &'static str,
}

impl Seat {
    /// `None` where there is no need, or no permission: [`Limits::find`] tells why.
    pub(crate) fn take() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        Self::below(Path::new("/sys/fs/cgroup"), &own, CONTROLLER)
    }

    fn below(mount: &Path, own: &str, controller: &'static str) -> Option<Self> {
        let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
        let own = mount.join(path.trim_start_matches('/'));
        let is_given = |file: &str| Some(names(&fs::read_to_string(own.join(file)).ok()?, controller));
        if !is_given("cgroup.controllers")? || is_given("cgroup.subtree_control")? {
            return None;
        }
        let group = own.join(format!("{LOAD_GROUP}{:016x}", fastrand::u64(..)));
        fs::create_dir(&group).ok()?;
        // From here on its drop undoes what was done.
        let seat = Self { own, group, controller };
        fs::write(seat.group.join("cgroup.procs"), "0").ok()?;
        fs::write(seat.own.join("cgroup.subtree_control"), format!("+{controller}")).ok()?;
        Some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // A group that gives its children controllers takes no process. What fails leaves an empty group.
        drop(fs::write(self.own.join("cgroup.subtree_control"), format!("-{}", self.controller)));
        drop(fs::write(self.own.join("cgroup.procs"), "0"));
        drop(fs::remove_dir(&self.group));
    }
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
        let workers = self.processors.to_string();
        command.arg(program).env("GOMAXPROCS", &workers).env("TOKIO_WORKER_THREADS", &workers);
        Ok(command)
    }

    /// Processors that an agent is to have workers for. Go and tokio are told by their variables.
    pub fn processors(&self) -> usize {
        self.processors
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
                command.args(["-c", "ulimit -d; cat /proc/self/cgroup; env; echo $0", "argument"]).output().unwrap();
            let told = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success() && told.ends_with("argument\n"), "{told} {:?}", output.stderr);
            assert!((1..=AGENT_PROCESSORS).contains(&cage.processors()));
            for variable in ["GOMAXPROCS", "TOKIO_WORKER_THREADS"] {
                assert!(told.contains(&format!("\n{variable}={}\n", cage.processors())), "{told}");
            }
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

    /// Scenario: a group with a memory controller that its children do not have; one whose children do; one without.
    /// Guarantees: only from the first one the command moves, before it gives the controller, and goes back after taking it away.
    #[test]
    fn a_command_leaves_a_group_that_is_to_have_children() {
        let dir = tempfile::tempdir().unwrap();
        for (name, controllers, given) in [("a", "cpu memory", ""), ("b", "memory", "cpu memory"), ("c", "cpu", "")] {
            let own = dir.path().join(name);
            fs::create_dir(&own).unwrap();
            fs::write(own.join("cgroup.controllers"), controllers).unwrap();
            fs::write(own.join("cgroup.subtree_control"), given).unwrap();
        }
        let take = |name: &str| Seat::below(dir.path(), &format!("1:cpu:/x\n0::/{name}\n"), "memory");
        assert!(take("b").is_none() && take("c").is_none() && take("none").is_none());
        let seat = take("a").unwrap();
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        let (own, group) = (seat.own.clone(), seat.group.clone());
        assert_eq!(read(group.join("cgroup.procs")), "0");
        assert_eq!(read(own.join("cgroup.subtree_control")), "+memory");
        assert!(!own.join("cgroup.procs").exists(), "it has not gone back yet");
        drop(seat);
        assert_eq!(
            (read(own.join("cgroup.subtree_control")), read(own.join("cgroup.procs"))),
            ("-memory".into(), "0".into())
        );
    }

    /// Scenario: this process was seated, in a group of a tree with and without a controller for its children.
    /// Guarantees: groups of agents are looked for beside the seat, not in it, and the report says why there are none.
    #[test]
    fn agents_are_beside_the_seat() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        fs::write(own.join("cgroup.controllers"), "memory").unwrap();
        fs::write(own.join("cgroup.subtree_control"), "").unwrap();
        let find = || Limits::below(dir.path(), "0::/own/pl-load-0123\n");
        assert!(find().about().contains("/own: no memory controller for its children"), "{:?}", find());
        fs::write(own.join("cgroup.subtree_control"), "memory").unwrap();
        assert!(find().about().contains("/own: the limit of a group"), "{:?}", find());
    }
}

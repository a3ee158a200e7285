//! What Ctrl-C, SIGTERM and a supervisor's death leave behind: nothing.

use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pillion-loadtest");

/// A run of a minute under way, killed with the test.
struct Run {
    child: Child,
    scratch: tempfile::TempDir,
}

/// One of its processes.
struct Process {
    pid: i32,
    group: String,
    cgroups: String,
}

impl Run {
    fn start() -> Self {
        let scratch = tempfile::tempdir().expect("the temporary directory is writable");
        let mut run = Command::new(PROGRAM);
        run.args(["run", "quick", "--seconds", "60", "--arms", "floor", "--scratch"]).arg(scratch.path());
        let child = run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the command starts");
        Self { child, scratch }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Returns when a process of the run has these words among its arguments.
    fn process(&self, is_it: impl Fn(&[&str]) -> bool) -> Process {
        loop {
            for entry in std::fs::read_dir("/proc").expect("/proc is mounted").map_while(Result::ok) {
                let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
                let line = read("cmdline");
                let words: Vec<&str> = line.split('\0').collect();
                let scratch = self.scratch.path().to_str().expect("a path of letters");
                if words.iter().any(|word| word.starts_with(scratch)) && is_it(&words) {
                    let stat = read("stat");
                    let Some(group) = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(2)) else {
                        continue;
                    };
                    let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse().ok()) else { continue };
                    return Process { pid, group: group.to_owned(), cgroups: read("cgroup") };
                }
            }
            std::thread::yield_now();
        }
    }

    fn agent(&self) -> Process {
        self.process(|words| words.starts_with(&[PROGRAM, "floor"]))
    }

    fn inside(&self) -> Process {
        self.process(|words| words.starts_with(&[PROGRAM, "--inside"]))
    }

    /// Whether all that was made in the scratch directory is gone.
    fn is_clean(&self) -> bool {
        std::fs::read_dir(self.scratch.path()).expect("it is the test's own").next().is_none()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Groups below the run's own, which end with it: the agent's.
fn groups(process: &Process) -> Vec<PathBuf> {
    let paths =
        process.cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).filter(|path| path.contains("/pl-"));
    let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory"];
    paths.flat_map(|path| mounts.map(|mount| Path::new(mount).join(path.trim_start_matches('/')))).collect()
}

/// Scenario: a run is under way, and its command is sent what Ctrl-C sends, or SIGTERM.
/// Guarantees: it ends with the signal's exit status; agents, directories and groups are gone; a terminal's Ctrl-C would not have
/// reached the agents.
#[test]
fn a_signal_ends_a_run_and_leaves_nothing() {
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut run = Run::start();
        let agent = run.agent();
        assert_ne!(agent.group, rustix::process::getpgid(Some(run.pid())).unwrap().to_string(), "the terminal's group");
        let groups: Vec<PathBuf> = groups(&agent).into_iter().filter(|group| group.is_dir()).collect();
        kill_process(run.pid(), signal).unwrap();
        assert_eq!(run.child.wait().unwrap().code(), Some(status));
        assert!(run.is_clean());
        assert!(!Path::new("/proc").join(agent.pid.to_string()).exists());
        assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
    }
}

/// Scenario: the command is killed, so that it can tell the run nothing.
/// Guarantees: the run ends all the same, and removes what it made.
#[test]
fn a_run_does_not_outlive_its_command() {
    let mut run = Run::start();
    run.agent();
    let inside = run.inside();
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    while Path::new("/proc").join(inside.pid.to_string()).exists() {
        std::thread::yield_now();
    }
    assert!(run.is_clean());
}

/// Scenario: a run that hangs is sent Ctrl-C twice.
/// Guarantees: the second one ends it at once, agents and all.
#[test]
fn a_second_signal_ends_a_run_that_hangs() {
    let mut run = Run::start();
    let (agent, inside) = (run.agent(), run.inside());
    kill_process(Pid::from_raw(inside.pid).unwrap(), Signal::STOP).unwrap();
    kill_process(run.pid(), Signal::INT).unwrap();
    let mut lines = BufReader::new(run.child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("once more ends it at once")), "the first one was heard");
    kill_process(run.pid(), Signal::INT).unwrap();
    assert_eq!(run.child.wait().unwrap().code(), Some(130));
    while Path::new("/proc").join(agent.pid.to_string()).exists() {
        std::thread::yield_now();
    }
    // What a run that is ended at once leaves: a group for each agent, in one for all of them.
    for group in groups(&agent).iter().filter(|group| group.is_dir()).map(|group| group.parent().unwrap()) {
        let agents = std::fs::read_dir(group).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
        for group in agents.chain([group.to_owned()]) {
            // The kernel takes a process out of its group some time after it is gone.
            while std::fs::remove_dir(&group).is_err_and(|error| error.kind() == ErrorKind::ResourceBusy) {
                std::thread::yield_now();
            }
        }
    }
}

//! What a run leaves in this process when something fails in the middle of it: nothing.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Result, bail};
use pillion_loadtest::arm::{Arm, End, Running, Site};
use pillion_loadtest::cell::{self, DRAIN_MAX, Options};
use pillion_loadtest::limits::Limits;
use pillion_loadtest::network::Network;
use pillion_loadtest::scenario::Scenario;

/// An agent that never answers and cannot be restarted.
#[derive(Debug)]
struct Stuck;

#[derive(Debug)]
struct Deaf(TcpListener);

impl Arm for Stuck {
    fn name(&self) -> &str {
        "stuck"
    }

    fn about(&self) -> String {
        String::new()
    }

    fn attests(&self) -> Option<&'static str> {
        None
    }

    fn start<'a>(&'a self, _site: &'a Site<'a>) -> Result<Box<dyn Running + 'a>> {
        Ok(Box::new(Deaf(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)))
    }
}

impl Running for Deaf {
    fn grpc(&self, _pod: usize) -> SocketAddr {
        self.0.local_addr().expect("it listens")
    }

    fn http(&self, pod: usize) -> SocketAddr {
        self.grpc(pod)
    }

    fn restart(&mut self, _end: End) -> Result<()> {
        bail!("it does not start again")
    }
}

fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is mounted").map_while(Result::ok);
    tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok()).collect()
}

/// Scenario: the agent's restart fails while requests are under way that would wait an hour for their answers, and others for them.
/// Guarantees: the run ends with that error, and its generator has ended before: nothing reaches the next arm.
#[test]
fn a_failed_event_ends_the_generator() {
    let text = "about = \"x\"\npods = 1\nseconds = 3600.0\nwarmup = 0.0\nrequests_per_second = 200.0\nitems = {traces = 1}\n\
                timeout = 3600.0\noutstanding = 2\nevents = [{at = 0.2, do = \"agent-killed\"}]\n";
    let scenario = Scenario::parse(text).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits::find();
    let options =
        Options { network: &Network::Here, limits: &limits, dir: dir.path(), seed: 1, round: 0, drain: DRAIN_MAX };
    let error = cell::run(&Stuck, &scenario, options, &mut |_, _| {}).unwrap_err();
    assert_eq!(error.to_string(), "it does not start again");
    let threads = threads();
    assert!(threads.iter().all(|name| name.trim_end() != "generator"), "{threads:?}");
}

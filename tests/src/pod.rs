//! A pod from outside: a process in a network namespace of its own, with a shim and sixteen clients.
//!
//! The inside is `pillion-pod` (`inside.rs`). It is driven over its standard streams, so that nothing is waited for by
//! the clock:
//!
//! ```text
//! to it      kill-shim | stop
//! from it    shim N | acked N (every PROGRESS requests) | {"acked": […], …} after stop
//! ```

pub mod inside;
mod netlink;

use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::Value;

use crate::lines::Lines;

/// A line is said every so many acknowledged requests.
pub const PROGRESS: u64 = 50;

/// What to run.
#[derive(Debug, Clone)]
pub struct Spec<'a> {
    /// The `pillion-pod` program.
    pub program: &'a str,
    /// The `pillion` program, for `pillion shim`.
    pub node: &'a str,
    /// The pod's socket directory.
    pub socket_dir: &'a Path,
    /// `donate`, `relay` or `auto`.
    pub mode: &'a str,
    /// `service.name` of what it sends, and the high 16 bits of its ids.
    pub service: &'a str,
    /// High 16 bits of the ids.
    pub number: u16,
    /// Clients that open a connection for each request.
    pub clients: usize,
    /// RLIMIT_NOFILE of each of its processes; `None`: as it is here.
    pub descriptors_max: Option<u32>,
}

/// A running pod. Killed when dropped, shim and all.
#[derive(Debug)]
pub struct Pod {
    child: Child,
    input: ChildStdin,
    output: Lines,
    errors: Lines,
}

/// What the clients saw.
#[derive(Debug, Default)]
pub struct Report {
    /// Ids of the spans in requests answered with 200.
    pub acked: Vec<u64>,
    /// connect() that failed.
    pub connect_failed: u64,
    /// Connections that ended without an answer.
    pub unanswered: u64,
    /// Requests answered with another status, by status.
    pub refused: std::collections::BTreeMap<String, u64>,
    /// The first error of each kind.
    pub examples: Vec<String>,
}

impl Pod {
    /// Starts it in new user, network and PID namespaces, through `unshare` of util-linux, which every distribution has.
    pub fn start(spec: &Spec<'_>) -> Self {
        let mut child = limited(spec.descriptors_max)
            .args(["--map-root-user", "--net", "--pid", "--kill-child", "--fork", spec.program, spec.node])
            .arg(spec.socket_dir)
            .args([spec.mode, spec.service, &spec.number.to_string(), &spec.clients.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("`unshare` is part of util-linux");
        let input = child.stdin.take().expect("piped");
        let output = Lines::of(child.stdout.take().expect("piped"));
        let errors = Lines::of(child.stderr.take().expect("piped"));
        Self { child, input, output, errors }
    }

    /// Waits until so many more steps of [`PROGRESS`] requests were acknowledged, from now on.
    pub fn wait_for_progress(&self, steps: usize) {
        self.output.skip();
        for _ in 0..steps {
            self.output.wait_for("acked");
        }
    }

    /// kill -9 of the shim; it is started again at once, as the kubelet does. Returns when the new one runs.
    pub fn kill_shim(&mut self) {
        writeln!(self.input, "kill-shim").expect("the pod reads");
        self.output.wait_for("shim");
    }

    /// Stops the clients, then the shim, and reports.
    pub fn stop(mut self) -> Report {
        writeln!(self.input, "stop").expect("the pod reads");
        let line = self.output.wait_for("{");
        self.child.wait().expect("a child can be waited for");
        let value: Value = serde_json::from_str(&line).expect("the report is JSON");
        let number = |key: &str| value[key].as_u64().expect("a count");
        let list = |key: &str| value[key].as_array().expect("a list").clone();
        Report {
            acked: list("acked").iter().filter_map(Value::as_u64).collect(),
            connect_failed: number("connect_failed"),
            unanswered: number("unanswered"),
            refused: value["refused"]
                .as_object()
                .expect("a map")
                .iter()
                .map(|(status, count)| (status.clone(), count.as_u64().expect("a count")))
                .collect(),
            examples: list("examples").iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        }
    }

    /// Waits until the shim or a client has said so.
    pub fn wait_for_error(&self, text: &str) {
        self.errors.wait_for(text);
    }

    /// What the shim and the clients said.
    pub fn errors(&self) -> String {
        self.errors.all()
    }
}

/// `unshare`, with the limit of its descriptors where there is one.
fn limited(descriptors_max: Option<u32>) -> Command {
    let Some(limit) = descriptors_max else { return Command::new("unshare") };
    let mut command = Command::new("prlimit");
    command.args([&format!("--nofile={limit}:{limit}"), "unshare"]);
    command
}

impl Drop for Pod {
    fn drop(&mut self) {
        // --kill-child takes the first process along, and the kernel everything else in its PID namespace.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("the pod said:\n{}", self.errors());
        }
    }
}

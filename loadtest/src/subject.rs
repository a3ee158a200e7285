//! One gateway with one tenant on this machine, for benches: started, asked, ended.
//!
//! ```text
//! sender (the bench) -- OTLP/gRPC --> 127.0.0.1:PORT, donated or relayed by a shim --> worker --> backend (the bench)
//! ```
//!
//! The bench is the worker's supervisor: a supervisor of its own would only be one more process to look past. Everything is
//! killed when dropped.

mod handover;

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::arm::Ack;

/// How the pod's connections come to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It alone has the listener, as if it had bound it: there is no shim.
    Direct,
    /// The shim hands over its listener.
    Donated,
    /// The shim copies.
    Relayed,
}

/// What is started.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The command that is `pillion`: a program, with its first arguments if it needs any.
    pub program: Vec<OsString>,
    /// When it acknowledges.
    pub ack: Ack,
    /// Where it delivers to.
    pub backend: SocketAddr,
    /// Its data and sockets: on a disk, for what is durable. Short, since a socket's path is.
    pub dir: &'a Path,
    /// How requests come in.
    pub way: Way,
    /// Tenants beside the one that has ports: `shop/pod-0` and so on, with the sockets `DIR/pod-0/otlp`.
    pub other_pods: usize,
    /// Another program with its arguments, which runs the worker: a profiler. It must let the worker be the bench's own child.
    pub under: Vec<OsString>,
}

/// See the module.
#[derive(Debug)]
pub struct Subject {
    worker: Child,
    shim: Option<Child>,
    /// With whom the gateway keeps a listener that has no shim. Held, never read.
    session: Option<OwnedFd>,
    intake: SocketAddr,
    admin: SocketAddr,
}

impl Subject {
    /// Returns when requests are answered. To be called on the thread that stays longest: the worker dies with it.
    pub fn start(setup: &Setup<'_>) -> Result<Self> {
        let [grpc, http, admin] = free_addresses()?;
        let config = setup.dir.join("pillion.yaml");
        fs::write(&config, setup.config([grpc, http, admin]))?;
        let mut worker = setup.worker(&config).spawn().context("starting the gateway")?;
        wait_until_it_serves(&mut worker)?;
        let mut subject = Self { worker, shim: None, session: None, intake: grpc, admin };
        if setup.way == Way::Direct {
            subject.session = Some(handover::hand_over(&setup.dir.join("cart/ctl"), grpc)?);
            return Ok(subject);
        }
        subject.shim = Some(setup.shim("run", [grpc, http]).spawn().context("starting the shim")?);
        ensure!(setup.shim("wait", [grpc, http]).status()?.success(), "the shim did not bind its ports");
        Ok(subject)
    }

    /// Where to send to.
    pub fn intake(&self) -> SocketAddr {
        self.intake
    }

    /// The worker's.
    pub fn pid(&self) -> u32 {
        self.worker.id()
    }

    /// The shim's, if there is one.
    pub fn shim_pid(&self) -> Option<u32> {
        self.shim.as_ref().map(Child::id)
    }

    /// What it says of its tenants, for a failure.
    pub fn explain(&self) -> String {
        let admin = self.admin;
        let mut answer = String::new();
        let asked = TcpStream::connect(admin).and_then(|mut stream| {
            write!(stream, "GET /tenants?format=json HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n")?;
            stream.read_to_string(&mut answer)
        });
        asked.map_or_else(|error| error.to_string(), |_| answer)
    }

    /// Asks the worker to end and waits for it, so that a profiler writes down what it saw.
    pub fn stop(mut self) -> Result<()> {
        // First, or it would say that its gateway is gone.
        if let Some(shim) = &mut self.shim {
            drop(shim.kill());
            drop(shim.wait());
        }
        let pid = i32::try_from(self.worker.id()).ok().and_then(Pid::from_raw).context("a process has a number")?;
        kill_process(pid, Signal::TERM)?;
        let status = self.worker.wait()?;
        ensure!(status.success(), "the worker ended with {status}");
        Ok(())
    }
}

impl Setup<'_> {
    fn config(&self, [grpc, http, admin]: [SocketAddr; 3]) -> String {
        let ack = match self.ack {
            Ack::Memory => "memory",
            Ack::Durable => "durable",
        };
        let other = |pod| format!("  shop/pod-{pod}: {{socket_dir: {}/pod-{pod}}}\n", self.dir.display());
        let others: String = (0..self.other_pods).map(other).collect();
        format!(
            "node: {{data_dir: {dir}/data, admin: \"{admin}\", workers: 1, memory_limit: 1GiB}}
defaults:
  ack: {ack}
  destinations: [backend]
  limits:
    bytes_per_second: 100GiB
    requests_per_second: 10000000
    memory: {{guarantee: 256MiB, ceiling: 512MiB}}
    disk: {{guarantee: 1GiB, ceiling: 8GiB}}
destinations:
  backend: {{protocol: grpc, endpoint: \"http://{backend}\", allow: [\"*\"]}}
tenants:
  shop/cart: {{socket_dir: {dir}/cart, ports: {{grpc: {}, http: {}}}}}
{others}",
            grpc.port(),
            http.port(),
            dir = self.dir.display(),
            backend = self.backend,
        )
    }

    fn worker(&self, config: &Path) -> Command {
        let mut command = command(self.under.iter().chain(&self.program));
        command.args(["worker", "--supervisor", &std::process::id().to_string(), "--restarts", "0"]);
        command.args(["--", "run", "--config"]).arg(config);
        command.env("PILLION_LOG", "info").stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn shim(&self, verb: &str, [grpc, http]: [SocketAddr; 2]) -> Command {
        let mut command = command(&self.program);
        command.args(["shim", verb, "--dir"]).arg(self.dir.join("cart"));
        command.args(["--grpc", &grpc.port().to_string(), "--http", &http.port().to_string()]);
        if self.way == Way::Relayed {
            command.args(["--mode", "relay"]);
        }
        command.stdin(Stdio::null());
        command
    }
}

fn command<'a>(words: impl IntoIterator<Item = &'a OsString>) -> Command {
    let mut words = words.into_iter();
    let mut command = Command::new(words.next().expect("a command has a program"));
    command.args(words);
    command
}

/// What it logs from then on goes to this process's stderr.
fn wait_until_it_serves(worker: &mut Child) -> Result<()> {
    let mut log = BufReader::new(worker.stderr.take().context("piped")?);
    let (mut all, mut line) = (String::new(), String::new());
    while !line.contains("pillion is serving") {
        line.clear();
        if log.read_line(&mut line)? == 0 {
            return Err(end(worker, anyhow::anyhow!("the gateway ended before it served: {all}")));
        }
        all.push_str(&line);
    }
    // Keeps the pipe empty; ends with the process.
    std::thread::spawn(move || io::copy(&mut log, &mut io::stderr()));
    Ok(())
}

fn end(worker: &mut Child, error: anyhow::Error) -> anyhow::Error {
    drop(worker.kill());
    drop(worker.wait());
    error
}

/// Bound at once, so that they differ, and given up for whoever is told.
fn free_addresses() -> Result<[SocketAddr; 3]> {
    let bound = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let [Ok(first), Ok(second), Ok(third)] = bound else { bail!("there is no free port") };
    Ok([first.local_addr()?, second.local_addr()?, third.local_addr()?])
}

impl Drop for Subject {
    fn drop(&mut self) {
        // What has been waited for is left alone by both calls.
        for child in [Some(&mut self.worker), self.shim.as_mut()].into_iter().flatten() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

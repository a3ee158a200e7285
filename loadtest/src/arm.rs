//! The ways in which telemetry may leave a pod, each started for real: what is compared.

mod direct;
mod floor;
mod otelcol;
mod pillion;
mod programs;
mod rotel;
mod sidecars;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

pub use self::direct::Direct;
pub use self::floor::{Floor, FloorMode};
pub use self::otelcol::{Build, Kind, Otelcol};
pub(crate) use self::otelcol::{IDENTITY, go_memory_limit, sidecar_config};
pub use self::pillion::{Ack, Pillion, Quota};
pub use self::programs::Programs;
pub use self::rotel::Rotel;
use crate::interrupt;
use crate::limits::Cage;
use crate::network::{Network, Place};
use crate::roster::{Number, Roster};

/// An agent that is not ready by then is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// So often, who waits for an agent looks whether the run is to end.
const LOOK: Duration = Duration::from_millis(100);

/// What an arm is started with.
#[derive(Debug)]
pub struct Site<'a> {
    /// Where.
    pub network: &'a Network,
    /// Pods, numbered from 0.
    pub pods: usize,
    /// The sink's port.
    pub sink_port: u16,
    /// For configuration, data and logs; empty.
    pub dir: &'a Path,
    /// The filesystem of `dir`/data is so small that what is to stay free of it by default is not there.
    pub is_disk_small: bool,
    /// KiB a second that a pod may send, where an agent knows quotas; `None`: its default.
    pub quota_kib_per_second: Option<u64>,
    /// Where agents are started in.
    pub cage: &'a Cage,
    /// Where agents are counted.
    pub roster: &'a Arc<Roster>,
}

/// One way.
pub trait Arm {
    /// As in tables and on the command line.
    fn name(&self) -> &str;

    /// What it is, with its version and whatever a reader has to know about it.
    fn about(&self) -> String;

    /// The resource attribute by which it promises to say whose items are, if it does.
    fn attests(&self) -> Option<&'static str>;

    /// Whether it acknowledges only what is on the disk: arms are compared with their like.
    fn is_durable(&self) -> bool {
        false
    }

    /// Starts it for all pods; returns when each of them can send.
    fn start<'a>(&'a self, site: &'a Site<'a>) -> Result<Box<dyn Running + 'a>>;
}

/// An arm that runs. Ends when dropped.
pub trait Running {
    /// Where a pod sends to: OTLP/gRPC.
    fn grpc(&self, pod: usize) -> SocketAddr;

    /// Where a pod sends to: OTLP/HTTP.
    fn http(&self, pod: usize) -> SocketAddr;

    /// Ends all that is the agent's (not what the pod keeps), and starts it again. Returns when it is ready.
    fn restart(&mut self, _end: End) -> Result<()> {
        Ok(())
    }

    /// The same of what is in one pod, gracefully, as when the pod is replaced by another.
    fn replace(&mut self, _pod: usize) -> Result<()> {
        Ok(())
    }
}

/// How an agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// kill -9.
    Killed,
    /// SIGTERM, and the time that it takes.
    Graceful,
}

/// A child that is killed when dropped.
#[derive(Debug)]
struct Agent {
    role: &'static str,
    child: Child,
    /// Where it is counted.
    entry: Option<(Arc<Roster>, Number)>,
}

impl Agent {
    /// Starts one that is counted.
    fn start(site: &Site<'_>, role: &'static str, place: Place, command: &mut Command) -> Result<Self> {
        let child = site.network.spawn(place, command)?;
        let number = site.roster.enter(role, child.id());
        Ok(Self { role, child, entry: Some((site.roster.clone(), number)) })
    }

    /// Starts what only prepares the arm.
    fn start_uncounted(site: &Site<'_>, role: &'static str, place: Place, command: &mut Command) -> Result<Self> {
        Ok(Self { role, child: site.network.spawn(place, command)?, entry: None })
    }

    /// Before it is waited for: what it has spent is gone with it.
    fn leave(&mut self) -> std::io::Result<()> {
        self.entry.take().map_or(Ok(()), |(roster, number)| roster.leave(number))
    }

    /// Asks it to end.
    fn ask(&self, end: End) -> Result<()> {
        let signal = match end {
            End::Killed => Signal::KILL,
            End::Graceful => Signal::TERM,
        };
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Waits until it has ended; one that does not is killed when dropped.
    fn ended(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        let end = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).context("waiting for a process")?;
        let look = Timespec::try_from(LOOK)?;
        loop {
            match poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&look)) {
                Ok(0) | Err(Errno::INTR) => interrupt::check()?,
                Ok(_) => break,
                Err(error) => return Err(error.into()),
            }
            ensure!(Instant::now() < deadline, "{} did not end within {PATIENCE:?}", self.role);
        }
        self.leave()?;
        Ok(self.child.wait()?)
    }

    /// Reads what it says until a line has `ready` in it. What it says later is read and forgotten, so that it never blocks.
    fn wait_for(&mut self, ready: &'static str) -> Result<()> {
        let stream: Box<dyn Read + Send> = match (self.child.stderr.take(), self.child.stdout.take()) {
            (Some(stderr), _) => Box::new(stderr),
            (None, Some(stdout)) => Box::new(stdout),
            (None, None) => bail!("nothing of {} is read", self.role),
        };
        let (say, said) = sync_channel(1);
        std::thread::Builder::new().name("log".into()).stack_size(64 << 10).spawn(move || {
            let mut lines = BufReader::new(stream);
            let (mut last, mut line) = (Vec::new(), String::new());
            while lines.read_line(&mut line).is_ok_and(|length| length > 0) {
                if line.contains(ready) {
                    drop(say.send(Ok(())));
                    drop(std::io::copy(&mut lines, &mut std::io::sink()));
                    return;
                }
                last.push(std::mem::take(&mut line));
                if last.len() > 20 {
                    last.remove(0);
                }
            }
            drop(say.send(Err(last.concat())));
        })?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match said.recv_timeout(LOOK) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(log)) => bail!("{} ended before it was ready:\n{log}", self.role),
                Err(RecvTimeoutError::Timeout) => interrupt::check()?,
                Err(RecvTimeoutError::Disconnected) => bail!("{} was not heard of", self.role),
            }
            ensure!(Instant::now() < deadline, "{} was not ready within {PATIENCE:?}", self.role);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Its number may be another's soon.
        drop(self.leave());
        // Already gone is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Asks again until a connection to every pod's agent is accepted.
fn wait_for_ports(network: &Network, addresses: Vec<SocketAddr>) -> Result<()> {
    use tokio::net::TcpSocket;

    use crate::generator::Target;
    std::thread::scope(|scope| {
        // A thread of its own, since asking moves it between the pods' networks.
        let asking = scope.spawn(move || -> Result<()> {
            let pods = addresses.len();
            let target = network.target(addresses)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let deadline = Instant::now() + PATIENCE;
            runtime.block_on(async {
                for pod in 0..pods {
                    let mut interval = tokio::time::interval(Duration::from_millis(5));
                    loop {
                        interval.tick().await;
                        interrupt::check()?;
                        let (socket, address) = target.socket(pod)?;
                        match TcpSocket::from_std_stream(socket.into()).connect(address).await {
                            Ok(_) => break,
                            Err(error) if Instant::now() > deadline => {
                                return Err(error).with_context(|| format!("nobody listens on {address} in pod {pod}"));
                            }
                            Err(_not_yet) => {}
                        }
                    }
                }
                Ok(())
            })
        });
        asking.join().expect("asking does not panic")
    })
}

/// The file that an agent's standard error goes to.
fn log(dir: &Path, name: &str) -> Result<Stdio> {
    Ok(std::fs::File::create(dir.join(format!("{name}.log")))?.into())
}

/// The version that a program tells when asked.
fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|error| error.to_string())
}

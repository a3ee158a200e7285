//! The node's network: a namespace for each pod, as on a real node, without root.
//!
//! ```text
//! home     where this process is: the sink on every address, one end of each pair
//! agent    a pod of its own for an agent that all share
//! pod N    loopback, where applications send; eth0, the other end of its pair, to reach the sink and the agent
//! pair K   10.88.0.0/16, four addresses each: home is the first of them, the pod the second
//! ```
//!
//! The process must already be in a user namespace of its own (`unshare --map-root-user --net`, which the command line does).
//! `unshare` of util-linux makes the namespaces and `ip` of iproute2 the pairs. A namespace ends with the last process and
//! descriptor that is in it, some time after them; pairs are removed when dropped, so that the next network has their names.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::generator::{Target, tcp_socket};

/// Pairs that 10.88.0.0/16 has room for.
const PAIRS_MAX: usize = 1 << 14;

/// Where applications send to.
pub const OTLP_GRPC: u16 = 4317;
/// The same over HTTP.
pub const OTLP_HTTP: u16 = 4318;

/// Where processes and sockets of pods are made.
#[derive(Debug)]
pub enum Network {
    /// All pods are in this process's network: for tests of what needs no ports of its own.
    Here,
    /// A namespace each.
    Pods(Namespaces),
}

/// The namespaces of a node.
#[derive(Debug)]
pub struct Namespaces {
    home: File,
    /// The agent's first, then the pods'.
    inner: Vec<File>,
    _pairs: Pairs,
}

/// Home's ends of so many pairs, with the others'.
#[derive(Debug)]
struct Pairs(usize);

impl Drop for Pairs {
    fn drop(&mut self) {
        let pairs: String = (0..self.0).map(|number| format!("link del v{number}\n")).collect();
        // `-force`: those that were not made are no reason to leave others. What is left ends with the run.
        let mut ip = Command::new("ip");
        drop(feed(ip.args(["-force", "-batch", "-"]).stdout(Stdio::null()).stderr(Stdio::null()), &pairs));
    }
}

/// Where something runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The agent that all share.
    Agent,
    /// A pod.
    Pod(usize),
}

impl Network {
    /// Makes the namespaces of so many pods.
    pub fn of_pods(pods: usize) -> Result<Self> {
        ensure!(pods < PAIRS_MAX, "at most {} pods", PAIRS_MAX - 1);
        let home = File::open("/proc/thread-self/ns/net").context("the namespace of this process")?;
        run_ip("link set lo up\n")?;
        // So that pods reach the agent in its own namespace.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forwarding between pods")?;
        let holders = (0..=pods).map(|_| Holder::start()).collect::<Result<Vec<_>>>()?;
        let mut commands = String::new();
        for (number, holder) in holders.iter().enumerate() {
            let pid = holder.child.id();
            let address = home_address(number);
            commands.push_str(&format!(
                "link add v{number} type veth peer name eth0 netns {pid}\naddr add {address}/30 dev v{number}\nlink set v{number} up\n"
            ));
        }
        let pairs = Pairs(holders.len());
        run_ip(&commands)?;
        let inner = holders.into_iter().map(Holder::namespace).collect::<Result<Vec<_>>>()?;
        let namespaces = Namespaces { home, inner, _pairs: pairs };
        for number in 0..namespaces.inner.len() {
            let (own, home) = (inner_address(number), home_address(number));
            namespaces.within(number, || {
                run_ip(&format!(
                    "link set lo up\naddr add {own}/30 dev eth0\nlink set eth0 up\nroute add default via {home}\n"
                ))
            })??;
        }
        Ok(Self::Pods(namespaces))
    }

    /// The sink's address for an agent in that place.
    pub fn sink(&self, place: Place, port: u16) -> SocketAddr {
        match self {
            Self::Here => (Ipv4Addr::LOCALHOST, port).into(),
            Self::Pods(_) => (home_address(place.number()), port).into(),
        }
    }

    /// The shared agent's address, for pods.
    pub fn agent(&self) -> IpAddr {
        match self {
            Self::Here => Ipv4Addr::LOCALHOST.into(),
            Self::Pods(_) => inner_address(Place::Agent.number()).into(),
        }
    }

    /// Starts a process in that place. It ends with the calling thread's process at the latest.
    pub fn spawn(&self, place: Place, command: &mut Command) -> Result<Child> {
        let child = match self {
            Self::Here => command.spawn(),
            Self::Pods(namespaces) => namespaces.within(place.number(), || command.spawn())?,
        };
        child.with_context(|| format!("starting {}", command.get_program().display()))
    }

    /// What the generator needs to make the pods' connections.
    pub fn target(&self, addresses: Vec<SocketAddr>) -> Result<PodSockets> {
        let namespaces = match self {
            Self::Here => None,
            Self::Pods(namespaces) => {
                Some(namespaces.inner[1..].iter().map(File::try_clone).collect::<io::Result<Vec<_>>>()?)
            }
        };
        Ok(PodSockets { namespaces, addresses })
    }
}

impl Place {
    fn number(self) -> usize {
        match self {
            Self::Agent => 0,
            Self::Pod(pod) => pod + 1,
        }
    }
}

impl Namespaces {
    /// Does something with this thread in that namespace: sockets and processes made meanwhile belong to it.
    fn within<T>(&self, number: usize, does: impl FnOnce() -> T) -> Result<T> {
        enter(&self.inner[number])?;
        let done = does();
        enter(&self.home).context("back to where it was")?;
        Ok(done)
    }
}

/// Makes sockets in the pods' namespaces; moves the thread that asks.
#[derive(Debug)]
pub struct PodSockets {
    namespaces: Option<Vec<File>>,
    addresses: Vec<SocketAddr>,
}

impl Target for PodSockets {
    fn socket(&self, pod: usize) -> io::Result<(OwnedFd, SocketAddr)> {
        if let Some(namespaces) = &self.namespaces {
            enter(&namespaces[pod])?;
        }
        Ok((tcp_socket()?, self.addresses[pod]))
    }
}

fn enter(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// A process that keeps a new namespace until somebody else does.
struct Holder {
    child: Child,
}

impl Holder {
    fn start() -> Result<Self> {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo here; read -r end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("`unshare` of util-linux makes the pods' networks")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        ensure!(line == "here\n", "`unshare --net` did not make a network namespace: see what it said above");
        Ok(Self { child })
    }

    fn namespace(mut self) -> Result<File> {
        let file = File::open(Path::new("/proc").join(self.child.id().to_string()).join("ns/net"))?;
        drop(self.child.stdin.take());
        self.child.wait()?;
        Ok(file)
    }
}

fn run_ip(commands: &str) -> Result<()> {
    let status = feed(Command::new("ip").args(["-batch", "-"]), commands)?;
    if !status.success() {
        bail!("`ip -batch -` ended with {status}");
    }
    Ok(())
}

fn feed(ip: &mut Command, commands: &str) -> Result<ExitStatus> {
    let mut child = ip.stdin(Stdio::piped()).spawn().context("`ip` of iproute2 connects the pods' networks")?;
    // One that has ended says why by its status.
    drop(child.stdin.take().context("piped")?.write_all(commands.as_bytes()));
    Ok(child.wait()?)
}

fn home_address(number: usize) -> Ipv4Addr {
    address(number, 1)
}

fn inner_address(number: usize) -> Ipv4Addr {
    address(number, 2)
}

fn address(number: usize, host: u32) -> Ipv4Addr {
    let number = u32::try_from(number).expect("below PAIRS_MAX");
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 88, 0, 0).to_bits() + number * 4 + host)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Set where a test runs again in a network namespace of its own.
    const INSIDE: &str = "PILLION_LOADTEST_INSIDE";

    /// Scenario: a network is dropped while something still holds the namespaces of its pods, and a smaller one is made.
    /// Guarantees: the names and addresses of the first one are free at once.
    #[test]
    fn a_network_leaves_its_names_to_the_next_one() {
        if std::env::var_os(INSIDE).is_none() {
            let mut again = Command::new("unshare");
            again.args(["--map-root-user", "--net"]).arg(std::env::current_exe().unwrap());
            again.args(["network::tests::a_network_leaves_its_names_to_the_next_one", "--exact", "--nocapture"]);
            assert!(again.env(INSIDE, "1").status().unwrap().success());
            return;
        }
        let first = Network::of_pods(3).unwrap();
        let _held = first.target(vec![(Ipv4Addr::LOCALHOST, OTLP_GRPC).into(); 3]).unwrap();
        drop(first);
        let second = Network::of_pods(2).unwrap();
        let output = second.spawn(Place::Pod(1), Command::new("ip").args(["-br", "addr"]).stdout(Stdio::piped()));
        let told = String::from_utf8(output.unwrap().wait_with_output().unwrap().stdout).unwrap();
        assert!(told.contains("10.88.0.10/30"), "{told}");
    }
}

//! Are the ports free, and if not, whose are they, and which command works instead.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use super::processes::{self, Process};
use crate::app::cli::{Protocol, StandaloneArgs};
use crate::app::supervisor::timespec;

/// `TCP_LISTEN` in the tables of /proc/net.
const LISTEN: &str = "0A";
/// Free ports are looked for this far.
const TRIES: u16 = 200;

/// A port that is needed, on all of these addresses.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) flag: &'static str,
    pub(super) what: &'static str,
    pub(super) addresses: Vec<SocketAddr>,
}

/// A port that is not to be had.
#[derive(Debug)]
pub(super) struct Conflict {
    flag: &'static str,
    what: &'static str,
    address: SocketAddr,
    reason: Reason,
}

#[derive(Debug, PartialEq, Eq)]
enum Reason {
    Held(Process),
    /// By a process that this user may not look into.
    HeldByUser(u32),
    Unknown,
    /// Below 1024, mostly.
    Forbidden,
}

/// How long a process that was killed may take to let go of its ports.
const DYING_GRACE: Duration = Duration::from_secs(2);

/// Finds every port that cannot be had. One that no living process is seen to hold is asked for again for a moment: whoever was
/// killed just now closes its sockets one after the other.
pub(super) fn check(wanted: &[Wanted]) -> Result<(), Vec<Conflict>> {
    let deadline = Instant::now() + DYING_GRACE;
    loop {
        let conflicts = conflicts(wanted);
        if conflicts.is_empty() {
            return Ok(());
        }
        let is_dying = |conflict: &Conflict| matches!(conflict.reason, Reason::Unknown | Reason::HeldByUser(_));
        if !conflicts.iter().all(is_dying) || Instant::now() >= deadline {
            return Err(conflicts);
        }
        // A port has no descriptor that tells when it is free, so this is a wait for nothing but the time.
        let _ = rustix::event::poll(&mut [], Some(&timespec(Duration::from_millis(10))));
    }
}

fn conflicts(wanted: &[Wanted]) -> Vec<Conflict> {
    wanted
        .iter()
        .filter_map(|wanted| {
            let (address, error) = wanted.addresses.iter().find_map(|address| Some((*address, refusal(*address)?)))?;
            let reason = match error {
                ErrorKind::PermissionDenied => Reason::Forbidden,
                _ => holder(address.port()),
            };
            Some(Conflict { flag: wanted.flag, what: wanted.what, address, reason })
        })
        .collect()
}

/// Why the address cannot be bound; nothing for a machine that lacks it (IPv6 may be off).
fn refusal(address: SocketAddr) -> Option<ErrorKind> {
    match TcpListener::bind(address).map_err(|error| error.kind()) {
        Ok(_) => None,
        Err(kind @ (ErrorKind::AddrInUse | ErrorKind::PermissionDenied)) => Some(kind),
        Err(_) => None,
    }
}

fn holder(port: u16) -> Reason {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let listeners: Vec<Listener> = tables.iter().flat_map(|table| listeners(table, port)).collect();
    let links: Vec<String> = listeners.iter().map(|listener| format!("socket:[{}]", listener.inode)).collect();
    let is_it = |path: &std::path::Path| {
        fs::read_link(path).is_ok_and(|link| link.to_str().is_some_and(|link| links.iter().any(|known| known == link)))
    };
    match (processes::with_descriptor(is_it), listeners.first()) {
        (Some(process), _) => Reason::Held(process),
        (None, Some(listener)) => Reason::HeldByUser(listener.uid),
        (None, None) => Reason::Unknown,
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Listener {
    uid: u32,
    inode: u64,
}

/// The listening sockets of a port in a table of /proc/net.
fn listeners(table: &str, port: u16) -> Vec<Listener> {
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
        let matches = *fields.get(3)? == LISTEN && u16::from_str_radix(local_port, 16).ok()? == port;
        let listener = Listener { uid: fields.get(7)?.parse().ok()?, inode: fields.get(9)?.parse().ok()? };
        matches.then_some(listener)
    };
    table.lines().skip(1).filter_map(parse).collect()
}

/// Who has what, and a command that works.
pub(super) fn explain(conflicts: &[Conflict], args: &StandaloneArgs) -> String {
    let mut out = String::new();
    for (index, Conflict { what, address, reason, .. }) in conflicts.iter().enumerate() {
        let begin = if index == 0 { "" } else { "       " };
        // Writing to a String cannot fail.
        let _ = match reason {
            Reason::Held(Process { pid, command }) => {
                writeln!(out, "{begin}{address}, needed for {what}, is taken by pid {pid}: {command}")
            }
            Reason::HeldByUser(uid) => writeln!(
                out,
                "{begin}{address}, needed for {what}, is taken by a process of uid {uid}; \
                 `sudo ss -ltnp sport = :{}` names it",
                address.port()
            ),
            Reason::Unknown => writeln!(out, "{begin}{address}, needed for {what}, is taken"),
            Reason::Forbidden => {
                writeln!(out, "{begin}{address}, needed for {what}, needs privileges that this user has not")
            }
        };
    }
    let _ = write!(out, "       this works: {}", command(args, &replacements(conflicts)));
    out
}

/// A free port for each conflict, near enough to be recognised.
fn replacements(conflicts: &[Conflict]) -> Vec<(&'static str, u16)> {
    let mut taken = BTreeSet::new();
    let mut out = Vec::new();
    for conflict in conflicts {
        let port = conflict.address.port();
        let first = port.checked_add(10_000).unwrap_or(20_000);
        let free = (first..first.saturating_add(TRIES))
            .find(|port| !taken.contains(port) && refusal(SocketAddr::new(conflict.address.ip(), *port)).is_none());
        if let Some(free) = free {
            taken.insert(free);
            out.push((conflict.flag, free));
        }
    }
    out
}

/// The command again, with some ports replaced.
fn command(args: &StandaloneArgs, replaced: &[(&'static str, u16)]) -> String {
    let mut out = format!("{} standalone", super::program());
    let mut add = |flag: &str, value: Option<String>| {
        if let Some(value) = value {
            // Writing to a String cannot fail.
            let _ = write!(out, " {flag} {}", quoted(&value));
        }
    };
    let replacement =
        |flag: &str| replaced.iter().find(|(name, _)| *name == flag).map(|(_, port)| format!("127.0.0.1:{port}"));
    add("--config", args.config.as_ref().map(|path| path.display().to_string()));
    add("--data-dir", args.data_dir.as_ref().map(|path| path.display().to_string()));
    add("--destination", args.destination.clone());
    let protocol = args.protocol.map(|protocol| match protocol {
        Protocol::Grpc => "grpc".to_owned(),
        Protocol::HttpProtobuf => "http/protobuf".to_owned(),
    });
    add("--protocol", protocol);
    add("--grpc", replacement("--grpc").or(args.grpc.map(|port| port.to_string())));
    add("--http", replacement("--http").or(args.http.map(|port| port.to_string())));
    add("--admin", replacement("--admin").or(args.admin.map(|admin| admin.to_string())));
    out
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:10DD 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 31337 1 0000000000000000 100 0 0 10 0
   1: 0100007F:10DD 0100007F:D2F0 01 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0000000000000000 20 4 30 10 -1
   2: 00000000:10DE 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99 1 0000000000000000 100 0 0 10 0
   3: garbage
";

    /// Scenario: a table with a listener, a connection on the same port, another listener, and a damaged line.
    /// Guarantees: only the listener of that port is found.
    #[test]
    fn the_kernels_table_gives_the_listener_of_a_port() {
        assert_eq!(listeners(TABLE, 4317), [Listener { uid: 1000, inode: 31337 }]);
        assert_eq!(listeners(TABLE, 4318), [Listener { uid: 0, inode: 99 }]);
        assert_eq!(listeners(TABLE, 4380), []);
        assert_eq!(listeners("", 4317), []);
    }

    /// Scenario: conflicts of every kind for a command with options.
    /// Guarantees: each line names what is known; the command keeps the options and replaces only the ports in conflict.
    #[test]
    fn the_message_names_the_holder_and_a_command_that_works() {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let conflict =
            |flag, what, port, reason| Conflict { flag, what, address: (Ipv4Addr::LOCALHOST, port).into(), reason };
        let held = Reason::Held(Process { pid: 7, command: "otelcol".to_owned() });
        let conflicts = [
            conflict("--grpc", "OTLP/gRPC", 4317, held),
            conflict("--admin", "the admin page", 80, Reason::Forbidden),
            conflict("--admin", "the admin page", 4380, Reason::HeldByUser(0)),
        ];
        let args = StandaloneArgs {
            http: Some(free),
            data_dir: Some("my data".into()),
            destination: Some("http://h:1".to_owned()),
            ..StandaloneArgs::default()
        };
        let message = explain(&conflicts, &args);
        let mut lines = message.lines();
        assert_eq!(lines.next(), Some("127.0.0.1:4317, needed for OTLP/gRPC, is taken by pid 7: otelcol"));
        assert_eq!(
            lines.next(),
            Some("       127.0.0.1:80, needed for the admin page, needs privileges that this user has not")
        );
        let sudo = "       127.0.0.1:4380, needed for the admin page, is taken by a process of uid 0; `sudo ss -ltnp sport = :4380` names it";
        assert_eq!(lines.next(), Some(sudo));
        let command = command(&args, &[("--grpc", 14_317)]);
        let expected =
            format!(" standalone --data-dir 'my data' --destination http://h:1 --grpc 127.0.0.1:14317 --http {free}");
        assert!(command.ends_with(&expected), "{command}");
        assert!(lines.next().is_some_and(|line| line.starts_with("       this works: ")), "{message}");
    }

    /// Scenario: this very process listens on a port, and another is free.
    /// Guarantees: the first is a conflict and the second is not. (Its own process is never named as the holder.)
    #[test]
    fn a_taken_port_is_a_conflict() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = taken.local_addr().expect("bound");
        let wanted = [Wanted { flag: "--grpc", what: "OTLP/gRPC", addresses: vec![address] }];
        let conflicts = check(&wanted).expect_err("taken");
        assert_eq!(conflicts[0].address, address);
        assert!(matches!(conflicts[0].reason, Reason::HeldByUser(_)), "{conflicts:?}");
        drop(taken);
        assert!(check(&wanted).is_ok());
    }
}

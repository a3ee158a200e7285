//! A gateway and a pod's shim on one machine, without root and without a configuration file.
//!
//! Owns what a person at a terminal meets: the configuration made of flags, the check that the ports are free and who has them
//! if not, the shim's process (`shim`), and the banner. Runs in the supervisor, but for [`config`] and [`banner`], which
//! the worker uses. Nothing here sees data.

mod ports;
mod processes;
mod shim;

use std::fmt::Write as _;
use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::shim::{Running, Shim};
use super::cli::{Protocol, StandaloneArgs};
use super::exit::{Exit, Refusal};
use super::supervisor::timespec;
use crate::base::{DestinationName, TenantName};
use crate::config::{Config, ConfigError, Destination, DestinationKind, Ports, Tenant};

/// The one application of a machine.
const TENANT: &str = "local/app";
const SINK: &str = "sink";
const BACKEND: &str = "backend";
/// How long a supervisor that was killed may take to vanish.
const LOCK_GRACE: Duration = Duration::from_secs(1);
/// How long the worker of a killed supervisor may take to vanish.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);

/// The configuration that the flags mean: the file's, if there is one, with the flags laid over it.
pub fn config(args: &StandaloneArgs) -> Result<Config, Vec<ConfigError>> {
    let mut config = match &args.config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    };
    if let Some(data_dir) = &args.data_dir {
        config.node.data_dir = data_dir.clone();
    }
    if let Some(admin) = args.admin {
        config.node.admin = admin;
    }
    let tenant = TenantName::parse(TENANT).expect("a constant that a test parses");
    let ports = ports_of(args, config.tenants.get(&tenant).map(|tenant| tenant.ports));
    if ports.grpc == ports.http {
        return Err(vec![flag_error("--grpc", "the same port as --http", "choose two ports")]);
    }
    destinations(args, ports, &mut config)?;
    let socket_dir = config.node.data_dir.join("sockets").join("app");
    let policy = config.defaults.clone();
    let app = config.tenants.entry(tenant.clone()).or_insert(Tenant { socket_dir, pod_uid: None, ports, policy });
    app.ports = ports;
    if args.destination.is_some() {
        app.policy.destinations = config.defaults.destinations.clone();
    }
    for name in app.policy.destinations.iter().flatten() {
        // Only a file can forbid it: what comes from flags is for everybody.
        if config.destinations.get(name).is_some_and(|destination| !destination.allows(&tenant)) {
            let message = format!("the destination {name} does not allow the namespace {}", tenant.namespace());
            return Err(vec![flag_error("--config", &message, "add it to allow, or give another --destination")]);
        }
    }
    Ok(config)
}

fn ports_of(args: &StandaloneArgs, configured: Option<Ports>) -> Ports {
    let configured = configured.unwrap_or_default();
    Ports { grpc: args.grpc.unwrap_or(configured.grpc), http: args.http.unwrap_or(configured.http) }
}

/// `--destination` for everything; without it what the file says; without that the sink.
fn destinations(args: &StandaloneArgs, ports: Ports, config: &mut Config) -> Result<(), Vec<ConfigError>> {
    let (name, kind) = match &args.destination {
        Some(url) => (BACKEND, destination(url, args.protocol, ports).map_err(|error| vec![error])?),
        None if config.defaults.destinations.iter().all(Vec::is_empty) => (SINK, DestinationKind::Sink),
        None => return Ok(()),
    };
    let name = DestinationName(name.into());
    config.destinations.insert(name.clone(), Destination::new(kind));
    config.defaults.destinations.fill(vec![name]);
    Ok(())
}

fn destination(url: &str, protocol: Option<Protocol>, ports: Ports) -> Result<DestinationKind, ConfigError> {
    let kind = match protocol.unwrap_or_else(|| protocol_of(url)) {
        Protocol::Grpc => DestinationKind::grpc(url),
        Protocol::HttpProtobuf => DestinationKind::http(url),
    };
    let kind = kind.map_err(|message| {
        flag_error("--destination", message, "for example http://127.0.0.1:14317 or https://otel.example:4317")
    })?;
    let uri = match &kind {
        DestinationKind::Grpc { endpoint } => Some(endpoint),
        DestinationKind::Http { urls: [traces, ..] } => Some(traces),
        DestinationKind::Sink => None,
    };
    let is_here = uri.is_some_and(|uri| {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        loopback && uri.port_u16().is_some_and(|port| port == ports.grpc || port == ports.http)
    });
    if is_here {
        let help = "give the backend another port, or this gateway: --grpc 14317 --http 14318";
        return Err(flag_error("--destination", "this gateway's own port: everything would come back", help));
    }
    Ok(kind)
}

/// Port 4318 or a path means HTTP.
fn protocol_of(url: &str) -> Protocol {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.ends_with(":4318") || !path.is_empty() { Protocol::HttpProtobuf } else { Protocol::Grpc }
}

fn flag_error(flag: &str, message: &str, help: &str) -> ConfigError {
    ConfigError {
        file: flag.to_owned(),
        line: 0,
        column: 0,
        path: String::new(),
        message: message.to_owned(),
        help: help.to_owned(),
    }
}

/// The supervisor's hold on this machine: the data directory's lock, and the shim. Dropped, it leaves the shim alone.
pub(super) struct Site {
    shim: Shim,
    running: Option<Running>,
    _lock: File,
}

/// Checks everything that a person can mend, and starts or adopts the shim. Changes nothing if it refuses, but for the
/// directory.
pub(super) fn prepare(args: &StandaloneArgs) -> Result<Site, Refusal> {
    let config = config(args).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Refusal { exit: Exit::Config, message: lines.join("\nerror: ") }
    })?;
    let data_dir = &config.node.data_dir;
    let tenant = config.tenants.get(&TenantName::parse(TENANT).expect("a constant that a test parses"));
    let tenant = tenant.expect("`config` has put it there");
    for dir in [data_dir, &tenant.socket_dir] {
        make_dir(dir)?;
    }
    let lock = lock(data_dir)?;
    await_orphan(data_dir);

    let shim = Shim::new(&tenant.socket_dir, tenant.ports, data_dir.join("shim.log"));
    let running = shim.adopt().map_err(|error| unusable("looking after the shim of an earlier start", error))?;
    let wanted = wanted_ports(config.node.admin, tenant.ports, running.is_none());
    ports::check(&wanted)
        .map_err(|conflicts| Refusal { exit: Exit::AddressInUse, message: ports::explain(&conflicts, args) })?;
    let mut site = Site { shim, running, _lock: lock };
    if site.running.is_none() {
        site.start_shim().map_err(|error| unusable("starting the shim", error))?;
    }
    Ok(site)
}

fn wanted_ports(admin: SocketAddr, ports: Ports, with_shim: bool) -> Vec<ports::Wanted> {
    let mut wanted = vec![ports::Wanted { flag: "--admin", what: "the admin page", addresses: vec![admin] }];
    let both =
        |port| vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
    if with_shim {
        wanted.push(ports::Wanted { flag: "--grpc", what: "OTLP/gRPC", addresses: both(ports.grpc) });
        wanted.push(ports::Wanted { flag: "--http", what: "OTLP/HTTP", addresses: both(ports.http) });
    }
    wanted
}

fn make_dir(dir: &Path) -> Result<(), Refusal> {
    // The socket directory is made 0755 by whoever serves it; telemetry is nobody else's business.
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| Refusal {
        exit: Exit::DataDirUnusable,
        message: format!("cannot make {}: {error}\n       choose another directory with --data-dir", dir.display()),
    })
}

/// Held until this process ends, however it ends, so that two terminals do not fight over one shim.
fn lock(data_dir: &Path) -> Result<File, Refusal> {
    let path = data_dir.join("supervisor.lock");
    let failed = |error| unusable(&format!("cannot use {}", path.display()), error);
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    if !locked_within(&file, LOCK_GRACE).map_err(failed)? {
        let mut holder = String::new();
        // Whoever has it has written its pid, or is about to.
        let _ = (&file).take(32).read_to_string(&mut holder);
        let holder = if holder.is_empty() { "unknown" } else { &holder };
        let dir = data_dir.display();
        return Err(Refusal {
            exit: Exit::DataDirLocked,
            message: format!(
                "another `pillion standalone` (pid {holder}) uses {dir}\n       stop it, or choose another directory and other \
                 ports: --data-dir DIR --grpc 14317 --http 14318 --admin 14380"
            ),
        });
    }
    file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

/// The worker of a supervisor that was killed is killed too, but takes a moment to let go of the queue.
///
/// Waits for that moment. If it is somebody else's, the worker finds out and says whose.
fn await_orphan(data_dir: &Path) {
    if let Ok(lock) = File::open(data_dir.join("lock")) {
        // Let go of again at once: it is the worker's.
        let _ = locked_within(&lock, ORPHAN_GRACE);
    }
}

/// Whether the lock was to be had in this time. A process that was killed holds its locks until the kernel gets to it.
fn locked_within(file: &File, time: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + time;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Ok(false),
            // A lock has no descriptor that tells when it is free, so this is a wait for nothing but the time.
            Err(TryLockError::WouldBlock) => {
                let _ = rustix::event::poll(&mut [], Some(&timespec(Duration::from_millis(10))));
            }
        }
    }
}

fn unusable(what: &str, error: io::Error) -> Refusal {
    Refusal { exit: Exit::DataDirUnusable, message: format!("{what}: {error}") }
}

impl Site {
    /// A new shim, or the one that is there.
    pub(super) fn start_shim(&mut self) -> io::Result<()> {
        self.running = Some(self.shim.start()?);
        Ok(())
    }

    /// Readable when the shim has ended.
    pub(super) fn shim_fd(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|running| running.as_fd())
    }

    pub(super) fn shim_gone(&mut self) {
        self.running = None;
    }

    pub(super) fn shim_log(&self) -> &Path {
        self.shim.log()
    }

    pub(super) fn stop_shim(&self) {
        self.running.iter().for_each(Running::stop);
    }

    pub(super) fn kill_shim(&self) {
        self.running.iter().for_each(Running::kill);
    }
}

/// What a person sees first: where to send data, one line to try it with, and the page. To be printed by the worker when
/// all three work, and only at its first start.
pub fn banner(config: &Config) -> String {
    let ports =
        TenantName::parse(TENANT).ok().and_then(|tenant| config.tenants.get(&tenant)).map(|tenant| tenant.ports);
    let ports = ports.unwrap_or_default();
    let mut out = String::new();
    let destination = match destination_shown(config) {
        Some(url) => format!("delivered to {url}"),
        None => "kept by the embedded sink: see the page".to_owned(),
    };
    let endpoint = if ports.http == Ports::default().http {
        String::new()
    } else {
        format!(" --endpoint http://127.0.0.1:{}", ports.http)
    };
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "\n  Pillion is up.\n\n  \
           send OTLP to   127.0.0.1:{} or 127.0.0.1:{} (gRPC and HTTP on both); SDKs do so by default\n  \
           try it with    {} send{endpoint}\n  \
           see it at      http://{}/\n  \
           what arrives   is {destination}\n  \
           Ctrl-C         stops; what is not delivered stays in {}\n\n",
        ports.grpc,
        ports.http,
        program(),
        config.node.admin,
        config.node.data_dir.display(),
    );
    out
}

/// The default destination without its path; nothing for the sink.
fn destination_shown(config: &Config) -> Option<String> {
    let name = config.defaults.destinations.iter().flatten().next()?;
    match &config.destinations.get(name)?.kind {
        DestinationKind::Grpc { endpoint: uri } | DestinationKind::Http { urls: [uri, ..] } => {
            Some(format!("{}://{}", uri.scheme_str().unwrap_or_default(), uri.authority()?))
        }
        DestinationKind::Sink => None,
    }
}

/// How this program is called from the directory that it was started in.
fn program() -> String {
    let name = || "pillion".to_owned();
    let Ok(program) = std::env::current_exe() else { return name() };
    let on_path = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| program.parent() == Some(&dir)));
    if on_path {
        return name();
    }
    let below: Option<PathBuf> =
        std::env::current_dir().ok().and_then(|here| program.strip_prefix(here).ok().map(Path::to_owned));
    below.unwrap_or(program).display().to_string()
}

#[cfg(test)]
mod tests;

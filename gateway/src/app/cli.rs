//! The command line: arguments in, a [`Command`] out. Does nothing else.

pub mod queue;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::exit::Exit;

const ABOUT: &str = "A virtual telemetry sidecar for every pod, in one process for each node";

const AFTER_HELP: &str = "\
Examples:
  pillion standalone                                          try it: listens on 4317 and 4318, keeps what arrives
  pillion standalone --destination http://otel.example:4317   the same, delivering to a backend
  pillion send                                                send one span, one metric and one log record to it
  pillion validate pillion.yaml                               show every mistake in a configuration, with its line
  pillion run --config pillion.yaml                           what the DaemonSet runs
  pillion inject -f shop.yaml | kubectl apply -f -            manifests with the shim, without a cluster's help
  pillion queue verify ./pillion-data                         check every byte that is queued

Exit status:
  0 stopped as asked        3 invalid configuration          6 a port is taken
  1 failed, see the log     4 data directory in use          7 the queue's log is poisoned; start again to recover
  2 wrong command line      5 data directory unusable        8 the supervisor is gone
                                                             9 inject: asked for, and not done
                                                            10 queue verify: something is damaged";

const RUN_HELP: &str = "\
The process supervises a worker: a worker that crashes is started again at once, then with a delay of at most a quarter of
a second. SIGTERM or SIGINT stops it within two seconds, whatever is not delivered stays in the data directory; a second one
skips what is left.

Example:
  pillion validate pillion.yaml && pillion run --config pillion.yaml";

const STANDALONE_HELP: &str = "\
Without --destination, what arrives goes to an embedded sink: the page on the admin address shows it.

The protocol towards a destination follows from its URL unless --protocol says it: port 4318 or a path means OTLP/HTTP
(to PATH/v1/traces and so on), anything else OTLP/gRPC; https means TLS.

Examples:
  pillion standalone
  pillion standalone --destination https://otel.example:4317
  pillion standalone --destination https://otel.example/otlp --protocol http/protobuf
  pillion standalone --grpc 14317 --http 14318 --admin 14380 --data-dir /tmp/second

Ctrl-C delivers what is in flight, keeps the rest in the data directory, and prints what was received, delivered and
kept. After a crash, start it again: applications that stay connected to the ports lose nothing that was acknowledged.";

const VALIDATE_HELP: &str = "\
Prints all mistakes, not only the first: file, line, column, key, what is wrong, and what is accepted.
The file itself is the only input: variables named by ${env:NAME} must be set, files named by ${file:PATH} are not read.

Examples:
  pillion validate pillion.yaml
  pillion validate -o json pillion.yaml | jq -r '.errors[].message'";

const SEND_HELP: &str = "\
Sends OTLP/HTTP with protobuf bodies, as an SDK would: in each round one span, one metric and one log record.

Examples:
  pillion send
  pillion send --endpoint http://127.0.0.1:14318 --count 100";

const CSI_HELP: &str = "\
The kubelet calls it to make the sockets of each pod that has a volume of csi.pillion.dev; the gateway that holds the data
directory gets them from it. It needs uid 0 and the gateway's group, no capability and no network.

SIGTERM stops it. The sockets stay: what the gateway holds goes on being served, and the next `pillion csi` finds them again.

Example:
  NODE_NAME=node-7 pillion csi";

const INJECT_HELP: &str = "\
Reads Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, CronJob and List, in YAML or JSON, and prints them with the
shim in every pod that asks for it: with the annotation (or label) pillion.dev/inject: enabled on the pod or on its pod
template, or the label on its namespace. Everything else is printed as it was read, comments included. What was done with
each object, or why not, goes to stderr. After a mistake nothing is printed to stdout.

In a cluster with the admission policy of deploy/yaml this is not needed: the policy decides in the same way.

Examples:
  pillion inject -f shop.yaml | kubectl apply -f -
  kubectl get deployment cart -o yaml | pillion inject --namespace-labels pillion.dev/inject=enabled
  helm template shop | pillion inject >/dev/null           # only say what would be done, and why not

Exit status: 0 every pod that asks has its shim, 1 a mistake in the input, 9 a pod asks for a shim and cannot have it.";

/// What to do.
#[derive(Debug, Clone)]
pub enum Command {
    /// The gateway of a node.
    Run(RunArgs),
    /// Gateway and shim on one machine.
    Standalone(StandaloneArgs),
    /// The CSI driver of a node.
    Csi(CsiArgs),
    /// Check a configuration.
    Validate(ValidateArgs),
    /// Send a little telemetry.
    Send(SendArgs),
    /// Put the shim into manifests.
    Inject(InjectArgs),
    /// Look at what is queued and at what was refused.
    Queue(queue::QueueArgs),
    /// The shim; its arguments, beginning with the program's name.
    Shim(Vec<OsString>),
    /// What a supervisor starts.
    Worker(WorkerArgs),
}

/// `pillion run`
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The configuration, YAML
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,
}

/// `pillion csi`
#[derive(Debug, Clone, Args)]
pub struct CsiArgs {
    /// The node's name, told to the kubelet
    #[arg(long, value_name = "NAME", env = "NODE_NAME", value_parser = node_name)]
    pub node_name: String,
    /// The kubelet's root directory, mounted under the same path as on the host
    #[arg(long, value_name = "DIR", env = "PILLION_KUBELET_DIR", default_value = "/var/lib/kubelet", value_parser = absolute)]
    pub kubelet_dir: PathBuf,
    /// The socket on which the gateway asks for the pods' sockets
    #[arg(long, value_name = "PATH", env = "PILLION_CUSTODY", default_value = "/run/pillion/custody.sock", value_parser = absolute)]
    pub custody: PathBuf,
    /// The gateway's data directory, which is prepared for it
    #[arg(long, value_name = "DIR", env = "PILLION_DATA_DIR", default_value = "/var/lib/pillion", value_parser = absolute)]
    pub data_dir: PathBuf,
    /// User and group of the gateway
    #[arg(long, value_name = "ID", env = "PILLION_GATEWAY_ID", default_value_t = 64317)]
    pub gateway_id: u32,
}

/// `pillion standalone`
#[derive(Debug, Clone, Default, Args)]
pub struct StandaloneArgs {
    /// Where queue, sockets and logs are kept [default: ./pillion-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Loopback address or port for OTLP/gRPC [default: 127.0.0.1:4317]
    #[arg(long, value_name = "ADDR", value_parser = shim_port)]
    pub grpc: Option<u16>,
    /// Loopback address or port for OTLP/HTTP [default: 127.0.0.1:4318]
    #[arg(long, value_name = "ADDR", value_parser = shim_port)]
    pub http: Option<u16>,
    /// Loopback address or port for the page, health and metrics [default: 127.0.0.1:4380]
    #[arg(long, value_name = "ADDR", value_parser = loopback)]
    pub admin: Option<SocketAddr>,
    /// Backend to deliver to [default: the embedded sink]
    #[arg(long, value_name = "URL")]
    pub destination: Option<String>,
    /// What the destination speaks [default: told by its URL]
    #[arg(long, value_enum, requires = "destination")]
    pub protocol: Option<Protocol>,
    /// Configuration to start from; the other flags override it
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `--protocol`, named as in `OTEL_EXPORTER_OTLP_PROTOCOL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// OTLP/gRPC
    #[value(name = "grpc")]
    Grpc,
    /// OTLP/HTTP with protobuf bodies
    #[value(name = "http/protobuf")]
    HttpProtobuf,
}

/// `pillion validate`
#[derive(Debug, Clone, Args)]
pub struct ValidateArgs {
    /// The configuration, YAML
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How to print the result
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// `-o`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// One JSON object
    Json,
}

/// `pillion send`
#[derive(Debug, Clone, Args)]
pub struct SendArgs {
    /// An OTLP/HTTP endpoint
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:4318")]
    pub endpoint: http::Uri,
    /// How many rounds
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub count: u32,
}

/// `pillion inject`
#[derive(Debug, Clone, Args)]
pub struct InjectArgs {
    /// Manifests, YAML or JSON; `-` is stdin
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    pub filename: PathBuf,
    /// Namespace of objects that name none
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub namespace: String,
    /// Labels of the namespaces that the input itself does not hold
    #[arg(long, value_name = "KEY=VALUE,...", value_delimiter = ',', value_parser = label)]
    pub namespace_labels: Vec<(String, String)>,
    /// The shim's image [default: the one of this release]
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// How to print the result [default: as it was read]
    #[arg(long, short, value_enum)]
    pub output: Option<ManifestOutput>,
}

/// `inject -o`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ManifestOutput {
    /// As it was read, with insertions
    Yaml,
    /// One object, or a List of several
    Json,
}

/// The hidden `pillion worker`: what the supervisor says, and the supervised command after `--`.
#[derive(Debug, Clone)]
pub struct WorkerArgs {
    /// The supervisor; a worker with another parent ends.
    pub supervisor: u32,
    /// Starts before this one.
    pub restarts: u32,
    /// Why the last one ended.
    pub last_reason: Option<String>,
    /// `run` or `standalone`.
    pub command: Box<Command>,
}

#[derive(Debug, Parser)]
#[command(name = "pillion", version, about = ABOUT, after_help = AFTER_HELP, arg_required_else_help = true)]
#[command(propagate_version = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the gateway of a node from a configuration file
    #[command(after_help = RUN_HELP)]
    Run(RunArgs),
    /// Run gateway and shim on this machine, without root and without a configuration
    #[command(after_help = STANDALONE_HELP)]
    Standalone(StandaloneArgs),
    /// Run the CSI driver of a node: the pods' sockets, made for the kubelet and kept for the gateway
    #[command(after_help = CSI_HELP)]
    Csi(CsiArgs),
    /// Check a configuration file and print every mistake in it
    #[command(after_help = VALIDATE_HELP)]
    Validate(ValidateArgs),
    /// Send a span, a metric and a log record, to see them arrive
    #[command(after_help = SEND_HELP)]
    Send(SendArgs),
    /// Put the shim into the pods of manifests that ask for it, offline
    #[command(after_help = INJECT_HELP)]
    Inject(InjectArgs),
    /// Look at what is queued and at what was refused, and check the data directory
    Queue(queue::QueueArgs),
    /// Run the shim, the process in the pod (`pillion shim --help` shows its own arguments)
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Shim(Rest),
    #[command(hide = true)]
    Worker(WorkerVerb),
}

#[derive(Debug, Args)]
struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

#[derive(Debug, Args)]
struct WorkerVerb {
    #[arg(long)]
    supervisor: u32,
    #[arg(long)]
    restarts: u32,
    #[arg(long)]
    last_reason: Option<String>,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Help, a version, or a mistake: something to print instead of a command to run.
#[derive(Debug)]
pub struct Stop(clap::Error);

impl Stop {
    /// Prints it where it belongs (help to stdout, mistakes to stderr; colour only on a terminal).
    pub fn print(self) -> ExitCode {
        // Nobody is left to tell when the terminal is gone.
        let _ = self.0.print();
        if self.0.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() }
    }
}

/// Reads the command line; `args` begins with the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Stop> {
    let cli = Cli::try_parse_from(args).map_err(Stop)?;
    Ok(match cli.command {
        Verb::Run(args) => Command::Run(args),
        Verb::Standalone(args) => Command::Standalone(args),
        Verb::Csi(args) => Command::Csi(args),
        Verb::Validate(args) => Command::Validate(args),
        Verb::Send(args) => Command::Send(args),
        Verb::Inject(args) => Command::Inject(args),
        Verb::Queue(args) => Command::Queue(args),
        Verb::Shim(rest) => Command::Shim(std::iter::once("pillion shim".into()).chain(rest.args).collect()),
        Verb::Worker(worker) => {
            let inner = parse(std::iter::once("pillion".into()).chain(worker.command))?;
            if !matches!(inner, Command::Run(_) | Command::Standalone(_)) {
                let message = "a worker runs `run` or `standalone`";
                return Err(Stop(clap::Error::raw(clap::error::ErrorKind::InvalidSubcommand, message)));
            }
            Command::Worker(WorkerArgs {
                supervisor: worker.supervisor,
                restarts: worker.restarts,
                last_reason: worker.last_reason,
                command: Box::new(inner),
            })
        }
    })
}

/// 1 to 253 bytes, as the API server allows.
fn node_name(text: &str) -> Result<String, String> {
    match text.len() {
        1..=253 => Ok(text.to_owned()),
        _ => Err("a node's name has 1 to 253 bytes: set NODE_NAME from the field spec.nodeName".to_owned()),
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("write the whole path, beginning with /".to_owned()) }
}

/// `key=value`
fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} has no `=`: write key=value,key=value"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// As [`loopback`], but only the port is left: the shim listens on 127.0.0.1 and ::1, whichever is named.
fn shim_port(text: &str) -> Result<u16, String> {
    let address = loopback(text)?;
    let ip = address.ip();
    if ip != IpAddr::V4(Ipv4Addr::LOCALHOST) && ip != IpAddr::V6(Ipv6Addr::LOCALHOST) {
        return Err(format!("applications are served on 127.0.0.1 and ::1 only, not on {ip}"));
    }
    Ok(address.port())
}

/// `4317`, `:4317`, `127.0.0.1:4317` or `localhost:4317`.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let port: u16 = port.parse().map_err(|_| format!("{port:?} is no port: write 4317, :4317 or 127.0.0.1:4317"))?;
    if port == 0 {
        return Err("port 0 would be another one after each restart: name one".to_owned());
    }
    let host: IpAddr = match host {
        "" | "localhost" => Ipv4Addr::LOCALHOST.into(),
        host => host
            .trim_matches(['[', ']'])
            .parse()
            .map_err(|_| format!("{host:?} is no address: write 4317, :4317 or 127.0.0.1:4317"))?,
    };
    if !host.is_loopback() {
        return Err(format!(
            "{host} is not a loopback address: whoever reaches these ports sends as this machine's application, without \
             credentials; use 127.0.0.1:{port}"
        ));
    }
    Ok(SocketAddr::new(host, port))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn words(line: &str) -> Result<Command, Stop> {
        parse(std::iter::once("pillion").chain(line.split_whitespace()).map(OsString::from))
    }

    fn stop(line: &str) -> (bool, String) {
        match words(line) {
            Err(stop) => (stop.0.use_stderr(), stop.0.to_string()),
            Ok(command) => panic!("{line}: {command:?}"),
        }
    }

    /// Scenario: clap's own check of the definition.
    /// Guarantees: no two options share a name, and every default is valid.
    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Scenario: addresses as people write them, and such that would open the machine to its network.
    /// Guarantees: port, :port and host:port mean the same; anything but loopback is refused with the reason.
    #[test]
    fn addresses_are_loopback_in_every_spelling() {
        for text in ["4317", ":4317", "127.0.0.1:4317", "localhost:4317", "[::1]:4317"] {
            assert_eq!(shim_port(text), Ok(4317), "{text}");
        }
        for (text, reason) in [
            ("0.0.0.0:4317", "not a loopback address"),
            ("10.0.0.1:4317", "not a loopback address"),
            ("[::]:4317", "not a loopback address"),
            ("127.0.0.2:4317", "127.0.0.1 and ::1 only"),
            ("example.org:4317", "is no address"),
            ("0", "port 0"),
            ("", "is no port"),
            ("65536", "is no port"),
            ("grpc", "is no port"),
        ] {
            assert!(shim_port(text).is_err_and(|error| error.contains(reason)), "{text}");
        }
        assert_eq!(loopback("127.0.0.2:80"), Ok(SocketAddr::from(([127, 0, 0, 2], 80))));
    }

    /// Scenario: wrong words and options.
    /// Guarantees: the message suggests what was probably meant, and goes to stderr.
    #[test]
    fn mistakes_are_answered_with_a_suggestion() {
        for (line, part) in [
            ("standalon", "'standalone'"),
            ("standalone --dat-dir x", "'--data-dir'"),
            ("run --confg x", "'--config'"),
            ("run", "--config <FILE>"),
            ("standalone --protocol http --destination http://h", "http/protobuf"),
            ("standalone --protocol grpc", "--destination"),
            ("send --count 0", "1..=1000000"),
            ("csi --node-name n --kubelet-dir kubelet", "the whole path"),
            ("csi --node-name n --gateway-id x", "--gateway-id"),
            ("inject --namespace-labels a", "key=value"),
            ("queue verfy x", "'verify'"),
            ("queue verify", "<DIR>"),
        ] {
            let (stderr, text) = stop(line);
            assert!(stderr && text.contains(part), "{line}: {text}");
        }
    }

    /// Scenario: help of the command and of each part of it, and the version.
    /// Guarantees: they go to stdout and show examples; the worker is not a command for people.
    #[test]
    fn help_teaches() {
        for line in [
            "--help",
            "run --help",
            "csi --help",
            "standalone --help",
            "validate --help",
            "send --help",
            "inject --help",
            "queue verify --help",
        ] {
            let (stderr, text) = stop(line);
            assert!(!stderr && text.contains("Example"), "{line}: {text}");
            assert!(!text.contains("worker --") && !text.contains("  worker"), "{line}: {text}");
        }
        assert_eq!(stop("--version"), (false, format!("pillion {}\n", env!("CARGO_PKG_VERSION"))));
    }

    /// Scenario: the shim's own options, and what a supervisor starts.
    /// Guarantees: the first pass through untouched, `--help` included; the second carries the whole command.
    #[test]
    fn shim_and_worker_carry_their_arguments() {
        let Ok(Command::Shim(args)) = words("shim run --dir d --help -x") else { panic!("a shim") };
        assert_eq!(args, ["pillion shim", "run", "--dir", "d", "--help", "-x"]);

        let line = "worker --supervisor 7 --restarts 2 --last-reason aborted -- run --config c.yaml";
        let Ok(Command::Worker(worker)) = words(line) else { panic!("a worker") };
        assert_eq!((worker.supervisor, worker.restarts, worker.last_reason.as_deref()), (7, 2, Some("aborted")));
        assert!(matches!(*worker.command, Command::Run(RunArgs { config }) if config.as_os_str() == "c.yaml"));
        assert!(words("worker --supervisor 7 --restarts 0 -- validate x").is_err());
    }
}

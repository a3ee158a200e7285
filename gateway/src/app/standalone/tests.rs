//! From flags to a configuration, and what the banner says. Processes are tested in `gateway/tests/`.

use super::*;
use crate::base::Signal;

fn args(line: &str) -> StandaloneArgs {
    let words = ["pillion", "standalone"].into_iter().chain(line.split_whitespace());
    match crate::app::cli::parse(words.map(Into::into)) {
        Ok(crate::app::cli::Command::Standalone(args)) => args,
        other => panic!("{line}: {other:?}"),
    }
}

fn valid(line: &str) -> Config {
    config(&args(line)).unwrap_or_else(|errors| panic!("{line}: {errors:?}"))
}

fn refused(line: &str) -> String {
    config(&args(line)).expect_err(line).iter().map(ToString::to_string).collect()
}

fn app(config: &Config) -> &Tenant {
    &config.tenants[&TenantName::parse(TENANT).expect("a constant")]
}

/// Scenario: no flags at all.
/// Guarantees: the ports of every SDK, a data directory here, one tenant, and the embedded sink for all signals.
#[test]
fn without_flags_everything_goes_to_the_sink() {
    let config = valid("");
    assert_eq!(config.node.data_dir, Path::new("./pillion-data"));
    assert_eq!(config.node.admin.to_string(), "127.0.0.1:4380");
    let tenant = app(&config);
    assert_eq!(tenant.socket_dir, Path::new("./pillion-data/sockets/app"));
    assert_eq!(tenant.ports, Ports { grpc: 4317, http: 4318 });
    for signal in Signal::ALL {
        let [name] = tenant.policy.routes(signal) else { panic!("one destination") };
        let destination = &config.destinations[name];
        assert_eq!(destination.kind, DestinationKind::Sink);
        assert!(destination.allows(&TenantName::parse(TENANT).expect("a constant")));
    }
    assert_eq!(config.warnings(), Vec::<String>::new());
}

/// Scenario: every flag.
/// Guarantees: each arrives where it belongs.
#[test]
fn flags_arrive() {
    let config =
        valid("--data-dir /tmp/d --grpc 14317 --http :14318 --admin 127.0.0.1:14380 --destination http://h:4317");
    assert_eq!(config.node.data_dir, Path::new("/tmp/d"));
    assert_eq!(config.node.admin.to_string(), "127.0.0.1:14380");
    assert_eq!(app(&config).ports, Ports { grpc: 14_317, http: 14_318 });
    assert_eq!(app(&config).socket_dir, Path::new("/tmp/d/sockets/app"));
    assert_eq!(app(&config).policy.routes(Signal::Logs), [DestinationName(BACKEND.into())]);
}

/// Scenario: destinations of every form, with and without `--protocol`.
/// Guarantees: the rule that `--help` states: port 4318 or a path means HTTP, anything else gRPC, and the flag decides.
#[test]
fn the_protocol_follows_from_the_url_unless_it_is_said() {
    let kind = |line: &str| {
        let config = valid(line);
        match &config.destinations[&DestinationName(BACKEND.into())].kind {
            DestinationKind::Grpc { endpoint } => format!("grpc {endpoint}"),
            DestinationKind::Http { urls } => format!("http {}", urls[0]),
            DestinationKind::Sink => "sink".to_owned(),
        }
    };
    for (line, expected) in [
        ("--destination http://h:4317", "grpc http://h:4317/"),
        ("--destination https://h", "grpc https://h/"),
        ("--destination https://h/", "grpc https://h/"),
        ("--destination http://h:4318", "http http://h:4318/v1/traces"),
        ("--destination http://h:4318/", "http http://h:4318/v1/traces"),
        ("--destination https://h/otlp", "http https://h/otlp/v1/traces"),
        ("--destination http://h:4318 --protocol grpc", "grpc http://h:4318/"),
        ("--destination https://h:443 --protocol http/protobuf", "http https://h:443/v1/traces"),
    ] {
        assert_eq!(kind(line), expected, "{line}");
    }
}

/// Scenario: destinations that cannot be dialled, or are this very gateway, and two equal ports.
/// Guarantees: each is refused with its reason, and credentials are not repeated.
#[test]
fn what_cannot_work_is_refused() {
    for (line, reason) in [
        ("--destination h:4317", "scheme is missing"),
        ("--destination http://u:s3cret@h:4317", "send a header instead"),
        ("--destination http://localhost:4317", "own port"),
        ("--destination http://127.0.0.1:4318", "own port"),
        ("--destination http://[::1]:4317", "own port"),
        ("--destination http://127.0.0.1:14317 --http 14317", "own port"),
        ("--destination https://h/x --protocol grpc", "has no path"),
        ("--grpc 5000 --http 5000", "same port"),
        ("--grpc 4318", "same port"),
    ] {
        let error = refused(line);
        assert!(error.contains(reason) && !error.contains("s3cret"), "{line}: {error}");
    }
}

/// Scenario: a configuration file with flags over it.
/// Guarantees: the flags win, the rest of the file stays, and its mistakes are reported as always.
#[test]
fn flags_are_laid_over_a_file() {
    let dir = tempfile::tempdir().expect("writable");
    let file = dir.path().join("pillion.yaml");
    let text = "node: {data_dir: /tmp/file, admin: 127.0.0.1:1, memory_limit: 64MiB}
defaults: {ack: memory, destinations: [there]}
destinations: {there: {protocol: sink, allow: ['*']}}
tenants: {local/app: {socket_dir: /tmp/s, ports: {grpc: 1, http: 2}}}
";
    std::fs::write(&file, text).expect("writable");
    let config = valid(&format!("--config {} --admin 2 --http 3", file.display()));
    assert_eq!((config.node.data_dir.as_path(), config.node.memory_limit), (Path::new("/tmp/file"), 64 << 20));
    assert_eq!(config.node.admin.port(), 2);
    assert_eq!(app(&config).ports, Ports { grpc: 1, http: 3 });
    assert_eq!(app(&config).socket_dir, Path::new("/tmp/s"));
    assert_eq!(app(&config).policy.routes(Signal::Traces), [DestinationName("there".into())]);
    let config = valid(&format!("--config {} --destination http://h:1", file.display()));
    assert_eq!(app(&config).policy.routes(Signal::Traces), [DestinationName(BACKEND.into())]);

    let closed = "defaults: {destinations: [b]}\ndestinations: {b: {protocol: sink, allow: [shop]}}\n";
    std::fs::write(&file, closed).expect("writable");
    assert!(refused(&format!("--config {}", file.display())).contains("does not allow the namespace local"));

    std::fs::write(&file, "nod: {}").expect("writable");
    assert!(refused(&format!("--config {}", file.display())).contains(":1:1: nod: unknown key"));
}

/// Scenario: the banner for the defaults and for other ports and a backend.
/// Guarantees: it says where to send, one line to try it with, the page, and where what is not delivered stays.
#[test]
fn the_banner_says_where_to_send_how_to_try_and_where_to_look() {
    let text = banner(&valid(""));
    for part in
        ["127.0.0.1:4317", "127.0.0.1:4318", " send\n", "http://127.0.0.1:4380/", "./pillion-data", "embedded sink"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = banner(&valid("--http 14318 --destination https://h/secret-path"));
    for part in ["127.0.0.1:14318", "send --endpoint http://127.0.0.1:14318\n", "https://h\n"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// Scenario: somebody else has the lock; then lets go of it while it is waited for.
/// Guarantees: without time to wait it is refused, with time it is had as soon as it is free.
#[test]
fn a_lock_is_waited_for_as_long_as_it_was_given() {
    let dir = tempfile::tempdir().expect("writable");
    let path = dir.path().join("lock");
    let holder = File::create(&path).expect("writable");
    holder.try_lock().expect("nobody else knows it");
    let file = File::open(&path).expect("readable");
    assert!(!locked_within(&file, Duration::ZERO).expect("lockable"));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| locked_within(&file, Duration::from_secs(60)).expect("lockable"));
        drop(holder);
        assert!(waiter.join().expect("no panic"));
    });
}

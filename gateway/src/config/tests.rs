//! Whole files: the golden list of errors, the defaults, and each check across sections.

use std::time::Duration;

use super::*;
use crate::base::ledger::MemoryLimit;
use crate::base::{AckPolicy, Attribute, DestinationName, Signal, TenantName};

fn parse_with(text: &str, env: Environment<'_>) -> Result<Config, Vec<ConfigError>> {
    Config::parse(text, "test.yaml", env)
}

fn parse(text: &str) -> Result<Config, Vec<ConfigError>> {
    parse_with(text, &|_| None)
}

fn valid(text: &str) -> Config {
    parse(text).unwrap_or_else(|errors| panic!("{}", show(&errors)))
}

fn show(errors: &[ConfigError]) -> String {
    errors.iter().map(|error| format!("{error}\n")).collect()
}

/// The errors of a text, one a line.
fn errors(text: &str) -> String {
    show(&parse(text).expect_err("must be refused"))
}

/// Scenario: one file with every kind of mistake in it.
/// Guarantees: all of them are reported in one run, each with its line, column and path; and the two places where this file has
/// `hunter2` for a password do not reach the output.
#[test]
fn one_run_reports_every_mistake_of_a_very_bad_file() {
    let text = include_str!("testdata/bad.yaml");
    let found = show(&Config::parse(text, "bad.yaml", &|_| None).expect_err("very bad"));
    assert!(!found.contains("hunter2"), "{found}");
    assert_eq!(found, include_str!("testdata/bad.errors"), "compare with testdata/bad.errors:\n{found}");
}

/// Scenario: the smallest useful file.
/// Guarantees: everything else has the documented default.
#[test]
fn what_is_left_out_has_its_documented_default() {
    let config = valid(
        "defaults: {destinations: [b]}\n\
         destinations: {b: {protocol: grpc, endpoint: 'http://127.0.0.1:4317', allow: ['*']}}\n\
         tenants: {shop/cart: {socket_dir: ./s}}\n",
    );
    assert_eq!(config.node.data_dir, Path::new("./pillion-data"));
    assert_eq!(config.node.memory_limit, 256 * 1024 * 1024);
    assert_eq!(config.node.disk_limit, 10 * 1024 * 1024 * 1024);
    assert!((1..=4).contains(&config.node.workers));
    assert_eq!(config.node.admin.to_string(), "127.0.0.1:4380");
    assert_eq!(config.node.name, None);

    let tenant = &config.tenants[&TenantName::parse("shop/cart").expect("a name")];
    assert_eq!(tenant.ports, Ports { grpc: 4317, http: 4318 });
    assert_eq!(tenant.pod_uid, None);
    let backend = DestinationName("b".into());
    let limits = Limits {
        bytes_per_second: 4 * 1024 * 1024,
        requests_per_second: 2_000,
        connections: 64,
        memory: MemoryLimit { guarantee: 512 * 1024, ceiling: 64 * 1024 * 1024 },
        disk: MemoryLimit { guarantee: 32 * 1024 * 1024, ceiling: 1024 * 1024 * 1024 },
        max_request_bytes: 64 * 1024 * 1024,
    };
    let expected = Policy {
        limits,
        ack: AckPolicy::Durable,
        queue: QueuePolicy { max_age: Duration::from_secs(72 * 3600), on_full: OnFull::Reject },
        enrich: Enrich::default(),
        destinations: [vec![backend.clone()], vec![backend.clone()], vec![backend.clone()]],
    };
    assert_eq!(tenant.policy, expected);

    let destination = &config.destinations[&backend];
    assert_eq!(destination.compression, Compression::None);
    assert_eq!(destination.max_message_bytes, 4 * 1024 * 1024);
    assert_eq!(destination.timeout, Duration::from_secs(10));
    assert_eq!(
        destination.retry,
        Retry { initial_interval: Duration::from_secs(1), max_interval: Duration::from_secs(30) }
    );
    assert_eq!((destination.window, destination.merge, destination.start), (8, true, StartAt::Oldest));
}

/// Scenario: the example that the documentation shows, every key of it.
/// Guarantees: it is valid as it stands, and each value arrives where it belongs.
#[test]
fn the_documented_example_is_valid() {
    let config = valid(include_str!("testdata/example.yaml"));
    let tenant = &config.tenants[&TenantName::parse("shop/cart").expect("a name")];
    assert_eq!(tenant.policy.limits.bytes_per_second, 1024 * 1024);
    assert_eq!(tenant.policy.enrich.attributes, [Attribute::new("deployment.environment.name", "prod")]);
    assert_eq!(tenant.socket_dir, Path::new("./sockets/cart"));
    let backend = &config.destinations[&DestinationName("backend".into())];
    assert_eq!(backend.kind, DestinationKind::Grpc { endpoint: "https://otel.example:4317".parse().expect("a URI") });
    assert_eq!((backend.compression, backend.start), (Compression::Zstd, StartAt::Tail));
    assert_eq!(backend.tls.ca_file.as_deref(), Some(Path::new("ca.pem")));
    assert!(matches!(&backend.headers[0].value, HeaderSource::File(path) if path == Path::new("token")));
    assert_eq!(config.warnings(), Vec::<String>::new());
}

/// Scenario: a tenant's policy that changes a few keys of the defaults.
/// Guarantees: it is laid over them key by key; a lowered ceiling takes what it inherits down with it; a signal's destinations are
/// replaced and the others kept.
#[test]
fn a_tenants_policy_is_laid_over_the_defaults_key_by_key() {
    let config = valid(
        "defaults:
  limits: {connections: 10, memory: {guarantee: 1MiB, ceiling: 8MiB}, disk: 2GiB}
  ack: buffered
  enrich: {attributes: {a: '1', b: '2'}}
  destinations: [one]
destinations:
  one: {protocol: sink, allow: [shop]}
  two: {protocol: sink, allow: [shop]}
tenants:
  shop/cart:
    socket_dir: s
    policy:
      limits: {memory: {ceiling: 256KiB}}
      enrich: {attributes: {b: '3', c: '4'}}
      destinations: {logs: [two, one], metrics: []}
",
    );
    let policy = &config.tenants[&TenantName::parse("shop/cart").expect("a name")].policy;
    assert_eq!(policy.limits.connections, 10);
    assert_eq!(policy.limits.memory, MemoryLimit { guarantee: 256 * 1024, ceiling: 256 * 1024 });
    assert_eq!(policy.limits.max_request_bytes, 256 * 1024);
    assert_eq!(policy.limits.disk, MemoryLimit { guarantee: 2 << 30, ceiling: 2 << 30 });
    assert_eq!(policy.ack, AckPolicy::Buffered);
    let attributes = [("a", "1"), ("b", "3"), ("c", "4")].map(|(key, value)| Attribute::new(key, value));
    assert_eq!(policy.enrich.attributes, attributes);
    let names = |signal| policy.routes(signal).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(Signal::Traces), ["one"]);
    assert_eq!(names(Signal::Metrics), Vec::<String>::new());
    assert_eq!(names(Signal::Logs), ["two", "one"]);
    assert_eq!(config.defaults.limits.memory.ceiling, 8 << 20, "the defaults stay as they are");
}

/// Scenario: OTLP/HTTP with an endpoint, with a path, with a trailing slash, and with a URL of its own for one signal.
/// Guarantees: the Collector's rule: `/v1/SIGNAL` is added to the endpoint, and a signal's own URL is taken as it is.
#[test]
fn http_urls_follow_the_collectors_rule() {
    let urls = |keys: &str| {
        let config = valid(&format!("destinations: {{b: {{protocol: http, {keys}}}}}"));
        match &config.destinations[&DestinationName("b".into())].kind {
            DestinationKind::Http { urls } => urls.each_ref().map(ToString::to_string),
            other => panic!("{other:?}"),
        }
    };
    let under = |base: &str| ["traces", "metrics", "logs"].map(|signal| format!("{base}/v1/{signal}"));
    assert_eq!(urls("endpoint: 'http://h:4318'"), under("http://h:4318"));
    assert_eq!(urls("endpoint: 'http://h:4318/'"), under("http://h:4318"));
    assert_eq!(urls("endpoint: 'https://h/otlp/'"), under("https://h/otlp"));
    assert_eq!(urls("endpoint: 'http://[::1]:4318'"), under("http://[::1]:4318"));
    let mut expected = under("http://h:4318");
    expected[1] = "https://m/write?tenant=1".to_owned();
    assert_eq!(urls("endpoint: 'http://h:4318', metrics_endpoint: 'https://m/write?tenant=1'"), expected);
}

/// Scenario: endpoints that cannot be dialled.
/// Guarantees: each is refused with its reason, and none of them is quoted, since an endpoint may hold a password.
#[test]
fn an_endpoint_that_cannot_be_dialled_is_refused() {
    for (protocol, endpoint, reason) in [
        ("grpc", "h:4317", "scheme is missing"),
        ("grpc", "unix:///run/s", "neither http nor https"),
        ("grpc", "http://", "host is missing"),
        ("grpc", "http:///path", "host is missing"),
        ("grpc", "http://h:", "port is not a number"),
        ("grpc", "http://h:0", "port is not a number"),
        ("grpc", "http://h:99999", "port is not a number"),
        ("grpc", "http://h h:1", "not a valid URL"),
        ("grpc", "http://h:4317/v1", "has no path"),
        ("grpc", "https://u:s3cret@h", "user names and passwords"),
        ("http", "https://h/x?key=s3cret", "has no query"),
    ] {
        let found = errors(&format!("destinations: {{b: {{protocol: {protocol}, endpoint: '{endpoint}'}}}}"));
        assert!(found.contains(reason), "{endpoint}: {found}");
        assert!(found.lines().count() == 1 && !found.contains("s3cret"), "{found}");
    }
}

/// Scenario: a header in each of its forms.
/// Guarantees: a file stays a reference, to be read again when it changes; a variable is put in; and no form of the value is shown
/// by Debug.
#[test]
fn headers_keep_files_as_references_and_are_never_shown() {
    let text = "destinations:
  b:
    protocol: grpc
    endpoint: https://h
    headers: {a: '${env:TOKEN}', b: '${file:t}', c: 'Bearer ${file:t}!', D: 'x $${file:t}'}
";
    let config = parse_with(text, &|name| (name == "TOKEN").then(|| "s3cret".to_owned())).expect("valid");
    let headers = &config.destinations[&DestinationName("b".into())].headers;
    let forms: Vec<_> = headers.iter().map(|header| (header.name.as_str(), &header.value)).collect();
    let [
        ("a", HeaderSource::Literal(a)),
        ("b", HeaderSource::File(b)),
        ("c", HeaderSource::Template { prefix, file, suffix }),
        ("d", HeaderSource::Literal(d)),
    ] = forms.as_slice()
    else {
        panic!("{headers:?}")
    };
    assert_eq!((a.as_str(), b.as_path(), d.as_str()), ("s3cret", Path::new("t"), "x ${file:t}"));
    assert_eq!((prefix.as_str(), file.as_path(), suffix.as_str()), ("Bearer ", Path::new("t"), "!"));
    assert!(!format!("{config:?}").contains("s3cret"));
}

/// Scenario: variables whose values are wrong where they are used.
/// Guarantees: the error quotes the reference, as the file has it, and never the value.
#[test]
fn an_error_quotes_the_reference_and_not_the_variables_value() {
    let env = |_: &str| Some("s3cret\n".to_owned());
    let text = "node: {memory_limit: '${env:A}', admin: '${env:A}'}
defaults: {ack: '${env:A}', queue: {max_age: '${env:A}'}, destinations: ['${env:A}']}
destinations: {b: {protocol: grpc, endpoint: '${env:A}', headers: {a: '${env:A}'}, allow: ['${env:A}']}}
tenants: {a/b: {socket_dir: s, uid: '${env:A}'}}
";
    let found = show(&parse_with(text, &env).expect_err("all wrong"));
    assert_eq!(found.lines().count(), 9, "{found}");
    assert!(!found.contains("s3cret"), "{found}");
}

/// Scenario: a text of more than 1 MiB, and one with thousands of mistakes.
/// Guarantees: both are refused within a bound: one error for the first, 200 for the second.
#[test]
fn a_huge_file_costs_a_bounded_amount() {
    assert!(errors(&" ".repeat(tree::BYTES_MAX + 1)).contains("larger than 1 MiB"));
    let many: String = (0..5_000).map(|number| format!("key{number}: 1\n")).collect();
    assert_eq!(parse(&many).expect_err("unknown keys").len(), 200);
}

/// Scenario: a file that is not there, and a directory in place of a file.
/// Guarantees: an error with the path, in the form of all others.
#[test]
fn a_file_that_cannot_be_read_is_an_error_with_its_path() {
    let missing = Config::load(Path::new("/nonexistent/pillion.yaml")).expect_err("not there");
    assert_eq!(show(&missing), "/nonexistent/pillion.yaml: there is no such file; check the path\n");
    let directory = Config::load(Path::new("/")).expect_err("a directory");
    assert!(show(&directory).starts_with("/: cannot be read: "), "{directory:?}");
}

const BACKEND: &str = "destinations: {b: {protocol: sink, allow: ['*']}}\ndefaults: {destinations: [b]}\n";

/// Scenario: for each check between sections, the smallest file that fails it.
/// Guarantees: exactly that error is reported, at the place that has to change.
#[test]
fn each_check_between_sections_reports_its_own_error() {
    for (text, expected) in [
        (
            "tenants: {a/b: {socket_dir: s}}\n".to_owned(),
            "test.yaml:1:11: tenants.a/b: has no destination; write destinations: [NAME] under defaults or under its policy\n",
        ),
        (
            "defaults: {destinations: [backent]}\ndestinations: {backend: {protocol: sink}}\n".to_owned(),
            "test.yaml:1:27: defaults.destinations[0]: no destination is called \"backent\"; did you mean backend? known: backend\n",
        ),
        (
            "defaults: {destinations: [b]}\ndestinations: {b: {protocol: sink, allow: [x]}}\ntenants: {a/b: {socket_dir: s}}\n"
                .to_owned(),
            "test.yaml:3:11: tenants.a/b: the destination b does not allow the namespace a; add it to destinations.b.allow, or \"*\" for all namespaces\n",
        ),
        (
            format!("{BACKEND}tenants:\n  a/b: {{socket_dir: ./x/s}}\n  a/c: {{socket_dir: x//./s/}}\n"),
            "test.yaml:5:3: tenants.a/c: has the same socket_dir as a/b; a tenant is known by its directory: give each its own\n",
        ),
        (
            format!("{BACKEND}tenants:\n  a/b: {{socket_dir: s, uid: 1-2}}\n  a/c: {{socket_dir: t, uid: 1-2}}\n"),
            "test.yaml:5:3: tenants.a/c: has the same uid as a/b; a uid belongs to one pod\n",
        ),
        (
            format!("{BACKEND}tenants:\n  a/b: {{socket_dir: s, ports: {{grpc: 4318}}}}\n"),
            "test.yaml:4:24: tenants.a/b.ports: grpc and http are both 4318; choose two ports\n",
        ),
        (
            format!("{BACKEND}node: {{custody_socket: /run/c}}\ntenants: {{a/b: {{socket_dir: s}}}}\n"),
            "test.yaml:4:1: tenants: with node.custody_socket the tenants are the pods that the CSI driver tells of, and nobody else's; remove it; what applies to every pod stands under defaults\n",
        ),
        (
            "node: {custody_socket: /run/c}\n".to_owned(),
            "test.yaml:1:24: node.custody_socket: pods have no destination; write destinations: [NAME] under defaults\n",
        ),
        (
            "defaults: {limits: {memory: 1MiB, max_request_bytes: 2MiB}}\n".to_owned(),
            "test.yaml:1:54: defaults.limits.max_request_bytes: \"2MiB\" is above limits.memory's ceiling of 1MiB; a request is held in memory until it is committed: lower it or raise the ceiling\n",
        ),
        (
            "defaults: {limits: {disk: {guarantee: 2GiB}}}\n".to_owned(),
            "test.yaml:1:21: defaults.limits.disk: guarantee 2GiB is above ceiling 1GiB; a guarantee is a part of the ceiling\n",
        ),
        (
            "destinations: {b: {protocol: grpc, endpoint: 'http://h:1', tls: {ca_file: ca.pem}}}\n".to_owned(),
            "test.yaml:1:60: destinations.b.tls: the endpoint is not https: nothing would be encrypted; write https:// or remove tls\n",
        ),
    ] {
        assert_eq!(errors(&text), expected);
    }
}

/// Scenario: a cluster's file; a path that no socket can have; pods of a namespace that one destination leaves out.
/// Guarantees: without tenants it is valid and not warned about; a pod has the defaults, but no destination that does not
/// allow its namespace, and which ones were left out is said.
#[test]
fn in_a_cluster_a_pod_has_the_defaults_and_only_the_destinations_that_allow_it() {
    let config = valid(
        "node: {custody_socket: /run/pillion/custody.sock}\n\
         defaults: {ack: buffered, destinations: {traces: [ours, all], logs: [ours]}}\n\
         destinations: {all: {protocol: sink, allow: ['*']}, ours: {protocol: sink, allow: [shop]}}\n",
    );
    assert_eq!(config.node.custody_socket.as_deref(), Some(Path::new("/run/pillion/custody.sock")));
    assert!(config.warnings().is_empty(), "{:?}", config.warnings());
    let of = |pod| config.policy_of_pod(&TenantName::parse(pod).expect("a name"));
    let (ours, all) = (DestinationName("ours".into()), DestinationName("all".into()));
    assert_eq!(of("shop/cart-0"), (config.defaults.clone(), vec![]));
    let (policy, left_out) = of("other/web");
    assert_eq!((policy.ack, left_out), (AckPolicy::Buffered, vec![ours]));
    assert_eq!(policy.destinations, [vec![all], vec![], vec![]]);

    let long = format!("{BACKEND}node: {{custody_socket: {}}}\n", "x".repeat(108));
    assert!(errors(&long).contains("node.custody_socket: 108 bytes are more than the 107"), "{}", errors(&long));
}

/// Scenario: the space that the filesystem is to keep is not given, as a share, and as a size, standalone and in a cluster.
/// Guarantees: what is given counts; else it is 512 MiB, or in a cluster 15 %, above the kubelet's eviction threshold.
#[test]
fn the_space_to_leave_free_depends_on_the_place() {
    let min_free = |node: &str| valid(&format!("node: {{{node}}}\n{BACKEND}")).node.min_free();
    assert_eq!(min_free("workers: 1"), MinFree::Bytes(512 << 20));
    assert_eq!(min_free("custody_socket: /run/pillion/custody.sock"), MinFree::Percent(15));
    assert_eq!(min_free("custody_socket: /run/pillion/custody.sock, min_free: 5%"), MinFree::Percent(5));
    assert_eq!(min_free("min_free: 1GiB"), MinFree::Bytes(1 << 30));
    assert_eq!(min_free("min_free: 0"), MinFree::Bytes(0));
}

/// Scenario: valid files that promise more than the node has, or serve nobody.
/// Guarantees: they are accepted, since guarantees shrink evenly, but not in silence.
#[test]
fn promises_above_the_node_are_warned_about() {
    assert_eq!(valid("").warnings(), ["tenants: there are none, so nothing will be received"]);
    let config = valid(&format!(
        "node: {{memory_limit: 1MiB, disk_limit: 2GiB}}\n{BACKEND}tenants:\n  a/b: {{socket_dir: s}}\n  a/c: {{socket_dir: t}}\n  a/d: {{socket_dir: u}}\n"
    ));
    let warnings = config.warnings();
    assert_eq!(
        warnings[0],
        "the tenants' memory guarantees add up to 1536KiB, above node.memory_limit of 1MiB: all of them shrink evenly"
    );
    assert_eq!(warnings[1], "tenants.a/b: its memory ceiling of 64MiB is above node.memory_limit of 1MiB");
    assert_eq!(warnings.len(), 4);
}

//! `pillion queue` on real data directories, with a gateway and without.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use pillion_proto::otlp::Message as _;
use pillion_proto::otlp::collector_trace::ExportTraceServiceRequest;
use pillion_proto::otlp::trace::{ResourceSpans, ScopeSpans, Span};
use rustix::process::Signal;
use serde_json::Value;

use crate::process::{Process, READY, free_ports, run};

/// A gateway with one tenant, in `data`.
fn start(dir: &Path, destination: &str) -> Process {
    let [admin] = free_ports();
    let text = format!(
        "node: {{data_dir: data, admin: '127.0.0.1:{admin}'}}
destinations: {{backend: {{{destination}, allow: ['*']}}}}
defaults: {{destinations: [backend]}}
tenants: {{shop/cart: {{socket_dir: cart}}}}
"
    );
    fs::write(dir.join("pillion.yaml"), text).expect("writable");
    let mut gateway = Process::start(dir, &["run", "--config", "pillion.yaml"]);
    gateway.wait_for(READY);
    gateway
}

/// Scenario: a directory that was open to everybody is used, killed, checked, damaged and checked again, while and after a
/// gateway uses it.
/// Guarantees: it is closed to others, its admin socket is the owner's and goes with an orderly end; verify refuses a directory
/// in use with status 4, says that a good one is intact with status 0 and names damage with status 10, in words and as JSON.
#[test]
fn a_data_directory_is_checked() {
    let dir = tempfile::tempdir().expect("writable");
    let data = dir.path().join("data");
    fs::create_dir(&data).expect("writable");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).expect("its owner may");
    let mut gateway = start(dir.path(), "protocol: sink");
    assert_eq!(fs::metadata(&data).expect("it is there").permissions().mode() & 0o7777, 0o750);
    let socket = data.join("admin.sock");
    let kind = fs::metadata(&socket).expect("the gateway listens");
    assert!(kind.file_type().is_socket() && kind.permissions().mode() & 0o777 == 0o600);

    let (status, _, stderr) = run(dir.path(), &["queue", "verify", "data"]);
    assert_eq!(status, Some(4));
    assert!(stderr.contains("is in use by process"), "{stderr}");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.exit_code(), Some(0));
    assert!(!socket.exists());

    let (status, stdout, _) = run(dir.path(), &["queue", "verify", "data"]);
    assert!(status == Some(0) && stdout.contains("intact: every checksum is right"), "{stdout}");
    let mut segments = fs::read_dir(data.join("log")).expect("it lists").map(|entry| entry.expect("an entry").path());
    let segment = segments.find(|path| path.extension().is_some_and(|end| end == "seg")).expect("a segment");
    let mut bytes = fs::read(&segment).expect("it reads");
    bytes[120] ^= 1;
    fs::write(&segment, bytes).expect("it writes");
    let (status, stdout, _) = run(dir.path(), &["queue", "verify", "-o", "json", "data"]);
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert!(status == Some(10) && report["intact"] == false && report["damages"] == 1, "{stdout}");
    let (status, _, stderr) = run(dir.path(), &["queue", "verify", "nowhere"]);
    assert!(status == Some(5) && stderr.contains("nowhere"), "{stderr}");
}

/// A backend over HTTP that refuses requests with the word `poison` in them while it is strict.
struct Backend {
    address: SocketAddr,
    strict: Arc<AtomicBool>,
    /// One for each request that was accepted.
    accepted: Receiver<()>,
}

impl Backend {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let strict = Arc::new(AtomicBool::new(true));
        let shared = strict.clone();
        // Larger than anything a test sends.
        let (sender, accepted) = sync_channel(1_000);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (strict, sender) = (shared.clone(), sender.clone());
                std::thread::spawn(move || answer(stream, &strict, &sender));
            }
        });
        Self { address, strict, accepted }
    }

    fn destination(&self) -> String {
        format!("protocol: http, endpoint: 'http://{}'", self.address)
    }
}

/// Requests of one connection, until its end.
fn answer(stream: TcpStream, strict: &AtomicBool, accepted: &SyncSender<()>) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end().to_ascii_lowercase().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().ok()?,
                _ if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let poisoned = body.windows(6).any(|window| window == b"poison");
        let (status, words) = match poisoned && strict.load(Ordering::SeqCst) {
            true => ("400 Bad Request", "no such field"),
            false => ("200 OK", ""),
        };
        let kind = if words.is_empty() { "application/x-protobuf" } else { "text/plain" };
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{words}", words.len());
        writer.write_all(head.as_bytes()).ok()?;
        if words.is_empty() {
            accepted.send(()).ok()?;
        }
    }
}

/// Sends one span and waits until it is acknowledged.
fn send(dir: &Path, name: &str) {
    let spans = vec![Span { name: name.to_owned(), trace_id: vec![7; 16], span_id: vec![7; 8], ..Span::default() }];
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
    let mut stream = UnixStream::connect(dir.join("cart/otlp")).expect("the gateway listens");
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/x-protobuf\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), &body].concat()).expect("it reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers");
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
}

/// `pillion queue` with these words, which must end well: stdout.
fn queue(dir: &Path, words: &str) -> String {
    let args: Vec<_> = ["queue"].into_iter().chain(words.split(' ')).chain(["--data-dir", "data"]).collect();
    let (status, stdout, stderr) = run(dir, &args);
    assert_eq!(status, Some(0), "{words}: {stderr}");
    stdout
}

/// Ids of the dead letters that `inspect` shows, with their data.
fn letters(dir: &Path) -> Vec<(String, Value)> {
    let text = queue(dir, "inspect -o json");
    let values = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    values.map(|value| (value["id"].as_str().expect("an id").to_owned(), value)).collect()
}

/// Scenario: a backend refuses two requests of many with 400. They are listed, shown, exported and replayed in vain while the
/// gateway runs; then it is stopped, one is purged and one marked to be replayed, the directory is verified, and the gateway
/// is started with a backend that has become lenient.
/// Guarantees: every tool says the same of a gateway that runs and of a directory at rest; what is refused again stays, what is
/// accepted goes, what is purged is never sent; mistakes are explained with their own status.
#[test]
fn dead_letters_are_shown_replayed_and_purged() {
    let dir = tempfile::tempdir().expect("writable");
    let dir = dir.path();
    let backend = Backend::start();
    let mut gateway = start(dir, &backend.destination());
    // Each in a request of its own: a destination that refuses most of what it gets would be at fault itself.
    for name in ["good-1", "good-2", "good-3", "poison-1", "poison-2", "good-4", "good-5", "good-6"] {
        send(dir, name);
        if name.starts_with("good") {
            backend.accepted.recv_timeout(Duration::from_secs(60)).expect("it arrives");
        }
    }
    gateway.wait_for("kept as a dead letter");
    gateway.wait_for("kept as a dead letter");

    let all = letters(dir);
    let name_of = |value: &Value| value["data"]["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"].to_string();
    let mut names: Vec<_> = all.iter().map(|(_, value)| name_of(value)).collect();
    names.sort();
    assert_eq!(names, ["\"poison-1\"", "\"poison-2\""]);
    assert!(
        all.iter().all(|(_, value)| value["status"] == "HTTP 400" && value["attempts"].as_u64() >= Some(2)),
        "{all:?}"
    );
    let text = queue(dir, "inspect --reason field");
    for part in ["of shop/cart", "refused by backend", "HTTP 400", "no such field", "span \"poison-2\""] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let list: Value = serde_json::from_str(&queue(dir, "ls -o json")).expect("JSON");
    assert_eq!(
        (&list["dead_letters"][0]["letters"], &list["tenants"][0]["dead_letters"]),
        (&2.into(), &2.into()),
        "{list}"
    );
    assert!(queue(dir, "ls").contains("shop/cart"));
    queue(dir, "export --to letters");
    let exported = fs::read_to_string(dir.join("letters/traces.jsonl")).expect("it was written");
    let lines: Vec<ExportTraceServiceRequest> =
        exported.lines().map(|line| serde_json::from_str(line).expect("OTLP/JSON")).collect();
    assert!(lines.iter().all(|line| line.resource_spans[0].scope_spans[0].spans[0].name.starts_with("poison-")));
    assert_eq!(lines.len(), 2);

    assert!(queue(dir, "replay --destination backend").contains("2 dead letters with 2 items"));
    gateway.wait_for("was refused again and stays one");
    gateway.wait_for("was refused again and stays one");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.exit_code(), Some(0));

    assert_eq!(letters(dir).len(), 2);
    let (first, second) = (&all[0].0, &all[1].0);
    let (status, _, stderr) = run(dir, &["queue", "purge", "--data-dir", "data", "--all"]);
    assert!(status == Some(2) && stderr.contains("--yes"), "{stderr}");
    let (status, _, stderr) = run(dir, &["queue", "purge", "--data-dir", "data"]);
    assert!(status == Some(2) && stderr.contains("purge what?"), "{stderr}");
    let (status, _, stderr) = run(dir, &["queue", "inspect", "--data-dir", "data", "1-1"]);
    assert!(status == Some(1) && stderr.contains("there is no dead letter 1-1"), "{stderr}");
    assert!(queue(dir, &format!("purge {first} --dry-run")).contains("1 dead letters with 1 items"));
    queue(dir, &format!("purge {first} --yes"));
    assert!(queue(dir, &format!("replay {second}")).contains("after the gateway's next start"));
    let (status, stdout, _) = run(dir, &["queue", "verify", "data"]);
    assert!(status == Some(0) && stdout.contains("2 dead letters"), "{stdout}");

    backend.strict.store(false, Ordering::SeqCst);
    let mut gateway = start(dir, &backend.destination());
    gateway.wait_for("a dead letter was accepted when it was sent again");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.exit_code(), Some(0));
    assert_eq!(gateway.output().matches("a dead letter was accepted").count(), 1, "the purged one is never sent");
    assert_eq!(letters(dir), []);
    assert!(queue(dir, "ls").contains("no dead letters"));
}

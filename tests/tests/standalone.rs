//! The quickstart, as a newcomer runs it: one command, no configuration, not root.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use pillion_tests::gateway::{directory, free_address, get, kill};
use pillion_tests::lines::Lines;
use rustix::process::Signal;

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");

struct Standalone {
    child: Child,
    said: Lines,
}

impl Drop for Standalone {
    fn drop(&mut self) {
        // Already gone is what is wanted. Its shim ends by itself, a minute after it.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[derive(Clone, Copy)]
struct Addresses {
    grpc: SocketAddr,
    http: SocketAddr,
    admin: SocketAddr,
}

impl Addresses {
    fn free() -> Self {
        Self { grpc: free_address(), http: free_address(), admin: free_address() }
    }
}

fn start(dir: &Path, addresses: Addresses) -> Standalone {
    let mut child = Command::new(NODE)
        .args(["standalone", "--grpc", &addresses.grpc.to_string(), "--http", &addresses.http.to_string()])
        .args(["--admin", &addresses.admin.to_string(), "--data-dir"])
        .arg(dir.join("data"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the command under test starts");
    let said = Lines::of(child.stdout.take().expect("piped"));
    said.wait_for(&addresses.http.port().to_string());
    Standalone { child, said }
}

fn send(addresses: Addresses, count: u32) {
    let endpoint = format!("http://{}", addresses.http);
    let output = Command::new(NODE)
        .args(["send", "--endpoint", &endpoint, "--count", &count.to_string()])
        .output()
        .expect("the command under test starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Spans, data points and log records that the sink has counted, once there are `expected` of each.
fn counted(addresses: Addresses, expected: u64) -> serde_json::Value {
    loop {
        let (status, body) = get(addresses.admin, "/sink").expect("the admin server answers");
        assert_eq!(status, 200, "{body}");
        let value: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        let totals = ["traces", "metrics", "logs"].map(|signal| value["totals"][signal].as_u64().expect("a count"));
        assert!(totals.iter().all(|total| *total <= expected), "counted more than was sent: {body}");
        if totals == [expected; 3] {
            return value;
        }
        std::thread::yield_now();
    }
}

/// Scenario: start, send, look; kill -9 of everything but the shim, start again, send again; Ctrl-C.
/// Guarantees: what was acknowledged is counted exactly once, whatever died; the shim is adopted; Ctrl-C says what
/// became of the data and leaves no process behind.
#[test]
fn a_newcomer_sees_everything_once_even_after_kill_9() {
    let (dir, addresses) = (directory(), Addresses::free());
    let mut first = start(dir.path(), addresses);
    send(addresses, 20);
    counted(addresses, 20);
    let page = get(addresses.admin, "/").expect("the page");
    assert!(page.0 == 200 && page.1.contains("<html"), "{page:?}");

    kill(first.child.id(), Signal::KILL);
    first.child.wait().expect("a child can be waited for");
    let mut second = start(dir.path(), addresses);
    counted(addresses, 20);
    send(addresses, 5);
    counted(addresses, 25);

    kill(second.child.id(), Signal::INT);
    let status = second.child.wait().expect("a child can be waited for");
    assert!(status.success(), "{status}: {}", second.said.all());
    second.said.wait_for("received");
    let refused = std::net::TcpStream::connect(addresses.http).expect_err("the shim ended with it");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// Scenario: a port is held by somebody else.
/// Guarantees: the message names the port, who holds it, and a command that works; the exit status says so.
#[test]
fn a_taken_port_is_explained() {
    let (dir, mut addresses) = (directory(), Addresses::free());
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    addresses.grpc = holder.local_addr().unwrap();
    let output = Command::new(NODE)
        .args(["standalone", "--grpc", &addresses.grpc.to_string(), "--http", &addresses.http.to_string()])
        .args(["--admin", &addresses.admin.to_string(), "--data-dir"])
        .arg(dir.path().join("data"))
        .output()
        .expect("the command under test starts");
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{words}");
    for part in [addresses.grpc.port().to_string(), std::process::id().to_string(), " standalone --data-dir ".into()] {
        assert!(words.contains(&part), "{part:?} is not in: {words}");
    }
}

//! A gateway, a shim on free ports of this host, and two sinks: one behind the gateway, one that clients reach directly.
//! What the second one got is what was sent; what the first one got is what arrived.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pillion_loadtest::sink::{Keep, Sink};

use crate::compare;
use crate::gateway::{Gateway, directory, free_address};

/// How long a test waits for what should be there in milliseconds.
const PATIENCE: Duration = Duration::from_secs(300);

/// All of it. Ends when dropped.
#[derive(Debug)]
pub struct Station {
    /// The gateway under test.
    pub gateway: Gateway,
    /// Behind the gateway.
    pub arrived: Sink,
    /// Reached directly.
    pub sent: Sink,
    /// The pod's gRPC port.
    pub grpc: SocketAddr,
    /// The pod's HTTP port.
    pub http: SocketAddr,
    shim: Child,
    dir: tempfile::TempDir,
}

impl Station {
    /// `node` is the command under test; `destination` is the destination's configuration, with `SINK` for its address.
    pub fn start(node: &str, destination: &str) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let arrived = Sink::start(any, Keep::Payloads).expect("a free port");
        let sent = Sink::start(any, Keep::Payloads).expect("a free port");
        let dir = directory();
        let (grpc, http) = (free_address(), free_address());
        let config = format!(
            "node:
  data_dir: DIR/data
  admin: ADMIN
  name: node-7
defaults: {{destinations: [backend]}}
destinations:
  backend: {}
tenants:
  shop/cart: {{socket_dir: DIR/cart, uid: 11111111-aaaa-bbbb-cccc-000000000001, ports: {{grpc: {}, http: {}}}}}
",
            destination.replace("SINK", &arrived.address().to_string()),
            grpc.port(),
            http.port(),
        );
        let gateway = Gateway::start(node, dir.path(), &config);
        let socket_dir = dir.path().join("cart");
        let ports = ["--grpc".to_owned(), grpc.port().to_string(), "--http".to_owned(), http.port().to_string()];
        let shim = Command::new(node)
            .args(["shim", "run", "--dir"])
            .arg(&socket_dir)
            .args(&ports)
            .stdin(Stdio::null())
            .spawn()
            .expect("the command under test starts");
        let wait = Command::new(node).args(["shim", "wait", "--dir"]).arg(&socket_dir).args(&ports).status();
        assert!(wait.is_ok_and(|status| status.success()), "the ports must be bound\n{}", gateway.explain());
        Self { gateway, arrived, sent, grpc, http, shim, dir }
    }

    /// The test's directory.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Waits until every item that was sent has arrived, then checks that nothing else did and that each resource says
    /// whose it is. Returns the numbers of spans, metrics and log records.
    ///
    /// # Panics
    /// When that is not so.
    pub fn check(&self) -> [u32; 3] {
        let sent = compare::items(&self.sent.payloads());
        let arrived = self.arrived.wait_until(PATIENCE, |_, requests| compare::items(requests).len() >= sent.len());
        assert!(arrived, "not everything arrived\n{}", self.gateway.explain());
        let requests = self.arrived.payloads();
        assert!(compare::items(&requests) == sent, "what arrived is not what was sent\n{}", self.gateway.explain());
        let expected = ["shop", "cart", "11111111-aaaa-bbbb-cccc-000000000001", "node-7"];
        for (key, value) in compare::ADDED.iter().zip(expected) {
            assert_eq!(compare::values(&requests, key), [value], "{key}");
        }
        ["span", "metric", "log"].map(|signal| compare::count(&sent, signal))
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        // Already gone is what is wanted.
        drop(self.shim.kill());
        drop(self.shim.wait());
    }
}

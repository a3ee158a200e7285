//! A gateway, a shim on free ports of this host, and two sinks: one behind the gateway, one that clients reach directly.
//! What the second one got is what was sent; what the first one got is what arrived.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use pillion_loadtest::sink::{Keep, Sink};

use crate::compare;
use crate::gateway::{Gateway, below, directory};
use crate::shim::{Ports, Shim};

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
    /// The pod's.
    pub ports: Ports,
    _shim: Shim,
    dir: tempfile::TempDir,
}

impl Station {
    /// `node` is the command under test; `destination` is the destination's configuration, with `SINK` for its address.
    pub fn start(node: &str, destination: &str) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let arrived = Sink::start(any, Keep::Payloads).expect("a free port");
        let sent = Sink::start(any, Keep::Payloads).expect("a free port");
        let dir = directory();
        let ports = Ports::free();
        let gateway = Gateway::start(node, dir.path(), &config(destination, arrived.address(), ports));
        let shim = Shim::start(node, &below(&dir, "cart"), ports);
        Self { gateway, arrived, sent, ports, _shim: shim, dir }
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

/// Of a gateway with one tenant, whose pod has these ports, and one destination, configured as said, with `SINK` for the address.
pub fn config(destination: &str, sink: SocketAddr, ports: Ports) -> String {
    format!(
        "node:
  data_dir: DIR/data
  admin: ADMIN
  name: node-7
defaults: {{destinations: [backend]}}
destinations:
  backend: {}
tenants:
  shop/cart: {{socket_dir: DIR/cart, uid: 11111111-aaaa-bbbb-cccc-000000000001, {}}}
",
        destination.replace("SINK", &sink.to_string()),
        ports.config(),
    )
}

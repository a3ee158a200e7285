//! One pod that sends through one gateway to one sink: the smallest whole.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use pillion_loadtest::sink::{Fault, Keep, Sink};

use crate::gateway::{Gateway, below, directory};
use crate::pod::{Pod, Report, Spec};

/// How long a test waits for what should be there in milliseconds.
const PATIENCE: Duration = Duration::from_secs(300);

/// What differs between tests.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    /// The `pillion` program.
    pub node: &'a str,
    /// The `pillion-pod` program.
    pub pod: &'a str,
    /// The tenant's `ack`.
    pub ack: &'a str,
    /// More keys of the destination, such as `retry_on_failure: {...}`.
    pub destination: &'a str,
    /// What the sink does from its start on.
    pub fault: Fault,
    /// The shim's `--mode`.
    pub mode: &'a str,
    /// Clients in the pod.
    pub clients: usize,
    /// As in [`Spec::descriptors_max`].
    pub descriptors_max: Option<u32>,
}

impl<'a> Setup<'a> {
    /// Acknowledgements are durable, the sink takes everything, the shim donates, four clients send.
    pub fn new(node: &'a str, pod: &'a str) -> Self {
        Self {
            node,
            pod,
            ack: "durable",
            destination: "compression: none",
            fault: Fault::None,
            mode: "donate",
            clients: 4,
            descriptors_max: None,
        }
    }
}

/// All of it; the tenant is `shop/cart`.
#[derive(Debug)]
pub struct OnePod {
    /// The gateway.
    pub gateway: Gateway,
    /// Behind it.
    pub sink: Sink,
    /// Before it, sending.
    pub pod: Pod,
    /// Where the gateway keeps what it keeps.
    pub dir: tempfile::TempDir,
}

impl OnePod {
    /// Returns when the gateway serves and the pod has been started.
    pub fn start(setup: &Setup<'_>) -> Self {
        let dir = directory();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let sink = Sink::start(any, Keep::TraceIds("k8s.pod.name".into())).expect("a free port");
        sink.fail_with(setup.fault);
        let config = format!(
            "node:
  data_dir: DIR/data
  admin: ADMIN
defaults: {{destinations: [backend], ack: {}}}
destinations:
  backend: {{allow: [\"*\"], protocol: grpc, endpoint: \"http://{}\", {}}}
tenants:
  shop/cart: {{socket_dir: DIR/cart}}
",
            setup.ack,
            sink.address(),
            setup.destination
        );
        let gateway = Gateway::start(setup.node, dir.path(), &config);
        let pod = Pod::start(&Spec {
            program: setup.pod,
            node: setup.node,
            socket_dir: &below(&dir, "cart"),
            mode: setup.mode,
            service: "cart",
            number: 1,
            clients: setup.clients,
            descriptors_max: setup.descriptors_max,
        });
        Self { gateway, sink, pod, dir }
    }
}

/// Waits until everything that was acknowledged has arrived.
///
/// # Panics
/// When it does not.
pub fn everything_arrives(sink: &Sink, report: &Report, gateway: &Gateway) {
    let arrived = sink.wait_until(PATIENCE, |ids, _| report.acked.iter().all(|id| ids.contains_key(id)));
    assert!(arrived, "{} of {} arrived\n{}", sink.distinct(), report.acked.len(), gateway.explain());
}

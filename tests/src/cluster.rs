//! A node of a cluster without the cluster: a CSI driver, gateways, and pods that a kubelet has published, before one sink.
//! What follows is the same for every story: no connection was refused, and what was acknowledged has arrived.

use std::collections::HashSet;
use std::time::Duration;

use pillion_loadtest::sink::{Keep, Sink};

use crate::csi::{Driver, Paths};
use crate::gateway::{Gateway, directory};
use crate::kubelet::{Kubelet, Volume};
use crate::pod::{self, Report, Spec};

/// What the worker logs when the driver's list is complete.
const LISTED: &str = "the CSI driver has told every volume";

const PATIENCE: Duration = Duration::from_secs(300);

/// The commands under test.
#[derive(Debug, Clone, Copy)]
pub struct Programs {
    /// `pillion`
    pub node: &'static str,
    /// `pillion-pod`
    pub pod: &'static str,
}

/// All of it but the pods. Ends when dropped.
#[derive(Debug)]
pub struct Cluster {
    programs: Programs,
    /// The node's gateway; replaced in a rollout.
    pub gateway: Gateway,
    /// The CSI driver; `None` while it is away.
    driver: Option<Driver>,
    /// Publishes and unpublishes.
    pub kubelet: Kubelet,
    /// Where everything is.
    pub paths: Paths,
    /// Behind the gateway; keeps the ids of spans by `k8s.pod.uid`.
    pub sink: Sink,
    gateways: usize,
    dir: tempfile::TempDir,
}

/// A pod with its volume.
#[derive(Debug)]
pub struct Pod {
    /// The inside.
    pub inside: pod::Pod,
    /// As it was published.
    pub volume: Volume,
}

impl Cluster {
    /// Driver first, as in a real rollout; returns when the gateway knows that there are no pods.
    pub fn start(programs: Programs) -> Self {
        let dir = directory();
        let paths = Paths::below(dir.path());
        let kubelet = Kubelet::new(&paths.kubelet());
        let driver = Driver::start(programs.node, &paths);
        driver.register(&kubelet);
        let sink = Sink::start("127.0.0.1:0".parse().expect("an address"), Keep::TraceIds("k8s.pod.uid".into()));
        let sink = sink.expect("a free port");
        let gateway = Gateway::spawn(programs.node, dir.path(), "gateway-0.yaml", &config(&paths, &sink));
        gateway.wait_for_line(LISTED);
        Self { programs, gateway, driver: Some(driver), kubelet, paths, sink, gateways: 1, dir }
    }

    /// Another gateway of the same node.
    pub fn another_gateway(&mut self) -> Gateway {
        self.gateways += 1;
        let file = format!("gateway-{}.yaml", self.gateways);
        Gateway::spawn(self.programs.node, self.dir.path(), &file, &config(&self.paths, &self.sink))
    }

    /// The next complete list of a gateway.
    pub fn wait_until_listed(&self) {
        self.gateway.wait_for_line(LISTED);
    }

    /// kill -9 of the driver.
    pub fn kill_driver(&mut self) {
        self.driver.take().expect("it runs").kill();
    }

    /// Starts the driver again.
    pub fn start_driver(&mut self) {
        let driver = Driver::start(self.programs.node, &self.paths);
        driver.register(&self.kubelet);
        self.driver = Some(driver);
    }

    /// The driver's pid.
    pub fn driver_pid(&self) -> u32 {
        self.driver.as_ref().map(Driver::pid).expect("it runs")
    }

    /// What the driver logged.
    pub fn driver_log(&self) -> String {
        self.driver.as_ref().map(Driver::log).unwrap_or_default()
    }

    /// Publishes a volume for `shop/NAME`, waits until the gateway serves it, and starts a pod on it.
    pub fn pod(&self, name: &str, number: u16, clients: usize) -> Pod {
        let volume = self.publish(name, number);
        self.gateway.wait_for_line("a pod is served");
        let inside = self.inside(&volume, number, clients);
        Pod { inside, volume }
    }

    /// Publishes a volume for `shop/NAME`; `number` makes the uid.
    pub fn publish(&self, name: &str, number: u16) -> Volume {
        let volume = Volume::of(&format!("11111111-aaaa-bbbb-cccc-{number:012}"), "shop", name);
        self.kubelet.publish(&self.paths.endpoint(), &volume).expect("the driver publishes");
        volume
    }

    /// What the kubelet does when a pod is gone.
    pub fn unpublish(&self, volume: &Volume) {
        self.kubelet.unpublish(&self.paths.endpoint(), volume).expect("the driver unpublishes");
    }

    /// A pod's processes.
    pub fn inside(&self, volume: &Volume, number: u16, clients: usize) -> pod::Pod {
        pod::Pod::start(&Spec {
            program: self.programs.pod,
            node: self.programs.node,
            socket_dir: &volume.mount(self.kubelet.dir()),
            mode: "donate",
            service: &volume.pod,
            number,
            clients,
            descriptors_max: None,
        })
    }

    /// Checks what a stopped pod saw: no connect() failed, nothing was refused, and everything acknowledged arrives under the
    /// pod's own uid.
    pub fn check(&self, volume: &Volume, report: &Report) {
        let name = &volume.pod;
        let explain = || format!("{}\ndriver:\n{}", self.gateway.explain(), self.driver_log());
        assert_eq!(report.connect_failed, 0, "{name}: {:?}\n{}", report.examples, explain());
        assert!(report.refused.is_empty(), "{name}: {:?}\n{}", report.refused, explain());
        assert!(report.acked.len() as u64 > 5 * pod::PROGRESS, "{name}: the load must have been real: {report:?}");
        let acked: HashSet<u64> = report.acked.iter().copied().collect();
        let arrived = self.sink.wait_until(PATIENCE, |ids, _| acked.iter().all(|id| ids.contains_key(id)));
        let ids = self.sink.ids();
        let missing = acked.iter().filter(|id| !ids.contains_key(id)).count();
        assert!(arrived, "{name}: {missing} of {} acknowledged spans are missing\n{}", acked.len(), explain());
        let wrong = acked.iter().filter(|id| ids[id].owner != volume.uid || ids[id].disputed).count();
        assert_eq!(wrong, 0, "{wrong} spans of {name} arrived under another pod's uid");
        let unanswered = report.unanswered;
        println!("{name}: {} spans acknowledged, {unanswered} requests unanswered", acked.len());
    }
}

fn config(paths: &Paths, sink: &Sink) -> String {
    format!(
        "node:
  data_dir: {}
  admin: ADMIN
  name: node-7
  # However full the disk of whoever runs the tests is.
  min_free: 1MiB
  custody_socket: {}
defaults:
  destinations: [backend]
  limits: {{bytes_per_second: 1GiB, requests_per_second: 1000000}}
destinations:
  backend: {{allow: [\"*\"], protocol: grpc, endpoint: \"http://{}\"}}
",
        paths.data().display(),
        paths.custody().display(),
        sink.address()
    )
}

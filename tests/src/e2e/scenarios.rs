//! What must be true on a real cluster, one scenario for each group of guarantees.

mod attach;
mod driver;
mod identity;
mod privileges;
mod restarts;
mod sandbox;
mod short_lived;

use anyhow::Result;

use super::suite::Suite;

/// One of them. It leaves its pods to be removed by the suite, which then looks whether anything is left on the node.
#[derive(Debug)]
pub struct Scenario {
    /// For the command line.
    pub name: &'static str,
    /// What is done.
    pub what: &'static str,
    /// Hooks that it cannot do without.
    pub needs: &'static [Need],
    /// Does it.
    pub run: fn(&Suite) -> Result<()>,
}

/// A hook of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A shell on the node.
    Node,
    /// Restarting the kubelet.
    RestartKubelet,
    /// Restarting the node.
    Reboot,
}

impl Need {
    /// Its option.
    pub fn option(self) -> &'static str {
        match self {
            Self::Node => "--node",
            Self::RestartKubelet => "--restart-kubelet",
            Self::Reboot => "--reboot",
        }
    }
}

/// In the order in which they run.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "identity",
        what: "a real SDK sends all signals to localhost; two pods claim to be it",
        needs: &[],
        run: identity::run,
    },
    Scenario {
        name: "privileges",
        what: "what the containers may do, as the kernel sees it; a pod that wants more is refused",
        needs: &[Need::Node],
        run: privileges::run,
    },
    Scenario {
        name: "names",
        what: "the image FROM scratch resolves names by DNS and by the pod's hosts file",
        needs: &[],
        run: privileges::names,
    },
    Scenario {
        name: "short-lived",
        what: "the last span of a Job, and one of an init container",
        needs: &[],
        run: short_lived::run,
    },
    Scenario {
        name: "driver-absent",
        what: "a pod is created while the driver is away, and one with a volume that is writable",
        needs: &[],
        run: driver::run,
    },
    Scenario {
        name: "worker-killed",
        what: "kill -9 of the gateway's worker, ten times in a row, under load",
        needs: &[Need::Node],
        run: restarts::worker_killed,
    },
    Scenario {
        name: "gateway-rollout",
        what: "rollout restart of the gateway under load",
        needs: &[],
        run: restarts::gateway_rollout,
    },
    Scenario {
        name: "csi-restart",
        what: "kill -9 of the driver, then a new pod of it, under load",
        needs: &[Need::Node],
        run: restarts::csi_restart,
    },
    Scenario {
        name: "kubelet-restart",
        what: "the kubelet restarts three times under load",
        needs: &[Need::RestartKubelet],
        run: restarts::kubelet_restart,
    },
    Scenario {
        name: "both-rollout",
        what: "rollout restart of gateway and driver at once, under load",
        needs: &[],
        run: restarts::both_rollout,
    },
    Scenario {
        name: "shim-killed",
        what: "kill -9 of the shim under load",
        needs: &[Need::Node],
        run: sandbox::shim_killed,
    },
    Scenario {
        name: "sandbox",
        what: "the pod's sandbox dies under load and is made again",
        needs: &[Need::Node],
        run: sandbox::recreated,
    },
    Scenario {
        name: "force-deleted",
        what: "a pod under load is deleted by force",
        needs: &[],
        run: sandbox::force_deleted,
    },
    Scenario { name: "reboot", what: "the node restarts under load", needs: &[Need::Reboot], run: restarts::reboot },
    Scenario {
        name: "attach",
        what: "40 pods at once, compared with 40 that have a native sidecar that does nothing, two rounds each",
        needs: &[],
        run: attach::run,
    },
];

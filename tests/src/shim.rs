//! A pod's shim on free ports of this host: what a pod is without a network namespace of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::gateway::free_address;

/// Where the pod's applications send to. The tenant's configuration must name them.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// gRPC's.
    pub grpc: SocketAddr,
    /// HTTP's.
    pub http: SocketAddr,
}

impl Ports {
    /// Free ones.
    pub fn free() -> Self {
        Self { grpc: free_address(), http: free_address() }
    }

    /// As the tenant's configuration names them.
    pub fn config(&self) -> String {
        format!("ports: {{grpc: {}, http: {}}}", self.grpc.port(), self.http.port())
    }
}

/// A running shim. Killed when dropped.
#[derive(Debug)]
pub struct Shim(Child);

impl Shim {
    /// Returns when the ports are bound.
    ///
    /// # Panics
    /// When they are not.
    pub fn start(node: &str, socket_dir: &Path, ports: Ports) -> Self {
        let command = |verb| {
            let mut command = Command::new(node);
            command.args(["shim", verb, "--dir"]).arg(socket_dir);
            command.args(["--grpc", &ports.grpc.port().to_string(), "--http", &ports.http.port().to_string()]);
            // What it says of a gateway that is gone is not news here.
            command.stdin(Stdio::null()).stderr(Stdio::null());
            command
        };
        let shim = Self(command("run").spawn().expect("the command under test starts"));
        let bound = command("wait").status();
        assert!(bound.is_ok_and(|status| status.success()), "the ports must be bound: {ports:?}");
        shim
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // Already gone is what is wanted.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

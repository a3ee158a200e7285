//! Control sockets, sessions with shims, custody of donated listeners, and the threads that accept.
//!
//! It hands accepted connections to [`crate::tenant::Handle::offer`] and knows nothing of OTLP.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::Ports;
use crate::tenant;

/// The control plane's part that talks to shims. Runs on the control runtime and on the acceptor threads.
#[derive(Debug)]
pub struct Lifecycle {
    _todo: (),
}

/// A tenant to serve.
#[derive(Debug)]
pub struct Site {
    /// Whose it is.
    pub tenant: Arc<tenant::Handle>,
    /// `ctl` and `otlp` are made here, 0666 in a directory of mode 0755.
    pub socket_dir: PathBuf,
    /// What WELCOME tells the shim to offer; a donation of another port is refused.
    pub ports: Ports,
}

/// What one tenant's sockets are doing, for /tenants.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct SiteSnapshot {
    /// Whether a shim is connected.
    pub shim_connected: bool,
    /// `donate`, `relay`, or empty before a shim connected.
    pub mode: String,
    /// Addresses of the listeners in custody.
    pub listeners: Vec<String>,
    /// Donations refused since the start, the latest reason.
    pub refused_donations: u64,
    /// The latest refusal in words.
    pub last_refusal: Option<String>,
}

/// Why the lifecycle cannot start or serve a site.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}: {source}")]
pub struct LifecycleError {
    /// For example `binding`.
    pub action: &'static str,
    /// Of the socket or directory.
    pub path: PathBuf,
    /// The cause.
    pub source: std::io::Error,
}

impl Lifecycle {
    /// Starts the acceptor threads. Must be called on the control runtime.
    pub fn start() -> Result<Arc<Self>, LifecycleError> {
        todo!()
    }

    /// Makes the sockets of a tenant and serves them.
    pub fn add(self: &Arc<Self>, site: Site) -> Result<(), LifecycleError> {
        let _ = site;
        todo!()
    }

    /// Present state of a tenant's sockets.
    pub fn snapshot(&self, tenant: &crate::base::TenantName) -> Option<SiteSnapshot> {
        let _ = tenant;
        todo!()
    }

    /// Stage one of shutdown: deregister every listener, close the copies (the shims hold them), say HANDOFF.
    pub async fn hand_off(&self) {
        todo!()
    }
}

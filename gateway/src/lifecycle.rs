//! Control sockets, sessions with shims, custody of donated listeners, and the threads that accept.
//!
//! It hands accepted connections to [`crate::tenant::Handle::offer`] and knows nothing of OTLP.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::base::TenantName;
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
    /// Which network namespaces its listeners may come from.
    pub namespace: NamespaceRule,
    /// How long the listeners stay open after a shim has gone without BYE. `None`: until [`Lifecycle::remove`], for a
    /// site whose end somebody announces (csi's unpublish).
    pub orphan_grace: Option<Duration>,
}

impl Site {
    /// [`Site::orphan_grace`] where nobody announces the end of a pod.
    pub const ORPHAN_GRACE: Duration = Duration::from_secs(5);
}

/// Which network namespaces a site's listeners may come from (threat-model row 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamespaceRule {
    /// One of its own, shared with no other site, not the gateway's and not the host's.
    Exclusive,
    /// Any, also the gateway's own. Only for sites of the configuration file, which trusts whoever it names: on a plain
    /// host all processes share one namespace, and the port is all that tells their listeners apart.
    Shared,
}

/// What one tenant's sockets are doing, for /tenants.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
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

    /// Closes all of a tenant's sockets at once and removes their names. For a pod that is gone, or a tenant that the
    /// configuration no longer lists. False if there is no such site.
    pub async fn remove(&self, tenant: &TenantName) -> bool {
        let _ = tenant;
        todo!()
    }

    /// Present state of a tenant's sockets.
    pub fn snapshot(&self, tenant: &TenantName) -> Option<SiteSnapshot> {
        let _ = tenant;
        todo!()
    }

    /// Stage one of shutdown: deregister every listener, close the copies (the shims hold them), say HANDOFF.
    pub async fn hand_off(&self) {
        todo!()
    }
}

//! `pillion csi`: the CSI driver of the node, which makes the pods' sockets and keeps them when the gateway dies.
//!
//! It serves the kubelet over two Unix sockets, and hands the listening sockets of all pods to the gateway that holds the data
//! directory's lock. It runs as root to work in the kubelet's folders, with every capability dropped, on one thread, without
//! network and token. So it takes no name and no path from anybody but the kubelet. It never mounts and never reads what a
//! pod sends. It ends on SIGTERM and leaves the pods' sockets where they are: whoever comes next binds only what nobody
//! holds.
//!
//! ```text
//! service   gRPC: identity, node, registration          request    whether a volume may be published: pure
//! driver    the one loop                                core       who holds which socket, what was told: pure
//! session   packets from and to a gateway               proof      whether it is the one that holds the data directory
//! hands     the sockets, bound or adopted               records    what is known of each volume, over a restart
//! scan      the kubelet's folders                       empty      removes a directory, whatever is in it
//! target    the form of a path, and the walk to it      foreign    closes what others have chosen, beside the loop
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::SocketType;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::sockets::{self, Inode, Spec};

mod core;
mod driver;
mod empty;
mod foreign;
mod hands;
mod proof;
mod records;
mod request;
mod scan;
mod service;
mod session;
mod target;

use driver::Driver;
use service::Context;

/// The driver's name, everywhere.
const DRIVER: &str = "csi.pillion.dev";

/// The name by which the kubelet finds the driver.
///
/// The kubelet's gRPC client takes the socket's whole path for the `:authority` of its calls, with each slash as `%2F`. Our
/// HTTP/2 library refuses a host with a percent sign as malformed, but not a user: with an `@` in the name, what comes
/// before it is one, and the host that is left is the rest of the name.
const REGISTRATION: &str = "pillion@csi.pillion.dev-reg.sock";

/// Calls of the kubelet that wait for the loop.
const CALLS_MAX: usize = 16;

/// How long a thread that has closed something waits for more.
const CLOSERS_IDLE_MAX: Duration = Duration::from_secs(1);

/// Connections that wait on one of the driver's own sockets.
const BACKLOG: i32 = 16;

/// How the driver is run.
#[derive(Debug, Clone)]
pub struct Config {
    /// `spec.nodeName`, told to the kubelet.
    pub node_name: String,
    /// The kubelet's root directory, under the same path here and on the host.
    pub kubelet_dir: PathBuf,
    /// Where gateways connect.
    pub custody: PathBuf,
    /// The gateway's data directory.
    pub data_dir: PathBuf,
    /// The gateway's user and group.
    pub gateway_id: u32,
}

/// Why the driver cannot start.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct CsiError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A socket of the driver's own, whose name goes when it goes, unless a successor has it.
#[derive(Debug)]
struct OwnName {
    dir: std::os::fd::OwnedFd,
    name: String,
    inode: Inode,
}

/// Serves until SIGTERM or SIGINT. Takes the process for itself: the umask is cleared, so that sockets have their mode from
/// the moment they have a name. Whatever else is made names its mode.
pub fn run(config: &Config) -> Result<(), CsiError> {
    rustix::process::umask(Mode::empty());
    let of_process = |source| CsiError { action: "start the runtime of", path: PathBuf::from("this process"), source };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(foreign::THREADS_MAX)
        .thread_keep_alive(CLOSERS_IDLE_MAX)
        .build()
        .map_err(of_process)?;
    let outcome = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(of_process)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(of_process)?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        serve(config, stop).await
    });
    // A close that somebody holds up must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// Registers first: a pod that opted in waits for that. Then finds what is there, then serves gateways.
async fn serve(config: &Config, stop: impl Future<Output = &'static str>) -> Result<(), CsiError> {
    let plugin_dir = config.kubelet_dir.join("plugins").join(DRIVER);
    let endpoint = plugin_dir.join("csi.sock");
    let (calls, inbox) = mpsc::channel(CALLS_MAX);
    let context =
        Arc::new(Context { node_name: config.node_name.clone(), endpoint: endpoint.display().to_string(), calls });
    let mut services = JoinSet::new();
    let registration = config.kubelet_dir.join("plugins_registry").join(REGISTRATION);
    let mut names = Vec::new();
    for path in [&endpoint, &registration] {
        let failed = |source| CsiError { action: "serve the kubelet on", path: path.clone(), source };
        let (listener, name) = listen(path, SocketType::STREAM, 0o600, None).map_err(failed)?;
        names.push(name);
        service::serve(listener, Arc::clone(&context), &mut services).map_err(failed)?;
    }
    tracing::info!(socket = %registration.display(), node = config.node_name, "waiting for the kubelet's registration");

    let mut driver = Driver::new(config, &plugin_dir.join("volumes"), inbox).map_err(|source| CsiError {
        action: "keep records in",
        path: plugin_dir.join("volumes"),
        source,
    })?;
    driver.find_volumes();
    let reason = driver.run(stop).await;
    tracing::info!(reason, "stopping: the pods' sockets stay where they are");
    drop(names);
    Ok(())
}

/// Makes one of the driver's own sockets, in the place of a predecessor's.
fn listen(path: &Path, kind: SocketType, mode: u32, group: Option<u32>) -> io::Result<(std::os::fd::OwnedFd, OwnName)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no path of a socket"));
    };
    let dir = sockets::open_directory(parent)?;
    // The kubelet looks at no name in its registry that begins with a dot.
    let temporary = format!(".{name}");
    let spec = Spec { name, temporary: &temporary, kind, backlog: BACKLOG, mode, group };
    let (listener, inode) = sockets::bind(&dir, &spec)?;
    Ok((listener, OwnName { dir, name: name.to_owned(), inode }))
}

impl Drop for OwnName {
    fn drop(&mut self) {
        sockets::remove_own(&self.dir, &self.name, self.inode);
    }
}

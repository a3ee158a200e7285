//! Which pods there are on this node, and their sockets: the gateway's end of custody with the CSI driver.
//!
//! Owns the connection to the driver, and a duplicate of each pod's `ctl` and `otlp`, which it gives back to a driver that
//! has started again. What a pod's coming and going means for tenants is told to whoever implements [`Tenants`]. It never
//! speaks to a pod, reads no file and binds nothing. It connects again for as long as it runs, and ends with
//! [`Volumes::stop`]; the driver keeps the sockets.
//!
//! ```text
//! core     which pods are known, which one of a name is served: pure
//! socket   the driver's socket: packets and descriptors in and out
//! vet      whether a descriptor is what the driver says
//! client   the task: one loop over everything that can happen
//! ```

mod client;
mod core;
mod socket;
#[cfg(test)]
mod tests;
mod vet;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::base::TenantName;
use crate::base::stats::Counter;
use crate::config::Ports;
use client::Client;
use core::Core;

/// More pods than any node has.
pub const VOLUMES_MAX: usize = 1024;

/// Where the driver is, and what to show it.
#[derive(Debug)]
pub struct Settings {
    /// The driver's socket.
    pub socket: PathBuf,
    /// The lock file of the data directory, locked: only its holder gets the sockets.
    pub proof: OwnedFd,
    /// Differs for each start of the gateway.
    pub instance: u64,
}

/// Who serves pods: the composition root, and a stand-in in tests.
pub trait Tenants: Send + Sync + 'static {
    /// Ends what is served under a name, and serves what is to be, if anything. Called again for a name only when it has
    /// ended. An error, in words for the driver, means that nobody is served under this name.
    fn change(self: Arc<Self>, change: Change) -> BoxFuture<'static, Result<(), String>>;

    /// Whether the driver is there to tell which pods are gone. False until its first list is complete.
    fn announced(&self, announced: bool);

    /// These are the uids of all pods, and whoever else was known is gone. Told when the driver's list is complete, and
    /// again whenever a pod has gone.
    fn listed(&self, uids: &BTreeSet<Arc<str>>);

    /// Closes a listening socket where nobody waits for it.
    fn dispose(&self, socket: OwnedFd);
}

/// What is to become of a name.
#[derive(Debug)]
pub struct Change {
    /// Which.
    pub name: TenantName,
    /// The uid of the pod that is served now.
    pub from: Option<Arc<str>>,
    /// Who is to be served from now on. The same pod again: it has other sockets than before.
    pub to: Option<Pod>,
}

/// A pod to serve.
#[derive(Debug)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `spec.serviceAccountName`.
    pub service_account: String,
    /// What its shim is to offer.
    pub ports: Ports,
    /// Listening, SOCK_SEQPACKET, non-blocking.
    pub ctl: OwnedFd,
    /// Listening, SOCK_STREAM, non-blocking.
    pub otlp: OwnedFd,
}

/// What the driver told, and what came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Whether the driver has told every volume, and tells what changes.
    pub connected: bool,
    /// Why not, in words.
    pub trouble: Option<String>,
    /// By name: the pod that is, or should be, served; and its uid.
    pub pods: BTreeMap<TenantName, PodState>,
    /// Pods known, those that are superseded included.
    pub volumes: usize,
    /// Connections to the driver since the start.
    pub connects: u64,
    /// Volumes and sockets that were not taken, by the position of their reason in [`Refusal::ALL`].
    pub refused: [u64; 5],
}

/// What became of a pod's volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodState {
    /// The pod's.
    pub uid: Arc<str>,
    /// `served`, `changing`, `incomplete` (a socket is missing) or `failed`.
    pub state: &'static str,
    /// Older pods of this name whose volumes are still there.
    pub superseded: usize,
}

/// Why a volume, or one of its sockets, was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Refusal {
    /// A name, uid or ports that cannot be a pod's.
    Malformed = 0,
    /// Without a descriptor, or with one that is not the pod's listening Unix socket.
    Socket = 1,
    /// More than [`VOLUMES_MAX`] volumes.
    TooMany = 2,
    /// An older pod of the same name.
    Superseded = 3,
    /// The gateway could not serve it.
    Failed = 4,
}

impl Refusal {
    /// All, in order, with their `reason` label.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Malformed, "malformed"),
        (Self::Socket, "socket"),
        (Self::TooMany, "too_many"),
        (Self::Superseded, "superseded"),
        (Self::Failed, "failed"),
    ];
}

/// The running client.
#[derive(Debug)]
pub struct Volumes {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    task: Mutex<JoinSet<()>>,
}

/// What the task and whoever asks for a snapshot share.
#[derive(Debug, Default)]
struct Shared {
    core: Mutex<Core>,
    trouble: Mutex<Option<String>>,
    connects: Counter,
    refused: [Counter; Refusal::ALL.len()],
}

impl Volumes {
    /// Connects at once, and from then on whenever it must. Must be called on the control runtime.
    pub fn start(settings: Settings, tenants: Arc<dyn Tenants>) -> Self {
        let shared = Arc::<Shared>::default();
        let (stop, stopping) = watch::channel(false);
        let mut task = JoinSet::new();
        task.spawn(Client::new(settings, tenants, shared.clone(), stopping).run());
        Self { shared, stop, task: Mutex::new(task) }
    }

    /// Ends the connection and takes nothing more. Tenants stay as they are; the proof is closed when this returns.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let mut task = std::mem::take(&mut *lock(&self.task));
        while let Some(ended) = task.join_next().await {
            if ended.is_err() {
                tracing::error!("the custody client had panicked");
            }
        }
    }

    /// Present figures.
    pub fn snapshot(&self) -> Snapshot {
        let core = lock(&self.shared.core);
        Snapshot {
            connected: core.is_live(),
            trouble: lock(&self.shared.trouble).clone(),
            pods: core.states(),
            volumes: core.len(),
            connects: self.shared.connects.value(),
            refused: self.shared.refused.each_ref().map(Counter::value),
        }
    }
}

impl Shared {
    fn refuse(&self, reason: Refusal) {
        self.refused[reason as usize].add(1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The core's step leaves a whole state or panics before it changed one; the rest are single assignments.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

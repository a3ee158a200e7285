//! Control sockets, sessions with shims, custody of donated listeners, and the threads that accept.
//!
//! It hands accepted connections to [`crate::tenant::Handle::offer`] and knows nothing of OTLP. Everything that comes over a
//! control socket, and every descriptor, is hostile input (docs/threats.md rows 1 to 14 are answered here). It ends in
//! two steps: [`Lifecycle::hand_off`] lets go of everything in good order, and dropping it ends its threads.
//!
//! ```text
//! site       one task a tenant on the control runtime: ctl, the session, what custody decides
//! custody    who holds which listener: pure
//! donation   whether a descriptor is what it may be
//! acceptor   two threads: epoll, accept, hand over          watchdog   one thread: frees acceptors that hang
//! reaper     closes what pods have chosen, on threads of its own
//! ```

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::base::TenantName;
use crate::config::Ports;
use crate::{sys, tenant};

mod acceptor;
mod claims;
mod counters;
mod custody;
mod donation;
mod pace;
mod reaper;
mod reserve;
mod session;
mod site;
mod slot;
mod socket_options;
mod sockets;
mod watchdog;

pub use counters::Counters;
pub use reserve::{open_descriptors, raise_descriptor_limit};

use acceptor::Acceptor;
use claims::Claims;
use reaper::Reaper;
use reserve::Reserve;
use session::{Disposal, Watched};
use site::{Command, Paces, Parts, Rules, Surroundings};
use slot::Doorway;
use sockets::Sockets;
use watchdog::Watchdog;

/// One thread keeps up with any node; the second keeps half of the tenants going while a pod hangs the first.
const ACCEPTORS: usize = 2;

/// The control plane's part that talks to shims. Runs on the control runtime and on threads of its own.
#[derive(Debug)]
pub struct Lifecycle {
    acceptors: Vec<Arc<Acceptor>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    watchdog: Mutex<Watchdog>,
    reaper: Arc<Reaper>,
    claims: Arc<Claims>,
    counters: Arc<Counters>,
    sites: Mutex<Sites>,
    /// See [`Lifecycle::set_announced`].
    announced: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Sites {
    by_name: HashMap<TenantName, SiteHandle>,
    tasks: JoinSet<()>,
    /// How many there ever were: spreads them over the acceptors.
    added: usize,
}

#[derive(Debug, Clone)]
struct SiteHandle {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<SiteSnapshot>,
}

/// A tenant to serve.
#[derive(Debug)]
pub struct Site {
    /// Whose it is.
    pub tenant: Arc<tenant::Handle>,
    /// Where it is connected to.
    pub sockets: SiteSockets,
    /// What WELCOME tells the shim to offer; a donation of another port is refused.
    pub ports: Ports,
    /// Which network namespaces its listeners may come from.
    pub namespace: NamespaceRule,
    /// How long the listeners stay open after a shim has gone without BYE. `None`: until [`Lifecycle::remove`], for a
    /// site whose end somebody announces (csi's unpublish); while nobody does, see [`Lifecycle::set_announced`].
    pub orphan_grace: Option<Duration>,
}

/// A tenant's `ctl` and `otlp`.
#[derive(Debug)]
pub enum SiteSockets {
    /// To be made in this directory, 0666 in a directory of mode 0755. Their names go with the site.
    Directory(PathBuf),
    /// Made by somebody else, who removes their names; listening, and checked for what they are.
    Given {
        /// SOCK_SEQPACKET.
        ctl: OwnedFd,
        /// SOCK_STREAM.
        otlp: OwnedFd,
    },
}

impl Site {
    /// [`Site::orphan_grace`] where nobody announces the end of a pod.
    pub const ORPHAN_GRACE: Duration = Duration::from_secs(5);
}

/// Which network namespaces a site's listeners may come from (docs/threats.md row 10).
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
    /// Donations and other requests of the shim that were refused since the start.
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
    /// Starts the threads. Must be called on the control runtime.
    pub fn start() -> Result<Arc<Self>, LifecycleError> {
        let failed =
            |action| move |source: io::Error| LifecycleError { action, path: PathBuf::from("of this process"), source };
        let own = own_namespace().map_err(failed("reading (Linux 5.14 or later is needed) the network namespace"))?;
        let counters = Arc::<Counters>::default();
        let reaper = Reaper::start().map_err(failed("starting the reaper thread"))?;
        let reserve = Arc::new(Reserve::new());
        let started = (0..ACCEPTORS).map(|number| Acceptor::start(number, &reserve, &counters));
        let started: io::Result<Vec<_>> = started.collect();
        let (acceptors, threads): (Vec<_>, Vec<_>) =
            started.map_err(failed("starting the acceptor threads"))?.into_iter().unzip();
        let watchdog = Watchdog::start(acceptors.clone(), Arc::clone(&reaper), Arc::clone(&counters))
            .map_err(failed("starting the watchdog thread"))?;
        Ok(Arc::new(Self {
            acceptors,
            threads: Mutex::new(threads),
            watchdog: Mutex::new(watchdog),
            reaper,
            claims: Claims::new(own),
            counters,
            sites: Mutex::default(),
            announced: watch::Sender::new(true),
        }))
    }

    /// Serves a tenant, once its sockets are made. Must be called on the control runtime. An error if the tenant has a
    /// site already, or its sockets cannot be made or waited on.
    pub fn add(&self, site: Site) -> Result<(), LifecycleError> {
        let Site { tenant, sockets, ports, namespace, orphan_grace } = site;
        let rules = Rules {
            tenant: tenant.identity().name.clone(),
            ports,
            namespace,
            orphan_grace,
            unannounced_grace: Site::ORPHAN_GRACE,
            paces: Paces::default(),
        };
        self.admit(tenant, sockets, rules)
    }

    fn admit(&self, tenant: Arc<tenant::Handle>, sockets: SiteSockets, rules: Rules) -> Result<(), LifecycleError> {
        let name = rules.tenant.clone();
        let mut sites = self.sites();
        while let Some(ended) = sites.tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "the task of a site panicked: its tenant was not served until now");
            }
        }
        let path = match &sockets {
            SiteSockets::Directory(path) => path.clone(),
            SiteSockets::Given { .. } => PathBuf::from(format!("the sockets of {name}")),
        };
        if sites.by_name.contains_key(&name) {
            let source = io::Error::new(io::ErrorKind::AlreadyExists, format!("tenant {name} has its sockets already"));
            return Err(LifecycleError { action: "serving", path, source });
        }
        let disposal = Disposal::of(&self.reaper);
        let Sockets { ctl, otlp, names } = match sockets {
            SiteSockets::Directory(path) => Sockets::bind(&path)?,
            SiteSockets::Given { ctl, otlp } => Sockets::given(ctl, otlp),
        };
        let otlp = disposal.foreign(otlp);
        let ctl = Watched::new(ctl, &disposal).map_err(|source| LifecycleError {
            action: "waiting on",
            path: path.join("ctl"),
            source,
        })?;
        let (commands, inbox) = mpsc::channel(2);
        let (status, snapshot) = watch::channel(SiteSnapshot::default());
        let acceptor = Arc::clone(&self.acceptors[sites.added % self.acceptors.len()]);
        let around = Surroundings {
            acceptor,
            claims: Arc::clone(&self.claims),
            counters: Arc::clone(&self.counters),
            announced: self.announced.subscribe(),
        };
        let doorway = Doorway::new(tenant);
        let site =
            site::Site::new(Parts { rules, around, otlp, disposal, ctl, names, doorway, commands: inbox, status });
        sites.added += 1;
        sites.tasks.spawn(site.run());
        sites.by_name.insert(name, SiteHandle { commands, status: snapshot });
        Ok(())
    }

    /// Whether somebody is there who announces the end of sites without an orphan grace. While nobody is, they have
    /// [`Site::ORPHAN_GRACE`].
    pub fn set_announced(&self, announced: bool) {
        self.announced.send_replace(announced);
    }

    /// Closes a listening socket that pods can connect to, where nobody waits: its queue may hold what a pod has passed.
    pub fn dispose(&self, socket: OwnedFd) {
        drop(Disposal::of(&self.reaper).foreign(socket));
    }

    /// Closes all of a tenant's sockets at once and removes the names that it made. For a pod that is gone, or a tenant that the
    /// configuration no longer lists. False if there is no such site.
    pub async fn remove(&self, tenant: &TenantName) -> bool {
        let Some(site) = self.sites().by_name.remove(tenant) else { return false };
        site.tell(Command::Remove).await;
        true
    }

    /// Present state of a tenant's sockets.
    pub fn snapshot(&self, tenant: &TenantName) -> Option<SiteSnapshot> {
        self.sites().by_name.get(tenant).map(|site| site.status.borrow().clone())
    }

    /// What happened since the start.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Stage one of shutdown: deregister every listener, close the copies (the shims hold them), say HANDOFF, close the
    /// sessions. The names stay for the successor. Returns when nothing is accepted any more.
    pub async fn hand_off(&self) {
        let sites: Vec<_> = self.sites().by_name.drain().map(|(_, site)| site).collect();
        futures_util::future::join_all(sites.iter().map(|site| site.tell(Command::HandOff))).await;
    }

    fn sites(&self) -> MutexGuard<'_, Sites> {
        // A panic while the lock is held leaves at worst a site without a task, which is not served.
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lifecycle {
    fn drop(&mut self) {
        for acceptor in &self.acceptors {
            acceptor.stop();
        }
        // The watchdog is still there: an acceptor that a pod holds up comes back within half a second.
        for thread in self.threads.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = thread.join();
        }
        self.watchdog.get_mut().unwrap_or_else(PoisonError::into_inner).stop();
        self.reaper.stop();
    }
}

impl SiteHandle {
    /// Returns when it is done, or the site has ended before.
    async fn tell(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) {
        let (done, answer) = oneshot::channel();
        if self.commands.send(command(done)).await.is_ok() {
            let _ = answer.await;
        }
    }
}

fn own_namespace() -> io::Result<u64> {
    let flags = SocketFlags::CLOEXEC;
    sys::netns_cookie(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

#[cfg(test)]
mod tests;

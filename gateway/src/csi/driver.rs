//! The driver's loop: one task that owns every volume and every socket, and does what [`Core`] decides.
//!
//! Owns the answers to the kubelet. It is one loop over one closed set of inputs and never waits within one: files are small
//! and local, sends do not block. A volume that was published once stays published: whatever is wrong with it later is told
//! in the log, and the kubelet is answered that all is well, because it may remove the directory under a running pod
//! otherwise. It ends with the signal that stops the process.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use pillion_proto::csi::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest};
use tokio::sync::mpsc;
use tonic::Code;

use super::core::{Core, Effect, Event};
use super::hands::{Hands, Secured};
use super::records::{Record, Records, VOLUMES_MAX};
use super::request::{self, Refusal};
use super::scan::{self, Absence};
use super::service::Call;
use super::session::{self, Packet};
use super::target::{MOUNT, Target, Uid};
use super::{Config, empty};
use crate::sockets;

mod custody;

use custody::Custody;

/// Between looks at sockets that somebody else holds, or that could not be bound.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A gateway of a rollout ends within seconds.
const STRANDED_MAX: Duration = Duration::from_secs(30);

/// Between looks for volumes whose end nobody has told.
const COLLECT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Driver {
    config: Config,
    core: Core,
    hands: Hands,
    records: Records,
    volumes: BTreeMap<Uid, Known>,
    custody: Custody,
    calls: mpsc::Receiver<Call>,
    absence: Absence,
    look_at: Instant,
    collect_at: Instant,
    /// Why sockets could not be secured, since somebody last asked.
    failures: Vec<String>,
    /// What was logged of them last: they are met again every second.
    failures_logged: Vec<String>,
    /// Sockets that somebody else holds, at the last look.
    held_elsewhere: usize,
    /// Since when the gateway that serves is not the one that holds them, and whether that was logged.
    stranded: Option<(Instant, bool)>,
}

#[derive(Debug)]
struct Known {
    target: Target,
    /// `None`: found in the kubelet's folders; the next publish says whose it is.
    record: Option<Record>,
}

/// Everything that can happen.
enum Input {
    Stop(&'static str),
    Call(Call),
    Arrived(io::Result<OwnedFd>),
    Packet { connection: u64, packet: Option<Packet> },
    Writable,
    Tick,
}

impl Driver {
    /// Must be called on the runtime.
    pub(super) fn new(config: &Config, records: &Path, calls: mpsc::Receiver<Call>) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            core: Core::default(),
            hands: Hands::new(&config.kubelet_dir),
            records: Records::open(records)?,
            volumes: BTreeMap::new(),
            custody: Custody::new(now),
            calls,
            absence: Absence::default(),
            look_at: now,
            collect_at: now,
            failures: Vec::new(),
            failures_logged: Vec::new(),
            held_elsewhere: 0,
            stranded: None,
            config: config.clone(),
        })
    }

    /// What a predecessor has left: binds at once what nobody holds.
    pub(super) fn find_volumes(&mut self) {
        let records = self.records.load().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the records of volumes: they wait for the kubelet");
            Vec::new()
        });
        let recorded = records.len();
        for (target, record) in records {
            let uid = target.uid.clone();
            self.volumes.insert(uid.clone(), Known { target, record: Some(record) });
            self.step(Event::Published(uid));
        }
        let found = self.hands.pods().and_then(scan::published).unwrap_or_else(|error| {
            tracing::error!(%error, dir = %self.config.kubelet_dir.display(), "cannot look for volumes in the kubelet's folder");
            Vec::new()
        });
        let mut unknown = 0;
        for target in found {
            if !self.volumes.contains_key(&target.uid) {
                let uid = target.uid.clone();
                self.volumes.insert(uid.clone(), Known { target, record: None });
                self.step(Event::Found(uid));
                unknown += 1;
            }
        }
        self.log_failures();
        tracing::info!(recorded, unknown, "looked for volumes");
    }

    /// Serves until `stop`, and returns what it says.
    pub(super) async fn run(mut self, stop: impl Future<Output = &'static str>) -> &'static str {
        let mut stop = std::pin::pin!(stop);
        loop {
            match self.next(stop.as_mut()).await {
                Input::Stop(reason) => {
                    self.custody.close();
                    return reason;
                }
                Input::Call(call) => self.answer(call),
                Input::Arrived(arrived) => self.arrived(arrived),
                Input::Packet { connection, packet } => self.handle(connection, packet),
                Input::Writable => {}
                Input::Tick => self.tick(Instant::now()),
            }
            self.flush();
        }
    }

    async fn next(&mut self, stop: std::pin::Pin<&mut impl Future<Output = &'static str>>) -> Input {
        let wake = self.deadline();
        let Custody { listener, accept_at, packets, session, .. } = &mut self.custody;
        let listener = listener.as_ref().filter(|_| accept_at.is_none());
        let writer = session.as_ref().filter(|session| session.outbox.wants_writable()).map(|session| &session.socket);
        tokio::select! {
            biased;
            reason = stop => Input::Stop(reason),
            Some(call) = self.calls.recv() => Input::Call(call),
            Some((connection, packet)) = packets.recv() => Input::Packet { connection, packet },
            arrived = custody::accept(listener) => Input::Arrived(arrived),
            () = session::writable(writer) => Input::Writable,
            () = tokio::time::sleep_until(wake.into()) => Input::Tick,
        }
    }

    fn deadline(&self) -> Instant {
        let outbox = self.custody.session.as_ref().and_then(|session| session.outbox.deadline());
        let look = self.core.is_missing_any().then_some(self.look_at);
        let others = [outbox, look, self.custody.listen_at(), self.custody.accept_at];
        others.into_iter().flatten().fold(self.collect_at, Instant::min)
    }

    fn tick(&mut self, now: Instant) {
        if self.custody.listen_at().is_some_and(|at| at <= now) {
            self.listen(now);
        }
        self.custody.accept_at = self.custody.accept_at.filter(|at| *at > now);
        if self.look_at <= now && self.core.is_missing_any() {
            self.look_at = now + LOOK_AGAIN;
            self.held_elsewhere = 0;
            self.step(Event::Tick);
            self.log_failures();
            self.log_stranded(now);
        }
        if self.collect_at <= now {
            self.collect_at = now + COLLECT;
            self.collect(now);
        }
    }

    fn answer(&mut self, call: Call) {
        let (outcome, answer) = match call {
            Call::Publish(request, answer) => (self.publish(&request), answer),
            Call::Unpublish(request, answer) => (self.unpublish(&request), answer),
        };
        // The kubelet has given up waiting and will ask again.
        let _ = answer.send(outcome);
    }

    fn publish(&mut self, request: &NodePublishVolumeRequest) -> Result<(), Refusal> {
        let outcome = request::target(&self.config.kubelet_dir, &request.target_path)
            .and_then(|target| self.publish_target(&target, request));
        if let Err(refusal) = &outcome {
            tracing::warn!(target_path = request.target_path, reason = refusal.reason, "refused to publish a volume");
        }
        outcome
    }

    fn publish_target(&mut self, target: &Target, request: &NodePublishVolumeRequest) -> Result<(), Refusal> {
        let present = self.volumes.get(&target.uid);
        if let Some(other) = present.filter(|known| known.target != *target) {
            return Err(Refusal::invalid(format!(
                "pod {} has a volume of {} already, named {:?}: keep one of them",
                target.uid,
                super::DRIVER,
                other.target.volume
            )));
        }
        let again = present.is_some();
        let outcome = self.publish_checked(target, request);
        match outcome {
            Err(refusal) if again => {
                tracing::warn!(uid = %target.uid, reason = refusal.reason, "cannot renew a published volume: left as it is");
                Ok(())
            }
            Err(refusal) => {
                self.forget(&target.uid);
                Err(refusal)
            }
            Ok(()) => Ok(()),
        }
    }

    fn publish_checked(&mut self, target: &Target, request: &NodePublishVolumeRequest) -> Result<(), Refusal> {
        let uid = &target.uid;
        let record = request::check(target, request)?;
        let is_known = self.volumes.get(uid).is_some_and(|known| known.record.as_ref() == Some(&record));
        if !self.volumes.contains_key(uid) && self.volumes.len() >= VOLUMES_MAX {
            let reason =
                format!("the node has {VOLUMES_MAX} volumes of {} already: run fewer pods on it", super::DRIVER);
            return Err(Refusal { code: Code::ResourceExhausted, reason });
        }
        let failed = |what: &str, error: &io::Error| {
            Refusal::internal(format!(
                "cannot {what} {}: {error}; remove what stands in its place",
                request.target_path
            ))
        };
        let pods = self.hands.pods().map_err(|error| failed("reach", &error))?;
        let parent = target.open_volume_dir(pods).map_err(|error| failed("reach the parent of", &error))?;
        sockets::open_directory_at(&parent, MOUNT).map_err(|error| failed("make", &error))?;
        if !is_known {
            self.records.write(&record).map_err(|error| failed("keep a record of", &error))?;
            tracing::info!(%uid, namespace = record.namespace, pod = record.pod, ports = ?record.ports, "published a volume");
            self.volumes.insert(uid.clone(), Known { target: target.clone(), record: Some(record) });
        }
        self.failures.clear();
        self.step(Event::Published(uid.clone()));
        match self.failures.is_empty() {
            true => Ok(()),
            false => Err(Refusal::internal(std::mem::take(&mut self.failures).join("; "))),
        }
    }

    fn unpublish(&mut self, request: &NodeUnpublishVolumeRequest) -> Result<(), Refusal> {
        let target = request::target(&self.config.kubelet_dir, &request.target_path)?;
        let is_ours = self.volumes.get(&target.uid).is_some_and(|known| known.target == target);
        if is_ours {
            // Whatever is in the directory: the pod is gone, and its gateway must not depend on what it left.
            self.forget(&target.uid);
        }
        let outcome = self.remove_mount(&target);
        match &outcome {
            Ok(()) => tracing::info!(uid = %target.uid, known = is_ours, "unpublished a volume"),
            Err(refusal) => {
                tracing::warn!(uid = %target.uid, reason = refusal.reason, "cannot remove a volume's directory");
            }
        }
        outcome
    }

    fn remove_mount(&self, target: &Target) -> Result<(), Refusal> {
        let parent = match self.hands.pods().and_then(|pods| target.open_volume_dir(pods)) {
            Ok(parent) => parent,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Refusal::internal(format!("cannot reach the volume's directory: {error}"))),
        };
        empty::remove(parent, c"mount").map_err(|stuck| Refusal::internal(format!("cannot empty the volume: {stuck}")))
    }

    /// A volume's end, as far as this process and the gateway are concerned.
    fn forget(&mut self, uid: &Uid) {
        self.volumes.remove(uid);
        self.records.remove(uid);
        self.step(Event::Unpublished(uid.clone()));
    }

    /// Volumes whose unpublish never came: the kubelet has removed their directories long ago.
    fn collect(&mut self, now: Instant) {
        let Ok(pods) = self.hands.pods() else { return };
        let absent = self.volumes.values().filter(|known| !scan::is_present(&pods, &known.target));
        let absent: Vec<Uid> = absent.map(|known| known.target.uid.clone()).collect();
        for uid in self.absence.step(&absent, now) {
            tracing::info!(%uid, absent_s = scan::ABSENT_MAX.as_secs(), "collected a volume whose directory is gone");
            self.forget(&uid);
        }
    }

    fn step(&mut self, event: Event) {
        for effect in self.core.step(event) {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Secure(uid, kind) => {
                let Some(known) = self.volumes.get(&uid) else { return };
                match self.hands.secure(&known.target, kind) {
                    Ok(Secured::Bound) => {
                        tracing::info!(%uid, socket = kind.as_str(), "bound a socket");
                        self.step(Event::Bound(uid, kind));
                    }
                    Ok(Secured::Held) => self.held_elsewhere += 1,
                    Err(error) => self.failures.push(format!("cannot bind {} of pod {uid}: {error}", kind.as_str())),
                }
            }
            Effect::Adopt(uid, kind) => {
                if let Some(socket) = self.custody.returned.take() {
                    self.hands.adopt(&uid, kind, socket.trust());
                    if let Some(session) = &mut self.custody.session {
                        session.adopted += 1;
                    }
                }
            }
            Effect::Discard => self.custody.returned = None,
            Effect::ThenSecured => self.step(Event::Secured),
            Effect::Tell(tell) => self.queue(tell),
            Effect::Release(uid) => self.hands.release(&uid),
        }
    }

    fn log_failures(&mut self) {
        let failures = std::mem::take(&mut self.failures);
        for failure in failures.iter().filter(|failure| !self.failures_logged.contains(failure)) {
            tracing::warn!("{failure}");
        }
        self.failures_logged = failures;
    }

    fn log_stranded(&mut self, now: Instant) {
        let sockets = if self.core.is_serving() { self.held_elsewhere } else { 0 };
        self.stranded = match self.stranded {
            _ if sockets == 0 => None,
            None => Some((now, false)),
            Some((since, false)) if now >= since + STRANDED_MAX => {
                tracing::error!(
                    sockets,
                    "pods are not served: a process that is not the gateway holds their sockets, most likely an older gateway \
                     that has not ended; end it"
                );
                Some((since, true))
            }
            same => same,
        };
    }
}

#[cfg(test)]
mod tests;

//! Which pods are known and which one of each name is served, decided without touching a socket: `step(event) -> effects`.
//!
//! Owns the rules of ARCHITECTURE.md, "Who closes which socket, and when". It never sees a descriptor (sockets are their
//! SO_COOKIE), reads no clock and sends nothing; `client` does what comes back, in its order.
//!
//! ```text
//! link   Down       nobody is connected; everything stays as it is     -> Greeting on Connected
//!        Greeting   HELLO is sent                                       -> Listing on WELCOME: what is held is returned
//!        Listing    the driver tells every volume                       -> Live on READY: what was not told is gone
//!        Live       it tells what changes                               -> Down on Disconnected, from everywhere
//! name   the pod told last of those with both sockets is served. A change (end the one, begin the other) is asked for one
//!        at a time; when it has ended, what is to be is compared again with what is.
//! ```
//! Two pods have one name when the older one was deleted by force: the kubelet still has its volume. The newer one
//! supersedes it, and what becomes of the older one's volume then touches nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{PodState, Refusal, VOLUMES_MAX};
use crate::base::TenantName;
use crate::config::Ports;

/// What is known of a pod beside its sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) uid: Arc<str>,
    pub(super) name: TenantName,
    pub(super) service_account: String,
    pub(super) ports: Ports,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Connected,
    Disconnected,
    /// WELCOME.
    Welcomed,
    /// VOLUME, and its `ctl` passed every check.
    Volume {
        info: Info,
        ctl: u64,
    },
    /// OTLP, and the socket passed every check.
    Otlp {
        uid: Arc<str>,
        otlp: u64,
    },
    /// VOLUME or OTLP that cannot be taken; the pod is there all the same.
    Unusable {
        uid: Arc<str>,
        reason: Refusal,
        words: String,
    },
    /// UNPUBLISHED.
    Unpublished {
        uid: Arc<str>,
    },
    /// READY.
    Ready,
    /// A change has ended.
    Changed {
        name: TenantName,
        outcome: Result<(), String>,
    },
    /// Time to try again what failed.
    Retry,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// Send HELLO.
    Greet,
    /// Send RETURN with a duplicate of the socket.
    Return { cookie: u64 },
    /// Send READY.
    Returned,
    /// Keep the descriptor that arrived.
    Keep { cookie: u64 },
    /// Close the descriptor that arrived: its socket is held already, or not wanted.
    CloseArrived,
    /// Close a socket that is held.
    Close { cookie: u64 },
    /// Ask for a change.
    Change { name: TenantName, from: Option<Arc<str>>, to: Option<Sockets> },
    /// Send ATTACHED.
    Tell { uid: Arc<str>, error: Option<(Refusal, String)> },
    /// Whether the driver announces which pods are gone has changed.
    Announced(bool),
    /// The driver speaks out of turn: end the connection.
    HangUp(&'static str),
}

/// A pod with both its sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sockets {
    pub(super) info: Info,
    pub(super) ctl: u64,
    pub(super) otlp: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Link {
    #[default]
    Down,
    Greeting,
    Listing,
    Live,
}

#[derive(Debug)]
struct Pod {
    info: Info,
    ctl: u64,
    otlp: Option<u64>,
    /// Told since the last WELCOME.
    listed: bool,
    /// Rises from pod to pod: the newest of a name has the highest.
    age: u64,
}

/// What is served under a name.
#[derive(Debug, Default)]
struct Served {
    now: Option<Sockets>,
    /// What a change that has not ended yet is to lead to.
    changing: Option<Option<Sockets>>,
    /// Could not be served; not tried again before the next list or [`Event::Retry`].
    failed: Option<Sockets>,
}

/// The state.
#[derive(Debug, Default)]
pub(super) struct Core {
    link: Link,
    pods: BTreeMap<Arc<str>, Pod>,
    names: BTreeMap<TenantName, Served>,
    pods_ever: u64,
}

impl Core {
    pub(super) fn is_live(&self) -> bool {
        self.link == Link::Live
    }

    /// Pods known.
    pub(super) fn len(&self) -> usize {
        self.pods.len()
    }

    /// Of all pods known, and of those whose beginning has not ended yet.
    pub(super) fn uids(&self) -> BTreeSet<Arc<str>> {
        let beginning = self.names.values().filter_map(|served| served.changing.as_ref()?.as_ref());
        self.pods.keys().cloned().chain(beginning.map(|to| to.info.uid.clone())).collect()
    }

    /// Whether something is to be tried again.
    pub(super) fn has_failed(&self) -> bool {
        self.names.values().any(|served| served.failed.is_some() && served.changing.is_none())
    }

    /// What follows from an event.
    pub(super) fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        match (event, self.link) {
            (Event::Connected, _) => {
                self.link = Link::Greeting;
                out.push(Effect::Greet);
            }
            (Event::Disconnected, _) => {
                self.link = Link::Down;
                out.push(Effect::Announced(false));
            }
            (Event::Welcomed, Link::Greeting) => self.welcomed(&mut out),
            (Event::Volume { info, ctl }, Link::Listing | Link::Live) => self.volume(info, ctl, &mut out),
            (Event::Otlp { uid, otlp }, Link::Listing | Link::Live) => self.otlp(&uid, otlp, &mut out),
            (Event::Unusable { uid, reason, words }, Link::Listing | Link::Live) => {
                if let Some(pod) = self.pods.get_mut(&uid) {
                    pod.listed = true;
                }
                out.extend([Effect::CloseArrived, Effect::Tell { uid, error: Some((reason, words)) }]);
            }
            (Event::Unpublished { uid }, Link::Listing | Link::Live) => self.forget(&uid, &mut out),
            (Event::Ready, Link::Listing) => self.listed(&mut out),
            (Event::Changed { name, outcome }, _) => self.changed(&name, outcome, &mut out),
            (Event::Retry, _) => self.retry(&mut out),
            (Event::Volume { .. } | Event::Otlp { .. } | Event::Unusable { .. }, _) => {
                out.extend([Effect::CloseArrived, Effect::HangUp("a volume before WELCOME")]);
            }
            (Event::Welcomed | Event::Unpublished { .. } | Event::Ready, _) => {
                out.push(Effect::HangUp("a message out of its order"));
            }
        }
        out
    }

    fn welcomed(&mut self, out: &mut Vec<Effect>) {
        self.link = Link::Listing;
        for pod in self.pods.values_mut() {
            pod.listed = false;
            out.push(Effect::Return { cookie: pod.ctl });
            out.extend(pod.otlp.map(|cookie| Effect::Return { cookie }));
        }
        out.push(Effect::Returned);
    }

    fn volume(&mut self, info: Info, ctl: u64, out: &mut Vec<Effect>) {
        if self.pods.get(&info.uid).is_some_and(|known| known.info != info) {
            // A uid is never used again, so what was known of it was wrong.
            self.forget(&info.uid.clone(), out);
        }
        if let Some(pod) = self.pods.get_mut(&info.uid) {
            pod.listed = true;
            if pod.ctl == ctl {
                return out.push(Effect::CloseArrived);
            }
            // Bound anew because nobody held the old one. In a list its `otlp` follows, and both are one change.
            let cookie = std::mem::replace(&mut pod.ctl, ctl);
            out.extend([Effect::Keep { cookie: ctl }, Effect::Close { cookie }]);
            if self.link == Link::Live {
                self.look_at(&info.name, out);
            }
            return;
        }
        if self.pods.len() >= VOLUMES_MAX {
            let words = format!("this node has {VOLUMES_MAX} volumes already, as many as the gateway serves");
            let error = Some((Refusal::TooMany, words));
            return out.extend([Effect::CloseArrived, Effect::Tell { uid: info.uid, error }]);
        }
        self.pods_ever += 1;
        let pod = Pod { info: info.clone(), ctl, otlp: None, listed: true, age: self.pods_ever };
        self.pods.insert(info.uid, pod);
        out.push(Effect::Keep { cookie: ctl });
    }

    fn otlp(&mut self, uid: &Arc<str>, otlp: u64, out: &mut Vec<Effect>) {
        // Its VOLUME was not taken, which was said.
        let Some(pod) = self.pods.get_mut(uid) else { return out.push(Effect::CloseArrived) };
        let name = pod.info.name.clone();
        if pod.otlp == Some(otlp) {
            out.push(Effect::CloseArrived);
        } else {
            out.push(Effect::Keep { cookie: otlp });
            out.extend(pod.otlp.replace(otlp).map(|cookie| Effect::Close { cookie }));
        }
        self.look_at(&name, out);
        self.report(uid, out);
    }

    /// The pod is gone.
    fn forget(&mut self, uid: &Arc<str>, out: &mut Vec<Effect>) {
        let Some(pod) = self.pods.remove(uid) else { return };
        out.push(Effect::Close { cookie: pod.ctl });
        out.extend(pod.otlp.map(|cookie| Effect::Close { cookie }));
        self.look_at(&pod.info.name, out);
    }

    fn listed(&mut self, out: &mut Vec<Effect>) {
        self.link = Link::Live;
        let gone: Vec<_> = self.pods.values().filter(|pod| !pod.listed).map(|pod| pod.info.uid.clone()).collect();
        gone.iter().for_each(|uid| self.forget(uid, out));
        self.retry(out);
        // A list may have brought a new `ctl` and lost the `otlp`: the old one is not served any longer.
        for name in self.names.keys().cloned().collect::<Vec<_>>() {
            self.look_at(&name, out);
        }
        out.push(Effect::Announced(true));
    }

    fn retry(&mut self, out: &mut Vec<Effect>) {
        let failed = self.names.iter_mut().filter_map(|(name, served)| served.failed.take().map(|_| name.clone()));
        for name in failed.collect::<Vec<_>>() {
            self.look_at(&name, out);
        }
    }

    fn changed(&mut self, name: &TenantName, outcome: Result<(), String>, out: &mut Vec<Effect>) {
        let Some(served) = self.names.get_mut(name) else { return };
        let Some(to) = served.changing.take() else { return };
        match outcome {
            Ok(()) => served.now = to,
            Err(words) => {
                served.now = None;
                if let Some(to) = &to {
                    let error = Some((Refusal::Failed, words));
                    out.push(Effect::Tell { uid: to.info.uid.clone(), error });
                }
                served.failed = to;
            }
        }
        if let Some(now) = &served.now {
            out.push(Effect::Tell { uid: now.info.uid.clone(), error: None });
        }
        self.look_at(name, out);
    }

    /// Compares what is served under a name with what is to be.
    fn look_at(&mut self, name: &TenantName, out: &mut Vec<Effect>) {
        let wanted = self.wanted(name);
        let served = self.names.entry(name.clone()).or_default();
        if served.changing.is_some() {
            return;
        }
        if served.failed.is_some() && served.failed != wanted {
            served.failed = None;
        }
        if served.now == wanted || (wanted.is_some() && served.failed == wanted) {
            if served.now.is_none() && served.failed.is_none() {
                self.names.remove(name);
            }
            return;
        }
        let from = served.now.as_ref().map(|now| now.info.uid.clone());
        served.changing = Some(wanted.clone());
        out.push(Effect::Change { name: name.clone(), from, to: wanted });
    }

    /// The newest pod of the name that has both its sockets.
    fn wanted(&self, name: &TenantName) -> Option<Sockets> {
        let complete = self.of(name).filter_map(|pod| Some((pod, pod.otlp?)));
        let (pod, otlp) = complete.max_by_key(|(pod, _)| pod.age)?;
        Some(Sockets { info: pod.info.clone(), ctl: pod.ctl, otlp })
    }

    fn of(&self, name: &TenantName) -> impl Iterator<Item = &Pod> {
        self.pods.values().filter(move |pod| pod.info.name == *name)
    }

    /// Tells what is known already of a volume that was told once more. What is being changed is told when that has ended.
    fn report(&self, uid: &Arc<str>, out: &mut Vec<Effect>) {
        let Some(pod) = self.pods.get(uid) else { return };
        let newest = self.wanted(&pod.info.name).map(|wanted| wanted.info.uid);
        let error = match newest {
            Some(newest) if newest != *uid => {
                let words = format!("superseded by pod {newest}, a newer one of the name {}", pod.info.name);
                Some((Refusal::Superseded, words))
            }
            _ => {
                let served = self.names.get(&pod.info.name);
                let is_served = |served: &&Served| {
                    served.changing.is_none() && served.now.as_ref().is_some_and(|now| now.info.uid == *uid)
                };
                match served.filter(is_served) {
                    Some(_) => None,
                    None => return,
                }
            }
        };
        out.push(Effect::Tell { uid: uid.clone(), error });
    }

    /// For people: what became of the newest pod of each name.
    pub(super) fn states(&self) -> BTreeMap<TenantName, PodState> {
        let mut newest: BTreeMap<&TenantName, (&Pod, usize)> = BTreeMap::new();
        for pod in self.pods.values() {
            let entry = newest.entry(&pod.info.name).or_insert((pod, 0));
            entry.1 += 1;
            if pod.age > entry.0.age {
                entry.0 = pod;
            }
        }
        let state = |pod: &Pod| match self.names.get(&pod.info.name) {
            Some(served) if served.changing.is_some() => "changing",
            Some(served) if served.now.as_ref().is_some_and(|now| now.info.uid == pod.info.uid) => "served",
            Some(served) if served.failed.is_some() => "failed",
            _ => "incomplete",
        };
        let view = |(pod, pods): (&Pod, usize)| PodState {
            uid: pod.info.uid.clone(),
            state: state(pod),
            superseded: pods - 1,
        };
        newest.into_iter().map(|(name, pods)| (name.clone(), view(pods))).collect()
    }
}

#[cfg(test)]
mod tests;

//! Who holds which socket, and what the gateway has been told: pure.
//!
//! Owns no descriptor. It says what to do, and the driver says what came of it. A socket is bound anew only when nobody holds
//! the one before: whether that is so is the kernel's answer at that moment, which is why the effect is called
//! [`Effect::Secure`] and not "bind".
//!
//! ```text
//! Alone      no gateway                             HELLO -> Listing
//! Listing    the gateway returns what it holds      READY -> everything that is missing is secured, then all is told -> Serving
//! Serving    what changes is told                   end of file -> Alone, and everything that is missing is secured
//! ```

use std::collections::BTreeMap;

use pillion_proto::custody::Kind;

use super::target::Uid;

/// The state of the driver's side of custody.
#[derive(Debug, Default)]
pub(super) struct Core {
    volumes: BTreeMap<Uid, Volume>,
    phase: Phase,
    /// Volumes there ever were.
    ever: u64,
}

#[derive(Debug, Default)]
struct Volume {
    /// Whether it is known whose it is. Without that nothing is told of it.
    identified: bool,
    /// Rises from volume to volume: they are told in this order, so that of two pods of one name the newer comes last.
    age: u64,
    /// The gateway has said that it does not serve it.
    declined: bool,
    ctl: Socket,
    otlp: Socket,
}

#[derive(Debug, Default)]
struct Socket {
    in_hand: bool,
    /// To the gateway of this session.
    told: bool,
}

/// How far the conversation with the gateway has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    /// There is no gateway.
    #[default]
    Alone,
    /// It returns what it holds.
    Listing,
    /// It has been told of every volume.
    Serving,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// A volume is on the node, but nobody has said yet whose it is.
    Found(Uid),
    /// A volume is published, for the first time or again.
    Published(Uid),
    /// It is gone.
    Unpublished(Uid),
    /// A socket was bound, in the place of whatever had its name.
    Bound(Uid, Kind),
    /// A gateway has proved that it holds the data directory. It supersedes any other.
    Greeted,
    /// It gives back a socket.
    Returned(Uid, Kind),
    /// It has given back all.
    GatewayReady,
    /// All that could be secured before telling has been.
    Secured,
    /// It hung up, or was hung up on.
    Ended,
    /// The gateway does not serve it, as it says.
    Declined(Uid),
    /// Time to look again for what is missing.
    Tick,
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// Bind the socket anew if nobody holds it, and say so with [`Event::Bound`].
    Secure(Uid, Kind),
    /// Keep the socket that was just returned.
    Adopt(Uid, Kind),
    /// Close it: there is one in hand, or no such volume.
    Discard,
    /// Say [`Event::Secured`] when everything before this has been done.
    ThenSecured,
    /// Put a message into the queue to the gateway.
    Tell(Tell),
    /// Close what is in hand.
    Release(Uid),
}

/// A message to the gateway; it is made when it is sent, of what there is then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tell {
    /// With the `ctl` in hand.
    Volume(Uid),
    /// With the `otlp` in hand.
    Otlp(Uid),
    Unpublished(Uid),
    Ready,
}

impl Core {
    /// The next state, and what to do about it.
    pub(super) fn step(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Found(uid) => {
                self.volume(&uid);
                Kind::ALL.map(|kind| Effect::Secure(uid.clone(), kind)).into()
            }
            Event::Published(uid) => self.published(uid),
            Event::Unpublished(uid) => self.unpublished(uid),
            Event::Bound(uid, kind) => {
                let Some(socket) = self.socket(&uid, kind) else { return vec![Effect::Release(uid)] };
                *socket = Socket { in_hand: true, told: false };
                self.tell(&uid)
            }
            Event::Greeted => {
                self.phase = Phase::Listing;
                self.forget_told();
                Vec::new()
            }
            Event::Returned(uid, kind) => match self.socket(&uid, kind) {
                Some(socket) if !socket.in_hand => {
                    *socket = Socket { in_hand: true, told: false };
                    let mut effects = vec![Effect::Adopt(uid.clone(), kind)];
                    effects.extend(self.tell(&uid));
                    effects
                }
                _ => vec![Effect::Discard],
            },
            Event::GatewayReady if self.phase == Phase::Listing => {
                let mut effects = self.secure_missing();
                effects.push(Effect::ThenSecured);
                effects
            }
            Event::Secured if self.phase == Phase::Listing => {
                self.phase = Phase::Serving;
                let mut uids: Vec<(u64, Uid)> =
                    self.volumes.iter().map(|(uid, volume)| (volume.age, uid.clone())).collect();
                uids.sort_unstable_by_key(|(age, _)| *age);
                let mut effects: Vec<Effect> = uids.iter().flat_map(|(_, uid)| self.tell(uid)).collect();
                effects.push(Effect::Tell(Tell::Ready));
                effects
            }
            Event::GatewayReady | Event::Secured => Vec::new(),
            Event::Ended => {
                self.phase = Phase::Alone;
                self.forget_told();
                self.secure_missing()
            }
            Event::Declined(uid) => {
                if let Some(volume) = self.volumes.get_mut(&uid) {
                    volume.declined = true;
                }
                Vec::new()
            }
            Event::Tick => self.secure_missing(),
        }
    }

    /// Whether a socket of some volume is in nobody's hand, or in somebody else's: look again soon.
    pub(super) fn is_missing_any(&self) -> bool {
        self.volumes.values().any(|volume| !(volume.ctl.in_hand && volume.otlp.in_hand))
    }

    /// Whether a gateway has returned all that it holds, and been told of all that is in hand.
    pub(super) fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// Both sockets are looked at again, also those in hand: somebody may have removed a name. What the gateway could not take,
    /// for want of descriptors perhaps, is told once more: the kubelet publishes about once a minute.
    fn published(&mut self, uid: Uid) -> Vec<Effect> {
        let volume = self.volume(&uid);
        volume.identified = true;
        if std::mem::take(&mut volume.declined) {
            (volume.ctl.told, volume.otlp.told) = (false, false);
        }
        let mut effects: Vec<Effect> = Kind::ALL.map(|kind| Effect::Secure(uid.clone(), kind)).into();
        effects.extend(self.tell(&uid));
        effects
    }

    fn unpublished(&mut self, uid: Uid) -> Vec<Effect> {
        let Some(volume) = self.volumes.remove(&uid) else { return Vec::new() };
        let mut effects = vec![Effect::Release(uid.clone())];
        if volume.ctl.told {
            effects.push(Effect::Tell(Tell::Unpublished(uid)));
        }
        effects
    }

    /// What the gateway does not know yet of a volume, if it is time to tell. `ctl` comes first.
    fn tell(&mut self, uid: &Uid) -> Vec<Effect> {
        let Some(volume) = self.volumes.get_mut(uid) else { return Vec::new() };
        let mut effects = Vec::new();
        if self.phase != Phase::Serving || !volume.identified {
            return effects;
        }
        if volume.ctl.in_hand && !volume.ctl.told {
            volume.ctl.told = true;
            effects.push(Effect::Tell(Tell::Volume(uid.clone())));
        }
        if volume.ctl.told && volume.otlp.in_hand && !volume.otlp.told {
            volume.otlp.told = true;
            effects.push(Effect::Tell(Tell::Otlp(uid.clone())));
        }
        effects
    }

    fn secure_missing(&self) -> Vec<Effect> {
        let missing = self.volumes.iter().flat_map(|(uid, volume)| {
            let sockets = [(Kind::Ctl, &volume.ctl), (Kind::Otlp, &volume.otlp)];
            sockets.into_iter().filter(|(_, socket)| !socket.in_hand).map(|(kind, _)| Effect::Secure(uid.clone(), kind))
        });
        missing.collect()
    }

    fn forget_told(&mut self) {
        for volume in self.volumes.values_mut() {
            volume.ctl.told = false;
            volume.otlp.told = false;
            volume.declined = false;
        }
    }

    /// A volume, which is the newest one if it was not known.
    fn volume(&mut self, uid: &Uid) -> &mut Volume {
        let ever = &mut self.ever;
        self.volumes.entry(uid.clone()).or_insert_with(|| {
            *ever += 1;
            Volume { age: *ever, ..Volume::default() }
        })
    }

    fn socket(&mut self, uid: &Uid, kind: Kind) -> Option<&mut Socket> {
        let volume = self.volumes.get_mut(uid)?;
        Some(match kind {
            Kind::Ctl => &mut volume.ctl,
            Kind::Otlp => &mut volume.otlp,
        })
    }
}

#[cfg(test)]
mod tests;

//! One destination at run time: who sends next, what shares a request, how much may be in memory.
//!
//! Owns the breaker, the ring of lanes and the halves of merged requests that were refused. It composes requests; the
//! engine sends them and settles what comes back.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::board::OutletGauge;
use super::breaker::Breaker;
use super::client::Client;
use super::drr::{Drr, Head};
use super::lane::{Lane, is_lone};
use super::merge::{Key, MERGED_BYTES_MAX, Member, Record};
use crate::config::{Destination, DestinationKind, Retry};
use crate::sink::Sink;
use crate::wire;

/// What a lane may keep in memory while its destination does not take anything.
const RESTING_LANE_BYTES: usize = 64 * 1024;

/// How much is read from the log at once, at most.
const READ_BYTES_MAX: usize = 1024 * 1024;
const READ_BYTES_MIN: usize = 64 * 1024;

/// How long a smaller limit that a refusal taught is kept.
const LEARNED_FOR: Duration = Duration::from_secs(600);

/// All lanes by number. Numbers are not used again, so a stale one finds nothing.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    slots: Vec<Option<Box<Lane>>>,
}

impl Lanes {
    pub(crate) fn add(&mut self, lane: Lane) -> u32 {
        self.slots.push(Some(Box::new(lane)));
        u32::try_from(self.slots.len() - 1).expect("four billion lanes do not fit into memory")
    }

    pub(crate) fn at(&mut self, number: u32) -> Option<&mut Lane> {
        self.slots.get_mut(number as usize)?.as_deref_mut()
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<Box<Lane>> {
        self.slots.get_mut(number as usize)?.take()
    }
}

/// How requests leave.
#[derive(Debug, Clone)]
pub(crate) enum Transport {
    Network(Rc<Client>),
    Sink(Arc<Sink>),
    /// A destination that is not configured any more: what waits for it stays until it expires.
    Nowhere,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Outlet {
    pub(crate) transport: Transport,
    pub(crate) retry: Retry,
    pub(crate) breaker: Breaker,
    pub(crate) gauge: Arc<OutletGauge>,
    pub(crate) lanes: Vec<u32>,
    pub(crate) flying: usize,
    /// Halves of refused requests, to be sent as they are.
    pub(crate) groups: VecDeque<Vec<Member>>,
    /// Lanes that have something to read from the log.
    pub(crate) behind: VecDeque<u32>,
    pub(crate) drr: Drr,
    pub(crate) held: Rc<Cell<usize>>,
    held_max: usize,
    window: usize,
    merge: bool,
    message_max: usize,
    learned: Option<(usize, Instant)>,
    /// It would take a request, and nothing in memory may be sent.
    starved: bool,
    /// Where the next probe of a resting destination comes from.
    pub(crate) probe: Probe,
}

/// While a destination rests, most lanes have nothing in memory: probes alternate between those that have and those
/// whose backlog is in the log, or one lane that the destination chokes on would be the only one ever tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    Memory,
    Backlog,
    Reading(u32),
}

/// What is next.
#[derive(Debug)]
pub(crate) enum Composed {
    /// To be sent: one signal, except towards a sink.
    Request(Vec<Member>),
    /// One item of it is larger than the destination takes.
    Unsendable(Member, wire::ItemTooLarge),
    /// To be appended first: it is to be split, and only the log's records are.
    Unlogged(Member, u64),
}

impl Outlet {
    pub(crate) fn new(
        transport: Transport,
        destination: &Destination,
        gauge: Arc<OutletGauge>,
        held_max: usize,
    ) -> Self {
        // Stores are synced, so what waits during one makes the next one larger: more at once would only be smaller.
        let window = if destination.kind == DestinationKind::Sink { 1 } else { destination.window.max(1) };
        let message_max = usize::try_from(destination.max_message_bytes).unwrap_or(usize::MAX);
        let outlet = Self::with((transport, window), destination.retry, gauge, held_max);
        Self { merge: destination.merge, message_max, ..outlet }
    }

    fn with((transport, window): (Transport, usize), retry: Retry, gauge: Arc<OutletGauge>, held_max: usize) -> Self {
        Self {
            transport,
            retry,
            breaker: Breaker::default(),
            gauge,
            lanes: Vec::new(),
            flying: 0,
            groups: VecDeque::new(),
            behind: VecDeque::new(),
            drr: Drr::default(),
            held: Rc::default(),
            held_max,
            window,
            merge: false,
            message_max: usize::MAX,
            learned: None,
            starved: false,
            probe: Probe::Memory,
        }
    }

    /// A destination that nobody can send to.
    pub(crate) fn nowhere(gauge: Arc<OutletGauge>) -> Self {
        gauge.publish_state("broken");
        gauge.publish_error("the destination is not configured");
        let never = Retry { initial_interval: Duration::MAX, max_interval: Duration::MAX };
        Self::with((Transport::Nowhere, 0), never, gauge, 0)
    }

    /// Whether one more request may be sent now.
    pub(crate) fn permits(&self, now: Instant) -> bool {
        !self.is_nowhere() && self.breaker.permits(now, self.flying, self.window)
    }

    /// Whether it takes requests at all, as far as is known.
    pub(crate) fn takes(&self) -> bool {
        !self.is_nowhere() && self.breaker.until().is_none()
    }

    fn is_nowhere(&self) -> bool {
        matches!(self.transport, Transport::Nowhere)
    }

    /// Whether a payload that has just arrived may stay in memory until it is sent.
    pub(crate) fn has_room(&self, lane: &Lane, bytes: usize) -> bool {
        let (lane_max, all_max) = match self.takes() {
            true => (self.held_max / 4, self.held_max / 2),
            false => (RESTING_LANE_BYTES, self.held_max / 16),
        };
        lane.held_bytes() + bytes <= lane_max && self.held.get() + bytes <= all_max
    }

    /// How much the next lane may read from the log, if there is room for it. While it rests only for a probe.
    pub(crate) fn read_bytes(&self, now: Instant) -> Option<usize> {
        let share = self.held_max / 4 / self.behind.len().max(1);
        let bytes = share.clamp(READ_BYTES_MIN, READ_BYTES_MAX);
        // What is held may be what cannot be given back: records under suspicion. A probe from the log is one read.
        let probing = !self.takes() && self.probe == Probe::Backlog;
        let room = probing || self.held.get() == 0 || self.held.get() + bytes <= self.held_max;
        let probes = self.starved || self.probe == Probe::Backlog;
        let wanted = self.takes() || (self.permits(now) && probes);
        (room && wanted).then_some(bytes)
    }

    /// Whether the next probe is to be read from the log first.
    pub(crate) fn awaits_backlog(&self) -> bool {
        match self.probe {
            Probe::Memory => false,
            Probe::Backlog => !self.takes() && !self.behind.is_empty(),
            Probe::Reading(_) => !self.takes(),
        }
    }

    /// A probe failed: the next one comes from elsewhere.
    pub(crate) fn turn_probe(&mut self) {
        self.probe = if self.probe == Probe::Memory { Probe::Backlog } else { Probe::Memory };
    }

    /// Forgets what is in memory beyond a little, when it does not take anything.
    pub(crate) fn trim(&mut self, lanes: &mut Lanes) {
        let keep = RESTING_LANE_BYTES.min(self.held_max / 16 / self.lanes.len().max(1));
        for number in &self.lanes {
            if let Some(lane) = lanes.at(*number) {
                lane.trim(keep);
            }
        }
    }

    /// A request was refused as too large.
    pub(crate) fn learn_limit(&mut self, bytes: usize, now: Instant) {
        self.learned = Some((bytes.max(READ_BYTES_MIN), now + LEARNED_FOR));
    }

    fn limit(&self, now: Instant) -> usize {
        match self.learned {
            Some((bytes, until)) if now < until => bytes.min(self.message_max),
            _ => self.message_max,
        }
    }

    /// The next request, or `None`: nothing to send now.
    pub(crate) fn compose(&mut self, lanes: &mut Lanes, now: Instant) -> Option<Composed> {
        if let Some(group) = self.groups.pop_front() {
            return Some(Composed::Request(group));
        }
        self.starved = true;
        let accepted = self.breaker.accepted();
        let limit = self.limit(now);
        let (number, record) = loop {
            let number = self.drr.next(|lane| lanes.at(lane).map_or(Head::Empty, |lane| lane.head(now, accepted)))?;
            let lane = lanes.at(number)?;
            let record = lane.take(accepted)?;
            self.starved = false;
            let sink = matches!(self.transport, Transport::Sink(_));
            // A dead letter goes as it is, or is refused once more: whether all its pieces arrived, nobody would know.
            let whole = sink || matches!(record.key, Key::Letter(_));
            if whole || record.payload.len() <= limit {
                break (number, record);
            }
            if let Key::Volatile(id) = record.key {
                return Some(Composed::Unlogged(Member { lane: number, record, suspected: None }, id));
            }
            match wire::split(&record.payload, record.signal, limit) {
                Ok(pieces) => lane.put_pieces(&record, pieces),
                Err(error) => {
                    return Some(Composed::Unsendable(Member { lane: number, record, suspected: None }, error));
                }
            }
        };
        Some(Composed::Request(self.fill(lanes, number, record, now)))
    }

    /// Adds to a request what may share it.
    fn fill(&mut self, lanes: &mut Lanes, first: u32, record: Record, now: Instant) -> Vec<Member> {
        let sink = matches!(self.transport, Transport::Sink(_));
        let signal = (!sink).then_some(record.signal);
        let mut room = self.limit(now).min(MERGED_BYTES_MAX).saturating_sub(record.payload.len());
        let alone = is_lone(&record) && !sink;
        let apart = !self.merge || lanes.at(first).is_none_or(|lane| lane.is_apart(now));
        let mut members = vec![Member { lane: first, record, suspected: None }];
        while !alone && room > 0 {
            let next = self.drr.next(|number| match lanes.at(number) {
                None => Head::Empty,
                Some(lane) if number != first && (apart || lane.is_apart(now)) => lane.pass(),
                Some(lane) => lane.head_to_merge(now, signal, room),
            });
            let Some(number) = next else { break };
            let Some(record) = lanes.at(number).and_then(|lane| lane.take_to_merge(signal)) else { break };
            room = room.saturating_sub(record.payload.len());
            members.push(Member { lane: number, record, suspected: None });
        }
        members
    }

    /// Says publicly how it is; logs when that changes.
    pub(crate) fn publish(&self) {
        self.gauge.in_flight.store(self.flying, Ordering::Relaxed);
        self.gauge.held_bytes.store(self.held.get(), Ordering::Relaxed);
        if self.is_nowhere() {
            return;
        }
        let state = self.breaker.state();
        if self.gauge.publish_state(state) {
            let destination = self.gauge.name();
            match state {
                "ok" => tracing::info!(%destination, "the destination accepts data again"),
                "broken" => tracing::error!(
                    %destination,
                    "the destination is at fault; everything stays queued until it accepts data again"
                ),
                _ => tracing::warn!(%destination, "the destination does not answer as it should; trying again"),
            }
        }
    }
}

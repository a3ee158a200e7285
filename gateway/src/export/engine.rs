//! The export thread: one loop over arrivals, orders, answers, reads and completions; it alone changes lanes and cursors.
//!
//! Ends with a drain order. Nothing it does blocks but small reads of credential files: the log is read and the sink
//! written on a small pool, names are resolved there too.
//!
//! ```text
//! arrivals   Handoff, by way of Gather: a busy gateway merges small ones, an idle one sends at once
//! orders     Desk: attach, detach, drain
//! landed     answers to requests       -> settle
//! reads      backlog from the log      -> lanes
//! fetched    dead letters to be sent again -> lanes
//! filed      appends of ack memory, dead letters
//! alarms     the end of a rest, patience, the checkpoint
//! ```

mod departed;
mod drain;
mod given_up;
mod load;
mod overdue;
mod replay;
mod settle;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use smallvec::SmallVec;

use super::board::{Gauges, OutletGauge};
use super::breaker::Sent;
use super::classify::{Failure, Fault};
use super::desk::{Desk, DrainOrder, Order};
use super::gather::Gather;
use super::merge::{Key, Member, message};
use super::outlet::{Composed, Lanes, Outlet, Transport};
use super::status::Accepted;
use super::volatile::{Stage, Volatiles};
use crate::base::handoff::{Arrival, GivenUp, Handoff};
use crate::base::mailbox::Mailbox;
use crate::base::{DestinationName, Sequence, TenantId};
use crate::queue::{Completion, Departure, Queue, Read};
use crate::sink::{Delivery, Sink};

/// Reads of the log at once. The pool has two threads for them.
const READS_MAX: usize = 2;

/// A checkpoint is due this long after, or this many records after, the last one. After a start and after idleness the
/// first ones come sooner, so that even a process that is killed again and again gets on.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
const CHECKPOINT_INTERVAL_FIRST: Duration = Duration::from_millis(20);
const CHECKPOINT_RECORDS: usize = 1_000;

/// Answers settled before the other sources are looked at.
const LANDED_MAX: usize = 64;

/// A request that came back.
pub(super) struct Landed {
    outlet: usize,
    members: Vec<Member>,
    /// Bytes that were copied together for it.
    copied: usize,
    sent: Sent,
    result: Result<Accepted, Failure>,
}

/// A read that came back.
pub(super) struct ReadDone {
    lane: u32,
    reserved: usize,
    /// Where the read began.
    after: Sequence,
    /// The tenant's last record when the read began.
    tail: Sequence,
    result: std::io::Result<Read>,
}

/// What a completion of the queue is about.
#[derive(Debug)]
enum Filed {
    Spill(u64),
    Letter(Box<Member>),
}

/// A tenant, as far as export knows it.
#[derive(Debug, Default)]
struct Tenant {
    lanes: SmallVec<[u32; 2]>,
    /// The last record heard of, for a tenant whose route is still on its way.
    tail: Sequence,
    early_items: u64,
    /// Told before its route.
    given_up: Vec<GivenUp>,
    /// Its pod is gone.
    leaving: Option<Departure>,
    /// The log was asked to forget it, with this ticket.
    asked: Option<u64>,
}

/// See the module.
pub(super) struct Engine {
    queue: Queue,
    handoff: Arc<Handoff>,
    desk: Arc<Desk>,
    outlets: Vec<Outlet>,
    gauges: Gauges,
    by_name: HashMap<DestinationName, usize>,
    tenants: HashMap<TenantId, Tenant>,
    lanes: Lanes,
    volatiles: Volatiles,
    flights: FuturesUnordered<Pin<Box<dyn Future<Output = Landed>>>>,
    reads: FuturesUnordered<Pin<Box<dyn Future<Output = ReadDone>>>>,
    mailbox: Arc<Mailbox<Completion>>,
    filed: HashMap<u64, Filed>,
    /// Whom the log was asked to forget: answered when all they sent is done, so no drain waits for it.
    forgetting: HashMap<u64, TenantId>,
    asking_again: Vec<TenantId>,
    /// Who left since the hand-over was last looked at.
    departing: Vec<Departure>,
    next_ticket: u64,
    dirty: Vec<u32>,
    done_records: usize,
    checkpoint_due: Option<Instant>,
    /// When the age of what is queued is looked at.
    sweep_due: Option<Instant>,
    replays: replay::Replays,
    /// Lanes whose backlog may be too old, and the look that is under way.
    overdue: VecDeque<u32>,
    looks: FuturesUnordered<Pin<Box<dyn Future<Output = overdue::Looked>>>>,
    /// When the last one was, and how long after it the next may be.
    checkpointed: (Instant, Duration),
    gather: Gather,
    alarms: BinaryHeap<Reverse<Instant>>,
    /// Lanes that rest.
    resting: Vec<u32>,
    draining: Option<DrainOrder>,
    /// The hand-over is to be looked at once more before the drain ends.
    sweep: bool,
    inbox: Inbox,
    /// When "now" is, for everything handled in one turn.
    now: Instant,
}

/// What one turn handles. Kept, so that its buffers are.
#[derive(Default)]
struct Inbox {
    arrivals: VecDeque<Arrival>,
    orders: VecDeque<Order>,
    completions: Vec<Completion>,
    landed: Vec<Landed>,
    reads: Vec<ReadDone>,
    looked: Vec<overdue::Looked>,
    fetched: Vec<replay::Fetched>,
}

impl Engine {
    pub(super) fn new(
        queue: Queue,
        handoff: Arc<Handoff>,
        desk: Arc<Desk>,
        (outlets, gauges): (Vec<Outlet>, Gauges),
        patience: Duration,
    ) -> Self {
        let by_name = outlets.iter().enumerate().map(|(index, outlet)| (outlet.gauge.name().clone(), index)).collect();
        Self {
            queue,
            handoff,
            desk,
            outlets,
            gauges,
            by_name,
            tenants: HashMap::new(),
            lanes: Lanes::default(),
            volatiles: Volatiles::new(patience),
            flights: FuturesUnordered::new(),
            reads: FuturesUnordered::new(),
            mailbox: Arc::default(),
            filed: HashMap::new(),
            forgetting: HashMap::new(),
            asking_again: Vec::new(),
            departing: Vec::new(),
            next_ticket: 0,
            dirty: Vec::new(),
            done_records: 0,
            checkpoint_due: None,
            sweep_due: None,
            replays: replay::Replays::default(),
            overdue: VecDeque::new(),
            looks: FuturesUnordered::new(),
            checkpointed: (Instant::now(), CHECKPOINT_INTERVAL_FIRST),
            gather: Gather::Idle,
            alarms: BinaryHeap::new(),
            resting: Vec::new(),
            draining: None,
            sweep: false,
            inbox: Inbox::default(),
            now: Instant::now(),
        }
    }

    /// Runs until a drain order is carried out.
    pub(super) async fn run(mut self) {
        let mut sleep = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            std::future::poll_fn(|cx| self.poll_inbox(cx, sleep.as_mut())).await;
            self.now = Instant::now();
            self.handle_inbox();
            self.turn();
            if let Some(done) = self.drained() {
                // The receiver may have given up; nobody else wants to know.
                let _ = done.try_send(());
                return;
            }
        }
    }

    /// Ready when anything is to be handled, or an alarm rings.
    fn poll_inbox(&mut self, cx: &mut Context<'_>, mut sleep: Pin<&mut tokio::time::Sleep>) -> Poll<()> {
        let now = Instant::now();
        let mut ready = std::mem::take(&mut self.sweep);
        ready |= self.desk.poll_take(cx, &mut self.inbox.orders).is_ready();
        ready |= self.mailbox.poll_take(cx, &mut self.inbox.completions).is_ready();
        while self.inbox.landed.len() < LANDED_MAX
            && let Poll::Ready(Some(landed)) = self.flights.poll_next_unpin(cx)
        {
            self.inbox.landed.push(landed);
        }
        while let Poll::Ready(Some(done)) = self.reads.poll_next_unpin(cx) {
            self.inbox.reads.push(done);
        }
        while let Poll::Ready(Some(looked)) = self.looks.poll_next_unpin(cx) {
            self.inbox.looked.push(looked);
        }
        while let Poll::Ready(Some(fetched)) = self.replays.fetches.poll_next_unpin(cx) {
            self.inbox.fetched.push(fetched);
            ready = true;
        }
        ready |= !self.inbox.landed.is_empty() || !self.inbox.reads.is_empty() || !self.inbox.looked.is_empty();
        ready |= self.gather.poll(now, &self.handoff, cx, &mut self.inbox.arrivals).is_ready();
        if ready {
            return Poll::Ready(());
        }
        let Some(alarm) = self.next_alarm() else { return Poll::Pending };
        let alarm = tokio::time::Instant::from_std(alarm);
        if sleep.deadline() != alarm {
            sleep.as_mut().reset(alarm);
        }
        sleep.poll(cx)
    }

    fn next_alarm(&self) -> Option<Instant> {
        let rest = self.alarms.peek().map(|Reverse(at)| *at);
        let cutoff = self.draining.as_ref().map(drain::cutoff);
        let probes =
            self.outlets.iter().filter_map(|outlet| outlet.breaker.until()).filter(|until| *until > self.now).min();
        [rest, probes, self.volatiles.next_due(), self.checkpoint_due, self.next_sweep(), self.gather.alarm(), cutoff]
            .into_iter()
            .flatten()
            .min()
    }

    fn handle_inbox(&mut self) {
        let mut inbox = std::mem::take(&mut self.inbox);
        let departed = std::mem::take(&mut self.departing);
        // Orders first: a route must be known before the batches that come with it.
        for order in inbox.orders.drain(..) {
            match order {
                Order::Attach(route) => self.attach(*route),
                Order::Detach(departure) => self.depart(departure),
                Order::Replay => self.look_for_replays(),
                Order::Drain(order) => self.begin_drain(order),
            }
        }
        // Before arrivals: an append that completed is then known before its record is met.
        inbox.completions.drain(..).for_each(|completion| self.complete(completion));
        inbox.landed.drain(..).for_each(|landed| self.land(landed));
        inbox.reads.drain(..).for_each(|done| self.take_read(done));
        inbox.looked.drain(..).for_each(|looked| self.take_look(looked));
        inbox.fetched.drain(..).for_each(|fetched| self.take_fetched(fetched));
        self.take_arrivals(&mut inbox.arrivals);
        departed.into_iter().for_each(|departure| self.detach(departure));
        self.inbox = inbox;
    }

    /// Everything that follows from the state and the time.
    fn turn(&mut self) {
        while self.alarms.peek().is_some_and(|Reverse(at)| *at <= self.now) {
            self.alarms.pop();
            self.end_rests();
            self.ask_again();
        }
        while let Some(id) = self.volatiles.pop_due(self.now) {
            self.spill(id);
        }
        self.sweep_ages();
        for index in 0..self.outlets.len() {
            self.send_from(index);
        }
        self.start_reads();
        self.look_for_overdue();
        self.start_replays();
        if is_checkpoint_due(self.done_records, self.checkpoint_due, self.now) {
            self.checkpoint();
        }
    }

    fn send_from(&mut self, index: usize) {
        while self.may_send() && self.outlets[index].permits(self.now) && !self.outlets[index].awaits_backlog() {
            match self.outlets[index].compose(&mut self.lanes, self.now) {
                Some(Composed::Request(members)) => self.launch(index, members),
                Some(Composed::Unsendable(member, error)) => self.bury(index, member, (&error.to_string(), None)),
                Some(Composed::Unlogged(member, id)) => self.put_in_log(member, id),
                None => break,
            }
        }
        let outlet = &self.outlets[index];
        outlet.publish();
    }

    fn launch(&mut self, index: usize, members: Vec<Member>) {
        for member in &members {
            if let Some(lane) = self.lanes.at(member.lane) {
                lane.flying += 1;
            }
            if let Key::Volatile(id) = member.record.key {
                self.volatiles.mark(id, member.lane, Stage::Flying);
            }
        }
        let outlet = &mut self.outlets[index];
        outlet.flying += 1;
        outlet.gauge.requests.add(1);
        let sent = outlet.breaker.sent();
        match outlet.transport.clone() {
            Transport::Network(client) => {
                let message = message(&members);
                let copied = if members.len() > 1 { message.len() } else { 0 };
                outlet.held.set(outlet.held.get() + copied);
                let signal = members[0].record.signal;
                self.flights.push(Box::pin(async move {
                    let result = client.send(signal, message).await;
                    Landed { outlet: index, members, copied, sent, result }
                }));
            }
            Transport::Nowhere => unreachable!("it permits no request"),
            Transport::Sink(sink) => {
                let deliveries = self.deliveries(&members);
                self.flights.push(Box::pin(async move {
                    let result = store(sink, deliveries).await;
                    Landed { outlet: index, members, copied: 0, sent, result }
                }));
            }
        }
    }

    /// The place of what waits for a destination that is not configured.
    fn open_nowhere(&mut self, name: DestinationName) -> usize {
        let gauge = OutletGauge::new(name.clone());
        self.gauges.add(gauge.clone());
        self.outlets.push(Outlet::nowhere(gauge));
        self.by_name.insert(name, self.outlets.len() - 1);
        self.outlets.len() - 1
    }

    fn deliveries(&mut self, members: &[Member]) -> Vec<Delivery> {
        let deliveries = members.iter().filter_map(|member| {
            let lane = self.lanes.at(member.lane)?;
            let (tenant, name) = (lane.tenant, lane.gauge.name.clone());
            let record = &member.record;
            let sequence = match record.key {
                Key::Logged(sequence) => Some(sequence),
                Key::Volatile(_) | Key::Letter(_) => None,
            };
            let (acknowledged, payload) = (lane.acknowledged(), record.payload.clone());
            Some(Delivery { tenant, name, sequence, acknowledged, signal: record.signal, items: record.items, payload })
        });
        deliveries.collect()
    }

    /// Saves the cursors that moved. Not synced on its own: a crash repeats what was delivered since the last one.
    fn checkpoint(&mut self) {
        let numbers = std::mem::take(&mut self.dirty);
        let mut states = Vec::with_capacity(numbers.len());
        for number in &numbers {
            let Some(lane) = self.lanes.at(*number) else { continue };
            lane.dirty = false;
            states.extend(lane.states(self.outlets[lane.outlet].gauge.name()));
        }
        (self.done_records, self.checkpoint_due) = (0, None);
        self.checkpointed = (self.now, next_interval(self.checkpointed.1));
        if states.is_empty() {
            return;
        }
        let saved = self.queue.checkpoint(states);
        if let Err(error) = &saved {
            tracing::debug!(%error, "cursors are not saved yet");
        }
        for number in numbers {
            match saved {
                Ok(()) => self.forget_if_idle(number),
                Err(_) => self.mark_dirty(number),
            }
        }
    }

    fn mark_dirty(&mut self, number: u32) {
        let Some(lane) = self.lanes.at(number) else { return };
        if !std::mem::replace(&mut lane.dirty, true) {
            self.dirty.push(number);
            self.checkpoint_due.get_or_insert_with(|| due_after(&mut self.checkpointed, self.now));
        }
    }

    fn ticket(&mut self, about: Filed) -> u64 {
        let ticket = self.bare_ticket();
        self.filed.insert(ticket, about);
        ticket
    }

    fn bare_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket - 1
    }
}

/// Whether what was done since the last checkpoint is as much as a crash may repeat.
fn is_checkpoint_due(done_records: usize, due: Option<Instant>, now: Instant) -> bool {
    done_records >= CHECKPOINT_RECORDS || due.is_some_and(|due| due <= now)
}

/// When the cursors that begin to move now are to be saved. Two intervals without a checkpoint are idleness.
fn due_after((last, interval): &mut (Instant, Duration), now: Instant) -> Instant {
    if now.saturating_duration_since(*last) >= 2 * CHECKPOINT_INTERVAL {
        *interval = CHECKPOINT_INTERVAL_FIRST;
    }
    now + *interval
}

fn next_interval(interval: Duration) -> Duration {
    (interval * 2).min(CHECKPOINT_INTERVAL)
}

async fn store(sink: Arc<Sink>, deliveries: Vec<Delivery>) -> Result<Accepted, Failure> {
    match tokio::task::spawn_blocking(move || sink.store(&deliveries)).await {
        Ok(Ok(())) => Ok(Accepted::default()),
        Ok(Err(error)) => Err(Failure::new(Fault::Busy, format!("storing: {error}"))),
        Err(error) => Err(Failure::new(Fault::Busy, format!("storing: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: records are done at once, one after the other; and one record, after which time passes.
    /// Guarantees: the cursors are saved with the thousandth record and with the first second, whichever comes first: more is
    /// never repeated after a crash.
    #[test]
    fn a_crash_repeats_a_thousand_records_or_a_second() {
        let now = Instant::now();
        let mut checkpointed = (now, CHECKPOINT_INTERVAL);
        let due = due_after(&mut checkpointed, now);
        let at = |records, millis| is_checkpoint_due(records, Some(due), now + Duration::from_millis(millis));
        assert_eq!([at(999, 999), at(1_000, 0), at(1, 1_000)], [false, true, true]);
        assert!(
            !is_checkpoint_due(0, None, now + Duration::from_secs(60)),
            "without a record there is nothing to save"
        );
    }

    /// Scenario: cursors move all the time from the start on, then not for a while, then again.
    /// Guarantees: the first are saved after a fiftieth of the interval, later ones once an interval; idleness begins anew.
    #[test]
    fn the_first_checkpoints_come_sooner() {
        let mut now = Instant::now();
        let mut checkpointed = (now, CHECKPOINT_INTERVAL_FIRST);
        let mut pauses = |idle: Duration| {
            now += idle;
            let due = due_after(&mut checkpointed, now);
            let pause = due.duration_since(now);
            now = due;
            checkpointed = (now, next_interval(checkpointed.1));
            pause.as_millis()
        };
        assert_eq!([(); 8].map(|()| pauses(Duration::ZERO)), [20, 40, 80, 160, 320, 640, 1_000, 1_000]);
        assert_eq!(pauses(CHECKPOINT_INTERVAL), 1_000);
        assert_eq!(pauses(2 * CHECKPOINT_INTERVAL), 20);
    }
}

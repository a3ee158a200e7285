//! What comes in: routes, committed batches, batches of ack memory, and backlog from the log.

use std::collections::VecDeque;

use bytes::Bytes;
use smallvec::SmallVec;

use super::super::Route;
use super::super::board::LaneGauge;
use super::super::lane::Lane;
use super::super::merge::{Key, Record, Refusals};
use super::super::outlet::Probe;
use super::super::volatile::Stage;
use super::{Engine, Filed, READS_MAX, ReadDone};
use crate::base::handoff::{Arrival, Committed};
use crate::base::{Batch, DestinationName, Sequence, Signal};
use crate::queue::{Append, AppendError, Completion, CursorOf, Read, Reply};

/// After a read that failed or found nothing although something must be there.
const READ_PAUSE: std::time::Duration = std::time::Duration::from_millis(500);

impl Engine {
    pub(super) fn attach(&mut self, route: Route) {
        let mut names: Vec<&DestinationName> = route.destinations.iter().flatten().collect();
        names.sort();
        names.dedup();
        for name in names {
            match self.by_name.get(name).copied() {
                Some(outlet) => self.attach_lane(&route, name, outlet),
                None => {
                    tracing::error!(
                        tenant = %route.name, destination = %name,
                        "the tenant's data goes to a destination that is not configured: it stays queued until queue.max_age"
                    );
                    let outlet = self.open_nowhere(name.clone());
                    self.attach_lane(&route, name, outlet);
                }
            }
        }
        let tenant = self.tenants.entry(route.tenant).or_default();
        tenant.leaving = None;
        let (tail, early) = (tenant.tail.max(route.last), std::mem::take(&mut tenant.early_items));
        for number in tenant.lanes.clone() {
            let Some(lane) = self.lanes.at(number) else { continue };
            let name = self.outlets[lane.outlet].gauge.name();
            let begin = Signal::ALL.map(|signal| {
                let of = CursorOf::Delivery(name.clone(), signal);
                let state = route.cursors.iter().find(|state| state.of == of);
                state.map_or(Sequence::ZERO, |state| state.acknowledged)
            });
            lane.note_recovered(&route, name, begin);
            lane.route(std::array::from_fn(|signal| route.destinations[signal].contains(name)), begin);
            lane.tail = lane.tail.max(tail);
            lane.set_max_age(route.max_age);
            lane.gauge.queued_items.fetch_add(early, std::sync::atomic::Ordering::Relaxed);
            lane.note_caught_up();
            self.list_behind(number);
        }
        self.give_up_early(route.tenant);
        self.watch_ages();
    }

    fn attach_lane(&mut self, route: &Route, name: &DestinationName, outlet: usize) {
        let known = self.tenants.get(&route.tenant).map(|tenant| tenant.lanes.clone()).unwrap_or_default();
        if known.into_iter().any(|number| self.lanes.at(number).is_some_and(|lane| lane.outlet == outlet)) {
            return;
        }
        let gauge = LaneGauge::new(route.name.clone());
        let states = Signal::ALL.map(|signal| {
            let of = CursorOf::Delivery(name.clone(), signal);
            route.cursors.iter().find(|state| state.of == of)
        });
        let held = self.outlets[outlet].held.clone();
        let number = self.lanes.add(Lane::new(route.tenant, outlet, states, gauge.clone(), held));
        self.outlets[outlet].lanes.push(number);
        self.outlets[outlet].gauge.enter(gauge);
        self.tenants.entry(route.tenant).or_default().lanes.push(number);
    }

    pub(super) fn take_arrivals(&mut self, arrivals: &mut VecDeque<Arrival>) {
        let (count, mut bytes) = (arrivals.len(), 0);
        for arrival in arrivals.drain(..) {
            match arrival {
                Arrival::Committed(committed) => {
                    bytes += committed.payload.as_ref().map_or(0, Bytes::len);
                    self.take_committed(&committed);
                }
                Arrival::Volatile(batch) => {
                    bytes += batch.payload.len();
                    self.take_volatile(batch);
                }
                Arrival::GivenUp(given_up) => self.give_up(given_up),
            }
        }
        if self.draining.is_none() {
            self.gather.took(count, bytes, self.now);
        }
    }

    fn take_committed(&mut self, committed: &Committed) {
        self.watch_ages();
        let tenant = self.tenants.entry(committed.tenant).or_default();
        tenant.tail = tenant.tail.max(committed.sequence);
        if tenant.lanes.is_empty() {
            // Its route is still on its way; what is committed meanwhile is read from the log.
            tenant.early_items += committed.items;
            return;
        }
        for number in tenant.lanes.clone() {
            let Some(lane) = self.lanes.at(number) else { continue };
            let bytes = committed.payload.as_ref().map_or(0, Bytes::len);
            let room = self.outlets[lane.outlet].has_room(lane, bytes);
            lane.offer(committed, room);
            self.after_load(number);
        }
    }

    fn take_volatile(&mut self, batch: Batch) {
        let lanes = self.tenants.get(&batch.tenant).map(|tenant| tenant.lanes.clone()).unwrap_or_default();
        let mut takers = SmallVec::new();
        let mut room = true;
        for number in lanes {
            let Some(lane) = self.lanes.at(number).filter(|lane| lane.cursors.routes(batch.signal)) else { continue };
            let outlet = &self.outlets[lane.outlet];
            room &= outlet.takes() && outlet.has_room(lane, batch.payload.len());
            takers.push((number, Stage::Waiting));
        }
        let keep = room && !takers.is_empty() && self.draining.as_ref().is_none_or(|order| order.deliver);
        let id = self.volatiles.add(batch, takers, self.now);
        match keep {
            true => self.offer_volatile(id),
            false => self.spill(id),
        }
    }

    /// Gives a batch to the lanes that wait for it.
    fn offer_volatile(&mut self, id: u64) {
        let Some(entry) = self.volatiles.entry(id) else { return };
        let batch = &entry.batch;
        let (signal, items, payload) = (batch.signal, batch.items, batch.payload.clone());
        let waiting: SmallVec<[u32; 2]> =
            entry.lanes.iter().filter(|(_, stage)| *stage == Stage::Waiting).map(|(number, _)| *number).collect();
        for number in waiting {
            if let Some(lane) = self.lanes.at(number) {
                let record = Record {
                    key: Key::Volatile(id),
                    signal,
                    items,
                    appended_unix_ms: 0,
                    payload: payload.clone(),
                    piece: false,
                    refused: None,
                    refusals: Refusals::default(),
                };
                lane.add_fresh(record);
                self.after_load(number);
            }
        }
    }

    /// Sends a batch of ack memory to the log, unless it is in flight just now.
    pub(super) fn spill(&mut self, id: u64) {
        let Some(entry) = self.volatiles.entry(id) else { return };
        let flying = entry.lanes.iter().any(|(_, stage)| *stage == Stage::Flying);
        if entry.logging {
            return;
        }
        if flying && !self.is_past_cutoff() {
            return self.volatiles.defer(id, self.now);
        }
        let Some(entry) = self.volatiles.entry(id) else { return };
        entry.logging = true;
        let (signal, lanes) = (entry.batch.signal, entry.lanes.clone());
        // The guard stays here until the batch is in the log: a failed append must not make its memory free.
        let batch = Batch { guard: None, payload: entry.batch.payload.clone(), ..entry.batch };
        let ticket = self.ticket(Filed::Spill(id));
        let reply = Some(Reply { mailbox: self.mailbox.clone(), ticket });
        let append = Append { parts: SmallVec::from_iter([batch]), sync: false, reply };
        for (number, stage) in &lanes {
            let Some(lane) = self.lanes.at(*number) else { continue };
            match stage {
                Stage::Waiting => lane.remove_fresh(Key::Volatile(id), signal),
                Stage::Taken => lane.begin_spill(ticket),
                Stage::Flying => {}
            }
        }
        if let Err((_, error)) = self.queue.append(append) {
            self.complete(Completion { ticket, result: Err(error) });
        }
    }

    pub(super) fn complete(&mut self, completion: Completion) {
        if let Some(tenant) = self.forgetting.remove(&completion.ticket) {
            return self.forgotten(tenant, completion);
        }
        match self.filed.remove(&completion.ticket) {
            Some(Filed::Spill(id)) => self.spilled(id, completion),
            Some(Filed::Letter(member)) => self.letter_filed(*member, completion.result),
            None => {}
        }
    }

    fn spilled(&mut self, id: u64, completion: Completion) {
        let sequence = completion.result.ok();
        let Some(entry) = self.volatiles.entry(id) else { return };
        entry.logging = false;
        let signal = entry.batch.signal;
        for (number, stage) in entry.lanes.clone() {
            if stage == Stage::Taken
                && let Some(lane) = self.lanes.at(number)
            {
                lane.end_spill(completion.ticket, signal, sequence);
                self.mark_dirty(number);
                self.after_load(number);
            }
        }
        match completion.result {
            Ok(_) => drop(self.volatiles.remove(id)),
            Err(AppendError::UnknownTenant) => {
                tracing::error!("a batch of ack memory is lost: it came after its tenant was forgotten");
                self.volatiles.remove(id);
            }
            Err(error) => {
                tracing::warn!(%error, "a batch of ack memory could not go to the log; it stays in memory");
                self.volatiles.defer(id, self.now);
                self.offer_volatile(id);
            }
        }
    }

    /// A lane may have something to send or to read now.
    pub(super) fn after_load(&mut self, number: u32) {
        let Some(lane) = self.lanes.at(number) else { return };
        if lane.has_unsent() && !std::mem::replace(&mut lane.in_ring, true) {
            self.outlets[lane.outlet].drr.enter(number);
        }
        if lane.moved() {
            self.mark_dirty(number);
        }
        self.list_behind(number);
    }

    fn list_behind(&mut self, number: u32) {
        let Some(lane) = self.lanes.at(number) else { return };
        if lane.wants_read() && !std::mem::replace(&mut lane.listed_behind, true) {
            self.outlets[lane.outlet].behind.push_back(number);
        }
    }

    /// Reads backlog for lanes whose destination takes it, in turn.
    pub(super) fn start_reads(&mut self) {
        if !self.may_send() {
            return;
        }
        for index in 0..self.outlets.len() {
            for _ in 0..self.outlets[index].behind.len() {
                let Some(bytes) = self.outlets[index].read_bytes(self.now) else { break };
                if self.reads.len() >= READS_MAX {
                    return;
                }
                let Some(number) = self.outlets[index].behind.pop_front() else { break };
                self.start_read(index, number, bytes);
            }
            let outlet = &mut self.outlets[index];
            if outlet.probe == Probe::Backlog && !outlet.takes() && outlet.permits(self.now) {
                // Nobody had anything to read after all.
                outlet.probe = Probe::Memory;
                self.sweep = true;
            }
        }
    }

    fn start_read(&mut self, index: usize, number: u32, bytes: usize) {
        let Some(lane) = self.lanes.at(number) else { return };
        lane.listed_behind = false;
        if !lane.wants_read() {
            return;
        }
        let resting = lane.rest_until.is_some_and(|until| self.now < until);
        if resting || lane.has_enough(bytes * 2) {
            // Has enough for now: asks again when something of it was delivered or its rest is over.
            return;
        }
        lane.reading = true;
        let (tenant, after, tail, queue) = (lane.tenant, lane.cursors.seen(), lane.tail, self.queue.clone());
        let outlet = &mut self.outlets[index];
        if !outlet.takes() {
            outlet.probe = Probe::Reading(number);
        }
        let held = outlet.held.clone();
        held.set(held.get() + bytes);
        self.reads.push(Box::pin(async move {
            let read = tokio::task::spawn_blocking(move || queue.read(tenant, after, bytes)).await;
            ReadDone {
                lane: number,
                reserved: bytes,
                after,
                tail,
                result: read.unwrap_or_else(|error| Err(std::io::Error::other(error))),
            }
        }));
    }

    pub(super) fn take_read(&mut self, done: ReadDone) {
        let Some(lane) = self.lanes.at(done.lane) else { return };
        let index = lane.outlet;
        let held = &self.outlets[index].held;
        held.set(held.get() - done.reserved);
        lane.reading = false;
        let before = lane.cursors.seen();
        match done.result {
            // Nothing there: what was between is damaged or past its retention. Readers see a record before we hear of it.
            Ok(read) if read.records.is_empty() => {
                let through = read.through.max(done.tail);
                lane.take_read(done.after, Read { through, ..read });
            }
            Ok(read) => lane.take_read(done.after, read),
            Err(error) => {
                tracing::warn!(tenant = lane.tenant.0, %error, "reading backlog from the log failed; trying again");
            }
        }
        // A read that came too late says nothing: what it would have skipped is read at once.
        let stale = before < done.after;
        let fruitless = lane.cursors.seen() == before && !stale && lane.wants_read();
        self.after_load(done.lane);
        let outlet = &mut self.outlets[index];
        if outlet.probe == Probe::Reading(done.lane) {
            outlet.probe = Probe::Memory;
            outlet.drr.step_forward(done.lane);
        }
        let Some(lane) = self.lanes.at(done.lane) else { return };
        if fruitless {
            lane.rest(self.now + READ_PAUSE);
            self.alarms.push(std::cmp::Reverse(self.now + READ_PAUSE));
            self.resting.push(done.lane);
        }
        self.forget_if_idle(done.lane);
    }
}

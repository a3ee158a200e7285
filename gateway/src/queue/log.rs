//! The writer's core: a group of requests in, records, completions and freed segments out.
//!
//! Owns the tenants, the appender and the order of promises: written before buffered is told, synced before durable is
//! told, committed before readers and export see it. It has no thread and reads no clock, so that the simulation drives
//! it step by step; the writer thread only loops over [`Log::step`].
//!
//! ```text
//! forget     tenants that leave and have nothing left end with a record
//! plan       each request is admitted or refused as a whole, and its records are staged
//! write      one vectored write (one more for each segment that ends within the group)
//! tell       appends that do not ask for sync
//! sync       one fdatasync, if anybody asks for it
//! publish    readers see the records
//! tell       everybody else: guards end, one post a mailbox, one push to the hand-over
//! free       segments whose records the durable cursors have passed
//! relocate   as far as it is the writer's turn
//! ```
//! A failed call poisons the log: whoever was not told yet is told so, as is everyone after.

mod departed;
mod dropped;
mod letters;
mod registration;
mod relocation;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::appender::{Appender, Fields, Source};
use super::budget::Share;
use super::disk::Disk;
use super::group::{Mail, Outcome, Request, arrival};
use super::index::{Index, Segment};
use super::letters::tenant_of_letters;
use super::meta::Update;
use super::record::{self, Kind};
use super::space::Failure;
use super::stats::Stats;
use super::tenants::Tenants;
use super::{Append, AppendError, CursorOf, CursorState, Registered};
use crate::base::handoff::{Arrival, GivenUp, Handoff};
use crate::base::{DestinationName, Sequence, TenantId};

use relocation::Relocation;

/// The log, open for appends.
#[derive(Debug)]
pub(crate) struct Log<D: Disk> {
    /// Its end.
    pub(crate) appender: Appender<D>,
    /// Its tenants.
    pub(crate) tenants: Tenants,
    index: Arc<Index<D>>,
    stats: Arc<Stats>,
    handoff: Arc<Handoff>,
    outcomes: Vec<Outcome>,
    /// Of each accepted part, in order: its tenant's record before it, and its own.
    placed: Vec<(Sequence, Sequence)>,
    arrivals: Vec<Arrival>,
    mail: Mail,
    payload: Vec<u8>,
    /// Cursors have moved since it was last looked which segments are done.
    look_for_done: bool,
    /// Cursors have moved, or somebody leaves, since it was last looked who has nothing left.
    look_for_departed: bool,
    look_at_space_unix_ms: u64,
    /// What comes from here on is not committed yet.
    group_begin: Sequence,
    /// The latest cursors of checkpoints that were refused: tried again until there is room, one of each.
    refused_cursors: BTreeMap<(TenantId, CursorOf), CursorState>,
    /// Segments to free as soon as everything is durable.
    done: Vec<u64>,
    /// What is emptied, and when.
    pub(crate) relocation: Relocation<D>,
    update: Update,
    /// Of one tenant's dead letters.
    pub(crate) letter_bytes_max: u64,
    /// Destinations that begin there.
    pub(crate) begin_at_tail: BTreeSet<DestinationName>,
    /// What destinations that were removed have given up, with the number of records that are not named: told after the commit.
    removed: Vec<(GivenUp, u64)>,
}

impl<D: Disk> Log<D> {
    /// A log whose past is in `tenants` and `index`.
    pub(crate) fn new(
        appender: Appender<D>,
        (tenants, letter_bytes_max): (Tenants, u64),
        (index, stats, handoff): (Arc<Index<D>>, Arc<Stats>, Arc<Handoff>),
    ) -> Self {
        let mut log = Self {
            appender,
            tenants,
            index,
            stats,
            handoff,
            outcomes: Vec::new(),
            placed: Vec::new(),
            arrivals: Vec::new(),
            mail: Mail::default(),
            payload: Vec::new(),
            look_for_done: true,
            look_for_departed: false,
            look_at_space_unix_ms: 0,
            group_begin: Sequence::ZERO,
            refused_cursors: BTreeMap::new(),
            done: Vec::new(),
            relocation: Relocation::default(),
            update: Update::default(),
            letter_bytes_max,
            begin_at_tail: BTreeSet::new(),
            removed: Vec::new(),
        };
        log.note_figures();
        log
    }

    /// Commits a group and empties it. `sync` asks for durability even if no request does.
    pub(crate) fn step(&mut self, requests: &mut Vec<Request>, sync: bool, now_unix_ms: u64) {
        self.outcomes.clear();
        self.placed.clear();
        self.group_begin = self.appender.next();
        let mut wants_sync = sync;
        self.forget_departed(requests, now_unix_ms);
        self.look_at_space(now_unix_ms);
        self.save_refused_cursors(requests, now_unix_ms);
        for number in 0..requests.len() {
            let outcome = self.plan(number, requests, now_unix_ms, &mut wants_sync);
            self.outcomes.push(outcome);
        }
        // What a failed write has left planned speaks of requests that are gone.
        let written = if self.stats.is_poisoned() { Ok(()) } else { self.appender.write_out(requests) };
        if self.survives(written) {
            self.stats.commits.fetch_add(u64::from(!requests.is_empty()), Ordering::Relaxed);
            self.tell_unsynced(requests);
            self.look_for_done();
            if wants_sync || !self.done.is_empty() || self.relocation.desk.is_copied() {
                let synced = self.appender.sync();
                self.survives(synced);
            }
        }
        if !self.stats.is_poisoned() {
            self.appender.publish();
        }
        self.tell(requests, now_unix_ms);
        self.free();
        self.relocate(now_unix_ms);
        self.note_figures();
    }

    /// Makes everything durable and seals the open segment, so that the next start need not scan it.
    pub(crate) fn close(&mut self, now_unix_ms: u64) -> std::io::Result<()> {
        // A checkpoint of nothing: its time is what the next start's clock goes on from. Without room for it, that is a little less.
        if self.appender.is_open() && !self.stats.is_poisoned() {
            let _: Result<(), _> = self.stage_metadata(Kind::Cursors, TenantId(0), &[], (&[], now_unix_ms));
        }
        self.step(&mut Vec::new(), true, now_unix_ms);
        if self.stats.is_poisoned() {
            return Err(std::io::Error::other("the log is poisoned"));
        }
        match self.appender.seal(true) {
            Ok(()) => Ok(()),
            Err(Failure::Full) => Ok(()),
            Err(Failure::Io(action, error)) => Err(std::io::Error::new(error.kind(), format!("{action}: {error}"))),
        }
    }

    /// Has everything known saved to sled, which has nothing.
    pub(crate) fn save_all(&mut self) {
        self.update.tenants_changed = true;
        self.update.cursors = self.tenants.iter().flat_map(|(_, tenant)| tenant.cursors.values().cloned()).collect();
    }

    /// What sled should learn, since it was last asked.
    pub(crate) fn take_update(&mut self) -> Option<Update> {
        if self.update.is_empty() {
            return None;
        }
        let mut update = std::mem::take(&mut self.update);
        update.epoch = self.appender.epoch();
        update.tenants_next = self.tenants.next();
        Some(update)
    }

    fn plan(&mut self, number: usize, requests: &[Request], now: u64, wants_sync: &mut bool) -> Outcome {
        if self.stats.is_poisoned() {
            return Outcome::Refused(AppendError::Poisoned);
        }
        let planned = match &requests[number] {
            Request::Append(append) => {
                self.plan_append(number, append, (requests, now)).inspect(|_| *wants_sync |= append.sync)
            }
            Request::Register(record, registration, _) => {
                self.plan_register(record, (requests, now)).map(|(id, is_new)| {
                    *wants_sync |= is_new;
                    let stays = self.tenants.note_registered(id, *registration);
                    self.mail.add(stays, Err(AppendError::Busy));
                    Outcome::Registered(id)
                })
            }
            Request::Forget(departure, reply) => Ok(self.plan_forget(*departure, reply)),
            Request::Checkpoint(cursors) => self.plan_checkpoint(cursors, (requests, now)),
            Request::DeadLetter(letter, _) => {
                self.plan_letter(number, letter, (requests, now)).inspect(|_| *wants_sync = true)
            }
            Request::Letters(change, _) => self.plan_change(change, (requests, now)).inspect(|_| *wants_sync = true),
            Request::Tenants(reply) => {
                let views = self.tenants.iter().map(|(id, tenant)| tenant.view(id));
                // The caller waits for it; should it be gone, nobody needs the list.
                let _ = reply.try_send(views.collect());
                Ok(Outcome::Kept)
            }
        };
        planned.unwrap_or_else(Outcome::Refused)
    }

    fn plan_append(
        &mut self,
        number: usize,
        append: &Append,
        group: (&[Request], u64),
    ) -> Result<Outcome, AppendError> {
        let first = append.parts.first().ok_or(AppendError::UnknownTenant)?;
        if append.parts.iter().any(|part| part.tenant != first.tenant) {
            return Err(AppendError::UnknownTenant);
        }
        let cost = append.parts.iter().map(|part| Appender::<D>::cost(part.payload.len())).sum();
        let reserve = match self.reserve_for(first.tenant, cost) {
            Err(AppendError::OverBudget) => self.drop_oldest(first.tenant, cost, group)?,
            reserve => reserve?,
        };
        let admitted = self.admit(append.parts.iter().map(|part| part.payload.len()), reserve);
        if admitted == Err(AppendError::Full) && self.is_low_by_now(group.1) {
            return Err(AppendError::LowSpace);
        }
        admitted?;
        let mut last = Sequence::ZERO;
        for (part, batch) in append.parts.iter().enumerate() {
            self.make_room(batch.payload.len(), group)?;
            let fields = Fields {
                kind: Kind::Data,
                signal: batch.signal as u8,
                tenant: batch.tenant,
                items: batch.items,
                received_unix_ms: group.1,
            };
            last = self.appender.stage(fields, &[], &batch.payload, Some(Source { request: number, part }));
            let previous = self.tenants.append(batch.tenant, last, Appender::<D>::cost(batch.payload.len()));
            self.placed.push((previous, last));
        }
        Ok(Outcome::At(last))
    }

    fn plan_checkpoint(&mut self, cursors: &[CursorState], group: (&[Request], u64)) -> Result<Outcome, AppendError> {
        let mut payload = std::mem::take(&mut self.payload);
        let mut staged = Ok(());
        let mut rest = cursors;
        while !rest.is_empty() && staged.is_ok() {
            payload.clear();
            let mut taken = 0;
            while taken < rest.len() && payload.len() < record::CURSORS_BYTES_MAX {
                record::put_cursor(&mut payload, &rest[taken], true);
                taken += 1;
            }
            staged = self.stage_metadata(Kind::Cursors, TenantId(0), &payload, group);
            if staged.is_ok() {
                for cursor in &rest[..taken] {
                    // Only what is in the log may free anything.
                    if self.tenants.move_cursor(cursor) {
                        self.update.cursors.push(cursor.clone());
                        self.look_for_done = true;
                        self.relocation.moved = true;
                        self.look_for_departed |= self.tenants.has_leaving();
                    }
                }
                rest = &rest[taken..];
            }
        }
        self.payload = payload;
        staged.map(|()| Outcome::At(Sequence::ZERO))
    }

    /// Whoever sent them has gone on: without this, what they passed would stay until they move again.
    fn save_refused_cursors(&mut self, requests: &[Request], now_unix_ms: u64) {
        if self.refused_cursors.is_empty() || self.stats.is_poisoned() {
            return;
        }
        let cursors: Vec<_> = self.refused_cursors.values().cloned().collect();
        if self.plan_checkpoint(&cursors, (requests, now_unix_ms)).is_ok() {
            self.refused_cursors.clear();
        }
    }

    /// How much an append of the tenant must leave below the log's limit for others; or it is over its own limit.
    fn reserve_for(&self, tenant: TenantId, cost: u64) -> Result<u64, AppendError> {
        // What fragments of segments cost beside the records is not promised to anybody.
        let share = self.tenants.share(tenant, cost, self.appender.space.disk_bytes_max / 4 * 3);
        let share = share.ok_or(AppendError::UnknownTenant)?;
        if self.stats.low.load(Ordering::Relaxed) {
            return Err(AppendError::LowSpace);
        }
        match share {
            (Share::Over, _) => Err(AppendError::OverBudget),
            (Share::Guaranteed | Share::Borrowed, for_others) => Ok(for_others),
        }
    }

    /// Somebody else may have taken the space since the last look: then that is what people should be told.
    fn is_low_by_now(&mut self, now_unix_ms: u64) -> bool {
        self.look_at_space_unix_ms = 0;
        self.look_at_space(now_unix_ms);
        self.stats.low.load(Ordering::Relaxed)
    }

    /// Looks at the filesystem's space at most once a second.
    pub(crate) fn look_at_space(&mut self, now_unix_ms: u64) {
        if now_unix_ms < self.look_at_space_unix_ms {
            return;
        }
        self.look_at_space_unix_ms = now_unix_ms.saturating_add(1_000);
        let low = self.appender.is_low();
        if self.stats.low.swap(low, Ordering::Relaxed) != low {
            match low {
                true => tracing::warn!(
                    free_bytes = self.appender.free_bytes(),
                    "the data directory's filesystem has less free space than node.min_free: data is refused until it has \
                     more. Free some, or lower node.min_free"
                ),
                false => tracing::info!("the data directory's filesystem has enough free space again"),
            }
        }
    }

    /// Refuses data that would not fit wholly, before any of it is staged: never half a request.
    fn admit(&mut self, lengths: impl Iterator<Item = usize>, for_others: u64) -> Result<(), AppendError> {
        let mut room = self.appender.room();
        let mut segments = 0;
        let fresh = self.appender.fresh_room(&mut self.tenants);
        for length in lengths {
            let cost = Appender::<D>::cost(length);
            if cost > room {
                if cost > fresh || length > record::PAYLOAD_BYTES_MAX {
                    return Err(AppendError::TooLarge);
                }
                segments += 1;
                room = fresh;
            }
            room -= cost;
        }
        // The second half of a segment is for data only while there is a next one, and two more are never for data: cursors
        // must be writable however long the log is full, or nothing would ever be freed. With two, each segment of
        // nothing but cursors frees the one before it.
        segments += usize::from(room < fresh / 2);
        if segments > 0 {
            let reserve = 2 * self.appender.space.segment_bytes;
            let ensured = self.appender.space.ensure(segments, reserve + for_others);
            if for_others > 0 && matches!(ensured, Err(Failure::Full)) {
                // The log has space, and it is promised to others.
                return Err(AppendError::OverBudget);
            }
            self.note_full(matches!(ensured, Err(Failure::Full)));
            ensured.map_err(|failure| self.refusal(failure))?;
        } else {
            self.note_full(false);
        }
        Ok(())
    }

    fn stage_metadata(
        &mut self,
        kind: Kind,
        tenant: TenantId,
        payload: &[u8],
        group: (&[Request], u64),
    ) -> Result<(), AppendError> {
        self.make_room_for_metadata(payload.len(), group)?;
        self.appender.stage(Fields::metadata(kind, tenant, group.1), payload, &[], None);
        Ok(())
    }

    /// Has the open segment have room for a record of this length that is not data: nothing that fits is refused afterwards.
    fn make_room_for_metadata(&mut self, length: usize, group: (&[Request], u64)) -> Result<(), AppendError> {
        let cost = Appender::<D>::cost(length);
        if cost > self.appender.room() {
            if cost > self.appender.fresh_room(&mut self.tenants) {
                return Err(AppendError::TooLarge);
            }
            let bytes = self.appender.bytes_to_begin(length, &mut self.tenants);
            self.appender.space.ensure_some(bytes).map_err(|failure| self.refusal(failure))?;
        }
        self.make_room(length, group)
    }

    fn make_room(&mut self, length: usize, group: (&[Request], u64)) -> Result<(), AppendError> {
        self.appender.make_room(length, &mut self.tenants, group).map_err(|failure| self.refusal(failure))
    }

    fn refusal(&mut self, failure: Failure) -> AppendError {
        match failure {
            Failure::Full => AppendError::Full,
            io => {
                self.survives(Err(io));
                AppendError::Poisoned
            }
        }
    }

    /// Whether another step has something to do, whoever asks for one.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.appender.is_unsynced() || self.look_for_departed || !self.refused_cursors.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn is_refusing_cursors(&self) -> bool {
        !self.refused_cursors.is_empty()
    }

    /// Whether the log is still to be trusted after a call. The first failure is for good.
    fn survives(&mut self, result: Result<(), Failure>) -> bool {
        if let Err(Failure::Io(action, error)) = result
            && !self.stats.is_poisoned()
        {
            tracing::error!(
                action, %error,
                "the queue's log is poisoned: the process must end, and recovers at its next start. Check the disk (dmesg); the \
                 file is in `log` of node.data_dir"
            );
            self.stats.poison();
        }
        !self.stats.is_poisoned()
    }

    fn note_full(&self, full: bool) {
        if self.stats.full.swap(full, Ordering::Relaxed) != full {
            match full {
                true => tracing::warn!("the queue is full: data is refused until some is delivered or space returns"),
                false => tracing::info!("the queue has space again"),
            }
        }
    }

    /// Whoever asked only for the write need not wait for the disk.
    fn tell_unsynced(&mut self, requests: &mut [Request]) {
        for (request, outcome) in requests.iter_mut().zip(&mut self.outcomes) {
            if let (Request::Append(append), Outcome::At(sequence)) = (request, *outcome)
                && !append.sync
            {
                append.parts.iter_mut().for_each(|part| part.guard = None);
                self.mail.add(append.reply.take(), Ok(sequence));
                *outcome = Outcome::Told(sequence);
            }
        }
        self.mail.post();
    }

    /// Tells everybody else, ends the guards, and hands what is committed over to export.
    fn tell(&mut self, requests: &mut Vec<Request>, now_unix_ms: u64) {
        let poisoned = self.stats.is_poisoned();
        let mut placed = self.placed.iter();
        for (request, outcome) in requests.drain(..).zip(&self.outcomes) {
            let outcome = match *outcome {
                Outcome::At(_) | Outcome::Registered(_) | Outcome::Changed(_) if poisoned => {
                    Outcome::Refused(AppendError::Poisoned)
                }
                outcome => outcome,
            };
            let result = match outcome {
                Outcome::At(sequence) | Outcome::Told(sequence) => Ok(sequence),
                Outcome::Kept => Ok(Sequence::ZERO),
                Outcome::Refused(error) => Err(error),
                Outcome::Registered(_) | Outcome::Changed(_) => Ok(Sequence::ZERO),
            };
            match request {
                Request::Append(append) => {
                    if result.is_ok() && !poisoned {
                        let committed = append.parts.into_iter().zip(placed.by_ref());
                        self.arrivals.extend(committed.map(|(batch, places)| arrival(batch, *places, now_unix_ms)));
                    }
                    self.mail.add(append.reply, result);
                }
                // Told when it is gone, or already.
                Request::Forget(..) | Request::Tenants(_) => {}
                Request::Letters(_, reply) => {
                    let changed = match outcome {
                        Outcome::Changed(count) => Ok(count),
                        _ => Err(result.err().unwrap_or(AppendError::Poisoned)),
                    };
                    // As above.
                    let _ = reply.try_send(changed);
                }
                Request::Register(_, _, reply) => {
                    let registered = match outcome {
                        Outcome::Registered(id) => Ok(Registered { id, cursors: self.cursors_of(id) }),
                        _ => Err(result.err().unwrap_or(AppendError::Poisoned)),
                    };
                    // The caller waits for it; should it be gone, nobody needs the number.
                    let _ = reply.try_send(registered);
                }
                Request::Checkpoint(cursors) => {
                    if let Err(error) = result {
                        tracing::warn!(%error, "a checkpoint of cursors is not saved yet: a crash now repeats more");
                        let keyed = cursors.into_iter().map(|cursor| ((cursor.tenant, cursor.of.clone()), cursor));
                        self.refused_cursors.extend(keyed);
                    }
                }
                Request::DeadLetter(_, reply) => self.mail.add(Some(reply), result),
            }
        }
        self.mail.post();
        self.tell_removed();
        if poisoned {
            self.arrivals.clear();
        }
        if !self.arrivals.is_empty() {
            self.handoff.push(self.arrivals.drain(..));
        }
    }

    fn look_for_done(&mut self) {
        let full = self.stats.full.load(Ordering::Relaxed);
        if !std::mem::take(&mut self.look_for_done) && !full {
            return;
        }
        self.done.clear();
        let sealed = self.index.sealed();
        let is_done = |segment: &&Arc<Segment<D>>| segment.ranges.iter().all(|range| self.tenants.is_done(range));
        self.done.extend(sealed.iter().filter(is_done).map(|segment| segment.key.id));
        // Dead letters keep their segment while there is space. On a full disk the oldest go first: new data is worth more.
        if full && self.done.is_empty() {
            let is_data_done = |segment: &&Arc<Segment<D>>| {
                let mut data = segment.ranges.iter().filter(|range| tenant_of_letters(range.tenant).is_none());
                data.all(|range| self.tenants.is_done(range))
            };
            // A relocated segment is new and may have the oldest of them.
            let oldest_letter = |segment: &&Arc<Segment<D>>| {
                let letters = segment.ranges.iter().filter(|range| tenant_of_letters(range.tenant).is_some());
                letters.map(|range| range.first).min()
            };
            let oldest = sealed.iter().filter(is_data_done).min_by_key(oldest_letter);
            self.done.extend(oldest.map(|segment| segment.key.id));
        }
    }

    /// Only with everything durable: cursors, and the copy of tenants at the head of the open segment.
    fn free(&mut self) {
        if self.stats.is_poisoned() || self.appender.is_unsynced() || !self.appender.is_open() {
            return;
        }
        for id in std::mem::take(&mut self.done) {
            let Some(segment) = self.index.remove(id) else { continue };
            self.lose_letters(&segment);
            let retired = self.appender.space.retire(&segment);
            if !self.survives(retired) {
                return;
            }
        }
    }

    fn note_figures(&mut self) {
        let segments = self.index.sealed_count() + usize::from(self.appender.is_open());
        self.stats.segments.store(segments as u64, Ordering::Relaxed);
        self.stats.disk_bytes.store(self.appender.space.disk_bytes(), Ordering::Relaxed);
        self.stats.undelivered_bytes.store(self.tenants.used(), Ordering::Relaxed);
    }
}

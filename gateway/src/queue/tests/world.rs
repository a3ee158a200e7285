//! A log on a simulated disk, and a model of everything that it has promised.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use bytes::Bytes;

use super::{posted, tenant_record};
use crate::base::handoff::{Arrival, GivenUp, Handoff};
use crate::base::mailbox::Mailbox;
use crate::base::{Batch, DestinationName, Sequence, Signal, TenantId};
use crate::queue::disk::Disk;
use crate::queue::disk::sim::{PAGE, SimDisk};
use crate::queue::format::{SEGMENT_HEADER_BYTES, SegmentKey};
use crate::queue::group::Request;
use crate::queue::index::{Index, Wanted};
use crate::queue::log::Log;
use crate::queue::meta::{Meta, Saved, Update, load_or_discard};
use crate::queue::record::Kind;
use crate::queue::recovery::{Params, RecoverError, Survey, recover};
use crate::queue::scan::scan;
use crate::queue::stats::Stats;
use crate::queue::{
    Append, AppendError, Completion, CursorOf, CursorState, Departure, Recovery, Registered, Reply, Stored,
    TenantRecord, reader,
};

/// Small, so that a run goes through many lives of each file.
pub(super) const SEGMENT_BYTES: u64 = 16 * 1024;
pub(super) const DISK_BYTES_MAX: u64 = 10 * SEGMENT_BYTES;

/// A record that was appended.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) tenant: TenantId,
    pub(super) signal: Signal,
    pub(super) payload: Bytes,
    pub(super) state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// Refused before anything was written: must never be seen.
    Refused,
    /// The outcome was a failure, or a crash came before it: may be there or not.
    Unknown,
    /// Acknowledged as buffered: survives a kill.
    Buffered,
    /// Acknowledged as durable, or made so by a later sync: survives a power loss.
    Durable,
}

/// What must be true after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    Clean,
    Kill,
    PowerLoss,
}

/// What happens to the files at rest, beside the crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    /// One bit of one segment is another.
    Bit,
    /// One page of one segment cannot be read.
    Page,
}

/// Metadata that may lose, delay or garble what it was told.
#[derive(Debug, Default, Clone)]
pub(super) struct SimMeta {
    history: Vec<Saved>,
    broken: bool,
}

pub(super) struct World {
    pub(super) rng: fastrand::Rng,
    pub(super) disk: Arc<SimDisk>,
    pub(super) meta: SimMeta,
    pub(super) log: Log<SimDisk>,
    pub(super) index: Arc<Index<SimDisk>>,
    pub(super) stats: Arc<Stats>,
    handoff: Arc<Handoff>,
    pub(super) tenants: Vec<TenantId>,
    pub(super) known: BTreeMap<u64, Known>,
    next_number: u64,
    /// Where each record is, by its number.
    pub(super) positions: BTreeMap<u64, Sequence>,
    pub(super) cursors: BTreeMap<(TenantId, CursorOf), CursorState>,
    /// How far each has ever been told to be. Metadata may remember it after the log and newer metadata have forgotten.
    sent: BTreeMap<(TenantId, CursorOf), Sequence>,
    durable_cursors: BTreeMap<(TenantId, CursorOf), Sequence>,
    last_handed: BTreeMap<TenantId, Sequence>,
    /// What the log gave up by itself, by cursor.
    pub(super) given_up: BTreeMap<(TenantId, CursorOf), Vec<(Sequence, u32)>>,
    registrations: u64,
    sync_all: bool,
    /// On the log's clock.
    pub(super) now: u64,
    /// Tenants that were told to go, and those of them that the log has forgotten: durably or not yet.
    pub(super) leaving: BTreeSet<TenantId>,
    going: BTreeMap<TenantId, bool>,
    gone: BTreeSet<TenantId>,
    pub(super) last_recovery: Recovery,
    /// Records that everybody has, durably: they may be gone even if a cursor has not passed them.
    done: BTreeSet<u64>,
    /// The same, as soon as everything is durable.
    claimed: BTreeSet<u64>,
    /// Such records that a start has not found. A power loss may bring their segment back, whose end was not durable.
    ghosts: BTreeMap<u64, Known>,
    /// Starts that died and were tried again.
    pub(super) interrupted: u64,
    was_damaged: bool,
}

impl Meta for SimMeta {
    fn load(&mut self) -> Result<Option<Saved>, String> {
        if std::mem::take(&mut self.broken) { Err("broken".to_owned()) } else { Ok(self.history.last().cloned()) }
    }

    fn save(&mut self, update: &Update) -> Result<(), String> {
        let mut saved = self.history.last().cloned().unwrap_or_default();
        (saved.epoch, saved.tenants_next) = (update.epoch, update.tenants_next);
        saved.cursors.retain(|cursor| !update.forgotten.contains(&cursor.tenant));
        for cursor in &update.cursors {
            saved.cursors.retain(|old| (old.tenant, &old.of) != (cursor.tenant, &cursor.of));
            saved.cursors.push(CursorState { beyond: Vec::new(), ..cursor.clone() });
        }
        self.history.push(saved);
        Ok(())
    }

    fn discard(&mut self) -> Result<(), String> {
        self.history.clear();
        Ok(())
    }
}

impl SimMeta {
    /// Rows of cursors.
    pub(super) fn saved_cursors(&self) -> usize {
        self.history.last().map_or(0, |saved| saved.cursors.len())
    }

    /// What a crash leaves: the latest (which may be ahead of the log), an older state, nothing, or what cannot be believed
    /// (damaged, or of another log: the checksum cannot tell one from the other).
    fn crash(&mut self, rng: &mut fastrand::Rng) {
        match rng.u8(0..4) {
            0 => self.history.clear(),
            1 => self.broken = true,
            2 => self.history.truncate(rng.usize(0..=self.history.len())),
            _ => {}
        }
    }
}

type Parts = (Log<SimDisk>, Recovery, Arc<Index<SimDisk>>, Arc<Stats>, Arc<Handoff>);

fn start(disk: &Arc<SimDisk>, meta: &mut SimMeta, seed: u64) -> Result<Parts, RecoverError> {
    let (index, stats, handoff) =
        (Arc::new(Index::default()), Arc::new(Stats::default()), Arc::new(Handoff::new(4096)));
    let survey = Survey::of(&**disk)?;
    let (saved, _) = load_or_discard(meta);
    let params = Params {
        segment_bytes: SEGMENT_BYTES,
        disk_bytes_max: DISK_BYTES_MAX,
        letter_bytes_max: 8 << 20,
        min_free: crate::queue::MinFree::Percent(15),
        begin_at_tail: [DestinationName("tail".into())].into(),
        log_id: 77,
        rng: fastrand::Rng::with_seed(seed),
        saved,
    };
    let shared = (index.clone(), stats.clone(), handoff.clone());
    let (log, recovery) = recover(disk.clone(), survey, params, shared)?;
    Ok((log, recovery, index, stats, handoff))
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let disk = Arc::new(SimDisk::new(seed));
        let mut meta = SimMeta::default();
        let (log, last_recovery, index, stats, handoff) = start(&disk, &mut meta, seed).expect("an empty disk opens");
        Self {
            rng: fastrand::Rng::with_seed(seed),
            disk,
            meta,
            log,
            index,
            stats,
            handoff,
            tenants: Vec::new(),
            known: BTreeMap::new(),
            next_number: 0,
            positions: BTreeMap::new(),
            cursors: BTreeMap::new(),
            sent: BTreeMap::new(),
            durable_cursors: BTreeMap::new(),
            last_handed: BTreeMap::new(),
            given_up: BTreeMap::new(),
            registrations: 0,
            sync_all: false,
            now: 5,
            leaving: BTreeSet::new(),
            going: BTreeMap::new(),
            gone: BTreeSet::new(),
            last_recovery,
            done: BTreeSet::new(),
            claimed: BTreeSet::new(),
            ghosts: BTreeMap::new(),
            interrupted: 0,
            was_damaged: false,
        }
    }

    /// Registers a tenant; `None` if the log refused.
    pub(super) fn register(&mut self, name: &str) -> Option<TenantId> {
        self.register_as(tenant_record(name)).ok()
    }

    /// All in one group; each must succeed.
    pub(super) fn register_all(&mut self, names: &[String]) -> Vec<TenantId> {
        let mut answers = Vec::new();
        let mut group = Vec::new();
        for name in names {
            let (reply, result) = sync_channel(1);
            self.registrations += 1;
            group.push(Request::Register(tenant_record(name), self.registrations, reply));
            answers.push(result);
        }
        self.step(group);
        let ids: Vec<_> = answers.iter().map(|answer| answer.try_recv().expect("answered").expect("room").id).collect();
        self.tenants.extend(&ids);
        ids
    }

    /// A request, and where its answer comes.
    pub(super) fn registration(
        &mut self,
        record: TenantRecord,
    ) -> (Request, std::sync::mpsc::Receiver<Result<Registered, AppendError>>) {
        let (reply, result) = sync_channel(1);
        self.registrations += 1;
        self.note_moved(&record);
        (Request::Register(record, self.registrations, reply), result)
    }

    /// A change of destinations may move cursors up to where it is written.
    fn note_moved(&mut self, record: &TenantRecord) {
        let known = self.log.tenants.iter().find(|(_, tenant)| tenant.record.name == record.name);
        let Some((id, tenant)) = known.filter(|(_, tenant)| tenant.record.destinations != record.destinations) else {
            return;
        };
        for signal in Signal::ALL {
            let names = [&tenant.record.destinations, &record.destinations].map(|of| &of[signal.index()]);
            for name in names.into_iter().flatten() {
                let sent = self.sent.entry((id, CursorOf::Delivery(name.clone(), signal))).or_default();
                // Behind whatever else its group has.
                *sent = Sequence(self.log.appender.next().0 + 1_000);
            }
        }
    }

    pub(super) fn register_as(&mut self, record: TenantRecord) -> Result<TenantId, AppendError> {
        let (request, result) = self.registration(record);
        self.step(vec![request]);
        let id = result.try_recv().expect("every registration is answered")?.id;
        assert!(!self.going.contains_key(&id) && !self.gone.contains(&id), "a number is never given twice");
        self.leaving.remove(&id);
        if !self.tenants.contains(&id) {
            self.tenants.push(id);
        }
        Ok(id)
    }

    /// That its pod is gone, as of now.
    pub(super) fn departure(&self, tenant: TenantId) -> Departure {
        Departure { tenant, seen: self.registrations }
    }

    /// A request to forget tenants; the answers come to the mailbox.
    pub(super) fn leave(&mut self, departures: &[Departure], mailbox: &Arc<Mailbox<Completion>>) {
        let reply = |departure: &Departure| Reply { mailbox: mailbox.clone(), ticket: departure.tenant.0.into() };
        let group = departures.iter().map(|departure| Request::Forget(*departure, reply(departure))).collect();
        self.leaving.extend(departures.iter().map(|departure| departure.tenant));
        self.step(group);
    }

    fn note_gone(&mut self) {
        for id in std::mem::take(&mut self.going).into_keys() {
            self.known.retain(|_, known| known.tenant != id);
            self.durable_cursors.retain(|(of, _), _| *of != id);
            self.cursors.retain(|(of, _), _| *of != id);
            self.gone.insert(id);
        }
    }

    /// What leaves and is not in the table any more was forgotten: rightly?
    fn note_forgotten(&mut self, before: &BTreeMap<TenantId, Vec<CursorState>>) {
        for id in self.leaving.clone() {
            if self.log.tenants.find(id).is_some() {
                continue;
            }
            if self.going.contains_key(&id) {
                // Told to go once more, after it went.
                self.leaving.remove(&id);
                continue;
            }
            for (number, known) in self.known.iter().filter(|(_, known)| known.tenant == id) {
                let passed = |name: &DestinationName, at: &Sequence| {
                    let of = CursorOf::Delivery(name.clone(), known.signal);
                    let cursor = before[&id].iter().find(|cursor| cursor.of == of);
                    cursor.is_some_and(|cursor| *at <= cursor.acknowledged || cursor.beyond.contains(at))
                };
                let names = &tenant_record("a/b").destinations[known.signal.index()];
                let done = self.positions.get(number).is_some_and(|at| names.iter().all(|name| passed(name, at)));
                assert!(done || known.state < State::Buffered, "{id:?} was forgotten with record {number} undelivered");
            }
            self.leaving.remove(&id);
            self.tenants.retain(|other| *other != id);
            self.going.insert(id, !self.stats.is_poisoned());
        }
        if !self.stats.is_poisoned() && !self.log.appender.is_unsynced() {
            self.note_gone();
        }
    }

    /// An append of new records with these payload lengths.
    pub(super) fn append_of(
        &mut self,
        (tenant, sync): (TenantId, bool),
        lengths: &[usize],
        mailbox: &Arc<Mailbox<Completion>>,
    ) -> Request {
        let first = self.next_number;
        let parts = lengths.iter().map(|length| {
            let number = self.next_number;
            self.next_number += 1;
            let mut payload = number.to_le_bytes().to_vec();
            payload.resize(8 + length, number as u8);
            let signal = Signal::ALL[self.rng.usize(0..3)];
            let payload = Bytes::from(payload);
            let known = Known { tenant, signal, payload: payload.clone(), state: State::Unknown };
            self.known.insert(number, known);
            Batch { tenant, signal, items: 1 + (number % 5) as u32, received_unix_ms: number, payload, guard: None }
        });
        let parts = parts.collect();
        // The ticket says which records it was: the first and how many.
        let reply = Reply { mailbox: mailbox.clone(), ticket: first << 8 | lengths.len() as u64 };
        Request::Append(Append { parts, sync, reply: Some(reply) })
    }

    /// Moves all cursors of a tenant to a record.
    pub(super) fn acknowledge(&mut self, tenant: TenantId, acknowledged: Sequence) {
        self.step(vec![Request::Checkpoint(super::cursors_at(tenant, acknowledged))]);
    }

    /// Appends one request and says how it ended.
    pub(super) fn append(&mut self, tenant: TenantId, sync: bool, lengths: &[usize]) -> Result<Sequence, AppendError> {
        let mailbox = Arc::default();
        let request = self.append_of((tenant, sync), lengths, &mailbox);
        self.step_with(vec![request], &mailbox)[0].result
    }

    /// A step of what the other thread does meanwhile.
    pub(super) fn relocate(&mut self) {
        self.log.relocation.desk.work(&*self.disk, &self.index, &self.stats);
    }

    pub(super) fn step(&mut self, requests: Vec<Request>) {
        self.step_with(requests, &Arc::default());
    }

    /// Commits a group, and notes what it promised.
    pub(super) fn step_with(
        &mut self,
        mut requests: Vec<Request>,
        mailbox: &Arc<Mailbox<Completion>>,
    ) -> Vec<Completion> {
        let synced: BTreeMap<u64, bool> = requests
            .iter()
            .filter_map(|request| match request {
                Request::Append(append) => append.reply.as_ref().map(|reply| (reply.ticket, append.sync)),
                _ => None,
            })
            .collect();
        let cursors: Vec<CursorState> = requests
            .iter()
            .filter_map(|request| match request {
                Request::Checkpoint(cursors) => Some(cursors.clone()),
                _ => None,
            })
            .flatten()
            .collect();
        let sync_all = self.rng.u8(0..20) == 0 || std::mem::take(&mut self.sync_all);
        let leaving = self.log.tenants.iter().filter(|(id, _)| self.leaving.contains(id));
        let before = leaving.map(|(id, tenant)| (id, tenant.cursors.values().cloned().collect())).collect();
        let change_overs = self.log.relocation.change_overs;
        self.log.step(&mut requests, sync_all, self.now);
        let poisoned = self.stats.is_poisoned();
        let completions = posted(mailbox);
        assert_eq!(completions.len(), synced.len(), "every append is answered, and only once");
        for completion in &completions {
            let (first, count) = (completion.ticket >> 8, completion.ticket & 255);
            let state = match completion.result {
                Ok(_) if synced[&completion.ticket] => State::Durable,
                Ok(_) => State::Buffered,
                Err(AppendError::Poisoned) => State::Unknown,
                Err(_) => State::Refused,
            };
            (first..first + count).for_each(|number| self.known.get_mut(&number).expect("appended").state = state);
            if let (Ok(last), 1) = (completion.result, count) {
                self.positions.insert(first, last);
            }
        }
        self.note_forgotten(&before);
        self.note_sent(cursors);
        self.note_claimed();
        if self.log.relocation.change_overs > change_overs {
            // Only with everything durable, whatever became of it.
            self.done.append(&mut self.claimed);
        }
        if !poisoned && !self.log.appender.is_unsynced() {
            self.note_all_durable();
        }
        if let Some(update) = self.log.take_update() {
            self.meta.save(&update).expect("the simulation saves");
        }
        self.check_handoff(completions.iter().any(|completion| completion.result == Err(AppendError::Poisoned)));
        completions
    }

    /// That the log was told so.
    pub(super) fn note_sent(&mut self, cursors: Vec<CursorState>) {
        for cursor in cursors {
            let key = (cursor.tenant, cursor.of.clone());
            let sent = self.sent.entry(key.clone()).or_default();
            *sent = cursor.acknowledged.max(*sent);
            if self.cursors.get(&key).is_none_or(|known| known.acknowledged <= cursor.acknowledged) {
                self.cursors.insert(key, cursor);
            }
        }
    }

    /// Records that everybody has according to cursors in the log: a later checkpoint may be vaguer about what is beyond a gap.
    fn note_claimed(&mut self) {
        let log = &self.log;
        let done = self.known.iter().filter(|(number, known)| {
            let Some((at, tenant)) = self.positions.get(number).zip(log.tenants.find(known.tenant)) else {
                return false;
            };
            tenant_record("a/b").destinations[known.signal.index()].iter().all(|name| {
                let cursor = tenant.cursors.get(&CursorOf::Delivery(name.clone(), known.signal));
                cursor.is_some_and(|cursor| *at <= cursor.acknowledged || cursor.beyond.contains(at))
            })
        });
        self.claimed.extend(done.map(|(number, _)| *number));
    }

    fn note_all_durable(&mut self) {
        for known in self.known.values_mut().filter(|known| known.state == State::Buffered) {
            known.state = State::Durable;
        }
        if !self.log.appender.is_open() {
            // Cursors that a start has found in metadata alone are in the log with its first segment: until then they free
            // nothing, and may be lost with the metadata.
            return;
        }
        self.done.append(&mut self.claimed);
        for (key, cursor) in &self.cursors {
            // A refused checkpoint is not in the log.
            let tenant = self.log.tenants.find(key.0);
            let kept = tenant.and_then(|tenant| tenant.cursors.get(&key.1)).map(|kept| kept.acknowledged);
            self.durable_cursors.insert(key.clone(), kept.unwrap_or_default().min(cursor.acknowledged));
        }
    }

    /// Each tenant's chain of handed-over records has no gap.
    fn check_handoff(&mut self, failed: bool) {
        let mut arrivals = VecDeque::new();
        let _ = self.handoff.poll_take(&mut std::task::Context::from_waker(std::task::Waker::noop()), &mut arrivals);
        assert!(!failed || arrivals.is_empty(), "nothing of a group that failed is exported");
        for arrival in arrivals {
            let committed = match arrival {
                Arrival::Committed(committed) => committed,
                Arrival::Volatile(_) => panic!("nothing volatile goes through the log"),
                Arrival::GivenUp(given_up) => {
                    self.note_given_up(given_up);
                    continue;
                }
            };
            let last = self.last_handed.insert(committed.tenant, committed.sequence).unwrap_or_default();
            assert_eq!(committed.previous, last, "a gap would never be delivered");
            assert!(committed.sequence > committed.previous);
        }
    }

    /// A cursor that the log itself has moved.
    fn note_given_up(&mut self, given_up: GivenUp) {
        let GivenUp { tenant, destination, signal, through, records, .. } = given_up;
        let of = CursorOf::Delivery(destination, signal);
        let (acknowledged, beyond) = (through, Vec::new());
        let state = CursorState { tenant, of: of.clone(), acknowledged, beyond, delivered_items: 0 };
        self.cursors.insert((tenant, of.clone()), state);
        let sent = self.sent.entry((tenant, of.clone())).or_default();
        *sent = through.max(*sent);
        self.given_up.entry((tenant, of)).or_default().extend(records);
    }

    /// Everything of a tenant that the log returns, in pieces.
    pub(super) fn read(&mut self, tenant: TenantId, after: Sequence) -> Vec<Stored> {
        let mut records = Vec::new();
        let mut after = after;
        loop {
            let wanted = Wanted { tenant, after, bytes_max: self.rng.usize(0..4000) };
            let read = reader::read(&*self.disk, &self.index, &self.stats.damaged_records, wanted).expect("it reads");
            assert!(read.records.iter().all(|record| record.sequence > after && record.sequence <= read.through));
            if read.through == after {
                return records;
            }
            records.extend(read.records);
            after = read.through;
        }
    }

    /// What another outcome of a crash at this moment would be: all checks, on a copy of the world. The copy goes on from there.
    pub(super) fn what_if(&self, crash: Crash, damage: Option<Damage>, seed: u64) -> Self {
        let mut copy = Self {
            disk: Arc::new(self.disk.copy(seed)),
            meta: self.meta.clone(),
            tenants: self.tenants.clone(),
            known: self.known.clone(),
            next_number: self.next_number,
            positions: self.positions.clone(),
            cursors: self.cursors.clone(),
            sent: self.sent.clone(),
            durable_cursors: self.durable_cursors.clone(),
            last_handed: self.last_handed.clone(),
            now: self.now,
            leaving: self.leaving.clone(),
            going: self.going.clone(),
            gone: self.gone.clone(),
            was_damaged: self.was_damaged,
            done: self.done.clone(),
            claimed: self.claimed.clone(),
            ghosts: self.ghosts.clone(),
            ..Self::new(seed)
        };
        copy.restart_with(crash, damage, 0);
        copy
    }

    /// Crashes and starts again, then compares everything with the model. `flip`: a bit of the log is damaged before.
    pub(super) fn restart(&mut self, crash: Crash, flip: bool) {
        self.restart_with(crash, flip.then_some(Damage::Bit), 0);
    }

    /// The same. The start dies at its n-th change, unless that is 0, and is tried again.
    pub(super) fn restart_with(&mut self, crash: Crash, damage: Option<Damage>, dies_in: u64) {
        match crash {
            Crash::Clean => {
                for _ in 0..2 {
                    self.sync_all = true;
                    self.step(Vec::new());
                }
                self.log.close(self.now).expect("a healthy log closes");
                self.disk.kill();
            }
            Crash::Kill => self.disk.kill(),
            Crash::PowerLoss => self.disk.lose_power(),
        }
        if crash != Crash::Clean {
            self.meta.crash(&mut self.rng);
        }
        let hit = damage.and_then(|damage| self.damage(damage));
        self.was_damaged |= hit.is_some();
        self.disk.die_in(dies_in);
        self.reopen(crash, hit.as_ref());
    }

    fn reopen(&mut self, crash: Crash, hit: Option<&BTreeSet<u64>>) {
        let seed = self.rng.u64(..);
        let mut started = start(&self.disk, &mut self.meta, seed);
        if self.disk.is_dead() {
            self.interrupted += 1;
            match crash {
                Crash::PowerLoss => self.disk.lose_power(),
                Crash::Kill | Crash::Clean => self.disk.kill(),
            }
            started = start(&self.disk, &mut self.meta, seed);
        }
        let (log, mut recovery, index, stats, handoff) = started.expect("without a fault it opens");
        (self.log, self.index, self.stats, self.handoff) = (log, index, stats, handoff);
        self.check_forgotten(&recovery, crash);
        // Damage to the last word about a tenant brings it back, with nothing left to deliver; the model knows no more of it.
        recovery.tenants.retain(|tenant| !self.gone.contains(&tenant.id));
        self.disk.die_in(0);
        self.check_cursors(&recovery, crash, hit.is_some());
        self.check_records(&recovery, crash, hit);
        self.last_recovery = recovery;
    }

    /// Who was forgotten durably stays so; who was not may be back, and can be told to go again.
    fn check_forgotten(&mut self, recovery: &Recovery, crash: Crash) {
        let found: BTreeSet<TenantId> = recovery.tenants.iter().map(|tenant| tenant.id).collect();
        for (id, written) in self.going.clone().into_iter().filter(|(id, _)| found.contains(id)) {
            assert!(crash == Crash::PowerLoss || !written || self.was_damaged, "{crash:?}: {id:?} is back");
            self.going.remove(&id);
            self.tenants.push(id);
        }
        self.note_gone();
        let risen: Vec<_> = self.gone.intersection(&found).collect();
        assert!(risen.is_empty() || self.was_damaged, "{crash:?}: {risen:?} were forgotten for good and are back");
        self.leaving.clear();
        self.registrations = 0;
    }

    fn check_cursors(&mut self, recovery: &Recovery, crash: Crash, flipped: bool) {
        let found: BTreeMap<_, _> = recovery
            .tenants
            .iter()
            .flat_map(|tenant| &tenant.cursors)
            .map(|cursor| ((cursor.tenant, cursor.of.clone()), cursor.clone()))
            .collect();
        for (key, cursor) in &found {
            let sent = self.sent.get(key).copied().unwrap_or_default();
            assert!(cursor.acknowledged <= sent, "{key:?} claims more than was ever delivered");
        }
        for (key, durable) in &self.durable_cursors {
            let recovered = found.get(key).map(|cursor| cursor.acknowledged).unwrap_or_default();
            assert!(flipped || recovered >= *durable, "{crash:?}: {key:?} went back from {durable:?} to {recovered:?}");
        }
        self.cursors = found;
    }

    fn floor(&self, tenant: TenantId, signal: Signal) -> Sequence {
        let names = &tenant_record("a/b").destinations[signal.index()];
        let of = |name: &DestinationName| {
            let key = (tenant, CursorOf::Delivery(name.clone(), signal));
            let recovered = self.cursors.get(&key).map(|cursor| cursor.acknowledged).unwrap_or_default();
            // What was durably passed may be gone even if a damaged checkpoint makes the cursor go back.
            recovered.max(self.durable_cursors.get(&key).copied().unwrap_or_default())
        };
        names.iter().map(of).min().expect("every signal has a destination")
    }

    fn check_records(&mut self, recovery: &Recovery, crash: Crash, hit: Option<&BTreeSet<u64>>) {
        let recovered: BTreeSet<TenantId> = recovery.tenants.iter().map(|tenant| tenant.id).collect();
        let lost: Vec<_> = self.tenants.iter().filter(|id| !recovered.contains(id)).collect();
        assert!(lost.is_empty(), "{crash:?}: {lost:?} are registered and forgotten");
        self.claimed.clear();
        let mut found = BTreeMap::new();
        for tenant in &recovery.tenants {
            let records = self.read(tenant.id, Sequence::ZERO);
            self.last_handed.insert(tenant.id, tenant.last);
            let floor = Signal::ALL.map(|signal| self.log.tenants.find(tenant.id).expect("found").floor(signal));
            let open = records.iter().filter(|record| record.sequence > floor[record.signal.index()]);
            let undelivered: u64 = open.map(|record| record.payload.len() as u64).sum();
            assert!(self.log.tenants.used_by(tenant.id) >= undelivered, "what waits is charged");
            // An index counts a record whose bytes were damaged later.
            if !self.was_damaged {
                let pending = pending(tenant, &records);
                assert_eq!(tenant.pending_items, pending, "the balance closes over a restart");
            }
            for pair in records.windows(2) {
                assert!(pair[0].sequence < pair[1].sequence, "in order");
            }
            for record in records {
                let number = number_of(&record.payload);
                if let Some(ghost) = self.ghosts.remove(&number) {
                    self.known.insert(number, ghost);
                    self.claimed.insert(number);
                }
                let known = self.known.get(&number).expect("only what was appended, or dropped by an earlier crash");
                assert_eq!((known.tenant, known.signal, &known.payload), (tenant.id, record.signal, &record.payload));
                assert_ne!(known.state, State::Refused, "a refused record is never seen");
                assert_eq!(found.insert(number, record.sequence), None, "no record twice");
            }
        }
        let survives = |state| match crash {
            Crash::PowerLoss => state == State::Durable,
            Crash::Kill | Crash::Clean => state >= State::Buffered,
        };
        let lost: Vec<u64> = self
            .known
            .iter()
            .filter(|(number, known)| {
                survives(known.state) && !found.contains_key(number) && !self.done.contains(number)
            })
            .filter(|(number, known)| {
                self.positions.get(number).is_none_or(|at| *at > self.floor(known.tenant, known.signal))
            })
            .map(|(number, _)| *number)
            .filter(|number| hit.is_none_or(|hit| !hit.contains(number)))
            .collect();
        assert!(lost.is_empty(), "{crash:?}: records {lost:?} were acknowledged and are gone; damaged were {hit:?}");
        // From here on only what was found exists, and it is on disk.
        let done = std::mem::take(&mut self.done);
        self.ghosts.extend(self.known.extract_if(.., |number, _| done.contains(number) && !found.contains_key(number)));
        self.known.retain(|number, _| found.contains_key(number));
        self.known.values_mut().for_each(|known| known.state = State::Durable);
        self.positions = found;
        // What came from sled alone is in the log only after this boot's first sync.
        for (key, durable) in &mut self.durable_cursors {
            let recovered = self.cursors.get(key).map(|cursor| cursor.acknowledged).unwrap_or_default();
            *durable = recovered.min(*durable);
        }
    }

    /// Damages a segment, and says which data records that hits. A page that holds both copies of a tenant is spared:
    /// its records would have no owner.
    fn damage(&mut self, damage: Damage) -> Option<BTreeSet<u64>> {
        let names = self.disk.list().expect("it lists");
        let keys: Vec<_> =
            names.iter().filter_map(|name| SegmentKey::parse(name)).filter(|(_, spare)| !spare).collect();
        let (key, _) = *keys.get(self.rng.usize(0..keys.len().max(1)))?;
        let (name, length) = (key.name(), self.disk.bytes(&key.name()).len());
        if length == 0 {
            return None;
        }
        let bit = self.rng.usize(0..length * 8);
        let (from, to) = match damage {
            Damage::Bit => (bit / 8, bit / 8 + 1),
            Damage::Page => (bit / 8 / PAGE * PAGE, (bit / 8 / PAGE + 1) * PAGE),
        };
        let (mut hit, mut owners) = (BTreeSet::new(), BTreeSet::new());
        let mut copies = 0;
        let file = self.disk.open(&name).expect("it is there");
        scan((&*self.disk, &file, key), (SEGMENT_HEADER_BYTES, length as u64), |offset, header, payload| {
            if offset >= to as u64 || offset + header.stride() <= from as u64 {
                return;
            }
            match Kind::from_number(header.kind) {
                Some(Kind::Data) => drop(hit.insert(number_of(payload))),
                Some(Kind::Tenant) => {
                    owners.insert(header.tenant);
                    copies += 1;
                }
                _ => {}
            }
        })
        .expect("it scans");
        match damage {
            Damage::Bit => self.disk.flip_bit(&name, bit),
            Damage::Page if copies > owners.len() => return None,
            Damage::Page => self.disk.make_unreadable(&name, from / PAGE),
        }
        Some(hit)
    }

    /// Positions of what is committed now, to place cursors at.
    pub(super) fn note_positions(&mut self) {
        for tenant in self.tenants.clone() {
            for record in self.read(tenant, Sequence::ZERO) {
                let number = number_of(&record.payload);
                self.positions.insert(number, record.sequence);
            }
        }
    }

    /// Damaged records so far.
    pub(super) fn damaged(&self) -> u64 {
        self.stats.damaged_records.count()
    }
}

/// The number that every payload of the model begins with.
pub(super) fn number_of(payload: &[u8]) -> u64 {
    u64::from_le_bytes(*payload.first_chunk().expect("at least its number"))
}

/// What the tenant's destinations still wait for, counted one by one.
fn pending(tenant: &crate::queue::RecoveredTenant, records: &[Stored]) -> [u64; 3] {
    let mut pending = [0; 3];
    for record in records {
        let waits = tenant.record.destinations[record.signal.index()].iter().any(|name| {
            let of = CursorOf::Delivery(name.clone(), record.signal);
            let cursor = tenant.cursors.iter().find(|cursor| cursor.of == of);
            cursor
                .is_none_or(|cursor| record.sequence > cursor.acknowledged && !cursor.beyond.contains(&record.sequence))
        });
        pending[record.signal.index()] += u64::from(record.items) * u64::from(waits);
    }
    pending
}

//! Relocation: segments of which little is live are emptied by copying what is live elsewhere, so that data that nobody takes
//! never pins the segments of others.
//!
//! Owns the turns between the writer and whoever copies, which is a thread of its own: no group commit waits for a read or a
//! sync of it. `plan` chooses, `copy` copies; neither touches a name, a cursor or a segment that readers see. It has no loop and
//! no clock, so that the simulation drives it step by step. An error ends the job and leaves everything as it was.
//!
//! ```text
//! rest      the writer's        it asks for a look when segments were sealed or cursors have moved
//! look      the relocator's     which segments are worth it, if any
//! asks      the writer's        room for the target, or not now
//! copy      the relocator's     steps of 256 KiB: live records, tenant by tenant, each once; footer; sync
//! copied    the writer's        with everything durable: the target gets its name, readers change over, the sources are freed
//! given up  the writer's        nothing has changed
//! ```
//! What was live when the writer asked is copied. What was done by then stays behind: its cursors were in the log by then, and are
//! durable before the target has its name.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::disk::Disk;
use super::footer::{Entry, METADATA, Range};
use super::format::{SegmentHeader, SegmentKey};
use super::index::{Index, Segment};
use super::letters::tenant_of_letters;
use super::stats::Stats;
use super::tenants::Tenant;
use crate::base::{Sequence, TenantId};

mod copy;
mod plan;

use copy::Copy;
use plan::Plan;

/// Bytes that one step copies.
pub(crate) const STEP_BYTES: usize = 256 * 1024;
/// Between two steps while others use the disk: at most 25 MiB a second.
const PAUSE: Duration = Duration::from_millis(10);

/// What the writer knew when it asked for a look.
#[derive(Debug)]
pub(crate) struct Standing {
    /// Everybody, with cursors that are in the log.
    pub(crate) tenants: BTreeMap<TenantId, Tenant>,
    /// The segments that were sealed by then: what is in others may be of tenants, letters and routes that are newer.
    pub(crate) sealed: BTreeSet<u64>,
    /// Positions of the target's own records: this one and as many more as there are tenants, and three.
    pub(crate) first: Sequence,
    /// Of the target.
    pub(crate) header: SegmentHeader,
    /// The longest segment.
    pub(crate) segment_bytes: u64,
    /// What may lie idle beside half as much as is live.
    pub(crate) slack_bytes: u64,
}

impl Standing {
    /// Whether a record is still needed. The one place that says so to relocation.
    pub(crate) fn is_live(&self, owner: TenantId, entry: &Entry) -> bool {
        match tenant_of_letters(owner) {
            _ if owner == METADATA => false,
            Some(id) => self.keeps_letters(id, (entry.sequence, entry.sequence)),
            None => self.tenants.get(&owner).is_some_and(|tenant| tenant.is_pending(entry)),
        }
    }

    /// What of a range is live, as far as that is known without its entries.
    fn live_bytes(&self, range: &Range) -> Option<u64> {
        match tenant_of_letters(range.tenant) {
            _ if range.tenant == METADATA => Some(0),
            Some(id) if self.keeps_letters(id, (range.first, range.last)) => None,
            Some(_) => Some(0),
            None => self.tenants.get(&range.tenant).map_or(Some(0), |tenant| tenant.live_bytes(range)),
        }
    }

    fn keeps_letters(&self, tenant: TenantId, (first, last): (Sequence, Sequence)) -> bool {
        self.tenants.get(&tenant).is_some_and(|tenant| tenant.letters.is_any_within(first, last))
    }

    /// Whose a range is, be it of data or of dead letters.
    fn owner(&self, of: TenantId) -> Option<(TenantId, &Tenant)> {
        let id = tenant_of_letters(of).unwrap_or(of);
        Some((id, self.tenants.get(&id)?))
    }
}

/// A copy that is sealed and durable, and has no name yet.
#[derive(Debug)]
pub(crate) struct Copied<D: Disk> {
    /// The copy; none if nothing was live.
    pub(crate) segment: Option<Segment<D>>,
    /// What it replaces.
    pub(crate) sources: Vec<Arc<Segment<D>>>,
    /// As much room as it was given.
    pub(crate) lent: u64,
}

/// Whose turn it is, and with what.
#[derive(Debug)]
pub(crate) enum Turn<D: Disk> {
    /// The writer's: nothing is under way.
    Rest,
    /// The relocator's: what is to be done?
    Look(Box<Standing>),
    /// The writer's: room is needed.
    Asks(Box<Plan<D>>),
    /// The relocator's: under way.
    Copy(Box<Copy<D>>),
    /// The relocator has it in hand.
    Busy,
    /// The writer's: done.
    Copied(Copied<D>),
    /// The writer's: it came to nothing; room to take back.
    GivenUp(u64),
    /// Nobody's any more.
    Closed,
}

/// Where the two hand it over.
#[derive(Debug)]
pub(crate) struct Desk<D: Disk> {
    turn: Mutex<Turn<D>>,
    changed: Condvar,
    /// The disk is nearly full: no pauses.
    hurries: AtomicBool,
}

impl<D: Disk> Default for Desk<D> {
    fn default() -> Self {
        Self { turn: Mutex::new(Turn::Rest), changed: Condvar::new(), hurries: AtomicBool::new(false) }
    }
}

impl<D: Disk> Desk<D> {
    /// What it is the writer's turn to answer.
    pub(crate) fn take(&self) -> Option<Turn<D>> {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        match *turn {
            Turn::Look(_) | Turn::Copy(_) | Turn::Busy | Turn::Closed => None,
            Turn::Rest | Turn::Asks(_) | Turn::Copied(_) | Turn::GivenUp(_) => {
                Some(std::mem::replace(&mut *turn, Turn::Rest))
            }
        }
    }

    /// The writer's answer.
    pub(crate) fn put(&self, turn: Turn<D>, hurries: bool) {
        self.hurries.store(hurries, Ordering::Relaxed);
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = turn;
        self.changed.notify_one();
    }

    /// Whether a copy waits for everything to be durable.
    pub(crate) fn is_copied(&self) -> bool {
        matches!(*self.turn.lock().unwrap_or_else(PoisonError::into_inner), Turn::Copied(_))
    }

    /// Ends whatever is under way.
    pub(crate) fn close(&self) {
        self.put(Turn::Closed, true);
    }

    /// One step of whatever is the relocator's turn. True if it is the writer's now.
    pub(crate) fn work(&self, disk: &D, index: &Index<D>, stats: &Stats) -> bool {
        let turn = {
            let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            match *turn {
                Turn::Look(_) | Turn::Copy(_) => std::mem::replace(&mut *turn, Turn::Busy),
                _ => return false,
            }
        };
        let target = match &turn {
            Turn::Copy(copy) => Some(copy.target()),
            _ => None,
        };
        // What it has in hand is dropped with the panic; the index has locks that survive one, the counters are atomic.
        let next = catch_unwind(AssertUnwindSafe(|| match turn {
            Turn::Look(standing) => look(disk, index, standing),
            Turn::Copy(copy) => go_on(disk, copy, stats),
            other => other,
        }));
        let next = next.unwrap_or_else(|_| give_up_after_panic(disk, target));
        let is_writers = !matches!(next, Turn::Copy(_));
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*turn, Turn::Closed) {
            *turn = next;
        }
        is_writers
    }

    /// Waits for the relocator's turn; false at the end.
    fn wait(&self) -> bool {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let is_writers = |turn: &mut Turn<D>| !matches!(turn, Turn::Look(_) | Turn::Copy(_) | Turn::Closed);
        let turn = self.changed.wait_while(turn, is_writers).unwrap_or_else(PoisonError::into_inner);
        !matches!(*turn, Turn::Closed)
    }

    fn pause(&self) {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let is_open = |turn: &mut Turn<D>| !matches!(turn, Turn::Closed);
        drop(self.changed.wait_timeout_while(turn, PAUSE, is_open));
    }
}

/// The thread's loop: it lets others have the disk while there are any, unless it is nearly full. Returns when the desk is closed.
pub(crate) fn run<D: Disk>(desk: &Desk<D>, (disk, index, stats): (&D, &Index<D>, &Stats), wake_writer: impl Fn()) {
    let mut commits = 0;
    while desk.wait() {
        if desk.work(disk, index, stats) {
            wake_writer();
        }
        let before = std::mem::replace(&mut commits, stats.commits.load(Ordering::Relaxed));
        if commits != before && !desk.hurries.load(Ordering::Relaxed) {
            desk.pause();
        }
    }
}

fn look<D: Disk>(disk: &D, index: &Index<D>, standing: Box<Standing>) -> Turn<D> {
    let mut sealed = index.sealed();
    sealed.retain(|segment| standing.sealed.contains(&segment.key.id));
    match plan::plan(disk, &sealed, standing) {
        Ok(None) => Turn::Rest,
        Ok(Some(Plan { bytes: 0, sources, .. })) => Turn::Copied(Copied { segment: None, sources, lent: 0 }),
        Ok(Some(plan)) => Turn::Asks(Box::new(plan)),
        Err(error) => {
            tracing::warn!(%error, "what is live in the queue's segments cannot be told: none is emptied for now");
            Turn::GivenUp(0)
        }
    }
}

fn go_on<D: Disk>(disk: &D, mut copy: Box<Copy<D>>, stats: &Stats) -> Turn<D> {
    match copy.step(disk, &stats.damaged_records) {
        Ok(None) => Turn::Copy(copy),
        Ok(Some(segment)) => {
            let (sources, lent) = copy.into_sources();
            Turn::Copied(Copied { segment: Some(segment), sources, lent })
        }
        Err(error) => {
            tracing::warn!(%error, "segments of the queue cannot be emptied for now: they keep their space");
            Turn::GivenUp(copy.give_up(disk))
        }
    }
}

/// A panic is taken for a failure of this job alone.
fn give_up_after_panic<D: Disk>(disk: &D, target: Option<(SegmentKey, u64)>) -> Turn<D> {
    tracing::error!("emptying the queue's segments panicked: they keep their space, and it is tried again in a minute");
    if let Some((key, _)) = target {
        // It may never have been made; what stays of it a start takes for a spare.
        drop(disk.remove(&key.free_name()));
    }
    Turn::GivenUp(target.map_or(0, |(_, lent)| lent))
}

/// A copy that is about to begin.
pub(crate) fn begin<D: Disk>(plan: Plan<D>, key: SegmentKey) -> Turn<D> {
    Turn::Copy(Box::new(Copy::new(plan, key)))
}

/// The entries of one range, a few at a time.
#[derive(Debug)]
struct Feed<D: Disk> {
    segment: Arc<Segment<D>>,
    range: Range,
    after: Sequence,
    ready: std::vec::IntoIter<Entry>,
}

impl<D: Disk> Feed<D> {
    fn new(segment: Arc<Segment<D>>, range: Range) -> Self {
        Self { segment, range, after: Sequence::ZERO, ready: Vec::new().into_iter() }
    }

    /// The next entry, which stays.
    fn peek(&mut self, disk: &D) -> io::Result<Option<Entry>> {
        if self.ready.as_slice().is_empty() && self.after < self.range.last {
            let wanted = super::index::Wanted { tenant: self.range.tenant, after: self.after, bytes_max: STEP_BYTES };
            self.ready = self.segment.entries_after(disk, &self.range, wanted)?.into_iter();
            self.after = self.ready.as_slice().last().map_or(self.range.last, |entry| entry.sequence);
        }
        Ok(self.ready.as_slice().first().copied())
    }

    /// Steps over what was peeked at.
    fn skip(&mut self) {
        self.ready.next();
    }
}

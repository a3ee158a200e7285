//! What tools ask of a queue, running or at rest: who has what, what was refused, and what is to become of it.
//!
//! Owns nothing. The writer is asked for what it alone knows; the rest is read from the log as export reads it, on the caller's
//! thread, which may block.

use std::io;
use std::sync::mpsc::{Receiver, sync_channel};

use super::group::Request;
use super::index::Wanted;
use super::letters::{Kept, owner_of_letters};
use super::{AppendError, CursorOf, CursorState, DeadLetter, Queue, TenantRecord, reader};
use crate::base::{DestinationName, Sequence, Signal, TenantId};

/// Of the log, whose index one step looks at.
const STEP_BYTES: usize = 16 << 20;

/// A tenant, as the log knows it just now.
#[derive(Debug, Clone)]
pub struct TenantView {
    /// Its number.
    pub id: TenantId,
    /// As it was registered.
    pub record: TenantRecord,
    /// Its last data record.
    pub last: Sequence,
    /// Up to a second behind what was delivered.
    pub cursors: Vec<CursorState>,
    /// Those that are kept.
    pub letters: Vec<Kept>,
}

/// What waits for one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backlog {
    /// Where to.
    pub destination: DestinationName,
    /// By `Signal::index`.
    pub items: [u64; 3],
    /// Records of all signals.
    pub records: u64,
    /// Payload bytes of all signals.
    pub bytes: u64,
    /// When the oldest was appended, on the log's clock.
    pub oldest_unix_ms: Option<u64>,
}

/// What is to become of dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody needs them any more.
    Gone,
    /// To be sent again to the destination that refused them. They stay letters until it has accepted them.
    Again,
    /// Refused again, or not to be sent again after all.
    Stays,
}

/// The same, of some.
#[derive(Debug, Clone)]
pub struct LetterChange {
    /// Whose, and where in the log.
    pub letters: Vec<(TenantId, Sequence)>,
    /// What is to become of them.
    pub verdict: Verdict,
}

impl TenantView {
    /// The record up to which everything of a signal is done everywhere.
    fn floor(&self, signal: Signal) -> Sequence {
        let done = |name| self.cursor(name, signal).map_or(Sequence::ZERO, |cursor| cursor.acknowledged);
        self.record.destinations[signal.index()].iter().map(done).min().unwrap_or(Sequence(u64::MAX))
    }

    fn cursor(&self, destination: &DestinationName, signal: Signal) -> Option<&CursorState> {
        let of = CursorOf::Delivery(destination.clone(), signal);
        self.cursors.iter().find(|cursor| cursor.of == of)
    }

    /// Whether a record of a signal is still to go to a destination.
    fn waits(&self, destination: &DestinationName, signal: Signal, sequence: Sequence) -> bool {
        self.record.destinations[signal.index()].contains(destination)
            && self
                .cursor(destination, signal)
                .is_none_or(|cursor| sequence > cursor.acknowledged && cursor.beyond.binary_search(&sequence).is_err())
    }
}

impl Queue {
    /// All tenants that the log knows. Blocking.
    pub fn tenants(&self) -> Result<Vec<TenantView>, AppendError> {
        let (reply, result) = sync_channel(1);
        self.put(Request::Tenants(reply))?;
        result.recv().map_err(|_| AppendError::Poisoned)
    }

    /// What waits for each of a tenant's destinations. Reads the index of all that waits. Blocking.
    pub fn backlog(&self, tenant: &TenantView) -> io::Result<Vec<Backlog>> {
        let mut out: Vec<Backlog> = Vec::new();
        for signal in Signal::ALL {
            for destination in &tenant.record.destinations[signal.index()] {
                if out.iter().all(|known| known.destination != *destination) {
                    let destination = destination.clone();
                    out.push(Backlog { destination, items: [0; 3], records: 0, bytes: 0, oldest_unix_ms: None });
                }
            }
        }
        let floor = Signal::ALL.into_iter().map(|signal| tenant.floor(signal)).min().unwrap_or_default();
        let mut wanted = Wanted { tenant: tenant.id, after: floor, bytes_max: STEP_BYTES };
        while let Some(place) = self.0.index.find(&*self.0.disk, wanted)? {
            for (run, entry) in place.runs.iter().flat_map(|run| run.entries.iter().map(move |entry| (run, entry))) {
                let Some((signal, items)) = entry.items() else { continue };
                for backlog in
                    out.iter_mut().filter(|backlog| tenant.waits(&backlog.destination, signal, entry.sequence))
                {
                    backlog.items[signal.index()] += u64::from(items);
                    backlog.records += 1;
                    backlog.bytes += u64::from(entry.length);
                    if backlog.oldest_unix_ms.is_none() {
                        backlog.oldest_unix_ms = reader::appended_at(&*self.0.disk, run, entry);
                    }
                }
            }
            wanted.after = place.through;
        }
        Ok(out)
    }

    /// A dead letter; `None` if it is gone or damaged. Blocking.
    pub fn letter(&self, tenant: TenantId, sequence: Sequence) -> io::Result<Option<DeadLetter>> {
        let after = Sequence(sequence.0.saturating_sub(1));
        let wanted = Wanted { tenant: owner_of_letters(tenant), after, bytes_max: 1 };
        reader::letter(&*self.0.disk, &self.0.index, &self.0.stats.damaged_records, (wanted, sequence))
    }

    /// The same as [`Queue::change_letters`] for whoever cannot wait: the answer comes when it is durable, or refused. Never blocks.
    pub fn settle_letters(&self, change: LetterChange) -> Result<Receiver<Result<u32, AppendError>>, AppendError> {
        let (reply, answer) = sync_channel(1);
        self.put(Request::Letters(change, reply))?;
        Ok(answer)
    }

    /// Decides about dead letters; how many that changed, durably. Those that are not there any more are passed over. Blocking.
    pub fn change_letters(&self, change: LetterChange) -> Result<u32, AppendError> {
        let result = self.settle_letters(change)?;
        // The writer answers everything that it took; only its death leaves this without an answer.
        result.recv().unwrap_or(Err(AppendError::Poisoned))
    }
}

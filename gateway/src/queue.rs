//! The durable hand-over of bytes. Knows nothing of OTLP.
//!
//! A log shared by all tenants of the node holds everything that must not be lost; sled holds what is looked up and
//! changed, and can always be rebuilt from the log.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::base::handoff::Handoff;
use crate::base::mailbox::Mailbox;
use crate::base::{Batch, DestinationName, Sequence, Signal, TenantId, TenantName};

/// Where and how large.
#[derive(Debug, Clone)]
pub struct Config {
    /// `log/`, `meta/`, `lock` and `format` are made in it.
    pub data_dir: PathBuf,
    /// The log's limit, in bytes of segments.
    pub disk_bytes_max: u64,
    /// Default 64 MiB; smaller in tests.
    pub segment_bytes: u64,
    /// Bytes of appended payload that may wait for the writer.
    pub inbox_bytes_max: usize,
}

/// A handle; clones share the queue. The writer thread ends at [`Queue::close`] or when the last handle is gone.
#[derive(Debug, Clone)]
pub struct Queue {
    _todo: (),
}

/// What a start found.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Every tenant that has undelivered records, or is known.
    pub tenants: Vec<RecoveredTenant>,
    /// Damaged records that were skipped, and bytes of them.
    pub damaged_records: u64,
    /// How long it took.
    pub took: Duration,
    /// Whether sled was missing, stale or damaged, and was rebuilt.
    pub meta_rebuilt: bool,
}

/// A tenant as the log remembers it.
#[derive(Debug, Clone)]
pub struct RecoveredTenant {
    /// Its number.
    pub id: TenantId,
    /// As it was registered.
    pub record: TenantRecord,
    /// Its last record; `Sequence::ZERO` if it has none.
    pub last: Sequence,
    /// Its cursors.
    pub cursors: Vec<CursorState>,
    /// Items after the lowest cursor, that is recovered and still to be delivered somewhere, by signal.
    pub pending_items: [u64; 3],
}

/// What the log keeps of a tenant, so that its data outlives its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRecord {
    /// The key: a name with another pod uid is another tenant.
    pub name: TenantName,
    /// Part of the key.
    pub pod_uid: Option<String>,
    /// Where its records go, by `Signal::index`.
    pub destinations: [Vec<DestinationName>; 3],
    /// Retention.
    pub max_age: Duration,
}

/// How far one destination has come with one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorState {
    /// Whose records.
    pub tenant: TenantId,
    /// Where to.
    pub destination: DestinationName,
    /// Every record up to and including this one is done (delivered, dead letter, or not for this destination).
    pub acknowledged: Sequence,
    /// Records after it that are done as well, in order. Bounded by the window of the destination.
    pub beyond: Vec<Sequence>,
    /// Items delivered through this cursor since the tenant's first record, by signal: for the balance across restarts.
    pub delivered_items: [u64; 3],
}

/// Parts of one request that commit together, and whom to tell.
#[derive(Debug)]
pub struct Append {
    /// In order. All of one tenant.
    pub parts: SmallVec<[Batch; 1]>,
    /// Whether the reply waits for fdatasync or only for the write.
    pub sync: bool,
    /// Told after all parts are committed.
    pub reply: Option<Reply>,
}

/// Where the outcome of an [`Append`] goes.
#[derive(Debug)]
pub struct Reply {
    /// The waiting thread's mailbox.
    pub mailbox: Arc<Mailbox<Completion>>,
    /// The waiter's own number for the request.
    pub ticket: u64,
}

/// The outcome of an [`Append`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// As in [`Reply`].
    pub ticket: u64,
    /// The last part's position.
    pub result: Result<Sequence, AppendError>,
}

/// Why an append was refused or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Too many bytes wait for the writer. Retryable, soon.
    #[error("the queue's writer is behind")]
    Busy,
    /// The log's limit or the disk is full. Retryable, when something was delivered.
    #[error("the queue is full")]
    Full,
    /// A write or an fsync failed; the process will end and recover.
    #[error("the queue's log is poisoned by a failed write or fsync")]
    Poisoned,
    /// A part is larger than a record may be. Not retryable.
    #[error("larger than a record of the queue may be")]
    TooLarge,
    /// The tenant was not registered: a fault of the caller.
    #[error("the tenant is not registered with the queue")]
    UnknownTenant,
    /// The queue is closed.
    #[error("the queue is closed")]
    Closed,
}

/// A data record, read back.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its position.
    pub sequence: Sequence,
    /// What it is.
    pub signal: Signal,
    /// Items in it.
    pub items: u32,
    /// When it was received.
    pub received_unix_ms: u64,
    /// Its bytes, checksums verified.
    pub payload: Bytes,
}

/// What a read found.
#[derive(Debug)]
pub struct Read {
    /// In order; empty when nothing is left up to `last`.
    pub records: Vec<Stored>,
    /// Everything of the tenant up to here was returned or is damaged (and counted).
    pub through: Sequence,
}

/// A refusal to keep beside the data.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Whose.
    pub tenant: TenantId,
    /// Which record.
    pub sequence: Sequence,
    /// Who refused it.
    pub destination: DestinationName,
    /// What it is.
    pub signal: Signal,
    /// Items in it.
    pub items: u32,
    /// The refusal in words, at most 1 KiB.
    pub reason: String,
    /// The data.
    pub payload: Bytes,
}

/// Why the queue does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("data directory {dir} is in use by process {holder}: stop it, or choose another directory with --data-dir")]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The holder's pid, or `unknown`.
        holder: String,
    },
    /// Written by a newer release.
    #[error(
        "data directory {dir} has format {found}, this release reads up to {known}: use the newer release, or another directory"
    )]
    NewerFormat {
        /// The directory.
        dir: PathBuf,
        /// What the format file says.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// A file could not be made, opened, read or synced.
    #[error("{action} {path}: {source}")]
    Io {
        /// For example `creating`.
        action: &'static str,
        /// Of the file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// Figures for /metrics and /tenants.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Segments on disk, recycled ones not counted.
    pub segments: u64,
    /// Bytes of segments on disk.
    pub disk_bytes: u64,
    /// Group commits, their records, and fdatasync calls since the start.
    pub commits: u64,
    /// Records written.
    pub records: u64,
    /// fdatasync calls.
    pub syncs: u64,
    /// Payload bytes written.
    pub payload_bytes: u64,
    /// Damaged records found since the start.
    pub damaged_records: u64,
    /// Whether the log is poisoned.
    pub poisoned: bool,
    /// Whether appends are refused for lack of space.
    pub full: bool,
}

impl Queue {
    /// Locks the directory, recovers, starts the writer. Blocking; progress of long recoveries is logged.
    pub fn open(config: Config, handoff: Arc<Handoff>) -> Result<(Self, Recovery), OpenError> {
        let _ = (config, handoff);
        todo!()
    }

    /// The tenant's number: an old one for a known key, else a new one, durable before this returns. Blocking.
    /// A changed record (destinations, retention) is appended anew under the same number.
    pub fn register(&self, record: &TenantRecord) -> Result<TenantId, AppendError> {
        let _ = record;
        todo!()
    }

    /// Hands an append to the writer. Never blocks; a refusal gives the append back, and no completion follows.
    pub fn append(&self, append: Append) -> Result<(), (Append, AppendError)> {
        let _ = append;
        todo!()
    }

    /// Reads the tenant's data records after `after`, in order: at least one if there is one, then up to `bytes_max`.
    /// Blocking; to be called on the reader pool.
    pub fn read(&self, tenant: TenantId, after: Sequence, bytes_max: usize) -> std::io::Result<Read> {
        let _ = (tenant, after, bytes_max);
        todo!()
    }

    /// Saves cursors to the log and to sled. Not synced on its own: it shares the next group commit. Non-blocking.
    pub fn checkpoint(&self, cursors: Vec<CursorState>) -> Result<(), AppendError> {
        let _ = cursors;
        todo!()
    }

    /// Keeps what a destination refused for good. Durable before the completion is posted; only then may the cursor pass.
    pub fn dead_letter(&self, letter: DeadLetter, reply: Reply) -> Result<(), AppendError> {
        let _ = (letter, reply);
        todo!()
    }

    /// Resolves when a write or an fsync has failed: nothing can be promised any more, and the process must end with a
    /// status that is not zero; its next start recovers what is there. Cancel safe.
    pub async fn poisoned(&self) {
        todo!()
    }

    /// Present figures.
    pub fn snapshot(&self) -> Snapshot {
        todo!()
    }

    /// Commits what waits, syncs, saves metadata, ends the writer, releases the lock. Blocking.
    pub fn close(&self) -> std::io::Result<()> {
        todo!()
    }
}

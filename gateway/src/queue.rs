//! The durable hand-over of bytes. Knows nothing of OTLP.
//!
//! A log shared by all tenants of the node holds everything that must not be lost; sled holds what is looked up and
//! changed, and can always be rebuilt from the log. Ends with [`Queue::close`]: what waits is committed, the open segment
//! sealed, the lock released.
//!
//! - `format`, `record`, `footer`: the bytes on disk, with their pseudo-structs.
//! - `log`: the writer's core, step by step, over a `group` of requests; `appender` and `space` put records and files where they belong.
//! - `tenants`: who is known, how far each `cursor` is, and what that makes done.
//! - `budget`: what a tenant's undelivered records take, and may take.
//! - `index`, `reader`, `scan`: finding records again, by the index or in spite of damage.
//! - `letters`: which dead letters of a tenant are kept.
//! - `relocate`: emptying segments of which little is live, beside the writer.
//! - `recovery`: from files to a log; `damaged`: what it, or a read, found damaged, kept aside.
//! - `tools`: what people ask, of a queue that runs and of one at rest.
//! - `verify`: all of it, looked at and not touched.
//! - `writer`, `directory`, `meta`: threads, lock and sled around it.
//! - `clock`: the log's own time, by which ages are counted.
//! - `disk`: the filesystem, real and simulated.

mod appender;
mod budget;
mod clock;
mod cursor;
mod damaged;
mod directory;
mod disk;
mod footer;
mod format;
mod group;
mod index;
mod letters;
mod log;
mod meta;
mod reader;
mod record;
mod recovery;
mod relocate;
mod scan;
mod space;
mod stats;
mod tenants;
#[cfg(test)]
mod tests;
mod tools;
mod verify;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::base::handoff::Handoff;
use crate::base::ledger::MemoryLimit;
use crate::base::mailbox::Mailbox;
use crate::base::{Batch, DestinationName, Sequence, Signal, TenantId, TenantName};

pub use cursor::{CursorOf, CursorState};
pub use directory::DirectoryLock;
pub use letters::Kept;
pub use tools::{Backlog, LetterChange, TenantView, Verdict};
pub use verify::{Checked, Finding, Severity, verify};

use clock::Clock;
use directory::Directory;
use disk::RealDisk;
use group::Request;
use index::{Index, Wanted};
use log::Log;
use meta::MetaInbox;
use meta::sled::SledMeta;
use recovery::{RecoverError, Survey};
use stats::Stats;
use tenants::Held;
use writer::{Inbox, PoisonOnPanic};

/// Where and how large.
#[derive(Debug, Clone)]
pub struct Config {
    /// `log/`, `meta/`, `damaged/`, `lock` and `format` are made in it.
    pub data_dir: PathBuf,
    /// The log's limit, in bytes of segments.
    pub disk_bytes_max: u64,
    /// Default 64 MiB; smaller in tests.
    pub segment_bytes: u64,
    /// Bytes of appended payload that may wait for the writer.
    pub inbox_bytes_max: usize,
    /// Of the log, that a tenant's dead letters may take; the oldest go first.
    pub dead_letter_bytes_max: u64,
    /// Of the filesystem: with less, data is refused, so that the queue never takes a node's last space.
    pub min_free: MinFree,
    /// Destinations that begin with what comes after they are added to a tenant; all others begin with its oldest record.
    pub begin_at_tail: BTreeSet<DestinationName>,
}

/// Free space that a filesystem must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinFree {
    /// Of its size.
    Percent(u8),
    /// In bytes.
    Bytes(u64),
}

impl MinFree {
    /// Whether so much is too little.
    fn is_short(self, free: disk::Free) -> bool {
        match self {
            Self::Bytes(bytes) => free.available < bytes,
            Self::Percent(percent) => u128::from(free.available) * 100 < u128::from(free.total) * u128::from(percent),
        }
    }
}

/// A handle; clones share the queue. The writer thread ends at [`Queue::close`] or when the last handle is gone.
#[derive(Debug, Clone)]
pub struct Queue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inbox: Arc<Inbox>,
    disk: Arc<RealDisk>,
    index: Arc<Index<RealDisk>>,
    stats: Arc<Stats>,
    clock: Arc<Clock>,
    held: Arc<Held>,
    /// Registrations asked for since the start.
    registrations: AtomicU64,
    writer: Mutex<Option<JoinHandle<std::io::Result<()>>>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Not joined: the last handle may be dropped on a thread that must not block.
        self.inbox.close();
    }
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
    /// The newest time that was found; the log's clock goes on from it.
    pub newest_unix_ms: u64,
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
    /// How much of the log its undelivered records may take: a guarantee and a ceiling.
    pub disk: MemoryLimit,
    /// At the ceiling its own oldest records go instead of the new ones.
    pub drops_oldest: bool,
}

/// The log's answer to a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// The tenant's number.
    pub id: TenantId,
    /// Its cursors as of now, those included at which its new destinations begin.
    pub cursors: Vec<CursorState>,
}

/// A tenant whose pod is gone, and when that was known: a registration that comes later is stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Departure {
    /// Who.
    pub tenant: TenantId,
    /// Registrations before it.
    pub(crate) seen: u64,
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
    /// The data directory's filesystem has less free space than it must keep. Retryable, when it has more.
    #[error("the node's disk is nearly full: data is taken again when node.min_free is there")]
    LowSpace,
    /// The tenant's undelivered data is at its ceiling, or what is left is promised to others. Retryable, when something of it
    /// was delivered.
    #[error("the tenant's share of the queue's disk is used up")]
    OverBudget,
    /// The disk has not answered for seconds. What waits for it is committed if it ever does. Retryable, when it does.
    #[error("the disk does not answer")]
    Stalled,
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
    /// When it was appended, on the log's clock.
    pub received_unix_ms: u64,
    /// Its bytes, checksums verified.
    pub payload: Bytes,
}

/// Records of one tenant that are not to be delivered any more, as far as one look went.
#[derive(Debug)]
pub struct Overdue {
    /// In order, without payload.
    pub records: Vec<Stored>,
    /// Those that cannot be read, whatever their age: as in [`Read`].
    pub damaged: Vec<Stored>,
    /// Everything of the tenant up to here is among them.
    pub through: Sequence,
    /// When the first one after that was appended; `None` if there is none, or the look ended before it.
    pub next_unix_ms: Option<u64>,
}

/// What a read found.
#[derive(Debug)]
pub struct Read {
    /// In order; empty when nothing is left up to `last`.
    pub records: Vec<Stored>,
    /// Records in between that are damaged, in order: without time and payload, by what the index says of them.
    pub damaged: Vec<Stored>,
    /// Everything of the tenant up to here is among them.
    pub through: Sequence,
}

/// The status of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A gRPC status.
    Grpc(u16),
    /// An HTTP status.
    Http(u16),
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
    /// What the destination answered; `None` if it never came to that.
    pub answer: Option<Answer>,
    /// The refusal in words, at most 1 KiB.
    pub reason: String,
    /// How often it was refused.
    pub attempts: u32,
    /// When the data was appended, on the log's clock.
    pub appended_unix_ms: u64,
    /// When it was refused for the first time, on the log's clock.
    pub first_unix_ms: u64,
    /// When it was refused for the last time.
    pub last_unix_ms: u64,
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
    /// Other users of the machine could read or change it.
    #[error("data directory {dir} {problem}: {advice}")]
    Exposed {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        advice: String,
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
    /// Times that metadata was missing, stale or damaged and was made anew, since the start.
    pub meta_rebuilds: u64,
    /// Dead letters that were dropped: over their tenant's budget, or because the log was full.
    pub dead_letters_dropped: u64,
    /// Records that were copied out of segments of which little was live, and their bytes.
    pub relocated_records: u64,
    /// See there.
    pub relocated_bytes: u64,
    /// Whether the log is poisoned.
    pub poisoned: bool,
    /// Bytes of records that are not done: what is lost if this node's disk is.
    pub undelivered_bytes: u64,
    /// Whether appends are refused for lack of space.
    pub full: bool,
    /// Whether appends are refused because the filesystem has less free space than `min_free`.
    pub low: bool,
    /// Whether the disk has not answered for seconds; appends are refused.
    pub stalled: bool,
    /// Now, on the log's clock, by which ages are counted.
    pub now_unix_ms: u64,
}

/// Smallest segment: a record of the largest size must fit, unless the log's own limit is smaller than a few of them.
const SEGMENTS_MIN: u64 = 4;
/// Payload bytes whose records one step of [`Queue::overdue`] looks for in the index.
const OVERDUE_BYTES_MAX: usize = 1 << 20;
/// Offsets within a segment have 32 bits.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

impl Queue {
    /// Locks the directory, recovers, starts the writer. Blocking; progress of long recoveries is logged.
    pub fn open(config: Config, handoff: Arc<Handoff>) -> Result<(Self, Recovery), OpenError> {
        let lock = DirectoryLock::take(&config.data_dir)?;
        Self::open_locked(lock, config, handoff)
    }

    /// The same, by whoever has the lock of `config.data_dir`. Held until [`Queue::close`].
    pub fn open_locked(
        lock: DirectoryLock,
        config: Config,
        handoff: Arc<Handoff>,
    ) -> Result<(Self, Recovery), OpenError> {
        let directory = Directory::open(lock)?;
        let log_path = config.data_dir.join("log");
        let recover_error = |error| match error {
            RecoverError::Newer(found) => {
                OpenError::NewerFormat { dir: config.data_dir.clone(), found, known: format::VERSION }
            }
            RecoverError::Io(action, name, source) => directory::failure(action, &log_path.join(name), source),
        };
        let opened = RealDisk::open(log_path.clone());
        let disk = Arc::new(opened.map_err(|source| directory::failure("opening", &log_path, source))?);
        let survey = Survey::of(&*disk).map_err(recover_error)?;
        let log_id = directory.log_id.or(survey.log_id()).unwrap_or_else(|| fastrand::u64(1..));
        directory.note_format(log_id);

        let mut meta = SledMeta::new(config.data_dir.join("meta"), log_id);
        let (saved, was_damaged) = meta::load_or_discard(&mut meta);
        let meta_rebuilt = was_damaged || (saved.is_none() && survey.has_segments());
        let params = recovery::Params {
            segment_bytes: config.segment_bytes.min(config.disk_bytes_max / SEGMENTS_MIN).min(SEGMENT_BYTES_MAX),
            disk_bytes_max: config.disk_bytes_max,
            min_free: config.min_free,
            letter_bytes_max: config.dead_letter_bytes_max,
            begin_at_tail: config.begin_at_tail,
            log_id,
            rng: fastrand::Rng::new(),
            saved,
        };
        let (index, stats) = (Arc::new(Index::default()), Arc::new(Stats::default()));
        stats.damaged_records.keep_in(config.data_dir.join("damaged"));
        stats.meta_rebuilds.store(meta_rebuilt.into(), Ordering::Relaxed);
        let shared = (index.clone(), stats.clone(), handoff);
        let (mut log, recovery) = recovery::recover(disk.clone(), survey, params, shared).map_err(recover_error)?;
        if meta_rebuilt {
            log.save_all();
        }
        let inbox = Arc::new(Inbox::new(config.inbox_bytes_max));
        let clock = Arc::new(Clock::after(recovery.newest_unix_ms));
        // Told before the first request meets it.
        log.look_at_space(clock.now_unix_ms());
        let shared = (inbox.clone(), stats.clone(), clock.clone(), disk.clone(), index.clone());
        let held = log.tenants.held();
        let writer = spawn(directory, shared, log, meta)
            .map_err(|source| directory::failure("starting the writer of", &config.data_dir, source))?;
        let queue = Self(Arc::new(Shared {
            inbox,
            disk,
            index,
            stats,
            clock,
            held,
            registrations: AtomicU64::new(0),
            writer: Mutex::new(Some(writer)),
        }));
        Ok((queue, Recovery { meta_rebuilt, ..recovery }))
    }

    /// The tenant's number: an old one for a known key, else a new one, durable before this returns. Blocking.
    /// A changed record (destinations, retention) is appended anew under the same number. A destination that is new to a
    /// signal of the tenant begins where [`Config::begin_at_tail`] says; what one that is not named any more had not got yet is
    /// given up, unless another one still waits for it: then export is told, which counts it.
    pub fn register(&self, record: &TenantRecord) -> Result<Registered, AppendError> {
        let (reply, result) = sync_channel(1);
        let number = self.0.registrations.fetch_add(1, Ordering::SeqCst) + 1;
        self.put(Request::Register(record.clone(), number, reply))?;
        // The writer answers everything that it took; only its death leaves this without an answer.
        result.recv().unwrap_or(Err(AppendError::Poisoned))
    }

    /// Says that a tenant's pod is gone, as of now. Nothing happens before [`Queue::forget`].
    pub fn departure(&self, tenant: TenantId) -> Departure {
        Departure { tenant, seen: self.0.registrations.load(Ordering::SeqCst) }
    }

    /// Forgets a departed tenant as soon as all its records are done, which may be long after: told then. Told `Busy` if it
    /// is registered again meanwhile: it stays. Whoever asks holds nothing that is still to be appended for it. A later
    /// registration of the same pod makes a new tenant. Non-blocking.
    pub fn forget(&self, departure: Departure, reply: Reply) -> Result<(), AppendError> {
        self.put(Request::Forget(departure, reply))
    }

    /// Hands an append to the writer. Never blocks; a refusal gives the append back, and no completion follows.
    pub fn append(&self, append: Append) -> Result<(), (Append, AppendError)> {
        if self.0.stats.is_poisoned() {
            return Err((append, AppendError::Poisoned));
        }
        if self.0.inbox.is_stalled(&self.0.clock) {
            // Everything else is sent again by whoever sends it; data would pile up.
            return Err((append, AppendError::Stalled));
        }
        self.0.inbox.put(Request::Append(append)).map_err(|(request, error)| match *request {
            Request::Append(append) => (append, error),
            _ => unreachable!("the inbox gives back what it was given"),
        })
    }

    /// Reads the tenant's data records after `after`, in order: at least one if there is one, then up to `bytes_max`.
    /// Blocking; to be called on the reader pool. A record that the disk cannot read any more is damaged: it is counted
    /// and skipped; other failures are errors, and nothing is skipped.
    pub fn read(&self, tenant: TenantId, after: Sequence, bytes_max: usize) -> std::io::Result<Read> {
        let wanted = Wanted { tenant, after, bytes_max };
        reader::read(&*self.0.disk, &self.0.index, &self.0.stats.damaged_records, wanted)
    }

    /// The tenant's data records after `after`, in order, that were appended before `limit_unix_ms`, without their bytes: at most
    /// `records_max`. Looks no further than the first that is younger. Blocking, like [`Queue::read`].
    pub fn overdue(
        &self,
        (tenant, after): (TenantId, Sequence),
        limit_unix_ms: u64,
        records_max: usize,
    ) -> std::io::Result<Overdue> {
        let shared = &*self.0;
        let wanted = Wanted { tenant, after, bytes_max: OVERDUE_BYTES_MAX };
        reader::overdue(
            &*shared.disk,
            &shared.index,
            &shared.stats.damaged_records,
            (wanted, limit_unix_ms, records_max),
        )
    }

    /// Now, on the log's clock.
    pub fn now_unix_ms(&self) -> u64 {
        self.0.clock.now_unix_ms()
    }

    /// Lets the log's clock run ahead.
    #[cfg(test)]
    pub(crate) fn age(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.0.clock.ahead_ms.fetch_add(by, Ordering::Relaxed);
    }

    /// Saves cursors to the log and to sled. Not synced on its own: it shares the next group commit, or is synced after a
    /// second without one. Non-blocking. A cursor that goes back is ignored: what it passed may be gone.
    pub fn checkpoint(&self, cursors: Vec<CursorState>) -> Result<(), AppendError> {
        self.put(Request::Checkpoint(cursors))
    }

    /// Keeps what a destination refused for good. Durable before the completion is posted; only then may the cursor pass.
    pub fn dead_letter(&self, letter: DeadLetter, reply: Reply) -> Result<(), AppendError> {
        self.put(Request::DeadLetter(letter, reply))
    }

    fn put(&self, request: Request) -> Result<(), AppendError> {
        if self.0.stats.is_poisoned() {
            return Err(AppendError::Poisoned);
        }
        self.0.inbox.put(request).map_err(|(_, error)| error)
    }

    /// Resolves when a write or an fsync has failed: nothing can be promised any more, and the process must end with a
    /// status that is not zero; its next start recovers what is there. Cancel safe.
    pub async fn poisoned(&self) {
        self.0.stats.poisoned().await;
    }

    /// Bytes of the log that each tenant's undelivered records take, as its share of the disk counts them; pods of one name together.
    /// Never waits for the writer's disk.
    pub fn held_bytes(&self) -> BTreeMap<TenantName, u64> {
        self.0.held.by_name()
    }

    /// Present figures.
    pub fn snapshot(&self) -> Snapshot {
        let stalled = self.0.inbox.is_stalled(&self.0.clock);
        Snapshot { stalled, now_unix_ms: self.now_unix_ms(), ..self.0.stats.snapshot() }
    }

    /// Commits what waits, syncs, saves metadata, ends the writer, releases the lock. Blocking. A second call does nothing.
    pub fn close(&self) -> std::io::Result<()> {
        self.0.inbox.close();
        let writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(writer) = writer else { return Ok(()) };
        writer.join().unwrap_or_else(|_| Err(std::io::Error::other("the queue's writer panicked")))
    }
}

type SharedParts = (Arc<Inbox>, Arc<Stats>, Arc<Clock>, Arc<RealDisk>, Arc<Index<RealDisk>>);

/// Starts the writer, and beside it the threads that save metadata and relocate, which end with it.
fn spawn(
    directory: Directory,
    (inbox, stats, clock, disk, index): SharedParts,
    mut log: Log<RealDisk>,
    mut meta: SledMeta,
) -> std::io::Result<JoinHandle<std::io::Result<()>>> {
    let meta_inbox = Arc::new(MetaInbox::default());
    let (saver_inbox, savers_stats) = (meta_inbox.clone(), stats.clone());
    let saver = std::thread::Builder::new()
        .name("queue-meta".to_owned())
        .spawn(move || meta::run(&saver_inbox, &mut meta, &savers_stats.meta_rebuilds))?;
    let desk = log.relocation.desk.clone();
    let (relocators_desk, relocators_inbox, relocators_stats) = (desk.clone(), inbox.clone(), stats.clone());
    let relocator = std::thread::Builder::new().name("queue-relocate".to_owned()).spawn(move || {
        relocate::run(&relocators_desk, (&*disk, &*index, &*relocators_stats), || relocators_inbox.nudge());
    })?;
    std::thread::Builder::new().name("queue-writer".to_owned()).spawn(move || {
        let _guard = PoisonOnPanic(&stats);
        let result = writer::run(&inbox, &mut log, &meta_inbox, &clock);
        meta_inbox.close();
        desk.close();
        if relocator.join().is_err() {
            tracing::warn!("the thread that empties the queue's segments panicked: they kept their space since");
        }
        if saver.join().is_err() {
            tracing::warn!(
                "the thread that saves the queue's metadata panicked: the log alone is used at the next start"
            );
        }
        // Last: whoever gets the lock finds everything at rest.
        drop(directory);
        result
    })
}

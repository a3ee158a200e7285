//! Metadata in sled, used so that none of its weaknesses reaches the data.
//!
//! Owns the directory `meta/`. Every call into sled runs where a panic or a hang is survived: opening and reading on a
//! thread of its own with a time limit, the rest behind `catch_unwind`. `flush` of sled 0.34 is not an fsync: its file is synced after.

use std::any::Any;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use bytes::{Buf, BufMut};
use crc32c::crc32c_append;

use super::{Meta, Saved, Update};
use crate::base::{Sequence, TenantId};
use crate::queue::{CursorOf, CursorState};

/// sled reads its whole log when it opens; ours is a few hundred KiB. What takes longer is not worth waiting for.
const OPEN_TIME_MAX: Duration = Duration::from_secs(5);
const CACHE_BYTES: u64 = 1 << 20;
const STATE: &[u8] = b"state";
const CURSORS: &[u8] = b"cursors";

/// The directory, and the database while it is usable.
#[derive(Debug)]
pub(crate) struct SledMeta {
    path: PathBuf,
    log_id: u64,
    db: Option<sled::Db>,
}

impl SledMeta {
    /// Nothing is opened yet. Metadata of another log than `log_id` is refused.
    pub(crate) fn new(path: PathBuf, log_id: u64) -> Self {
        Self { path, log_id, db: None }
    }

    fn seal(&self, mut value: Vec<u8>) -> Vec<u8> {
        let crc = self.crc(&value);
        value.put_u32_le(crc);
        value
    }

    fn unseal<'a>(&self, value: &'a [u8], length: usize) -> Result<&'a [u8], String> {
        let (body, mut crc) = value.split_at_checked(length).ok_or("a value is too short")?;
        if crc.try_get_u32_le() != Ok(self.crc(body)) || crc.has_remaining() {
            return Err("a value is damaged, or of another log".to_owned());
        }
        Ok(body)
    }

    fn crc(&self, bytes: &[u8]) -> u32 {
        crc32c_append(crc32c::crc32c(&self.log_id.to_le_bytes()), bytes)
    }

    fn read(&self, db: &sled::Db) -> Result<Option<Saved>, String> {
        let cursors = db.open_tree(CURSORS).map_err(text)?;
        let Some(state) = db.get(STATE).map_err(text)? else {
            return if cursors.is_empty() { Ok(None) } else { Err("its state is missing".to_owned()) };
        };
        let mut state = self.unseal(&state, 8)?;
        let mut saved = Saved { epoch: state.get_u32_le(), tenants_next: state.get_u32_le(), cursors: Vec::new() };
        for row in &cursors {
            let (key, value) = row.map_err(text)?;
            let (mut head, destination) = key.split_at_checked(6).ok_or("a key is too short")?;
            let tenant = TenantId(head.get_u32());
            let destination = std::str::from_utf8(destination).map_err(text)?;
            let Some(of) = CursorOf::from_parts(head[0], head[1], destination) else { continue };
            let mut value = self.unseal(&value, 16)?;
            saved.cursors.push(CursorState {
                tenant,
                of,
                acknowledged: Sequence(value.get_u64_le()),
                beyond: Vec::new(),
                delivered_items: value.get_u64_le(),
            });
        }
        Ok(Some(saved))
    }

    fn write(&self, db: &sled::Db, update: &Update) -> Result<(), String> {
        let cursors = db.open_tree(CURSORS).map_err(text)?;
        for cursor in &update.cursors {
            let mut key = cursor.tenant.0.to_be_bytes().to_vec();
            let (kind, signal, destination) = cursor.of.parts();
            key.extend_from_slice(&[kind, signal]);
            key.extend_from_slice(destination.as_bytes());
            let mut value = Vec::with_capacity(20);
            value.put_u64_le(cursor.acknowledged.0);
            value.put_u64_le(cursor.delivered_items);
            cursors.insert(key, self.seal(value)).map_err(text)?;
        }
        for tenant in &update.forgotten {
            for key in cursors.scan_prefix(tenant.0.to_be_bytes()).keys() {
                cursors.remove(key.map_err(text)?).map_err(text)?;
            }
        }
        let mut state = Vec::with_capacity(12);
        state.put_u32_le(update.epoch);
        state.put_u32_le(update.tenants_next);
        db.insert(STATE, self.seal(state)).map_err(text)?;
        db.flush().map_err(text)?;
        // flush only writes: without this, power loss takes what it said was safe.
        File::open(self.path.join("db")).and_then(|file| file.sync_all()).map_err(text)
    }
}

impl Meta for SledMeta {
    fn load(&mut self) -> Result<Option<Saved>, String> {
        let reader = Self::new(self.path.clone(), self.log_id);
        let (db, saved) = in_time(move || {
            let db = open(&reader.path)?;
            let saved = reader.read(&db)?;
            Ok((db, saved))
        })?;
        self.db = Some(db);
        Ok(saved)
    }

    fn save(&mut self, update: &Update) -> Result<(), String> {
        let db = self.db.as_ref().ok_or("it is not open")?;
        survive(|| self.write(db, update))
    }

    fn discard(&mut self) -> Result<(), String> {
        if let Some(db) = self.db.take() {
            // Its drop flushes, and may fail as everything before did: what matters is that it is gone.
            drop(survive(|| {
                drop(db);
                Ok(())
            }));
        }
        // Renamed first: a thread that hangs in it keeps its files, and we get new ones.
        let aside = self.path.with_extension("discarded");
        drop(remove(&aside));
        match std::fs::rename(&self.path, &aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(text(error)),
            _ => drop(remove(&aside)),
        }
        let path = self.path.clone();
        self.db = Some(in_time(move || open(&path))?);
        Ok(())
    }
}

/// A file where the directory should be is as useless as a damaged directory.
fn remove(path: &Path) -> std::io::Result<()> {
    if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}

/// Does it on a thread that may hang or die.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    let (done, result) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("queue-meta-open".to_owned())
        .spawn(move || drop(done.try_send(work())))
        .map_err(text)?;
    match result.recv_timeout(OPEN_TIME_MAX) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => Err("sled does not open in time".to_owned()),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err("sled panicked while it was opened".to_owned()),
    }
}

fn open(path: &Path) -> Result<sled::Db, String> {
    sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None).open().map_err(text)
}

fn survive<T>(call: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(format!("sled panicked: {}", message(&*panic))))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("?")
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

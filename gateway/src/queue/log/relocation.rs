//! The writer's part of a relocation: when to look for one, room for its target, and the change-over.
//!
//! Owns when. It reads nothing and syncs nothing but the directory: what takes long is `relocate`'s. The change-over comes only
//! with everything durable, as freeing does: the cursors by which a record was left behind, and the copy of tenants at the head of
//! the open segment. A failed look or copy costs a minute; intake goes on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::format::{RELOCATED, SegmentHeader};
use super::super::relocate::{self, Copied, Desk, Standing, Turn};
use super::{Disk, Log};

/// Segments that may lie idle beside half as much as is live; with the open one, two spares and a target, that makes six.
const SLACK_SEGMENTS: u64 = 2;
/// Sealed segments without which there is nothing to look for.
const SEALED_MIN: usize = 2;
/// Between two looks while nothing new is sealed.
const LOOK_INTERVAL_MS: u64 = 1_000;
/// After a failure.
const REST_MS: u64 = 60_000;

/// When it was looked, and when it may be again.
#[derive(Debug)]
pub(crate) struct Relocation<D: Disk> {
    /// Where it is handed over.
    pub(crate) desk: Arc<Desk<D>>,
    /// Cursors have moved since the last look.
    pub(super) moved: bool,
    sealed: usize,
    next_look_unix_ms: u64,
    rests_until_unix_ms: u64,
    /// Begun since the start.
    #[cfg(test)]
    pub(crate) change_overs: u64,
}

impl<D: Disk> Default for Relocation<D> {
    fn default() -> Self {
        Self {
            desk: Arc::default(),
            moved: true,
            sealed: 0,
            next_look_unix_ms: 0,
            rests_until_unix_ms: 0,
            #[cfg(test)]
            change_overs: 0,
        }
    }
}

impl<D: Disk> Log<D> {
    /// Goes on as far as it is the writer's turn.
    pub(super) fn relocate(&mut self, now_unix_ms: u64) {
        if self.stats.is_poisoned() || !self.appender.is_open() {
            return;
        }
        let Some(turn) = self.relocation.desk.take() else { return };
        let next = match turn {
            Turn::Rest => self.look(now_unix_ms),
            Turn::Asks(plan) => match self.appender.space.lend(plan.bytes) {
                Ok(key) => relocate::begin(*plan, key),
                // Cursors have taken what is reserved: they free some.
                Err(failure) => {
                    self.refusal(failure);
                    self.relocation.moved = true;
                    Turn::Rest
                }
            },
            Turn::Copied(copied) if self.appender.is_unsynced() => Turn::Copied(copied),
            Turn::Copied(copied) => {
                self.change_over(copied);
                self.relocation.next_look_unix_ms = now_unix_ms;
                self.relocation.moved = true;
                Turn::Rest
            }
            Turn::GivenUp(lent) => {
                self.appender.space.take_back(lent);
                self.relocation.rests_until_unix_ms = now_unix_ms.saturating_add(REST_MS);
                // Or nothing would ever be looked at again where nothing moves.
                self.relocation.moved = true;
                Turn::Rest
            }
            relocators => relocators,
        };
        if !matches!(next, Turn::Rest) {
            let hurries = self.is_nearly_full();
            self.relocation.desk.put(next, hurries);
        }
    }

    fn look(&mut self, now_unix_ms: u64) -> Turn<D> {
        let sealed = self.index.sealed_count();
        let grew = sealed > self.relocation.sealed;
        let is_due = grew || (self.relocation.moved && now_unix_ms >= self.relocation.next_look_unix_ms);
        let rests = now_unix_ms < self.relocation.rests_until_unix_ms;
        self.relocation.sealed = self.relocation.sealed.min(sealed);
        if sealed < SEALED_MIN || !is_due || rests {
            return Turn::Rest;
        }
        self.relocation.sealed = sealed;
        self.relocation.moved = false;
        self.relocation.next_look_unix_ms = now_unix_ms.saturating_add(LOOK_INTERVAL_MS);
        let segment_bytes = self.appender.space.segment_bytes;
        let slack_segments = if self.is_nearly_full() { 0 } else { SLACK_SEGMENTS };
        let tenants = self.tenants.standing();
        let created = SegmentHeader {
            class: RELOCATED,
            created_unix_ms: now_unix_ms,
            tenants_next: self.tenants.next(),
            ..self.appender.identity()
        };
        Turn::Look(Box::new(Standing {
            first: self.appender.reserve(tenants.len() as u64 + 3),
            tenants,
            sealed: self.index.sealed().iter().map(|segment| segment.key.id).collect(),
            header: created,
            segment_bytes,
            slack_bytes: slack_segments * segment_bytes,
        }))
    }

    /// Above this nothing may lie idle, and nobody is spared.
    fn is_nearly_full(&self) -> bool {
        let space = &self.appender.space;
        space.disk_bytes() > space.disk_bytes_max / 5 * 4
    }

    fn change_over(&mut self, copied: Copied<D>) {
        #[cfg(test)]
        {
            self.relocation.change_overs += 1;
        }
        let Copied { segment, sources, lent } = copied;
        if let Some(segment) = &segment {
            let settled = self.appender.space.settle(segment, lent);
            if !self.survives(settled) {
                return;
            }
            let (records, bytes) = segment.ranges.iter().fold((0, 0), |(records, bytes), range| {
                (records + u64::from(range.count), bytes + range.bytes.iter().sum::<u64>())
            });
            self.stats.relocated_records.fetch_add(records, Ordering::Relaxed);
            self.stats.relocated_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        let ids: Vec<_> = sources.iter().map(|source| source.key.id).collect();
        drop(sources);
        for source in self.index.replace(&ids, segment) {
            let retired = self.appender.space.retire(&source);
            if !self.survives(retired) {
                return;
            }
        }
    }
}

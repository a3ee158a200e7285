//! Dead letters: kept within a budget of their tenant, and gone only when the log says so durably.
//!
//! A letter's record comes first, the word that an older one is gone after it: a crash between the two keeps both.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::super::appender::{Fields, Source};
use super::super::footer::RANGE_BYTES;
use super::super::group::{Outcome, Request};
use super::super::index::{Segment, Wanted};
use super::super::letters::{self, tenant_of_letters};
use super::super::record::{self, Kind};
use super::super::tools::{LetterChange, Verdict};
use super::super::{AppendError, DeadLetter};
use super::{Disk, Log};
use crate::base::{Sequence, TenantId};

/// What the first letter of a tenant takes of a segment beside its record: a range, and the checksum of a block.
const OF_A_RANGE: usize = RANGE_BYTES + 8;

/// Tenants that are gone and delivered, and known only for their dead letters. With more, the one with the oldest letter goes.
const LEFT_LETTERS_MAX: usize = 128;

impl<D: Disk> Log<D> {
    pub(super) fn plan_letter(
        &mut self,
        number: usize,
        letter: &DeadLetter,
        group: (&[Request], u64),
    ) -> Result<Outcome, AppendError> {
        if self.tenants.find(letter.tenant).is_none() {
            return Err(AppendError::UnknownTenant);
        }
        let mut head = std::mem::take(&mut self.payload);
        head.clear();
        record::put_letter_head(&mut head, letter);
        let length = head.len() + letter.payload.len();
        let room = match length {
            0..=record::PAYLOAD_BYTES_MAX => self.admit(std::iter::once(length + OF_A_RANGE), 0),
            _ => Err(AppendError::TooLarge),
        };
        let staged = room.and_then(|()| self.make_room(length + OF_A_RANGE, group)).map(|()| {
            self.appender.note_tenant();
            let fields = Fields {
                kind: Kind::DeadLetter,
                signal: letter.signal as u8,
                tenant: letter.tenant,
                items: letter.items,
                received_unix_ms: group.1,
            };
            self.appender.stage(fields, &head, &letter.payload, Some(Source { request: number, part: 0 }))
        });
        self.payload = head;
        let sequence = staged?;
        if let Some(letters) = self.tenants.letters_mut(letter.tenant) {
            letters.add(sequence, u32::try_from(length).unwrap_or(u32::MAX));
        }
        self.drop_excess(letter.tenant, group);
        Ok(Outcome::At(sequence))
    }

    /// Lets the oldest go where the tenant has too many. Without room for the word, they stay until there is.
    fn drop_excess(&mut self, id: TenantId, group: (&[Request], u64)) {
        let Some(tenant) = self.tenants.find(id) else { return };
        let excess = tenant.letters.excess(self.letter_bytes_max);
        if excess.is_empty() {
            return;
        }
        let name = tenant.record.name.clone();
        if self.change_letters((id, &excess), Verdict::Gone, group).is_ok() {
            self.count_dropped(excess.len());
            tracing::error!(tenant = %name, count = excess.len(), "the tenant's oldest dead letters were dropped: its budget is full");
        }
    }

    /// Dead letters that go, or are to be sent again.
    pub(super) fn plan_change(
        &mut self,
        change: &LetterChange,
        group: (&[Request], u64),
    ) -> Result<Outcome, AppendError> {
        let mut by_tenant: BTreeMap<TenantId, Vec<Sequence>> = BTreeMap::new();
        for (tenant, sequence) in &change.letters {
            by_tenant.entry(*tenant).or_default().push(*sequence);
        }
        let mut changed = 0;
        for (tenant, mut sequences) in by_tenant {
            sequences.sort_unstable();
            changed += self.change_letters((tenant, &sequences), change.verdict, group)?;
        }
        Ok(Outcome::Changed(changed))
    }

    /// The log is told before anything else believes it.
    fn change_letters(
        &mut self,
        (id, which): (TenantId, &[Sequence]),
        verdict: Verdict,
        group: (&[Request], u64),
    ) -> Result<u32, AppendError> {
        let Some(tenant) = self.tenants.find(id) else { return Ok(0) };
        let mut after = tenant.letters.clone();
        let changed = match verdict {
            Verdict::Gone => after.remove(which),
            Verdict::Again => after.mark(which, true),
            Verdict::Stays => after.mark(which, false),
        };
        if changed == 0 {
            return Ok(0);
        }
        let mut payload = Vec::new();
        letters::put_state(&mut payload, id, &after.state().unwrap_or_default());
        // Its head, should it begin a segment, says what was before: this record comes after it.
        self.stage_metadata(Kind::Letters, TenantId(0), &payload, group)?;
        if let Some(letters) = self.tenants.letters_mut(id) {
            *letters = after;
        }
        if verdict == Verdict::Gone {
            (self.look_for_done, self.look_for_departed) = (true, self.look_for_departed || self.tenants.has_leaving());
        }
        Ok(changed)
    }

    pub(super) fn count_dropped(&self, count: usize) {
        self.stats.dead_letters_dropped.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Letters of a segment that is freed, since data is worth more. Nothing has to be written: they are nowhere any more. Exactly
    /// those that are in it: since relocation, letters of others may lie between them.
    pub(super) fn lose_letters(&mut self, segment: &Segment<D>) {
        for range in &segment.ranges {
            let Some(id) = tenant_of_letters(range.tenant) else { continue };
            let Some(letters) = self.tenants.letters_mut(id) else { continue };
            if !letters.is_any_within(range.first, range.last) {
                continue;
            }
            let wanted = Wanted { tenant: range.tenant, after: Sequence::ZERO, bytes_max: usize::MAX };
            let gone: Vec<_> = match segment.entries_after(self.appender.disk(), range, wanted) {
                Ok(entries) => entries.iter().map(|entry| entry.sequence).collect(),
                // Those that nobody can list any more stay on the list until somebody asks for one.
                Err(_) => continue,
            };
            let count = letters.remove(&gone) as usize;
            if count > 0 {
                self.count_dropped(count);
                tracing::error!(tenant = id.0, count, "the queue is full: the oldest dead letters were dropped");
            }
        }
    }

    /// Of those who left and are delivered, whom to give up with their letters: the oldest, beyond a number.
    pub(super) fn too_many_with_letters(&self, mut left: Vec<TenantId>) -> Vec<TenantId> {
        let oldest = |id: &TenantId| self.tenants.find(*id).and_then(|tenant| tenant.letters.oldest());
        left.sort_unstable_by_key(oldest);
        left.truncate(left.len().saturating_sub(LEFT_LETTERS_MAX));
        left
    }
}

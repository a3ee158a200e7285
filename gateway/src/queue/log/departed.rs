//! The end of tenants: whose pod is gone and whose records are all done is forgotten, with a record that says so.
//!
//! Decides by the cursors that are in the log, and between two groups only: then every record that was accepted is in the
//! index. It never forgets a tenant that somebody still waits for, however long that takes, nor one with dead letters, while
//! there are not too many of those. A crash that takes the record
//! brings the tenant back as it was, without anything to deliver, until somebody says again that it is gone.

use std::collections::HashSet;

use super::super::footer::Range;
use super::super::group::{Outcome, Request};
use super::super::letters::tenant_of_letters;
use super::super::record::Kind;
use super::super::{AppendError, Departure, Reply};
use super::{Disk, Log};
use crate::base::{Sequence, TenantId};

impl<D: Disk> Log<D> {
    /// Notes who leaves; whether there is anything left of it is looked at before the next group.
    pub(super) fn plan_forget(&mut self, departure: Departure, reply: &Reply) -> Outcome {
        let reply = Reply { mailbox: reply.mailbox.clone(), ticket: reply.ticket };
        match self.tenants.leave(departure, reply) {
            Ok(()) => self.look_for_departed = true,
            Err((reply, None)) => self.mail.add(Some(reply), Ok(Sequence::ZERO)),
            Err((reply, Some(_))) => self.mail.add(Some(reply), Err(AppendError::Busy)),
        }
        Outcome::Kept
    }

    /// Forgets those who leave and have nothing left.
    pub(super) fn forget_departed(&mut self, requests: &[Request], now_unix_ms: u64) {
        if self.stats.is_poisoned() || !std::mem::take(&mut self.look_for_departed) {
            return;
        }
        let (mut gone, left): (Vec<_>, Vec<_>) = self
            .without_records()
            .into_iter()
            .partition(|id| self.tenants.find(*id).is_none_or(|tenant| tenant.letters.is_empty()));
        gone.extend(self.too_many_with_letters(left));
        for id in gone {
            if let Err(error) = self.stage_metadata(Kind::Forgotten, id, &[], (requests, now_unix_ms)) {
                // A full log has room for it as soon as anything is freed, which is when it is looked again.
                tracing::debug!(tenant = id.0, %error, "a tenant that is gone is not forgotten yet");
                self.look_for_departed = error == AppendError::Full;
                return;
            }
            let letters = self.tenants.find(id).map_or(0, |tenant| tenant.letters.iter().count());
            if letters > 0 {
                self.count_dropped(letters);
                tracing::error!(
                    tenant = id.0,
                    letters,
                    "dead letters of a pod that is gone were dropped: too many others have some"
                );
            }
            let told = self.tenants.forget(id);
            self.mail.add(told, Ok(Sequence::ZERO));
            self.update.forgotten.push(id);
            // Segments that only it kept.
            self.look_for_done = true;
        }
    }

    /// Those who leave and whose data nobody waits for any more.
    fn without_records(&self) -> Vec<TenantId> {
        let mut kept = HashSet::new();
        for segment in self.index.sealed() {
            let waits = |range: &&Range| tenant_of_letters(range.tenant).is_none() && !self.tenants.is_done(range);
            kept.extend(segment.ranges.iter().filter(waits).map(|range| range.tenant));
        }
        let leaving = self.tenants.leaving().filter(|(id, _)| !kept.contains(id));
        let in_open = |entries: Vec<(TenantId, &[super::super::footer::Entry])>| {
            let waits = |(id, entries): &(TenantId, &[_])| {
                self.tenants.find(*id).is_some_and(|tenant| entries.iter().any(|entry| tenant.is_pending(entry)))
            };
            entries.into_iter().filter(waits).map(|(id, _)| id).collect::<HashSet<_>>()
        };
        let ids: Vec<_> = leaving.map(|(id, _)| id).collect();
        let open = self.index.with_open_of(&ids, in_open).unwrap_or_default();
        ids.into_iter().filter(|id| !open.contains(id)).collect()
    }

    /// Has sled drop what it has of tenants that are gone.
    pub(crate) fn drop_saved(&mut self, tenants: Vec<TenantId>) {
        self.update.forgotten.extend(tenants);
    }
}

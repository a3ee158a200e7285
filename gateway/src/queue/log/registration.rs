//! Registrations, and what a change of a tenant's destinations means for its backlog.
//!
//! A destination that is new to a signal begins at the oldest record, for which nothing has to be written, or at the tail: then with
//! a cursor of its own. One that is taken from a signal ends where it is: its cursor passes all that was appended before, so that
//! what is counted as given up never comes after all, should it be named again. Both cursors are part of the tenant's
//! record, since the two must be true together whatever a crash leaves.

use std::collections::BTreeMap;

use super::super::appender::Appender;
use super::super::footer::Entry;
use super::super::group::{Outcome, Request};
use super::super::index::Wanted;
use super::super::record::{self, Kind};
use super::super::tenants::{Registration, Tenant};
use super::super::{AppendError, CursorOf, CursorState, TenantRecord};
use super::{Disk, Log};
use crate::base::handoff::{Arrival, GivenUp};
use crate::base::stats::Loss;
use crate::base::{DestinationName, Sequence, Signal, TenantId};

/// Payload bytes whose records one step looks for in the index.
const LOOK_BYTES_MAX: usize = 16 << 20;

/// Records that are named one by one to export, 16 bytes each. It has met no more than these since its last checkpoint.
const NAMED_MAX: usize = 16 * 1024;

/// What a destination had still to get of a signal, and nobody else waits for.
#[derive(Debug, Default)]
struct Left {
    named: Vec<(Sequence, u32)>,
    further: u64,
    further_items: u64,
}

impl Left {
    fn note(&mut self, sequence: Sequence, items: u32) {
        if self.named.len() < NAMED_MAX {
            return self.named.push((sequence, items));
        }
        self.further += 1;
        self.further_items += u64::from(items);
    }
}

impl<D: Disk> Log<D> {
    pub(super) fn plan_register(
        &mut self,
        record: &TenantRecord,
        group: (&[Request], u64),
    ) -> Result<(TenantId, bool), AppendError> {
        let id = match self.tenants.register(record) {
            Registration::Known(id) => return Ok((id, false)),
            Registration::Write(id) => id,
        };
        if !self.appender.has_room_for_tenants(&mut self.tenants) || !super::super::letters::is_tenant(id) {
            return Err(AppendError::Full);
        }
        let (begin, end) = self.changed_routes(id, record);
        let has_ended = !end.is_empty();
        let cursors = self.cursors_here(id, begin.into_iter().chain(end.clone()));
        let left = self.left_by(id, record, end, group.0);
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        record::put_tenant(&mut payload, record);
        cursors.iter().for_each(|cursor| record::put_cursor(&mut payload, cursor, true));
        // Twice: until the next segment begins there is no other copy, and without it the tenant's data has no owner. Both or none: a
        // first one that a second is refused after would end cursors of which nobody is told.
        let both = 2 * usize::try_from(Appender::<D>::cost(payload.len())).unwrap_or(usize::MAX / 2);
        let room = self.make_room_for_metadata(both, group);
        let staged =
            room.and_then(|()| (0..2).try_for_each(|_| self.stage_metadata(Kind::Tenant, id, &payload, group)));
        self.payload = payload;
        staged?;
        self.tenants.insert(id, record.clone());
        self.appender.note_tenant();
        for cursor in cursors {
            self.tenants.move_cursor(&cursor);
            self.update.cursors.push(cursor);
        }
        self.removed.extend(left);
        self.update.tenants_changed = true;
        if has_ended {
            // Segments that only a removed destination kept.
            (self.look_for_done, self.relocation.moved) = (true, true);
            self.look_for_departed |= self.tenants.has_leaving();
        }
        Ok((id, true))
    }

    /// The tenant's cursors as of now.
    pub(super) fn cursors_of(&self, id: TenantId) -> Vec<CursorState> {
        self.tenants.find(id).map(|tenant| tenant.cursors.values().cloned().collect()).unwrap_or_default()
    }

    /// Says what is given up, now that it is.
    pub(super) fn tell_removed(&mut self) {
        if self.stats.is_poisoned() {
            self.removed.clear();
        }
        let mut told: BTreeMap<(TenantId, DestinationName), [u64; 2]> = BTreeMap::new();
        for (given_up, further) in self.removed.drain(..) {
            let sums = told.entry((given_up.tenant, given_up.destination.clone())).or_default();
            sums[0] += given_up.records.len() as u64 + further;
            sums[1] += given_up.further_items;
            sums[1] += given_up.records.iter().map(|(_, items)| u64::from(*items)).sum::<u64>();
            self.arrivals.push(Arrival::GivenUp(given_up));
        }
        for ((id, destination), [records, items]) in told {
            let name = self.tenants.find(id).map(|tenant| tenant.record.name.to_string());
            tracing::warn!(
                tenant = name, %destination, records, items,
                "the tenant's data does not go to this destination any more: what it had not got yet, and no other one waits for, \
                 is given up"
            );
        }
    }

    /// Where signals go that did not go there before and that begin at the tail, and where they do not go any more.
    fn changed_routes(&self, id: TenantId, record: &TenantRecord) -> (Vec<CursorOf>, Vec<CursorOf>) {
        let Some(Tenant { record: old, .. }) = self.tenants.find(id) else { return Default::default() };
        let (mut begin, mut end) = (Vec::new(), Vec::new());
        for signal in Signal::ALL {
            let (old, new) = (&old.destinations[signal.index()], &record.destinations[signal.index()]);
            let only_in = |these: &[DestinationName], others: &[DestinationName]| -> Vec<CursorOf> {
                let routes = these.iter().filter(|name| !others.contains(name));
                routes.map(|name| CursorOf::Delivery(name.clone(), signal)).collect()
            };
            begin.extend(
                only_in(new, old).into_iter().filter(|CursorOf::Delivery(name, _)| self.begin_at_tail.contains(name)),
            );
            end.extend(only_in(old, new));
        }
        (begin, end)
    }

    /// These cursors, after everything that is appended before the record that is staged next.
    fn cursors_here(&self, id: TenantId, of: impl Iterator<Item = CursorOf>) -> Vec<CursorState> {
        let acknowledged = Sequence(self.appender.next().0.saturating_sub(1));
        let known = |of: &CursorOf| self.tenants.find(id)?.cursors.get(of);
        let here = of.map(|of| {
            let delivered_items = known(&of).map_or(0, |cursor| cursor.delivered_items);
            CursorState { tenant: id, of, acknowledged, beyond: Vec::new(), delivered_items }
        });
        here.collect()
    }

    /// What is given up at the routes that end: records that the old record had wait for them, and the new one for nobody.
    fn left_by(
        &self,
        id: TenantId,
        record: &TenantRecord,
        end: Vec<CursorOf>,
        requests: &[Request],
    ) -> Vec<(GivenUp, u64)> {
        let Some(tenant) = self.tenants.find(id).filter(|_| !end.is_empty()) else { return Vec::new() };
        // One that is new and begins at the oldest takes the backlog along; one that begins at the tail waits for nothing of it.
        let stays = |signal: Signal, sequence: Sequence| {
            record.destinations[signal.index()].iter().any(|name| {
                let is_old = tenant.record.destinations[signal.index()].contains(name);
                let cursor = tenant.cursors.get(&CursorOf::Delivery(name.clone(), signal));
                (is_old || !self.begin_at_tail.contains(name))
                    && cursor.is_none_or(|cursor| cursor.is_pending(sequence))
            })
        };
        let mut left: Vec<_> = end.into_iter().map(|of| (of, Left::default())).collect();
        let mut note = |sequence: Sequence, signal: Signal, items: u32| {
            if stays(signal, sequence) {
                return;
            }
            for (of, left) in left.iter_mut().filter(|(CursorOf::Delivery(_, of), _)| *of == signal) {
                if tenant.cursors.get(of).is_none_or(|cursor| cursor.is_pending(sequence)) {
                    left.note(sequence, items);
                }
            }
        };
        self.each_pending((id, tenant), |entry| {
            if let Some((signal, items)) = entry.items() {
                note(entry.sequence, signal, items);
            }
        });
        // What this group has appended before is in no index yet.
        let appended = requests.iter().zip(&self.outcomes).filter_map(|(request, outcome)| match (request, outcome) {
            (Request::Append(append), Outcome::At(_)) => Some(&append.parts),
            _ => None,
        });
        for (part, (_, sequence)) in appended.flatten().zip(&self.placed).filter(|(part, _)| part.tenant == id) {
            note(*sequence, part.signal, part.items);
        }
        let through = Sequence(self.appender.next().0.saturating_sub(1));
        let told = left.into_iter().map(
            |(CursorOf::Delivery(destination, signal), Left { named, further, further_items })| {
                let (records, why) = (named, Loss::DestinationRemoved);
                (GivenUp { tenant: id, destination, signal, through, records, further_items, why }, further)
            },
        );
        told.collect()
    }

    /// Calls `note` with what is in the index of the tenant and somebody may wait for.
    fn each_pending(&self, (id, tenant): (TenantId, &Tenant), mut note: impl FnMut(&Entry)) {
        let floor = Signal::ALL.into_iter().map(|signal| tenant.floor(signal)).min().unwrap_or_default();
        let mut wanted = Wanted { tenant: id, after: floor, bytes_max: LOOK_BYTES_MAX };
        loop {
            match self.index.find(self.appender.disk(), wanted) {
                Ok(Some(place)) => {
                    place.runs.iter().flat_map(|run| &run.entries).for_each(&mut note);
                    wanted.after = place.through;
                }
                Ok(None) => return,
                Err(error) => {
                    // The change is the operator's to make, whatever the disk can tell.
                    tracing::warn!(tenant = id.0, %error, "what a removed destination gives up cannot be counted wholly");
                    return;
                }
            }
        }
    }
}

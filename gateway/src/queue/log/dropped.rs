//! `on_full: drop_oldest`: at its ceiling a tenant gives up its own oldest records for its new ones.
//!
//! Decided by the writer within the group, since only then the new cursors and the new records are one commit: a crash
//! leaves both or neither. It goes by the rungs of the tenant's budget, and never gives up what is not committed yet, nor
//! anything of another tenant. Export is told after the commit, record by record: only it knows what was delivered since the
//! last checkpoint, so the counting is its.

use std::collections::BTreeMap;

use super::super::group::Request;
use super::super::index::Wanted;
use super::super::{AppendError, CursorOf, CursorState};
use super::{Disk, Log};
use crate::base::handoff::{Arrival, GivenUp};
use crate::base::stats::Loss;
use crate::base::{Sequence, Signal, TenantId};

/// Payload bytes whose records one step looks for in the index.
const LOOK_BYTES_MAX: usize = 1 << 20;

/// What each destination did not get.
type Lost = BTreeMap<CursorOf, Vec<(Sequence, u32)>>;

impl<D: Disk> Log<D> {
    /// Makes room below the ceiling for an append of so many bytes, and says how much it is to leave for others. Without an
    /// effect where that is not enough: then the append is refused like any other.
    pub(super) fn drop_oldest(
        &mut self,
        id: TenantId,
        cost: u64,
        group: (&[Request], u64),
    ) -> Result<u64, AppendError> {
        let through = self.tenants.frees(id, cost).filter(|through| *through < self.group_begin);
        let Some(through) = through.filter(|_| self.handoff.has_room_for_losses()) else {
            return Err(AppendError::OverBudget);
        };
        let lost = self.lost_through(id, through)?;
        let cursors = self.cursors_at(id, through);
        self.plan_checkpoint(&cursors, group)?;
        for cursor in cursors {
            let records = lost.get(&cursor.of).cloned().unwrap_or_default();
            let CursorOf::Delivery(destination, signal) = cursor.of;
            let (further_items, why) = (0, Loss::DroppedOldest);
            let given_up = GivenUp { tenant: id, destination, signal, through, records, further_items, why };
            self.arrivals.push(Arrival::GivenUp(given_up));
        }
        tracing::debug!(tenant = id.0, "a tenant at its ceiling has given up its oldest records");
        self.reserve_for(id, cost)
    }

    /// The cursors that are moved, where they will be.
    fn cursors_at(&self, id: TenantId, through: Sequence) -> Vec<CursorState> {
        let Some(tenant) = self.tenants.find(id) else { return Vec::new() };
        let routes = Signal::ALL.into_iter().flat_map(|signal| {
            let names = tenant.record.destinations[signal.index()].iter();
            names.map(move |name| CursorOf::Delivery(name.clone(), signal))
        });
        let moved = routes.filter_map(|of| {
            let Some(known) = tenant.cursors.get(&of) else {
                let beyond = Vec::new();
                return Some(CursorState { tenant: id, of, acknowledged: through, beyond, delivered_items: 0 });
            };
            let beyond = known.beyond.iter().copied().filter(|sequence| *sequence > through).collect();
            (known.acknowledged < through).then(|| CursorState { acknowledged: through, beyond, ..known.clone() })
        });
        moved.collect()
    }

    /// What destinations still wait for up to a record.
    fn lost_through(&self, id: TenantId, through: Sequence) -> Result<Lost, AppendError> {
        let mut lost = Lost::new();
        let Some(tenant) = self.tenants.find(id) else { return Ok(lost) };
        let floor = Signal::ALL.into_iter().map(|signal| tenant.floor(signal)).min().unwrap_or_default();
        let mut wanted = Wanted { tenant: id, after: floor, bytes_max: LOOK_BYTES_MAX };
        while wanted.after < through {
            let found = self.index.find(self.appender.disk(), wanted).map_err(|error| {
                tracing::warn!(tenant = id.0, %error, "what is to be given up cannot be read: new data is refused instead");
                AppendError::OverBudget
            })?;
            let Some(place) = found else { break };
            for entry in place.runs.iter().flat_map(|run| &run.entries).take_while(|entry| entry.sequence <= through) {
                let Some((signal, items)) = entry.items() else { continue };
                for name in &tenant.record.destinations[signal.index()] {
                    let of = CursorOf::Delivery(name.clone(), signal);
                    if tenant.cursors.get(&of).is_none_or(|cursor| cursor.is_pending(entry.sequence)) {
                        lost.entry(of).or_default().push((entry.sequence, items));
                    }
                }
            }
            wanted.after = place.through;
        }
        Ok(lost)
    }
}

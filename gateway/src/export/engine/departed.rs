//! Tenants whose pod is gone: served until nothing is left, and forgotten when the log has forgotten them.
//!
//! The log decides, since it knows of every record, those included that have not arrived here yet. It is asked once nothing
//! of the tenant is only in memory, and answers when all is done; until then the tenant's lanes stay.

use std::time::Duration;

use super::super::gather::Gather;
use super::Engine;
use crate::base::TenantId;
use crate::queue::{Completion, Departure, Reply};

/// After an answer that the tenant is not to be forgotten yet.
const ASK_PAUSE: Duration = Duration::from_secs(1);

impl Engine {
    /// A pod is gone. Its last batches of ack memory may be in the hand-over: that is looked at before anybody is forgotten.
    pub(super) fn depart(&mut self, departure: Departure) {
        self.tenants.entry(departure.tenant).or_default().leaving = Some(departure);
        self.departing.push(departure);
        (self.gather, self.sweep) = (Gather::Idle, true);
    }

    pub(super) fn detach(&mut self, departure: Departure) {
        // Otherwise it has attached again meanwhile.
        if self.tenants.get(&departure.tenant).is_some_and(|tenant| tenant.leaving == Some(departure)) {
            self.ask_to_forget(departure.tenant);
        }
    }

    /// A lane has nothing to do: it may have been the last one of a tenant that is gone.
    pub(super) fn forget_if_idle(&mut self, number: u32) {
        let Some(lane) = self.lanes.at(number) else { return };
        if lane.is_idle() && !lane.dirty {
            let tenant = lane.tenant;
            self.ask_to_forget(tenant);
        }
    }

    fn ask_to_forget(&mut self, id: TenantId) {
        let Some(tenant) = self.tenants.get(&id).filter(|tenant| tenant.asked.is_none()) else { return };
        let Some(departure) = tenant.leaving else { return };
        let numbers = tenant.lanes.clone();
        let idle = |lane: &mut super::super::lane::Lane| lane.is_idle() && !lane.dirty;
        if !numbers.into_iter().all(|number| self.lanes.at(number).is_none_or(idle)) || self.volatiles.has(id) {
            return;
        }
        let ticket = self.bare_ticket();
        self.forgetting.insert(ticket, id);
        if let Some(tenant) = self.tenants.get_mut(&id) {
            tenant.asked = Some(ticket);
        }
        let reply = Reply { mailbox: self.mailbox.clone(), ticket };
        if let Err(error) = self.queue.forget(departure, reply) {
            self.complete(Completion { ticket, result: Err(error) });
        }
    }

    /// The log's answer.
    pub(super) fn forgotten(&mut self, id: TenantId, completion: Completion) {
        let Some(tenant) = self.tenants.get_mut(&id) else { return };
        tenant.asked = None;
        if completion.result.is_err() {
            // Registered again, which its route will tell, or the writer is behind.
            self.asking_again.push(id);
            self.alarms.push(std::cmp::Reverse(self.now + ASK_PAUSE));
            return;
        }
        if let Some(gone) = self.tenants.remove(&id) {
            gone.lanes.into_iter().for_each(|number| self.remove_lane(number));
        }
    }

    /// Asks again for those who were not forgotten.
    pub(super) fn ask_again(&mut self) {
        for id in std::mem::take(&mut self.asking_again) {
            self.ask_to_forget(id);
        }
    }

    fn remove_lane(&mut self, number: u32) {
        if let Some(lane) = self.lanes.remove(number) {
            let outlet = &mut self.outlets[lane.outlet];
            outlet.lanes.retain(|other| *other != number);
            outlet.gauge.leave(&lane.gauge);
            self.forget_replays(lane.tenant, lane.outlet);
        }
    }
}

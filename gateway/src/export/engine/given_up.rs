//! What the log has given up for newer data: no lane sends it from then on, and each counts what of it was not delivered.

use super::Engine;
use crate::base::TenantId;
use crate::base::handoff::GivenUp;

impl Engine {
    pub(super) fn give_up(&mut self, given_up: GivenUp) {
        let outlet = self.by_name.get(&given_up.destination).copied();
        let tenant = self.tenants.entry(given_up.tenant).or_default();
        let lanes = tenant.lanes.clone();
        let number = lanes.into_iter().find(|number| self.lanes.at(*number).map(|lane| lane.outlet) == outlet);
        let Some((number, lane)) = number.and_then(|number| Some((number, self.lanes.at(number)?))) else {
            // Its route is still on its way.
            return tenant.given_up.push(given_up);
        };
        lane.give_up(&given_up);
        self.after_load(number);
        self.forget_if_idle(number);
    }

    /// What was told before the tenant's lanes were there.
    pub(super) fn give_up_early(&mut self, id: TenantId) {
        let early = self.tenants.get_mut(&id).map(|tenant| std::mem::take(&mut tenant.given_up));
        early.into_iter().flatten().for_each(|given_up| self.give_up(given_up));
    }
}

//! The end: what is only in memory goes to the log, requests in flight are waited for, cursors are saved.
//!
//! ```text
//! order      batches of ack memory that wait go to the log; with `deliver`, sending goes on
//! cutoff     those in flight go to the log too: the deadline is near, and twice is better than never
//! end        nothing in flight or on its way to the log (and, with `deliver`, nothing queued), or the deadline
//! ```

use std::sync::mpsc::SyncSender;
use std::time::Instant;

use super::super::desk::DrainOrder;
use super::super::gather::Gather;
use super::Engine;

/// When requests in flight are no longer waited for.
pub(super) fn cutoff(order: &DrainOrder) -> Instant {
    if order.cut_off { order.deadline } else { order.deadline.checked_sub(order.reserve).unwrap_or(order.deadline) }
}

impl Engine {
    pub(super) fn begin_drain(&mut self, order: DrainOrder) {
        (self.gather, self.sweep) = (Gather::Idle, true);
        let deliver = order.deliver;
        self.draining = Some(order);
        if !deliver {
            self.volatiles.ids().into_iter().for_each(|id| self.spill(id));
        }
    }

    /// Whether new requests are begun.
    pub(super) fn may_send(&self) -> bool {
        self.draining.as_ref().is_none_or(|order| order.deliver && !order.cut_off)
    }

    pub(super) fn is_past_cutoff(&self) -> bool {
        self.draining.as_ref().is_some_and(|order| order.cut_off)
    }

    /// Whom to tell that everything is done that could be done; the last checkpoint is made.
    pub(super) fn drained(&mut self) -> Option<SyncSender<()>> {
        let order = self.draining.as_mut().filter(|_| !self.sweep)?;
        let (deliver, deadline) = (order.deliver, order.deadline);
        if !order.cut_off && self.now >= cutoff(order) {
            order.cut_off = true;
            self.volatiles.ids().into_iter().for_each(|id| self.spill(id));
        }
        let quiet = self.flights.is_empty() && self.filed.is_empty() && self.volatiles.is_empty();
        if !(quiet && (!deliver || self.is_delivered())) && self.now < deadline {
            return None;
        }
        if !self.volatiles.is_empty() {
            tracing::error!("batches of ack memory are lost: the deadline came before their append to the log");
        }
        self.checkpoint();
        self.draining.take().map(|order| order.done)
    }

    fn is_delivered(&mut self) -> bool {
        let numbers: Vec<u32> = self.outlets.iter().flat_map(|outlet| outlet.lanes.iter().copied()).collect();
        numbers.into_iter().all(|number| self.lanes.at(number).is_none_or(|lane| lane.is_idle()))
    }
}

//! Retention: records older than their tenant's `max_age` are passed without delivery, and counted as expired.
//!
//! Looked at about once a second while anything is queued. What is in memory is judged there. For a lane with nothing in memory,
//! as of a destination that is down or not configured any more, the headers of the first records in the log are read, one lane
//! at a time, and only when its oldest record is due. So it is what ends the backlog of a pod that is gone when its destination
//! never comes back. What is in flight is left to its answer.

use std::time::{Duration, Instant};

use super::Engine;
use crate::queue::Overdue;

/// How late a record may expire, beside the time that its look takes.
const SWEEP: Duration = Duration::from_secs(1);

/// Records of one look.
const LOOK_RECORDS_MAX: usize = 4096;

/// A look that came back.
pub(super) struct Looked {
    lane: u32,
    after: crate::base::Sequence,
    result: std::io::Result<Overdue>,
}

impl Engine {
    /// Something is queued: its age is looked at from time to time.
    pub(super) fn watch_ages(&mut self) {
        self.sweep_due.get_or_insert(self.now + SWEEP);
    }

    /// Judges what is in memory, and lists who is to be looked for in the log.
    pub(super) fn sweep_ages(&mut self) {
        if self.sweep_due.is_none_or(|due| self.now < due) {
            return;
        }
        self.sweep_due = None;
        let now_unix_ms = self.queue.now_unix_ms();
        let numbers: Vec<u32> = self.outlets.iter().flat_map(|outlet| outlet.lanes.iter().copied()).collect();
        for number in numbers {
            let Some(lane) = self.lanes.at(number) else { continue };
            if lane.is_caught_up() {
                lane.note_oldest(None);
                continue;
            }
            let passed = lane.expire(now_unix_ms);
            if lane.is_overdue_look_due() && !std::mem::replace(&mut lane.listed_overdue, true) {
                self.overdue.push_back(number);
            }
            self.watch_ages();
            if passed {
                self.mark_dirty(number);
                self.after_load(number);
                self.forget_if_idle(number);
            }
        }
    }

    /// One at a time: it may be about thousands of lanes, and delivery reads the log as well.
    pub(super) fn look_for_overdue(&mut self) {
        while self.looks.is_empty()
            && let Some(number) = self.overdue.pop_front()
        {
            let Some(lane) = self.lanes.at(number) else { continue };
            lane.listed_overdue = false;
            if !lane.is_overdue_look_due() {
                continue;
            }
            lane.reading = true;
            let (tenant, after, limit, queue) =
                (lane.tenant, lane.cursors.seen(), lane.age_limit(), self.queue.clone());
            self.looks.push(Box::pin(async move {
                let looking =
                    tokio::task::spawn_blocking(move || queue.overdue((tenant, after), limit, LOOK_RECORDS_MAX));
                let result = looking.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
                Looked { lane: number, after, result }
            }));
        }
    }

    pub(super) fn take_look(&mut self, looked: Looked) {
        let Some(lane) = self.lanes.at(looked.lane) else { return };
        lane.reading = false;
        match looked.result {
            Ok(overdue) => {
                let more = overdue.records.len() == LOOK_RECORDS_MAX;
                lane.take_overdue(looked.after, overdue);
                if more && !std::mem::replace(&mut lane.listed_overdue, true) {
                    self.overdue.push_back(looked.lane);
                }
            }
            Err(error) => {
                tracing::warn!(tenant = lane.tenant.0, %error, "looking for expired records failed; trying again")
            }
        }
        self.watch_ages();
        self.after_load(looked.lane);
        self.forget_if_idle(looked.lane);
    }

    /// When ages are looked at next.
    pub(super) fn next_sweep(&self) -> Option<Instant> {
        self.sweep_due
    }
}

//! What an answer means for lanes, cursors, the breaker, and the requests to come.
//!
//! ```text
//! accepted                         cursors pass; a partial success is apportioned and keeps its members apart for ten minutes
//! busy, the destination's fault    everything back into its lane; blame decides who rests
//! payload, merged                  two halves, sent as they are, until the poison is alone
//! too large, alone                 two pieces
//! payload, alone                   suspect: everything else first. Refused again after the destination accepted something,
//!                                  while it accepts most: dead letter
//! ```

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::super::breaker::{Rest, Sent, mostly_refused};
use super::super::classify::{Failure, Fault};
use super::super::merge::{Key, LONE_BYTES_MIN, Member, apportion, bisect};
use super::super::outlet::Transport;
use super::super::status::Accepted;
use super::super::volatile::Stage;
use super::{Engine, Filed, Landed};
use crate::base::Sequence;
use crate::queue::{Answer, AppendError, DeadLetter, Reply, Verdict};
use crate::wire;

/// How long a tenant that poisoned a merged request, or was in one that was accepted in part, goes unmerged.
const APART_FOR: Duration = Duration::from_secs(600);

/// After a batch of ack memory that could not go to the log yet.
const SPILL_PAUSE: Duration = Duration::from_millis(100);

/// After a dead letter that could not be kept.
const LETTER_PAUSE: Duration = Duration::from_secs(1);

impl Engine {
    pub(super) fn land(&mut self, landed: Landed) {
        let outlet = &mut self.outlets[landed.outlet];
        outlet.flying -= 1;
        outlet.held.set(outlet.held.get() - landed.copied);
        for member in &landed.members {
            if let Some(lane) = self.lanes.at(member.lane) {
                lane.flying -= 1;
            }
        }
        match landed.result {
            Ok(accepted) => self.accept(landed.outlet, landed.members, &accepted),
            Err(failure) => {
                let outlet = &self.outlets[landed.outlet];
                outlet.gauge.failures.add(1);
                outlet.gauge.publish_error(&failure.reason);
                tracing::debug!(destination = %outlet.gauge.name(), reason = failure.reason, "a request was not accepted");
                self.reject(landed.outlet, landed.members, &failure, landed.sent);
            }
        }
    }

    fn accept(&mut self, index: usize, members: Vec<Member>, accepted: &Accepted) {
        self.outlets[index].breaker.succeed(self.now);
        for number in lanes_of(&members) {
            if let Some(lane) = self.lanes.at(number) {
                lane.accepted(self.now);
            }
        }
        if accepted.rejected > 0 {
            self.apportion(index, &members, accepted);
        }
        for member in members {
            self.delivered(&member);
        }
    }

    fn apportion(&mut self, index: usize, members: &[Member], accepted: &Accepted) {
        let estimated = members.iter().any(|member| member.lane != members[0].lane);
        let items: Vec<_> = members.iter().map(|member| member.record.items).collect();
        for (member, rejected) in members.iter().zip(apportion(accepted.rejected, &items)) {
            let Some(lane) = self.lanes.at(member.lane) else { continue };
            lane.gauge.stats.rejected[member.record.signal.index()].add(rejected);
            if estimated {
                lane.keep_apart(self.now + APART_FOR);
            }
        }
        let destination = self.outlets[index].gauge.name();
        let words = format!("partial success: {} items rejected: {}", accepted.rejected, accepted.message);
        tracing::debug!(%destination, estimated, words);
        self.outlets[index].gauge.publish_error(&words);
    }

    fn delivered(&mut self, member: &Member) {
        if let Key::Letter(sequence) = member.record.key {
            tracing::info!(items = member.record.items, "a dead letter was accepted when it was sent again");
            return self.settle_letter(member, sequence, Verdict::Gone);
        }
        let Some(lane) = self.lanes.at(member.lane) else { return };
        lane.delivered(&member.record);
        if let Key::Volatile(id) = member.record.key
            && self.volatiles.mark(id, member.lane, Stage::Taken)
        {
            self.volatiles.remove(id);
        }
        self.after_done(member);
    }

    fn after_done(&mut self, member: &Member) {
        self.done_records += usize::from(matches!(member.record.key, Key::Logged(_)));
        self.mark_dirty(member.lane);
        self.after_load(member.lane);
        self.forget_if_idle(member.lane);
    }

    fn reject(&mut self, index: usize, mut members: Vec<Member>, failure: &Failure, sent: Sent) {
        if matches!(failure.fault, Fault::TooLarge | Fault::Payload) {
            let now_unix_ms = self.queue.now_unix_ms();
            members.iter_mut().for_each(|member| member.record.refusals.note(now_unix_ms));
        }
        match failure.fault {
            Fault::Busy | Fault::Destination => self.fail(index, members, failure, sent),
            Fault::TooLarge | Fault::Payload if members.len() > 1 => {
                if failure.fault == Fault::TooLarge {
                    let bytes = members.iter().map(|member| member.record.payload.len()).sum::<usize>();
                    self.outlets[index].learn_limit(bytes / 2, self.now);
                }
                let accepted = self.outlets[index].breaker.accepted();
                for member in &mut members {
                    member.suspected.get_or_insert(accepted);
                }
                self.outlets[index].groups.extend(bisect(members));
            }
            Fault::TooLarge | Fault::Payload => {
                for member in members {
                    self.refuse(index, member, failure, sent);
                }
            }
        }
    }

    /// Everything goes back to where it was; who is to blame rests.
    fn fail(&mut self, index: usize, members: Vec<Member>, failure: &Failure, sent: Sent) {
        let lanes = lanes_of(&members);
        let mut at_fault = failure.retry_after.is_some();
        for number in &lanes {
            at_fault |= self.blame(index, *number, sent);
            if lanes.len() > 1
                && let Some(lane) = self.lanes.at(*number)
            {
                lane.keep_apart_once();
            }
        }
        if at_fault {
            let broken = failure.fault == Fault::Destination;
            let rest = Rest { broken, hint: failure.retry_after, random: fastrand::f64() };
            let outlet = &mut self.outlets[index];
            outlet.breaker.fail(sent, rest, &outlet.retry, self.now);
        }
        let groups = if self.outlets[index].takes() {
            Default::default()
        } else {
            std::mem::take(&mut self.outlets[index].groups)
        };
        for member in members {
            if let Some(lane) = self.lanes.at(member.lane).filter(|_| failure.fault == Fault::Busy) {
                lane.gauge.stats.retried[member.record.signal.index()].add(u64::from(member.record.items));
            }
            self.put_back(member);
        }
        groups.into_iter().flatten().for_each(|member| self.put_back(member));
        self.end_turn(index, &lanes);
    }

    /// Lets others come first; while the destination rests, memory is given back.
    fn end_turn(&mut self, index: usize, lanes: &[u32]) {
        let outlet = &mut self.outlets[index];
        lanes.iter().for_each(|number| outlet.drr.step_back(*number));
        if outlet.takes() {
            return;
        }
        outlet.turn_probe();
        outlet.trim(&mut self.lanes);
        for number in outlet.lanes.clone() {
            self.after_load(number);
        }
    }

    /// Lets a lane rest if others succeeded meanwhile; true if the destination is to blame instead.
    fn blame(&mut self, index: usize, number: u32, sent: Sent) -> bool {
        let outlet = &self.outlets[index];
        let Some(lane) = self.lanes.at(number) else { return false };
        match lane.blame.fail(sent, outlet.breaker.accepted(), &outlet.retry, fastrand::f64()) {
            Some(pause) => {
                self.rest_lane(number, pause);
                false
            }
            None => true,
        }
    }

    fn rest_lane(&mut self, number: u32, pause: Duration) {
        let Some(lane) = self.lanes.at(number) else { return };
        let until = self.now + pause;
        lane.rest(until);
        lane.trim(LONE_BYTES_MIN);
        self.resting.push(number);
        self.alarms.push(Reverse(until));
    }

    fn put_back(&mut self, member: Member) {
        if let Key::Volatile(id) = member.record.key {
            self.volatiles.mark(id, member.lane, Stage::Waiting);
            if let Some(lane) = self.lanes.at(member.lane) {
                let takes = self.outlets[lane.outlet].takes();
                lane.put_back(member.record);
                if !takes {
                    self.spill(id);
                }
            }
        } else if let Some(lane) = self.lanes.at(member.lane) {
            lane.put_back(member.record);
        }
        self.after_load(member.lane);
    }

    /// A lone record was refused for its size or content.
    fn refuse(&mut self, index: usize, mut member: Member, failure: &Failure, sent: Sent) {
        let bytes = member.record.payload.len();
        if let Key::Letter(sequence) = member.record.key {
            // It was judged before: that it is refused once more says enough.
            tracing::error!(
                destination = %self.outlets[index].gauge.name(), items = member.record.items, reason = failure.reason,
                "a dead letter was refused again and stays one"
            );
            return self.settle_letter(&member, sequence, Verdict::Stays);
        }
        if let Key::Volatile(id) = member.record.key {
            // What is refused needs a place in the log before it can be judged.
            return self.put_in_log(member, id);
        }
        if failure.fault == Fault::TooLarge && bytes > LONE_BYTES_MIN && self.halve(index, &member) {
            return;
        }
        let accepted = self.outlets[index].breaker.accepted();
        let Some(lane) = self.lanes.at(member.lane) else { return };
        lane.keep_apart(self.now + APART_FOR);
        let first = member.record.refused.is_none();
        // For a member of a merged request, what was accepted since that was refused counts: the other members' fate.
        let mark = *member.record.refused.get_or_insert(member.suspected.unwrap_or(accepted));
        if first {
            lane.verdicts.push(false, self.now);
        }
        if accepted > mark && !self.refuses_most(index) {
            return self.bury(index, member, (&failure.reason, failure.answer));
        }
        let number = member.lane;
        if self.blame(index, number, sent) && (!first || self.refuses_most(index)) {
            let rest = Rest { broken: true, hint: None, random: fastrand::f64() };
            let outlet = &mut self.outlets[index];
            outlet.breaker.fail(sent, rest, &outlet.retry, self.now);
        }
        self.put_back(member);
        self.end_turn(index, &[number]);
    }

    /// Takes a batch of ack memory out of the lane and appends it, so that it comes back with a place in the log.
    pub(super) fn put_in_log(&mut self, member: Member, id: u64) {
        let number = member.lane;
        self.put_back(member);
        self.spill(id);
        // While another destination has it in flight it cannot be appended: a moment's rest instead of a busy loop.
        if self.volatiles.entry(id).is_some_and(|entry| !entry.logging) {
            self.rest_lane(number, SPILL_PAUSE);
        }
    }

    fn halve(&mut self, index: usize, member: &Member) -> bool {
        let half = member.record.payload.len() / 2;
        let Ok(pieces) = wire::split(&member.record.payload, member.record.signal, half) else { return false };
        self.outlets[index].learn_limit(half, self.now);
        let Some(lane) = self.lanes.at(member.lane) else { return false };
        lane.put_pieces(&member.record, pieces);
        self.after_load(member.lane);
        true
    }

    fn refuses_most(&mut self, index: usize) -> bool {
        let votes: Vec<_> = self.outlets[index]
            .lanes
            .iter()
            .filter_map(|number| self.lanes.at(*number).map(|lane| lane.verdicts))
            .collect();
        mostly_refused(&votes, self.now)
    }

    /// Keeps a record as a dead letter; the cursor passes when that is durable.
    pub(super) fn bury(&mut self, index: usize, member: Member, (reason, answer): (&str, Option<Answer>)) {
        debug_assert!(!matches!(self.outlets[index].transport, Transport::Sink(_)), "a sink refuses nothing");
        let record = &member.record;
        let (Key::Logged(sequence), Some(lane)) = (record.key, self.lanes.at(member.lane)) else {
            return self.put_back(member);
        };
        lane.flying += 1;
        let letter = DeadLetter {
            tenant: lane.tenant,
            sequence,
            destination: self.outlets[index].gauge.name().clone(),
            signal: record.signal,
            items: record.items,
            answer,
            reason: reason.to_owned(),
            attempts: record.refusals.count,
            appended_unix_ms: record.appended_unix_ms,
            first_unix_ms: record.refusals.first_unix_ms,
            last_unix_ms: record.refusals.last_unix_ms,
            payload: record.payload.clone(),
        };
        tracing::error!(
            tenant = letter.tenant.0, destination = %letter.destination, items = letter.items, reason,
            "a batch was refused for good and becomes a dead letter"
        );
        let ticket = self.ticket(Filed::Letter(Box::new(member)));
        let reply = Reply { mailbox: self.mailbox.clone(), ticket };
        if let Err(error) = self.queue.dead_letter(letter, reply) {
            self.complete(crate::queue::Completion { ticket, result: Err(error) });
        }
    }

    pub(super) fn letter_filed(&mut self, mut member: Member, result: Result<Sequence, AppendError>) {
        let Some(lane) = self.lanes.at(member.lane) else { return };
        lane.flying -= 1;
        match result {
            Ok(_) => {
                tracing::info!(
                    tenant = lane.tenant.0, destination = %self.outlets[lane.outlet].gauge.name(), items = member.record.items,
                    "what was refused is kept as a dead letter"
                );
                lane.buried(&member.record);
                self.after_done(&member);
            }
            Err(error) => {
                tracing::warn!(%error, "a dead letter could not be kept yet; the batch stays queued");
                member.record.refused.get_or_insert(0);
                self.rest_lane(member.lane, LETTER_PAUSE);
                self.put_back(member);
            }
        }
    }

    /// Wakes lanes whose rest is over: they may read again.
    pub(super) fn end_rests(&mut self) {
        let now: Instant = self.now;
        let resting = std::mem::take(&mut self.resting);
        for number in resting {
            let Some(lane) = self.lanes.at(number) else { continue };
            match lane.rest_until {
                Some(until) if now < until => self.resting.push(number),
                _ => {
                    lane.rest_until = None;
                    self.after_load(number);
                }
            }
        }
    }
}

fn lanes_of(members: &[Member]) -> SmallVec<[u32; 8]> {
    let mut lanes: SmallVec<[u32; 8]> = members.iter().map(|member| member.lane).collect();
    lanes.sort_unstable();
    lanes.dedup();
    lanes
}

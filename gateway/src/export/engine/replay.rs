//! Dead letters that somebody wants to be sent again: read from the log, sent alone, to the destination that refused them.
//!
//! Owns which of them are in memory, and bounds that. What is to be sent again is the log's to say, so a crash loses nothing; a
//! letter is one until its destination has accepted it, and the log is told so afterwards: a crash in between repeats it.
//!
//! ```text
//! marked (in the log) -> waiting -> read -> lane -> accepted              Gone: no letter any more
//!                           ^         |          -> refused for good      Stays: a letter without the mark
//!                         parked  <---+  its destination has enough of them; next when it has not
//! ```
//! Stays is said once, when it happens: said again later it could take back a mark that somebody has set since. If the writer has no room for
//! it the letter keeps its mark, and is sent again when somebody asks, or after a start. Gone is said until it is durable, and until then the
//! letter is not sent whoever marks it. A look at what is marked may be older than a verdict: what was settled since it began is left
//! out, and it is looked anew.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;

use super::super::lane::Lane;
use super::super::merge::{Key, Member, Record, Refusals};
use super::Engine;
use crate::base::{Sequence, TenantId};
use crate::queue::{AppendError, DeadLetter, LetterChange, Queue, Verdict};

/// Letters of one destination in memory, each at most 4 MiB.
const LOADED_MAX: usize = 4;

/// Between two looks at verdicts that are not durable yet.
const TELL_PAUSE: Duration = Duration::from_millis(100);

/// Reads of letters at once.
const READS_MAX: usize = 1;

type Place = (TenantId, Sequence);

/// Of the writer, when it is durable.
type Answer = Receiver<Result<u32, AppendError>>;

/// What was read.
pub(super) enum Fetched {
    /// Letters that are to be sent again.
    Marked(Vec<Place>),
    Letter(Place, io::Result<Option<DeadLetter>>),
}

/// See the module.
#[derive(Default)]
pub(super) struct Replays {
    pub(super) fetches: FuturesUnordered<Pin<Box<dyn Future<Output = Fetched>>>>,
    asked: bool,
    /// Waiting, read, parked, in a lane, or accepted and not durably gone.
    known: HashSet<Place>,
    /// A look at what is marked is under way.
    looking: bool,
    /// Of those known, what was settled while it was.
    settled: Vec<Place>,
    waiting: VecDeque<Place>,
    reading: usize,
    /// By outlet.
    parked: HashMap<usize, VecDeque<Place>>,
    /// In a lane, and of which outlet.
    loaded: HashMap<Place, usize>,
    /// Accepted: the answer of the writer is awaited, or it had no room for the verdict.
    accepted: Vec<(Place, Option<Answer>)>,
    next_telling: Option<Instant>,
}

impl Replays {
    /// Whether a look at what is marked is to begin.
    fn begin_look(&mut self) -> bool {
        let begins = self.asked && !self.looking;
        if begins {
            (self.asked, self.looking) = (false, true);
        }
        begins
    }

    /// What a look has found.
    fn take_marked(&mut self, places: Vec<Place>) {
        self.looking = false;
        for place in places {
            if self.known.insert(place) {
                self.waiting.push_back(place);
            }
            // It may have been marked since, or the look is older than its verdict.
            self.asked |= self.settled.contains(&place);
        }
        for place in std::mem::take(&mut self.settled) {
            self.known.remove(&place);
        }
    }

    /// Nothing is left to be done about a letter, until somebody marks it.
    fn settle(&mut self, place: Place) {
        match self.looking {
            true => self.settled.push(place),
            false => drop(self.known.remove(&place)),
        }
    }

    /// Takes the writer's answers: what was accepted and is durably gone. What the writer refused is to be told again.
    fn take_answers(&mut self) {
        let mut gone = Vec::new();
        self.accepted.retain_mut(|(place, answer)| {
            match answer.as_ref().map(Receiver::try_recv) {
                Some(Ok(Ok(_))) => {
                    gone.push(*place);
                    return false;
                }
                Some(Err(TryRecvError::Empty)) => {}
                None | Some(Ok(Err(_)) | Err(TryRecvError::Disconnected)) => *answer = None,
            }
            true
        });
        gone.into_iter().for_each(|place| self.settle(place));
    }

    /// It is in its lane no more.
    fn unload(&mut self, place: Place) {
        self.loaded.remove(&place);
    }

    fn has_room(&self, outlet: usize) -> bool {
        self.loaded.values().filter(|of| **of == outlet).count() < LOADED_MAX
    }

    /// Takes the next one for each destination that has room again. One at a time: what it turns out to be decides about the room.
    fn unpark(&mut self) {
        if self.reading > 0 || !self.waiting.is_empty() || self.parked.is_empty() {
            return;
        }
        let mut parked = std::mem::take(&mut self.parked);
        for (outlet, places) in &mut parked {
            if self.has_room(*outlet) {
                self.waiting.extend(places.pop_front());
            }
        }
        parked.retain(|_, places| !places.is_empty());
        self.parked = parked;
    }
}

impl Engine {
    /// Somebody has marked letters, or may have before this start.
    pub(super) fn look_for_replays(&mut self) {
        self.replays.asked = true;
    }

    /// Reads what there is room for.
    pub(super) fn start_replays(&mut self) {
        self.tell_accepted();
        if !self.may_send() {
            return;
        }
        let queue = &self.queue;
        let replays = &mut self.replays;
        if replays.begin_look() {
            let queue = queue.clone();
            replays.fetches.push(Box::pin(async move {
                let found = tokio::task::spawn_blocking(move || marked(&queue)).await;
                Fetched::Marked(found.unwrap_or_default())
            }));
        }
        replays.unpark();
        while replays.reading < READS_MAX
            && let Some(place) = replays.waiting.pop_front()
        {
            let queue = queue.clone();
            replays.reading += 1;
            replays.fetches.push(Box::pin(async move {
                let read = tokio::task::spawn_blocking(move || queue.letter(place.0, place.1)).await;
                Fetched::Letter(place, read.unwrap_or_else(|error| Err(io::Error::other(error))))
            }));
        }
    }

    pub(super) fn take_fetched(&mut self, fetched: Fetched) {
        match fetched {
            Fetched::Marked(places) => self.replays.take_marked(places),
            Fetched::Letter(place, read) => {
                self.replays.reading -= 1;
                self.sweep = true;
                match read {
                    Ok(Some(letter)) => self.load_letter(place, letter),
                    // Dropped or purged meanwhile, or damaged, which is counted.
                    Ok(None) => self.replays.settle(place),
                    Err(error) => {
                        tracing::warn!(tenant = place.0.0, %error, "a dead letter cannot be read to be replayed: it stays one");
                        self.end_replay(place, Verdict::Stays);
                    }
                }
            }
        }
    }

    fn load_letter(&mut self, place: Place, letter: DeadLetter) {
        let numbers = self.tenants.get(&place.0).map(|tenant| tenant.lanes.clone()).unwrap_or_default();
        let outlets = &self.outlets;
        let goes_there = |lane: &mut Lane| *outlets[lane.outlet].gauge.name() == letter.destination;
        let Some(number) = numbers.into_iter().find(|number| self.lanes.at(*number).is_some_and(goes_there)) else {
            tracing::warn!(
                tenant = place.0.0, destination = %letter.destination,
                "a dead letter cannot be replayed: its tenant's data does not go to this destination any more"
            );
            return self.end_replay(place, Verdict::Stays);
        };
        let Some(lane) = self.lanes.at(number) else { return };
        let outlet = lane.outlet;
        if !self.replays.has_room(outlet) {
            return self.replays.parked.entry(outlet).or_default().push_back(place);
        }
        self.replays.loaded.insert(place, outlet);
        lane.add_fresh(Record {
            key: Key::Letter(place.1),
            signal: letter.signal,
            items: letter.items,
            appended_unix_ms: letter.appended_unix_ms,
            payload: letter.payload,
            piece: false,
            refused: None,
            refusals: Refusals::default(),
        });
        self.after_load(number);
    }

    /// A letter in a lane was accepted, or refused for good.
    pub(super) fn settle_letter(&mut self, member: &Member, sequence: Sequence, verdict: Verdict) {
        let Some(lane) = self.lanes.at(member.lane) else { return };
        lane.drop_letter(&member.record);
        let place = (lane.tenant, sequence);
        self.replays.unload(place);
        self.end_replay(place, verdict);
        self.after_load(member.lane);
        self.forget_if_idle(member.lane);
    }

    /// A tenant was forgotten, with letters under way that somebody has purged: no answer finds its lane any more.
    pub(super) fn forget_replays(&mut self, tenant: TenantId, outlet: usize) {
        let replays = &mut self.replays;
        let of_lane = replays.loaded.iter().filter(|(place, of)| place.0 == tenant && **of == outlet);
        for place in of_lane.map(|(place, _)| *place).collect::<Vec<_>>() {
            replays.settle(place);
            replays.unload(place);
        }
        self.sweep = true;
    }

    fn end_replay(&mut self, place: Place, verdict: Verdict) {
        self.sweep = true;
        if verdict == Verdict::Gone {
            self.replays.accepted.push((place, None));
            self.replays.next_telling = None;
            return self.tell_accepted();
        }
        if let Err(error) = self.queue.settle_letters(LetterChange { letters: vec![place], verdict }) {
            tracing::debug!(tenant = place.0.0, %error, "a dead letter keeps its mark");
        }
        self.replays.settle(place);
    }

    /// Says which letters are gone, until the log knows it for good.
    fn tell_accepted(&mut self) {
        if self.replays.accepted.is_empty() || self.replays.next_telling.is_some_and(|at| self.now < at) {
            return;
        }
        self.replays.take_answers();
        for (place, answer) in self.replays.accepted.iter_mut().filter(|(_, answer)| answer.is_none()) {
            let change = LetterChange { letters: vec![*place], verdict: Verdict::Gone };
            *answer = self.queue.settle_letters(change).ok();
        }
        self.replays.next_telling = None;
        if !self.replays.accepted.is_empty() {
            let at = self.now + TELL_PAUSE;
            self.replays.next_telling = Some(at);
            self.alarms.push(std::cmp::Reverse(at));
        }
    }
}

fn marked(queue: &Queue) -> Vec<Place> {
    // A log that is poisoned or closed has nothing to be sent any more.
    let tenants = queue.tenants().unwrap_or_default();
    let marked = tenants
        .iter()
        .flat_map(|tenant| tenant.letters.iter().filter(|kept| kept.again).map(|kept| (tenant.id, kept.sequence)));
    marked.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    const LETTER: Place = (TenantId(1), Sequence(7));

    /// Marked, found by a look, and taken to be read.
    fn under_way() -> Replays {
        let mut replays = Replays { asked: true, ..Replays::default() };
        assert!(replays.begin_look());
        replays.take_marked(vec![LETTER]);
        assert_eq!(replays.waiting.pop_front(), Some(LETTER));
        replays
    }

    /// Scenario: while a look at what is marked is under way, the letter that it has seen is accepted, and durably gone before the look
    /// comes back.
    /// Guarantees: what the look says of it is not believed, so that it is not sent twice; it is looked anew.
    #[test]
    fn a_look_that_is_older_than_a_verdict_is_not_believed() {
        let mut replays = under_way();
        replays.asked = true;
        assert!(replays.begin_look());
        replays.settle(LETTER);
        replays.take_marked(vec![LETTER]);
        assert_eq!(replays.waiting.pop_front(), None);
        assert!(replays.begin_look(), "somebody may have marked it since");
        replays.take_marked(vec![LETTER]);
        assert_eq!(replays.waiting.pop_front(), Some(LETTER), "this look began after the verdict");
    }

    /// Scenario: a letter was accepted; the writer has no room for that, then refuses it, then takes its time; all the while the letter
    /// is marked in the log, and somebody asks for what is marked.
    /// Guarantees: it is not sent again until it is durably gone, and told again only where the writer has not got it.
    #[test]
    fn what_was_accepted_is_not_sent_before_it_is_durably_gone() {
        let mut replays = under_way();
        let asks_in_vain = |replays: &mut Replays| {
            replays.asked = true;
            assert!(replays.begin_look());
            replays.take_marked(vec![LETTER]);
            replays.waiting.is_empty()
        };
        replays.accepted.push((LETTER, None));
        replays.take_answers();
        assert!(replays.accepted[0].1.is_none() && asks_in_vain(&mut replays));
        let (refuses, answer) = sync_channel(1);
        replays.accepted[0].1 = Some(answer);
        refuses.send(Err(AppendError::Full)).expect("awaited");
        replays.take_answers();
        assert!(replays.accepted[0].1.is_none() && asks_in_vain(&mut replays));
        let (takes, answer) = sync_channel(1);
        replays.accepted[0].1 = Some(answer);
        replays.take_answers();
        assert!(replays.accepted[0].1.is_some() && asks_in_vain(&mut replays));
        takes.send(Ok(1)).expect("awaited");
        replays.take_answers();
        assert!(replays.accepted.is_empty() && !replays.known.contains(&LETTER));
    }
}

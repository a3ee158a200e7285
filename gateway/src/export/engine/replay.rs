//! Dead letters that somebody wants to be sent again: read from the log, sent alone, to the destination that refused them.
//!
//! Owns which of them are in memory, and bounds that. What is to be sent again is the log's to say, so a crash loses nothing; a
//! letter is one until its destination has accepted it, and the log is told so afterwards: a crash in between repeats it.
//!
//! ```text
//! marked (in the log) -> waiting -> read -> lane -> accepted              Gone: no letter any more
//!                           ^         |          -> refused for good      Stays: a letter without the mark
//!                         parked  <---+  its destination has enough of them; next when one of those is settled
//! ```

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;

use super::super::lane::Lane;
use super::super::merge::{Key, Member, Record, Refusals};
use super::Engine;
use crate::base::{Sequence, TenantId};
use crate::queue::{DeadLetter, LetterChange, Queue, Verdict};

/// Letters of one destination in memory, each at most 4 MiB.
const LOADED_MAX: usize = 4;

/// After a verdict that the writer had no room for.
const TELL_PAUSE: Duration = Duration::from_millis(100);

/// Reads of letters at once.
const READS_MAX: usize = 1;

type Place = (TenantId, Sequence);

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
    /// Waiting, read, parked or in a lane.
    known: HashSet<Place>,
    waiting: VecDeque<Place>,
    reading: usize,
    /// By outlet.
    parked: HashMap<usize, VecDeque<Place>>,
    /// In a lane, and of which outlet.
    loaded: HashMap<Place, usize>,
    /// The writer had no room for these verdicts.
    untold: Vec<(Place, Verdict)>,
}

impl Replays {
    /// It is in its lane no more: the next one for that destination may be read.
    fn unload(&mut self, place: Place) {
        let outlet = self.loaded.remove(&place);
        let parked = outlet.and_then(|outlet| self.parked.get_mut(&outlet));
        self.waiting.extend(parked.and_then(VecDeque::pop_front));
    }
}

impl Engine {
    /// Somebody has marked letters, or may have before this start.
    pub(super) fn look_for_replays(&mut self) {
        self.replays.asked = true;
    }

    /// Reads what there is room for.
    pub(super) fn start_replays(&mut self) {
        if !self.may_send() {
            return;
        }
        for (place, verdict) in std::mem::take(&mut self.replays.untold) {
            self.tell_verdict(place, verdict);
        }
        let queue = &self.queue;
        let replays = &mut self.replays;
        if std::mem::take(&mut replays.asked) {
            let queue = queue.clone();
            replays.fetches.push(Box::pin(async move {
                let found = tokio::task::spawn_blocking(move || marked(&queue)).await;
                Fetched::Marked(found.unwrap_or_default())
            }));
        }
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
            Fetched::Marked(places) => {
                for place in places {
                    if self.replays.known.insert(place) {
                        self.replays.waiting.push_back(place);
                    }
                }
            }
            Fetched::Letter(place, read) => {
                self.replays.reading -= 1;
                match read {
                    Ok(Some(letter)) => self.load_letter(place, letter),
                    // Dropped or purged meanwhile, or damaged, which is counted.
                    Ok(None) => drop(self.replays.known.remove(&place)),
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
        if self.replays.loaded.values().filter(|of| **of == outlet).count() >= LOADED_MAX {
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
            replays.known.remove(&place);
            replays.unload(place);
        }
        self.sweep = true;
    }

    fn end_replay(&mut self, place: Place, verdict: Verdict) {
        self.replays.known.remove(&place);
        self.tell_verdict(place, verdict);
        self.sweep = true;
    }

    fn tell_verdict(&mut self, place: Place, verdict: Verdict) {
        if self.queue.settle_letters(LetterChange { letters: vec![place], verdict }).is_err() {
            self.replays.untold.push((place, verdict));
            self.alarms.push(std::cmp::Reverse(self.now + TELL_PAUSE));
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

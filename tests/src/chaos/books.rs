//! What was acknowledged, and where it is: the sum that must come out.
//!
//! Pure: it is told what clients and destinations saw, and knows no process. An item is counted once, where it was seen
//! first: delivered before the end, else found queued at the end, else among the dead letters, else missing.
//!
//! ```text
//! acknowledged = delivered + queued + dead + missing        missing is 0, but for what was acknowledged from memory
//! repeated by one kill, tenant and destination  <=  1,000 records + in flight
//! in flight  <=  requests at a time * the most records of the tenant that were in one
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::item::Record;
use super::{DESTINATIONS, TENANTS};

/// What a crash may repeat of one tenant and destination beside what is in flight: the records since the last checkpoint.
pub(super) const REPEATED_MAX: u64 = 1_000;

/// What arrived at one destination.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    records: HashMap<Record, Seen>,
    /// The most records of each tenant in one request.
    merged_max: [u64; TENANTS.len()],
    /// Records that came again, by tenant and the kill that is to blame.
    repeated: BTreeMap<(usize, u32), u64>,
    /// Items of nobody, or of somebody else than whose pod sent them.
    pub(super) strangers: u64,
}

#[derive(Debug)]
struct Seen {
    /// One bit an item.
    items: u8,
    times: u32,
    /// How many kills there were when it came last.
    kills: u32,
    is_late: bool,
}

impl Arrivals {
    /// One request, after so many kills; `is_late`: after the end, so it had been queued.
    pub(super) fn take(&mut self, ids: &[(u64, String)], (kills, is_late): (u32, bool)) {
        let mut records: BTreeMap<Record, u8> = BTreeMap::new();
        for (id, owner) in ids {
            let (record, item) = Record::of(*id);
            match TENANTS.get(record.tenant()) {
                Some(tenant) if tenant.name == owner && item < record.items() => {
                    *records.entry(record).or_default() |= 1 << item;
                }
                _ => self.strangers += 1,
            }
        }
        let mut of_tenants = [0; TENANTS.len()];
        for (record, items) in records {
            of_tenants[record.tenant()] += 1;
            self.note(record, items, (kills, is_late));
        }
        self.merged_max.iter_mut().zip(of_tenants).for_each(|(max, count)| *max = count.max(*max));
    }

    fn note(&mut self, record: Record, items: u8, (kills, is_late): (u32, bool)) {
        match self.records.get_mut(&record) {
            None => drop(self.records.insert(record, Seen { items, times: 1, kills, is_late })),
            Some(seen) => {
                // The first kill after it had arrived took what the gateway knew of that. One that was on its way at the kill
                // arrives after it.
                let blamed = (seen.kills + 1).min(kills);
                *self.repeated.entry((record.tenant(), blamed)).or_default() += 1;
                (seen.items, seen.kills, seen.times) = (seen.items | items, kills, seen.times + 1);
            }
        }
    }

    fn find(&self, record: Record) -> Option<&Seen> {
        self.records.get(&record).filter(|seen| seen.items.count_ones() == items(record))
    }

    /// Whether all of it has arrived.
    pub(super) fn has(&self, record: Record) -> bool {
        self.find(record).is_some()
    }
}

fn items(record: Record) -> u32 {
    u32::try_from(record.items()).expect("at most four")
}

/// Everything that is known at the end.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// Records that were answered with OK.
    pub(super) acknowledged: BTreeSet<Record>,
    /// The first request of each tenant and client that was never sent.
    pub(super) unsent: BTreeMap<(usize, u8), u64>,
    /// By destination.
    pub(super) arrivals: Vec<Arrivals>,
    /// Dead letters, by destination.
    pub(super) dead: Vec<BTreeSet<u64>>,
    /// Requests that a destination has at a time.
    pub(super) window: u64,
}

/// One tenant at one destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Whose.
    pub tenant: &'static str,
    /// Its ack policy.
    pub ack: &'static str,
    /// Where to.
    pub destination: &'static str,
    /// Items answered with OK.
    pub acknowledged: u64,
    /// Of those: arrived before the end.
    pub delivered: u64,
    /// Of those: arrived after a last restart.
    pub queued: u64,
    /// Of those: kept as dead letters.
    pub dead: u64,
    /// Of those: nowhere.
    pub missing: u64,
    /// The ids of some of the missing.
    pub missing_ids: Vec<String>,
    /// Items that arrived though nobody was told OK, because the answer died with the gateway.
    pub unanswered: u64,
    /// Records that arrived more than once, each time counted.
    pub repeated_records: u64,
    /// Of those: the most that one kill is to blame for.
    pub repeated_by_one_kill: u64,
    /// How many that may be.
    pub repeated_by_one_kill_max: u64,
}

const MISSING_IDS_MAX: usize = 20;

impl Books {
    /// A row for each tenant and destination.
    pub(super) fn rows(&self) -> Vec<Row> {
        let lanes =
            TENANTS.iter().enumerate().flat_map(|(tenant, of)| of.destinations.iter().map(move |to| (tenant, *to)));
        lanes.map(|(tenant, to)| self.row(tenant, to)).collect()
    }

    fn row(&self, number: usize, destination: usize) -> Row {
        let (tenant, arrivals) = (&TENANTS[number], &self.arrivals[destination]);
        let mut row =
            Row { tenant: tenant.name, ack: tenant.ack, destination: DESTINATIONS[destination], ..Row::default() };
        for record in self.acknowledged.iter().filter(|record| record.tenant() == number) {
            row.acknowledged += record.items();
            let dead = record.ids().iter().filter(|id| self.dead[destination].contains(id)).count() as u64;
            match arrivals.find(*record) {
                Some(seen) if seen.is_late => row.queued += record.items(),
                Some(_) => row.delivered += record.items(),
                None => {
                    row.dead += dead;
                    row.missing += record.items() - dead;
                    if dead < record.items() && row.missing_ids.len() < MISSING_IDS_MAX {
                        row.missing_ids.push(format!("{record:?}"));
                    }
                }
            }
        }
        let of_tenant = arrivals.records.iter().filter(|(record, _)| record.tenant() == number);
        row.unanswered =
            of_tenant.filter(|(record, _)| !self.acknowledged.contains(record)).map(|(r, _)| r.items()).sum();
        let repeated =
            arrivals.repeated.iter().filter(|((tenant, _), _)| *tenant == number).map(|(_, records)| *records);
        row.repeated_records = repeated.clone().sum();
        row.repeated_by_one_kill = repeated.max().unwrap_or(0);
        row.repeated_by_one_kill_max = REPEATED_MAX + self.window * arrivals.merged_max[number];
        row
    }

    /// What is not as promised, in words; nothing is well.
    pub(super) fn breaches(&self) -> Vec<String> {
        let mut out = Vec::new();
        for row in self.rows() {
            let lane = format!("{} to {}", row.tenant, row.destination);
            if row.missing > 0 && row.ack != "memory" {
                out.push(format!("{lane}: {} acknowledged items are missing: {:?}", row.missing, row.missing_ids));
            }
            if row.repeated_by_one_kill > row.repeated_by_one_kill_max {
                out.push(format!(
                    "{lane}: {} records were repeated by one kill, at most {} may be",
                    row.repeated_by_one_kill, row.repeated_by_one_kill_max
                ));
            }
        }
        for (name, arrivals) in DESTINATIONS.iter().zip(&self.arrivals) {
            let is_unsent = |record: &Record| {
                let first = self.unsent.get(&(record.tenant(), record.client()));
                first.is_none_or(|first| record.request() >= *first)
            };
            let unsent = arrivals.records.keys().filter(|record| is_unsent(record)).count();
            if arrivals.strangers > 0 || unsent > 0 {
                out.push(format!(
                    "{name}: {} items came as somebody else's, {unsent} records were never sent",
                    arrivals.strangers
                ));
            }
            let poison = arrivals.records.keys().filter(|record| record.is_poison()).count();
            if poison > 0 {
                out.push(format!("{name}: {poison} records were taken that it refuses: a fault of this program"));
            }
        }
        for (name, dead) in DESTINATIONS.iter().zip(&self.dead) {
            let sound = dead.iter().filter(|id| !Record::of(**id).0.is_poison()).count();
            if sound > 0 {
                out.push(format!("{name}: {sound} items are dead letters whose content it takes"));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: usize = 0;

    fn ids(record: Record) -> Vec<(u64, String)> {
        record.ids().into_iter().map(|id| (id, TENANTS[record.tenant()].name.to_owned())).collect()
    }

    /// Records of the first tenant, which has one destination: two delivered, one of them again after a kill; one queued; one
    /// dead.
    fn books() -> (Books, Vec<Record>) {
        let record = |request, poison| Record::new(SOUND, 1, request, poison);
        let records = vec![record(3, false), record(6, false), record(7, false), record(9, true)];
        let mut books = Books { window: 2, ..Books::default() };
        books.arrivals.resize_with(DESTINATIONS.len(), Arrivals::default);
        books.dead.resize_with(DESTINATIONS.len(), BTreeSet::new);
        books.acknowledged.extend(&records);
        books.unsent.insert((SOUND, 1), 10);
        let to = TENANTS[SOUND].destinations[0];
        let both: Vec<_> = ids(records[0]).into_iter().chain(ids(records[1])).collect();
        books.arrivals[to].take(&both, (0, false));
        books.arrivals[to].take(&ids(records[0]), (2, false));
        books.arrivals[to].take(&ids(records[2]), (2, true));
        books.dead[to].extend(records[3].ids());
        (books, records)
    }

    fn row(books: &Books) -> Row {
        books.rows().swap_remove(0)
    }

    /// Scenario: records that were delivered, repeated, found queued, found dead.
    /// Guarantees: each is counted once where it was; the repetition is the kill's; the bound follows from what was merged.
    #[test]
    fn every_item_is_counted_once() {
        let (books, records) = books();
        let row = row(&books);
        let items = |index: usize| records[index].items();
        assert_eq!(row.acknowledged, (0..4).map(items).sum::<u64>());
        assert_eq!((row.delivered, row.queued, row.dead, row.missing), (items(0) + items(1), items(2), items(3), 0));
        assert_eq!((row.repeated_records, row.repeated_by_one_kill, row.repeated_by_one_kill_max), (1, 1, 1_004));
        assert_eq!(books.breaches(), Vec::<String>::new());
    }

    /// Scenario: of the same books, one thing at a time is wrong.
    /// Guarantees: each is told: an item that is nowhere, half of a record, too many repetitions, a stranger's item, one that
    /// was never sent, a dead letter of sound content.
    #[test]
    fn every_breach_is_told() {
        let breaches = |spoil: fn(&mut Books, &[Record])| {
            let (mut books, records) = books();
            spoil(&mut books, &records);
            books.breaches().join("\n")
        };
        assert!(breaches(|books, _| books.acknowledged.extend([Record::new(SOUND, 1, 8, false)])).contains("missing"));
        assert!(
            breaches(|books, records| books.dead[0].retain(|id| *id != records[3].ids()[0]))
                .contains("1 acknowledged items")
        );
        assert!(
            breaches(|books, records| books.arrivals[0].records.get_mut(&records[0]).expect("arrived").items &= !1)
                .contains("missing")
        );
        assert!(
            breaches(|books, records| (0..1_006).for_each(|_| books.arrivals[0].take(&ids(records[1]), (2, false))))
                .contains("repeated by one kill")
        );
        assert!(
            breaches(|books, records| books.arrivals[0].take(&[(records[0].ids()[0], "else".into())], (2, false)))
                .contains("somebody else's")
        );
        assert!(
            breaches(|books, _| books.arrivals[0].take(&ids(Record::new(SOUND, 1, 11, false)), (2, false)))
                .contains("never sent")
        );
        assert!(breaches(|books, records| books.dead[0].extend(records[0].ids())).contains("dead letters"));
    }
}

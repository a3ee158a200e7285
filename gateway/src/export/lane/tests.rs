use super::*;
use crate::base::TenantName;

fn lane(routed: [bool; 3]) -> Lane {
    let gauge = LaneGauge::new(TenantName::parse("shop/cart").expect("a name"));
    let mut lane = Lane::new(TenantId(1), 0, [None; 3], gauge, Rc::default());
    lane.cursors.route(routed);
    lane
}

fn stored(numbers: std::ops::RangeInclusive<u64>) -> Vec<Stored> {
    let record = |number| Stored {
        sequence: Sequence(number),
        signal: Signal::Logs,
        items: 1,
        received_unix_ms: 0,
        payload: Bytes::from_static(&[0; 100]),
    };
    numbers.map(record).collect()
}

fn deliver_all(lane: &mut Lane) -> Vec<Key> {
    let mut keys = Vec::new();
    while let Some(record) = lane.take(0) {
        lane.delivered(&record);
        keys.push(record.key);
    }
    keys
}

fn read(records: Vec<Stored>, through: u64) -> crate::queue::Read {
    crate::queue::Read { records, damaged: Vec::new(), through: Sequence(through) }
}

/// Scenario: of eight records that wait, two in the middle and the last cannot be read any more; another look at the log finds the
/// last one again.
/// Guarantees: the others are sent, the cursor passes all, nothing stays queued, and what is lost is counted once, by its items.
#[test]
fn damaged_records_are_lost_and_counted_and_do_not_stay_queued() {
    let mut lane = lane([true; 3]);
    lane.tail = Sequence(8);
    let all = stored(1..=8);
    let items: u64 = all.iter().map(|record| u64::from(record.items)).sum();
    lane.gauge.queued_items.store(items + 1, std::sync::atomic::Ordering::Relaxed);
    let is_damaged = |record: &Stored| [4, 5, 8].contains(&record.sequence.0);
    let (damaged, records): (Vec<_>, Vec<_>) = all.into_iter().partition(is_damaged);
    let gone: u64 = damaged.iter().map(|record| u64::from(record.items)).sum();
    let last = damaged[2].clone();
    lane.take_read(Sequence::ZERO, crate::queue::Read { records, damaged, through: Sequence(8) });
    lane.take_read(Sequence(7), crate::queue::Read { records: Vec::new(), damaged: vec![last], through: Sequence(8) });
    let lost = crate::base::stats::total(&lane.gauge.stats.lost[crate::base::stats::Loss::Damaged as usize]);
    assert_eq!(lost, gone);
    let queued = lane.gauge.queued_items.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(queued, items + 1 - gone);
    assert_eq!(deliver_all(&mut lane).len(), 5);
    assert_eq!(lane.acknowledged(), Sequence(8));
}

/// Scenario: while a read of the log is under way, the destination fails and the lane gives its memory back; then the
/// read comes back, with records behind those that were given back, or with none.
/// Guarantees: what was given back is read again and sent before the cursor passes it.
#[test]
fn a_read_from_before_memory_was_given_back_skips_nothing() {
    for late in [stored(5..=8), Vec::new()] {
        let mut lane = lane([true; 3]);
        lane.tail = Sequence(8);
        lane.take_read(Sequence::ZERO, read(stored(1..=4), 4));
        let after = lane.cursors.seen();
        lane.trim(100);

        lane.take_read(after, read(late, 8));

        assert_eq!(deliver_all(&mut lane), [Key::Logged(Sequence(1))]);
        assert_eq!(lane.acknowledged(), Sequence(1));
        assert!(lane.wants_read(), "the rest is read again");
        lane.take_read(Sequence(1), read(stored(2..=8), 8));
        assert_eq!(deliver_all(&mut lane).len(), 7);
        assert_eq!(lane.acknowledged(), Sequence(8));
    }
}

/// Scenario: a tenant's data does not go to a destination any more, while some of it still waits there.
/// Guarantees: the cursor stays before what was not delivered, so that nothing is skipped should the route return; the
/// lane takes no memory meanwhile and keeps no drain waiting.
#[test]
fn a_cursor_stays_where_it_is_without_a_route() {
    let mut lane = lane([false; 3]);
    lane.tail = Sequence(3);
    let arrival = Committed {
        tenant: TenantId(1),
        signal: Signal::Logs,
        sequence: Sequence(4),
        previous: Sequence(3),
        items: 1,
        received_unix_ms: 0,
        payload: Some(Bytes::from_static(&[0; 100])),
    };
    lane.offer(&arrival, true);
    assert!(!lane.wants_read());
    lane.take_read(Sequence::ZERO, read(stored(1..=3), 3));
    assert_eq!((lane.acknowledged(), lane.held_bytes(), lane.is_idle()), (Sequence::ZERO, 0, true));

    lane.cursors.route([true; 3]);
    lane.take_read(Sequence::ZERO, read(stored(1..=4), 4));
    assert_eq!(deliver_all(&mut lane).len(), 4);
    assert_eq!(lane.acknowledged(), Sequence(4));
}

/// Scenario: megabytes arrive behind a record that is to be read from the log, and nothing else is in memory.
/// Guarantees: they do not count as enough, or the gap would never be read and all of it would wait for ever; once it is
/// read they are sent.
#[test]
fn what_waits_behind_a_gap_does_not_keep_it_from_being_read() {
    let mut lane = lane([true; 3]);
    lane.tail = Sequence(1);
    let arrival = Committed {
        tenant: TenantId(1),
        signal: Signal::Logs,
        sequence: Sequence(2),
        previous: Sequence(1),
        items: 1,
        received_unix_ms: 0,
        payload: Some(Bytes::from(vec![0; 4 << 20])),
    };
    lane.offer(&arrival, true);
    assert!(lane.wants_read() && !lane.has_enough(2 << 20), "{lane:?}");

    lane.take_read(Sequence::ZERO, read(stored(1..=1), 1));
    assert!(!lane.wants_read() && lane.has_enough(2 << 20), "{lane:?}");
    assert_eq!(deliver_all(&mut lane).len(), 2);
    assert_eq!((lane.held_bytes(), lane.acknowledged()), (0, Sequence(2)));
}

/// Scenario: records of different ages are in memory, one of them in flight and one under suspicion, and more are in the log;
/// time passes, step by step.
/// Guarantees: exactly those that are too old are passed and counted, what is in flight is left to its answer, and the
/// cursor follows; the log is looked at only when nothing is in memory and its oldest is due.
#[test]
fn what_is_too_old_is_passed_and_counted() {
    let aged = |numbers: std::ops::RangeInclusive<u64>| -> Vec<Stored> {
        stored(numbers)
            .into_iter()
            .map(|record| Stored { received_unix_ms: record.sequence.0 * 100, ..record })
            .collect()
    };
    let lost = |lane: &Lane| crate::base::stats::total(&lane.gauge.stats.lost[0]);
    let mut lane = lane([true; 3]);
    lane.set_max_age(std::time::Duration::from_secs(1));
    lane.tail = Sequence(9);
    lane.gauge.queued_items.store(9, Ordering::Relaxed);
    lane.take_read(Sequence::ZERO, read(aged(1..=6), 6));
    let flying = lane.take(0).expect("the first");
    let mut suspect = lane.take(0).expect("the second");
    suspect.refused = Some(0);
    lane.put_back(suspect);

    assert!(!lane.expire(1_100), "the first is as old as it may be");
    assert!(lane.expire(1_401));
    assert_eq!((lost(&lane), lane.acknowledged()), (3, Sequence::ZERO));
    assert!(!lane.is_overdue_look_due(), "younger ones are in memory");
    lane.delivered(&flying);
    assert_eq!(lane.acknowledged(), Sequence(4));

    assert!(lane.expire(1_701) && lane.is_overdue_look_due());
    let found = aged(7..=8).into_iter().map(|record| Stored { payload: Bytes::new(), ..record }).collect();
    let overdue =
        crate::queue::Overdue { records: found, damaged: Vec::new(), through: Sequence(8), next_unix_ms: Some(900) };
    lane.take_overdue(Sequence(6), overdue);
    assert_eq!((lost(&lane), lane.acknowledged(), lane.held_bytes()), (7, Sequence(8), 0));
    assert_eq!(lane.gauge.queued_items.load(Ordering::Relaxed), 1);
    assert!(!lane.expire(1_900) && !lane.is_overdue_look_due());
    assert!(!lane.expire(1_901) && lane.is_overdue_look_due());
}

/// Scenario: a signal's route ends while records of it wait in memory and one is in flight; the log says, before or after the lane
/// hears of the route, which of them nobody else gets: all but two, which another destination takes along. The one in flight fails.
/// Guarantees: exactly what nobody else gets is counted as lost, once, whoever spoke first; nothing stays queued.
#[test]
fn what_moves_to_another_destination_is_not_lost() {
    use crate::base::handoff::GivenUp;
    use crate::base::stats::{Loss, total};
    for is_log_first in [true, false] {
        let mut lane = lane([true; 3]);
        lane.tail = Sequence(6);
        lane.gauge.queued_items.store(6, std::sync::atomic::Ordering::Relaxed);
        lane.take_read(Sequence::ZERO, read(stored(1..=6), 6));
        let flying = lane.take(0).expect("the first");
        let given_up = GivenUp {
            tenant: TenantId(1),
            destination: crate::base::DestinationName("backend".into()),
            signal: Signal::Logs,
            through: Sequence(6),
            records: [1, 2, 5, 6].map(|number| (Sequence(number), 1)).to_vec(),
            further_items: 0,
            why: Loss::DestinationRemoved,
        };
        if is_log_first {
            lane.give_up(&given_up);
        }
        lane.route([false; 3], [Sequence::ZERO; 3]);
        if !is_log_first {
            lane.give_up(&given_up);
        }
        let lost = |lane: &Lane| total(&lane.gauge.stats.lost[Loss::DestinationRemoved as usize]);
        assert_eq!(lost(&lane), 3, "log first: {is_log_first}");
        lane.put_back(flying);
        assert_eq!(lost(&lane), 4, "log first: {is_log_first}");
        assert_eq!(lane.gauge.queued_items.load(std::sync::atomic::Ordering::Relaxed), 0);
    }
}

//! The queue to the gateway: order, patience, and their limits.

use super::*;
use crate::csi::target::Uid;

fn tells(count: usize) -> Vec<Tell> {
    (0..count).map(|number| Tell::Unpublished(Uid::parse(&format!("u-{number}")).expect("a uid"))).collect()
}

fn outbox(tells: &[Tell]) -> Outbox {
    let mut outbox = Outbox::default();
    assert!(tells.iter().all(|tell| outbox.push(tell.clone())));
    outbox
}

/// Scenario: the kernel refuses a descriptor because others have too many under way, again and again, then takes it.
/// Guarantees: nothing is lost or reordered; it is tried after delays that double up to five seconds, and not before.
#[test]
fn a_refused_descriptor_is_kept_and_tried_again_ever_more_slowly() {
    let all = tells(3);
    let mut outbox = outbox(&all);
    let mut now = Instant::now();
    let refuse = |_: &Tell| Err(Errno::TOOMANYREFS.into());
    let mut delays = Vec::new();
    for _ in 0..9 {
        match outbox.flush(now, refuse) {
            Flushed::Refused { waiting: 3, delay } => delays.push(delay.as_millis()),
            other => panic!("{other:?}"),
        }
        assert!(!outbox.wants_writable(), "the socket would take it; the kernel does not");
        let until = outbox.deadline().expect("a delay");
        let too_early = outbox.flush(until - Duration::from_nanos(1), |_| panic!("too early"));
        assert!(matches!(too_early, Flushed::Waiting));
        now = until;
    }
    assert_eq!(delays, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);

    let mut sent = Vec::new();
    let flushed = outbox.flush(now, |tell| {
        sent.push(tell.clone());
        Ok(())
    });
    assert!(matches!(flushed, Flushed::Empty) && outbox.deadline().is_none());
    assert_eq!(sent, all);
}

/// Scenario: a gateway stops reading; it reads a little in between; it stops for good.
/// Guarantees: it has ten seconds since it last took something, then it is given up.
#[test]
fn a_gateway_that_reads_nothing_is_given_up() {
    let mut outbox = outbox(&tells(3));
    let start = Instant::now();
    let full = |_: &Tell| Err(io::ErrorKind::WouldBlock.into());
    assert!(matches!(outbox.flush(start, full), Flushed::Waiting));
    assert!(outbox.wants_writable());
    assert_eq!(outbox.deadline(), Some(start + STALL_MAX));

    let later = start + STALL_MAX - Duration::from_nanos(1);
    let mut once = [Ok(()), Err(io::ErrorKind::WouldBlock.into())].into_iter();
    assert!(matches!(outbox.flush(later, |_| once.next().expect("two")), Flushed::Waiting));
    assert_eq!(outbox.deadline(), Some(later + STALL_MAX));
    assert!(matches!(outbox.flush(start + STALL_MAX, full), Flushed::Waiting));
    let Flushed::Broken(reason) = outbox.flush(later + STALL_MAX, full) else { panic!("it had its time") };
    assert!(reason.contains("10 s"), "{reason}");
}

/// Scenario: a long list, then more than may wait.
/// Guarantees: a slice at a time is sent, so that the kubelet is never kept waiting; the queue has a limit.
#[test]
fn the_queue_is_sent_in_slices_and_has_a_limit() {
    let mut outbox = outbox(&tells(SLICE + 1));
    let now = Instant::now();
    assert!(matches!(outbox.flush(now, |_| Ok(())), Flushed::Waiting) && outbox.wants_writable());
    assert!(matches!(outbox.flush(now, |_| Ok(())), Flushed::Empty));
    let pushed = tells(OUTBOX_MAX + 1).into_iter().map(|tell| outbox.push(tell));
    assert_eq!(pushed.filter(|fits| !fits).count(), 1);
    assert!(matches!(outbox.flush(now, |_| Err(Errno::PIPE.into())), Flushed::Broken(_)));
}

//! Requests of one worker that wait for their commit: a slab of wakers, woken from one mailbox.
//!
//! Owns the tickets that appends carry. It never decides what a completion means for the pod: it settles the account of
//! the request (also of one whose connection is gone) and wakes who waits. One completion frees one slot, exactly once.
//!
//! ```text
//! slot    Waiting{waker, receipt} --complete--> Done{result} --polled--> free
//!                                 --dropped---> Waiting{no waker}  --complete--> free
//! ticket  generation (high 32 bits) | index: a completion that nobody can wait for any more is ignored
//! ```

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::admission::Receipt;
use crate::base::Sequence;
use crate::base::mailbox::Mailbox;
use crate::queue::{AppendError, Completion, Reply};

type Outcome = Result<Sequence, AppendError>;

/// All waiting requests of one worker.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    mailbox: Arc<Mailbox<Completion>>,
    slots: RefCell<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    entries: Vec<Entry>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Free,
    Waiting { waker: Option<Waker>, receipt: Receipt, abandoned: bool },
    Done(Outcome),
}

/// One waiting request. Dropping it stops the waiting, not the commit.
#[derive(Debug)]
pub(super) struct Waiting {
    waiters: Rc<Waiters>,
    index: u32,
    finished: bool,
}

impl Waiters {
    /// Opens a slot, and the reply that leads back to it.
    pub(super) fn open(self: &Rc<Self>, receipt: Receipt) -> (Waiting, Reply) {
        let mut slots = self.slots.borrow_mut();
        let phase = Phase::Waiting { waker: None, receipt, abandoned: false };
        let index = match slots.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(slots.entries.len()).expect("each entry holds memory of the ledger");
                slots.entries.push(Entry { generation: 0, phase: Phase::Free });
                index
            }
        };
        let entry = &mut slots.entries[index as usize];
        entry.phase = phase;
        let ticket = u64::from(entry.generation) << 32 | u64::from(index);
        let waiting = Waiting { waiters: self.clone(), index, finished: false };
        (waiting, Reply { mailbox: self.mailbox.clone(), ticket })
    }

    /// Gives up on everything: the worker ends. What commits later is counted by the next start's recovery.
    pub(super) fn abandon(&self) {
        // Dropped outside of the borrow: a receipt holds its tenant, which holds this.
        let slots = self.slots.take();
        drop(slots);
    }

    /// Takes what the writer has posted and settles it. `batch` is scratch space; the task is woken by the next post.
    pub(super) fn poll(&self, cx: &mut Context<'_>, batch: &mut Vec<Completion>) {
        while self.mailbox.poll_take(cx, batch).is_ready() {
            for completion in batch.drain(..) {
                self.complete(completion);
            }
        }
    }

    fn complete(&self, completion: Completion) {
        let (settled, waker) = {
            let mut slots = self.slots.borrow_mut();
            let (generation, index) = (completion.ticket >> 32, completion.ticket & u64::from(u32::MAX));
            let index = u32::try_from(index).expect("masked to 32 bits");
            let Some(entry) = slots.entries.get_mut(index as usize) else { return };
            if u64::from(entry.generation) != generation || !matches!(entry.phase, Phase::Waiting { .. }) {
                return;
            }
            let Phase::Waiting { waker, receipt, abandoned } =
                std::mem::replace(&mut entry.phase, Phase::Done(completion.result))
            else {
                return;
            };
            if abandoned {
                slots.release(index);
            }
            (receipt, waker)
        };
        settled.settle(completion.result.is_ok());
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Slots {
    fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.phase = Phase::Free;
        self.free.push(index);
    }
}

impl Waiting {
    /// Takes the slot back: the append was refused, so no completion follows.
    pub(super) fn withdraw(mut self) -> Option<Receipt> {
        self.finished = true;
        let mut slots = self.waiters.slots.borrow_mut();
        let phase = std::mem::replace(&mut slots.entries[self.index as usize].phase, Phase::Free);
        slots.release(self.index);
        match phase {
            Phase::Waiting { receipt, .. } => Some(receipt),
            Phase::Free | Phase::Done(_) => None,
        }
    }
}

impl Future for Waiting {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let result = {
            let mut slots = self.waiters.slots.borrow_mut();
            let index = self.index;
            match &mut slots.entries[index as usize].phase {
                Phase::Waiting { waker: Some(waker), .. } if waker.will_wake(cx.waker()) => return Poll::Pending,
                Phase::Waiting { waker, .. } => {
                    *waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Phase::Done(result) => {
                    let result = *result;
                    slots.release(index);
                    result
                }
                Phase::Free => unreachable!("a slot is freed by its own waiting, or after it was dropped"),
            }
        };
        self.finished = true;
        Poll::Ready(result)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let mut slots = self.waiters.slots.borrow_mut();
        match &mut slots.entries[self.index as usize].phase {
            Phase::Waiting { waker, abandoned, .. } => {
                *waker = None;
                *abandoned = true;
            }
            Phase::Done(_) => slots.release(self.index),
            Phase::Free => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::base::Signal;
    use crate::tenant::testing::{Bench, policy};

    fn serve(
        accepted: crate::tenant::Accepted,
        _core: Rc<crate::tenant::Core>,
    ) -> futures_util::future::LocalBoxFuture<'static, ()> {
        async move { drop(accepted) }.boxed_local()
    }

    /// Scenario: three requests wait; one is answered, one is no longer waited for, one was refused by the queue; then their
    /// slots are used again and the writer posts an answer a second time.
    /// Guarantees: each settles its own account exactly once, and an answer never reaches the slot's next owner.
    #[test]
    fn every_request_is_settled_exactly_once() {
        let bench = Bench::new(serve);
        let handle = bench.attach("shop/cart", policy());
        let core = bench.local_core(&handle);
        let waiters: Rc<Waiters> = Rc::default();
        let mut cx = Context::from_waker(Waker::noop());
        let accepted = || handle.snapshot().accepted[Signal::Traces.index()];
        let refused = || handle.snapshot().refused[Signal::Traces.index()];

        let (mut answered, first) = waiters.open(core.open_receipt(Signal::Traces, 1, 0));
        let (dropped, second) = waiters.open(core.open_receipt(Signal::Traces, 10, 0));
        let (withdrawn, _third) = waiters.open(core.open_receipt(Signal::Traces, 100, 0));
        drop(dropped);
        withdrawn.withdraw().expect("no answer came").settle(false);
        assert!(Pin::new(&mut answered).poll(&mut cx).is_pending());
        let done = |ticket| Completion { ticket, result: Ok(Sequence(7)) };
        first.mailbox.post([done(first.ticket), done(second.ticket)]);
        waiters.poll(&mut cx, &mut Vec::new());

        assert_eq!(Pin::new(&mut answered).poll(&mut cx), Poll::Ready(Ok(Sequence(7))));
        assert_eq!((accepted(), refused(), core.is_flushed()), (11, 100, true));

        let (mut next, _reply) = waiters.open(core.open_receipt(Signal::Traces, 1_000, 0));
        first.mailbox.post([done(first.ticket), done(second.ticket), done(u64::MAX)]);
        waiters.poll(&mut cx, &mut Vec::new());

        assert!(Pin::new(&mut next).poll(&mut cx).is_pending(), "the answer is that of an earlier request");
        assert_eq!(accepted(), 11);
        drop(next);
        bench.registry.close();
    }
}

//! A group of requests: what the writer is asked for, how each request ended, and who is to be told.
//!
//! Owns no decision; `log` makes them.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use super::tools::{LetterChange, TenantView};
use super::{Append, AppendError, Completion, CursorState, DeadLetter, Departure, Registered, Reply, TenantRecord};
use crate::base::batch::Batch;
use crate::base::handoff::{Arrival, Committed};
use crate::base::mailbox::Mailbox;
use crate::base::{Sequence, TenantId};

/// What the writer is asked for.
#[derive(Debug)]
pub(crate) enum Request {
    /// Data.
    Append(Append),
    /// A tenant, and which registration since the start it is.
    Register(TenantRecord, u64, SyncSender<Result<Registered, AppendError>>),
    /// A tenant that goes.
    Forget(Departure, Reply),
    /// Cursors.
    Checkpoint(Vec<CursorState>),
    /// A refusal.
    DeadLetter(DeadLetter, Reply),
    /// What is to become of dead letters: told how many are changed, durably.
    Letters(LetterChange, SyncSender<Result<u32, AppendError>>),
    /// What the log knows of its tenants.
    Tenants(SyncSender<Vec<TenantView>>),
}

impl Request {
    /// The payload of one of its parts.
    pub(crate) fn payload(&self, part: usize) -> &[u8] {
        match self {
            Self::Append(append) => &append.parts[part].payload,
            Self::DeadLetter(letter, _) => &letter.payload,
            Self::Register(..) | Self::Forget(..) | Self::Checkpoint(_) | Self::Letters(..) | Self::Tenants(_) => &[],
        }
    }

    /// What it adds to the bytes that wait for the writer.
    pub(crate) fn size(&self) -> usize {
        const OVERHEAD: usize = 64;
        let payload = match self {
            Self::Append(append) => append.parts.iter().map(|part| part.payload.len() + OVERHEAD).sum(),
            Self::DeadLetter(letter, _) => letter.payload.len(),
            Self::Checkpoint(cursors) => cursors.iter().map(|cursor| OVERHEAD + cursor.beyond.len() * 8).sum(),
            Self::Letters(change, _) => change.letters.len() * OVERHEAD,
            Self::Register(..) | Self::Forget(..) | Self::Tenants(_) => 0,
        };
        payload + OVERHEAD
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Outcome {
    /// Staged; the last part is here.
    At(Sequence),
    /// Staged, or known before.
    Registered(TenantId),
    /// Staged; so many letters.
    Changed(u32),
    /// Nothing of it is in the log.
    Refused(AppendError),
    /// Told already: nothing is left to say.
    Told(Sequence),
    /// Told later.
    Kept,
}

/// What export is told of a committed part.
pub(crate) fn arrival(batch: Batch, (previous, sequence): (Sequence, Sequence), received_unix_ms: u64) -> Arrival {
    Arrival::Committed(Committed {
        tenant: batch.tenant,
        signal: batch.signal,
        sequence,
        previous,
        items: u64::from(batch.items),
        received_unix_ms,
        payload: Some(batch.payload),
    })
}

/// Completions of one group, by mailbox: one wake each.
#[derive(Debug, Default)]
pub(crate) struct Mail(Vec<(Arc<Mailbox<Completion>>, Vec<Completion>)>);

/// Mailboxes that are remembered from group to group, so that their lists need not be allocated again.
const MAILBOXES_KEPT: usize = 32;

impl Mail {
    /// Leaves a completion for whoever waits, if anybody does.
    pub(crate) fn add(&mut self, reply: Option<Reply>, result: Result<Sequence, AppendError>) {
        let Some(Reply { mailbox, ticket }) = reply else { return };
        let completion = Completion { ticket, result };
        match self.0.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &mailbox)) {
            Some((_, completions)) => completions.push(completion),
            None => self.0.push((mailbox, vec![completion])),
        }
    }

    /// Posts what was left, and wakes each waiting thread once.
    pub(crate) fn post(&mut self) {
        for (mailbox, completions) in self.0.iter_mut().filter(|(_, completions)| !completions.is_empty()) {
            mailbox.post(completions.drain(..));
        }
        if self.0.len() > MAILBOXES_KEPT {
            self.0.clear();
        }
    }
}

//! How far the worker has come: what the admin server shows before there is a node to ask.
//!
//! Owns no part of the node. It ends with the admin server.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::Node;
use crate::admin::Readiness;

/// The way to a node.
pub(super) struct Stage {
    /// Until there is one.
    waiting: Mutex<Readiness>,
    node: OnceLock<Arc<Node>>,
}

impl Stage {
    pub(super) fn starting() -> Self {
        Self { waiting: Mutex::new(not_ready("starting")), node: OnceLock::new() }
    }

    /// What is done, or waited for, before pods can be served.
    pub(super) fn not_yet(&self, words: &str) {
        self.set(not_ready(words));
    }

    /// Ready to take over from another gateway, which serves the pods.
    pub(super) fn standby(&self, words: &str) {
        self.set(Readiness { ready: true, reasons: vec![words.to_owned()] });
    }

    /// From now on the node answers for itself.
    pub(super) fn enter(&self, node: Arc<Node>) {
        // There is one node in a worker's life; a second one would change nothing.
        let _ = self.node.set(node);
    }

    pub(super) fn node(&self) -> Option<&Arc<Node>> {
        self.node.get()
    }

    pub(super) fn waiting(&self) -> Readiness {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, readiness: Readiness) {
        // An assignment leaves no half.
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = readiness;
    }
}

fn not_ready(words: &str) -> Readiness {
    Readiness { ready: false, reasons: vec![words.to_owned()] }
}

//! A stand-in for a tenant: takes connections, or does not, as the test says.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::base::TenantName;
use crate::lifecycle::door::Connection;

/// What the test sees and steers.
#[derive(Debug)]
pub(in crate::lifecycle) struct Double {
    name: TenantName,
    /// Places left.
    pub(in crate::lifecycle) places: AtomicUsize,
    /// Whether its inbox is full.
    pub(in crate::lifecycle) full: AtomicBool,
    taken: Mutex<Vec<Connection>>,
    changed: Notify,
}

impl Double {
    pub(in crate::lifecycle) fn new(name: &str, places: usize) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self {
            name: TenantName::parse(name).expect("a valid name"),
            places: AtomicUsize::new(places),
            full: AtomicBool::new(false),
            taken: Mutex::default(),
            changed: Notify::new(),
        })
    }

    pub(in crate::lifecycle) fn name(&self) -> TenantName {
        self.name.clone()
    }

    pub(in crate::lifecycle) fn permit(&self) -> bool {
        self.places.load(Ordering::SeqCst) > self.taken.lock().expect("no test panics with it").len()
    }

    pub(in crate::lifecycle) fn offer(&self, connection: Connection) -> Result<(), Connection> {
        if self.full.load(Ordering::SeqCst) {
            return Err(connection);
        }
        self.taken.lock().expect("no test panics with it").push(connection);
        self.changed.notify_one();
        Ok(())
    }

    /// Like a tenant that has nothing in flight.
    pub(in crate::lifecycle) async fn drain(&self, _deadline: Instant) {}

    /// The first `count` connections, once they are there.
    pub(in crate::lifecycle) async fn connections(&self, count: usize) -> Vec<Connection> {
        loop {
            {
                let mut taken = self.taken.lock().expect("no test panics with it");
                if taken.len() >= count {
                    return taken.drain(..count).collect();
                }
            }
            self.changed.notified().await;
        }
    }
}

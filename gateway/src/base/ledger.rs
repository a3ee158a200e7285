//! Byte budgets of the tenants and of the node. A [`Guard`] is one entry that returns itself on drop.
//!
//! Each tenant has a guarantee, which nobody can take from it, and a ceiling. What it uses between the two is borrowed
//! from the node's pool: node limit - sum of guarantees. A reservation never waits: it is granted or refused.
//!
//! ```text
//! used <= guarantee              always granted
//! guarantee < used <= ceiling    granted while the pool has room; given back before the guarantee is
//! above the ceiling              refused
//! ```
//!
//! One more tenant never fails for lack of budget: when the guarantees together exceed the node's limit, each counts for
//! the same fraction of what it says.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The node's budget for the memory of intake.
#[derive(Debug, Clone)]
pub struct Ledger {
    node: Arc<Node>,
}

#[derive(Debug)]
struct Node {
    limit: u64,
    /// Sum of the guarantees of all accounts, as promised.
    promised: AtomicU64,
    /// Bytes that accounts hold above their guarantees.
    borrowed: AtomicU64,
}

/// One tenant's account. Clones share it; the last one, guards included, gives the guarantee back to the pool.
#[derive(Debug, Clone)]
pub struct Account {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    node: Arc<Node>,
    /// Held for a few instructions by the tenant's worker, and by whoever drops a guard.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: MemoryLimit,
    used: u64,
    borrowed: u64,
}

/// What a tenant may hold, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Nobody can take this away.
    pub guarantee: u64,
    /// Never above this.
    pub ceiling: u64,
}

/// Why a reservation was not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// The tenant is at its ceiling.
    #[error("the tenant's memory ceiling is reached")]
    Tenant,
    /// The tenant is above its guarantee and the node's pool is empty.
    #[error("the node's memory pool is exhausted")]
    Node,
}

/// Bytes reserved in an account, until dropped.
#[derive(Debug)]
pub struct Guard {
    account: Account,
    bytes: u64,
}

impl Ledger {
    /// A ledger of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self { node: Arc::new(Node { limit, promised: AtomicU64::new(0), borrowed: AtomicU64::new(0) }) }
    }

    /// Opens an account. Never fails: guarantees shrink evenly when they exceed the limit together.
    pub fn account(&self, limit: MemoryLimit) -> Account {
        self.node.promised.fetch_add(limit.guarantee, Ordering::Relaxed);
        let state = Mutex::new(State { limit, used: 0, borrowed: 0 });
        Account { inner: Arc::new(Inner { node: self.node.clone(), state }) }
    }

    /// Bytes borrowed from the pool.
    pub fn borrowed(&self) -> u64 {
        self.node.borrowed.load(Ordering::Relaxed)
    }

    /// The share of each guarantee that holds: 1.0, or less when too much is promised.
    pub fn guarantee_share(&self) -> f64 {
        let promised = self.node.promised.load(Ordering::Relaxed);
        if promised <= self.node.limit { 1.0 } else { self.node.limit as f64 / promised as f64 }
    }
}

impl Node {
    fn effective(&self, guarantee: u64) -> u64 {
        let promised = self.promised.load(Ordering::Relaxed);
        if promised <= self.limit {
            return guarantee;
        }
        let share = u128::from(guarantee) * u128::from(self.limit) / u128::from(promised);
        u64::try_from(share).unwrap_or(guarantee)
    }

    fn borrow(&self, bytes: u64) -> Result<(), Exhausted> {
        if bytes == 0 {
            return Ok(());
        }
        let pool = self.limit.saturating_sub(self.promised.load(Ordering::Relaxed));
        let grant = |borrowed: u64| borrowed.checked_add(bytes).filter(|after| *after <= pool);
        match self.borrowed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grant) {
            Ok(_) => Ok(()),
            Err(_) => Err(Exhausted::Node),
        }
    }
}

impl Account {
    /// Reserves `bytes` or nothing.
    pub fn reserve(&self, bytes: u64) -> Result<Guard, Exhausted> {
        self.take(bytes)?;
        Ok(Guard { account: self.clone(), bytes })
    }

    /// Bytes reserved now.
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    /// What the account may hold.
    pub fn limit(&self) -> MemoryLimit {
        self.lock().limit
    }

    /// Applies a new policy. What is held above a lowered ceiling stays held until its guards end.
    pub fn change(&self, limit: MemoryLimit) {
        let mut state = self.lock();
        let promised = &self.inner.node.promised;
        promised.fetch_add(limit.guarantee, Ordering::Relaxed);
        promised.fetch_sub(state.limit.guarantee, Ordering::Relaxed);
        state.limit = limit;
    }

    fn take(&self, bytes: u64) -> Result<(), Exhausted> {
        let mut state = self.lock();
        let used =
            state.used.checked_add(bytes).filter(|used| *used <= state.limit.ceiling).ok_or(Exhausted::Tenant)?;
        let own = self.inner.node.effective(state.limit.guarantee).saturating_sub(state.used - state.borrowed);
        let borrowed = bytes.saturating_sub(own);
        self.inner.node.borrow(borrowed)?;
        state.used = used;
        state.borrowed += borrowed;
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        let mut state = self.lock();
        let returned = state.borrowed.min(bytes);
        state.used -= bytes;
        state.borrowed -= returned;
        self.inner.node.borrowed.fetch_sub(returned, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between lock and unlock can panic half-way through a change.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.node.promised.fetch_sub(state.limit.guarantee, Ordering::Relaxed);
    }
}

impl Guard {
    /// Bytes it holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reserves `bytes` more, or leaves it as it is.
    pub fn grow(&mut self, bytes: u64) -> Result<(), Exhausted> {
        self.account.take(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Gives back what is above `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        if bytes < self.bytes {
            self.account.give_back(self.bytes - bytes);
            self.bytes = bytes;
        }
    }

    /// Moves up to `bytes` into a guard of their own.
    pub fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { account: self.account.clone(), bytes }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.account.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: MemoryLimit = MemoryLimit { guarantee: 100, ceiling: 300 };

    /// Scenario: one tenant takes all it can get, then its neighbour wants its guarantee.
    /// Guarantees: the neighbour gets it whole, whatever the first one holds; the pool is shared, ceilings hold.
    #[test]
    fn a_greedy_tenant_cannot_touch_the_guarantee_of_another() {
        let ledger = Ledger::new(450);
        let (greedy, quiet) = (ledger.account(LIMIT), ledger.account(LIMIT));

        let held = greedy.reserve(300).expect("guarantee and 200 of the pool's 250");
        assert_eq!(greedy.reserve(1).map(|_| ()), Err(Exhausted::Tenant));
        assert_eq!(quiet.reserve(151).map(|_| ()), Err(Exhausted::Node));
        let _own = quiet.reserve(100).expect("the guarantee");
        let _rest = quiet.reserve(50).expect("the rest of the pool");
        assert_eq!(ledger.borrowed(), 250);

        drop(held);
        assert_eq!((greedy.used(), ledger.borrowed()), (0, 50));
    }

    /// Scenario: guards grow, shrink, split and end in any order.
    /// Guarantees: no byte is lost or made up; what was borrowed goes back first.
    #[test]
    fn guards_return_exactly_what_they_took() {
        let ledger = Ledger::new(1_000);
        let account = ledger.account(LIMIT);

        let mut guard = account.reserve(80).expect("within the guarantee");
        guard.grow(120).expect("100 from the pool");
        assert_eq!(guard.grow(101), Err(Exhausted::Tenant));
        assert_eq!((guard.bytes(), ledger.borrowed()), (200, 100));
        let part = guard.split(150);
        drop(guard);
        assert_eq!((account.used(), ledger.borrowed()), (150, 50));
        drop(part);
        assert_eq!((account.used(), ledger.borrowed()), (0, 0));
    }

    /// Scenario: more tenants attach than the node can promise their guarantees.
    /// Guarantees: each still gets an even share, and the sum never exceeds the node's limit.
    #[test]
    fn guarantees_shrink_evenly_when_too_much_is_promised() {
        let ledger = Ledger::new(200);
        let accounts: Vec<_> = (0..4).map(|_| ledger.account(LIMIT)).collect();

        let guards: Vec<_> = accounts.iter().map(|account| account.reserve(50).expect("an even share")).collect();
        assert_eq!(accounts[0].reserve(1).map(|_| ()), Err(Exhausted::Node));
        drop((guards, accounts));

        assert!(ledger.account(LIMIT).reserve(200).is_ok(), "closed accounts promise nothing");
    }
}

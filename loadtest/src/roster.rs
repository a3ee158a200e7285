//! The agents of a run: which processes they are now, and what each has spent, whenever and however it ended.
//!
//! ```text
//! spent   of an agent: CPU time of its process, of those that it started and that are there, and of those that they waited for;
//!         never less than was seen before. An agent that ends is looked at once more before it is waited for.
//! ```
//!
//! One that starts an agent enters it; any thread may look. What ends between two looks and is waited for by nobody of its family
//! (the child of an agent that is killed) is counted up to the last look.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::measure::{self, Memory, Processes, Usage};

/// Of one run.
#[derive(Debug, Default)]
pub struct Roster(Mutex<Vec<Entry>>);

#[derive(Debug)]
struct Entry {
    role: &'static str,
    pid: u32,
    spent: Duration,
    is_there: bool,
}

/// One agent on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Number(usize);

impl Roster {
    /// A process was started; equal roles are added up.
    pub(crate) fn enter(&self, role: &'static str, pid: u32) -> Number {
        let mut entries = self.entries();
        entries.push(Entry { role, pid, spent: Duration::ZERO, is_there: true });
        Number(entries.len() - 1)
    }

    /// It has ended or is about to be killed, and nobody has waited for it yet: the last look at it.
    pub(crate) fn leave(&self, number: Number) -> io::Result<()> {
        let entry = &mut self.entries()[number.0];
        if std::mem::take(&mut entry.is_there) {
            let spent = measure::unless_gone(measure::own_and_waited_time(entry.pid))?;
            entry.spent = entry.spent.max(spent.unwrap_or_default());
        }
        Ok(())
    }

    /// Looks at all of them. `closely`: to the nanosecond for threads that are there, instead of to the kernel's tick.
    pub(crate) fn look(&self, closely: bool) -> io::Result<Processes> {
        let processes = Processes::read()?;
        for entry in self.entries().iter_mut().filter(|entry| entry.is_there) {
            entry.see(&processes, closely)?;
        }
        Ok(processes)
    }

    /// CPU seconds by role, as of the last look.
    pub(crate) fn spent(&self) -> BTreeMap<String, f64> {
        let mut roles = BTreeMap::new();
        for entry in self.entries().iter() {
            *roles.entry(entry.role.to_owned()).or_default() += entry.spent.as_secs_f64();
        }
        roles
    }

    /// KiB that they have resident, pages that they share counted for each.
    pub(crate) fn resident(&self, processes: &Processes) -> u64 {
        self.families(processes).into_iter().map(|pid| processes.resident(pid)).sum()
    }

    /// What they hold, page by page: costs them time.
    pub(crate) fn memory(&self) -> io::Result<Memory> {
        let mut sum = Memory::default();
        for pid in self.families(&Processes::read()?) {
            let one = measure::unless_gone(measure::memory(pid))?.unwrap_or_default();
            sum = Memory { rss: sum.rss + one.rss, pss: sum.pss + one.pss, private: sum.private + one.private };
        }
        Ok(sum)
    }

    /// What they have and have done.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let mut sum = Usage::default();
        for pid in self.families(&Processes::read()?) {
            let one = measure::unless_gone(measure::usage(pid))?.unwrap_or_default();
            sum.threads += one.threads;
            sum.descriptors += one.descriptors;
            sum.switches += one.switches;
        }
        Ok(sum)
    }

    fn families(&self, processes: &Processes) -> Vec<u32> {
        self.entries().iter().filter(|entry| entry.is_there).flat_map(|entry| processes.family(entry.pid)).collect()
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn see(&mut self, processes: &Processes, closely: bool) -> io::Result<()> {
        let mut spent = Duration::ZERO;
        for pid in processes.family(self.pid) {
            let threads = if closely { measure::unless_gone(measure::threads_time(pid))? } else { None };
            spent += processes.own_time(pid).max(threads.unwrap_or_default()) + processes.waited_time(pid);
        }
        self.spent = self.spent.max(spent);
        Ok(())
    }
}

/// What was spent between two looks, by role.
pub(crate) fn since(now: BTreeMap<String, f64>, before: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let then = |role: &str| before.get(role).copied().unwrap_or_default();
    now.into_iter().map(|(role, spent)| (role.clone(), (spent - then(&role)).max(0.0))).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

    use super::*;

    fn busy(roster: &Roster) -> f64 {
        roster.spent().get("busy").copied().unwrap_or_default()
    }

    fn start(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap()
    }

    /// Scenario: an agent works, is looked at, and is killed before the end of the run; another one has its number afterwards.
    /// Guarantees: what it had spent is still counted: a crash does not make an arm cheap.
    #[test]
    fn a_killed_process_leaves_its_bill() {
        let roster = Roster::default();
        let mut child = start("while :; do :; done");
        let number = roster.enter("busy", child.id());
        while busy(&roster) < 0.01 {
            roster.look(true).unwrap();
        }
        child.kill().unwrap();
        roster.leave(number).unwrap();
        child.wait().unwrap();
        let before = roster.spent();
        roster.look(true).unwrap();
        assert!(busy(&roster) >= 0.01);
        assert!(since(roster.spent(), &before)["busy"] < 1e-9);
    }

    /// Scenario: an agent works and ends between two looks, as one does that is asked to end and empties its queue.
    /// Guarantees: what it has spent, and what its own child has for which it waited, is counted before it is waited for.
    #[test]
    fn what_is_spent_at_the_end_is_counted() {
        let work = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        for script in [work.to_owned(), format!("({work}) & wait")] {
            let roster = Roster::default();
            let mut child = start(&script);
            let number = roster.enter("busy", child.id());
            // Ended, and not waited for.
            waitid(WaitId::Pid(Pid::from_child(&child)), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
            roster.leave(number).unwrap();
            child.wait().unwrap();
            assert!(busy(&roster) >= 0.01, "{script}: {}", busy(&roster));
        }
    }

    /// Scenario: an agent that has started another process, and one that has ended without being waited for.
    /// Guarantees: both are weighed with the agent; what is gone weighs nothing and is no error.
    #[test]
    fn a_family_is_weighed() {
        let roster = Roster::default();
        let mut child = start("sleep 1000 & read -r end; kill $!");
        roster.enter("busy", child.id());
        let processes = || Processes::read().unwrap();
        while processes().family(child.id()).len() < 2 {}
        let usage = roster.usage().unwrap();
        assert_eq!(usage.threads, 2);
        assert!(roster.memory().unwrap().pss > 0 && roster.resident(&processes()) > 0);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!((roster.usage().unwrap(), roster.memory().unwrap()), (Usage::default(), Memory::default()));
    }
}

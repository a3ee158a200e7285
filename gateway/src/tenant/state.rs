//! A tenant's life as one pure function.
//!
//! Owns which state follows which, and what has to be done about it. It never reads a clock, a socket or a counter: the
//! tenant's task feeds it events and carries the effects out. It ends in `Gone`, from where a pod may still come back.
//!
//! ```text
//! Attached -> Serving <-> {Throttled, Quarantined} -> Draining -> Flushing -> Gone -> Reattached -> Serving
//! ```

use tokio::time::Instant;

/// Where a tenant is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Known, and never connected to since the gateway's start.
    Attached,
    /// Its connections are polled.
    Serving,
    /// Its refusals exceeded their budget: connections and listeners are left unread for a moment.
    Throttled {
        /// When they are read again; at most a second away.
        until: Instant,
    },
    /// Misbehaved: nothing of it is read until somebody decides otherwise.
    Quarantined,
    /// Its listeners are gone: what is in flight finishes, idle connections close.
    Draining {
        /// When the rest is closed.
        deadline: Instant,
    },
    /// No connection is left; appends that wait for their commit are.
    Flushing {
        /// When they are no longer waited for. They commit all the same.
        deadline: Instant,
    },
    /// Nothing is left of it here but its queue.
    Gone,
    /// Its shim came back during or after a drain, and has not connected yet.
    Reattached,
}

/// Everything that can happen to a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A connection was handed over.
    Connected,
    /// More requests were refused than the tenant's refusal budget allows.
    RefusalsExceeded {
        /// When to read again.
        until: Instant,
    },
    /// Somebody decided that this tenant misbehaves.
    Quarantine,
    /// The decision was taken back.
    Release,
    /// The last listener is gone, or the gateway stops.
    Drain {
        /// When what is left is closed.
        deadline: Instant,
    },
    /// The last connection closed.
    Emptied,
    /// No append waits for its commit any more.
    Flushed,
    /// The moment that [`State::timer`] names is here.
    Elapsed,
    /// The pod's shim is here again.
    Reattach,
}

/// What the tenant's task has to do about a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Leave every connection unread; replies still leave.
    Hold,
    /// Read again.
    Read,
    /// GOAWAY, `Connection: close`; idle connections close now.
    SayGoodbye,
    /// Connections that come now are served without a goodbye.
    Welcome,
    /// Close what is left, finished or not.
    Cut,
}

impl State {
    /// The next state, and what to do about it, in this order.
    pub fn step(self, event: Event) -> (Self, &'static [Effect]) {
        use State::*;
        match (self, event) {
            (Attached | Reattached, Event::Connected) => (Serving, &[]),
            (Gone, Event::Connected) => (Serving, &[Effect::Welcome]),

            (Attached | Serving | Reattached, Event::RefusalsExceeded { until }) => {
                (Throttled { until }, &[Effect::Hold])
            }
            (Throttled { .. }, Event::Elapsed) => (Serving, &[Effect::Read]),

            (Attached | Serving | Reattached, Event::Quarantine) => (Quarantined, &[Effect::Hold]),
            // Held already: from now on until released, not for a moment.
            (Throttled { .. }, Event::Quarantine) => (Quarantined, &[]),
            (Quarantined, Event::Release) => (Serving, &[Effect::Read]),

            (Attached | Serving | Reattached, Event::Drain { deadline }) => {
                (Draining { deadline }, &[Effect::SayGoodbye])
            }
            (Throttled { .. } | Quarantined, Event::Drain { deadline }) => {
                (Draining { deadline }, &[Effect::Read, Effect::SayGoodbye])
            }
            // A second drain may only be more impatient than the first.
            (Draining { deadline: old }, Event::Drain { deadline }) => (Draining { deadline: old.min(deadline) }, &[]),
            (Flushing { deadline: old }, Event::Drain { deadline }) => (Flushing { deadline: old.min(deadline) }, &[]),

            (Draining { deadline }, Event::Emptied) => (Flushing { deadline }, &[]),
            (Draining { deadline }, Event::Elapsed) => (Flushing { deadline }, &[Effect::Cut]),
            // From the backlog, while the last appends commit.
            (Flushing { deadline }, Event::Connected) => (Draining { deadline }, &[]),
            (Flushing { .. }, Event::Flushed | Event::Elapsed) => (Gone, &[]),

            (Draining { .. } | Flushing { .. } | Gone, Event::Reattach) => (Reattached, &[Effect::Welcome]),
            (state, _) => (state, &[]),
        }
    }

    /// When `Event::Elapsed` is due.
    pub fn timer(self) -> Option<Instant> {
        match self {
            Self::Throttled { until } => Some(until),
            Self::Draining { deadline } | Self::Flushing { deadline } => Some(deadline),
            _ => None,
        }
    }

    /// Whether connections are taken from its listeners. A draining tenant still empties its backlog.
    pub fn takes_connections(self) -> bool {
        !matches!(self, Self::Throttled { .. } | Self::Quarantined)
    }

    /// Whether a drain of it still runs.
    pub fn is_draining(self) -> bool {
        matches!(self, Self::Draining { .. } | Self::Flushing { .. })
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Serving => "serving",
            Self::Throttled { .. } => "throttled",
            Self::Quarantined => "quarantined",
            Self::Draining { .. } => "draining",
            Self::Flushing { .. } => "flushing",
            Self::Gone => "gone",
            Self::Reattached => "reattached",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Scenario: every event in every state.
    /// Guarantees: the whole table, so that a change of one cell is a change of one line here.
    #[test]
    fn the_table_of_states_and_events() {
        let start = Instant::now();
        let (soon, later) = (start + Duration::from_secs(1), start + Duration::from_secs(2));
        let events = [
            Event::Connected,
            Event::RefusalsExceeded { until: soon },
            Event::Quarantine,
            Event::Release,
            Event::Drain { deadline: soon },
            Event::Emptied,
            Event::Flushed,
            Event::Elapsed,
            Event::Reattach,
        ];
        let states = [
            State::Attached,
            State::Serving,
            State::Throttled { until: later },
            State::Quarantined,
            State::Draining { deadline: later },
            State::Flushing { deadline: later },
            State::Gone,
            State::Reattached,
        ];
        let cell = |state: State, event: Event| {
            let (next, effects) = state.step(event);
            let effects: String = effects.iter().map(|effect| format!(" {effect:?}")).collect();
            if next.name() == state.name() && effects.is_empty() {
                ".".to_owned()
            } else {
                next.name().to_owned() + &effects
            }
        };

        let table: Vec<String> = states
            .iter()
            .map(|state| {
                let cells: Vec<String> = events.iter().map(|event| cell(*state, *event)).collect();
                format!("{}: {}", state.name(), cells.join(" | "))
            })
            .collect();

        // Columns: connected, refusals exceeded, quarantine, release, drain, emptied, flushed, elapsed, reattach.
        let expected = [
            "attached: serving | throttled Hold | quarantined Hold | . | draining SayGoodbye | . | . | . | .",
            "serving: . | throttled Hold | quarantined Hold | . | draining SayGoodbye | . | . | . | .",
            "throttled: . | . | quarantined | . | draining Read SayGoodbye | . | . | serving Read | .",
            "quarantined: . | . | . | serving Read | draining Read SayGoodbye | . | . | . | .",
            "draining: . | . | . | . | . | flushing | . | flushing Cut | reattached Welcome",
            "flushing: draining | . | . | . | . | . | gone | gone | reattached Welcome",
            "gone: serving Welcome | . | . | . | . | . | . | . | reattached Welcome",
            "reattached: serving | throttled Hold | quarantined Hold | . | draining SayGoodbye | . | . | . | .",
        ];
        assert_eq!(table, expected);
    }

    /// Scenario: a drain of two seconds is followed by one of one second, and the other way round.
    /// Guarantees: the earlier deadline counts, in either order and in either stage.
    #[test]
    fn a_second_drain_only_shortens_the_first() {
        let start = Instant::now();
        let (soon, later) = (start + Duration::from_secs(1), start + Duration::from_secs(2));

        for (first, second) in [(soon, later), (later, soon)] {
            let (draining, _) = State::Serving.step(Event::Drain { deadline: first });
            assert_eq!(draining.step(Event::Drain { deadline: second }).0.timer(), Some(soon));
            let (flushing, _) = draining.step(Event::Emptied);
            assert_eq!(flushing.step(Event::Drain { deadline: second }).0.timer(), Some(soon));
        }
    }
}

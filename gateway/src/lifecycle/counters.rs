//! What the lifecycle did since the start, for /metrics and for tests. Written by its threads, read by the admin server.

use pillion_proto::control::NackCode;

use crate::base::stats::Counter;

/// All monotonic.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted on `ctl`.
    pub sessions: Counter,
    /// Of these, closed unserved because a newer one was waiting.
    pub sessions_superseded: Counter,
    /// Sessions closed because the shim did not read what it was sent.
    pub sessions_unread: Counter,
    /// Packets that were no message; each ends its session.
    pub messages_malformed: Counter,
    /// Messages of a kind that this version does not know, ignored.
    pub messages_unknown: Counter,
    /// Listeners taken into custody.
    pub donations_accepted: Counter,
    /// Donations of a listener that was in custody already.
    pub donations_repeated: Counter,
    /// Requests refused, by the position of their code in [`Counters::CODES`].
    pub refused: [Counter; 14],
    /// Listeners that their pod had shut down.
    pub listeners_dead: Counter,
    /// Accepts that hung and were broken off; each moves its tenant to relay.
    pub watchdog_trips: Counter,
    /// Connections accepted and handed to a tenant.
    pub connections: Counter,
    /// Connections that the tenant's worker had no room for at once; offered again after a pause.
    pub connections_given_back: Counter,
    /// Connections closed because they had come in on another address than the one donated.
    pub connections_strayed: Counter,
    /// Times a listener was left unread for a moment, because its tenant had no room for a connection.
    pub pauses: Counter,
    /// Times the process or the node had no descriptor or memory left for a connection.
    pub starved: Counter,
    /// Wake-ups of the acceptor threads.
    pub wakeups: Counter,
}

impl Counters {
    /// The codes that [`Counters::refused`] counts, in its order, with their `reason` label.
    pub const CODES: [(NackCode, &'static str); 14] = [
        (NackCode::NotAListener, "not_a_listener"),
        (NackCode::NotLoopback, "not_loopback"),
        (NackCode::PortNotOffered, "port_not_offered"),
        (NackCode::WrongNamespace, "wrong_namespace"),
        (NackCode::OwnNamespace, "own_namespace"),
        (NackCode::NamespaceTaken, "namespace_taken"),
        (NackCode::TooMany, "too_many"),
        (NackCode::Unsupported, "unsupported"),
        (NackCode::Draining, "draining"),
        (NackCode::RateLimited, "rate_limited"),
        (NackCode::FdMissing, "fd_missing"),
        (NackCode::VersionTooOld, "version_too_old"),
        (NackCode::OutOfOrder, "out_of_order"),
        (NackCode::ListenerDead, "listener_dead"),
    ];

    pub(super) fn refuse(&self, code: NackCode) {
        if let Some(index) = Self::CODES.iter().position(|(known, _)| *known == code) {
            self.refused[index].add(1);
        }
    }

    /// How often a request was refused with this code.
    pub fn refused_with(&self, code: NackCode) -> u64 {
        Self::CODES.iter().position(|(known, _)| *known == code).map_or(0, |index| self.refused[index].value())
    }
}

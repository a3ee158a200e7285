//! Families about the control plane: custody with the CSI driver, control sockets, acceptors.

use std::fmt;

use super::super::view::Report;
use super::{Out, Samples, add, alone};
use crate::base::stats::Counter;
use crate::lifecycle::Counters;

/// Only in a cluster.
pub(super) fn custody(report: &Report, out: &mut Out<'_>) -> fmt::Result {
    let Some(custody) = &report.node.custody else { return Ok(()) };
    out.gauge(
        "pillion_custody_connected",
        "1 while the CSI driver tells which pods there are.",
        alone(u64::from(custody.connected)),
    )?;
    out.counter(
        "pillion_custody_reconnects",
        "Connections to the CSI driver after the first one.",
        alone(custody.reconnects),
    )?;
    out.gauge("pillion_custody_volumes", "Volumes known, superseded ones included.", alone(custody.volumes as u64))?;
    let mut refused = Samples::new();
    for (reason, count) in &custody.refused {
        add(&mut refused, vec![("reason", (*reason).to_owned())], *count);
    }
    out.counter("pillion_custody_volumes_refused", "Volumes, or sockets of them, that were not taken.", refused)
}

/// [`Counters`], all of them.
pub(super) fn lifecycle(report: &Report, out: &mut Out<'_>) -> fmt::Result {
    let Some(counters) = &report.lifecycle else { return Ok(()) };
    let mut refused = Samples::new();
    for ((_, reason), count) in Counters::CODES.iter().zip(&counters.refused) {
        add(&mut refused, vec![("reason", (*reason).to_owned())], count.value());
    }
    out.counter("pillion_shim_requests_refused", "Requests of shims that were refused.", refused)?;
    let families: [(&str, &str, &Counter); 15] = [
        ("pillion_shim_sessions", "Connections accepted on `ctl`.", &counters.sessions),
        (
            "pillion_shim_sessions_superseded",
            "Of these, closed unserved because a newer one was waiting.",
            &counters.sessions_superseded,
        ),
        (
            "pillion_shim_sessions_unread",
            "Sessions closed because the shim did not read what it was sent.",
            &counters.sessions_unread,
        ),
        ("pillion_shim_messages_malformed", "Packets that were no message.", &counters.messages_malformed),
        ("pillion_shim_messages_unknown", "Messages of a kind that is not known.", &counters.messages_unknown),
        ("pillion_donations_accepted", "Listeners taken into custody.", &counters.donations_accepted),
        ("pillion_donations_repeated", "Donations of a listener in custody.", &counters.donations_repeated),
        ("pillion_listeners_dead", "Listeners that their pod had shut down.", &counters.listeners_dead),
        (
            "pillion_accepts_hung",
            "Accepts that hung and were broken off; each moves its tenant to relay.",
            &counters.watchdog_trips,
        ),
        ("pillion_accepted_connections", "Connections handed to tenants.", &counters.connections),
        (
            "pillion_accepted_connections_given_back",
            "Connections that a tenant's worker had no room for at once.",
            &counters.connections_given_back,
        ),
        (
            "pillion_accepted_connections_strayed",
            "Connections closed because they came in on another address than the one donated.",
            &counters.connections_strayed,
        ),
        ("pillion_accept_pauses", "Times a listener was left unread for a moment.", &counters.pauses),
        ("pillion_accept_starved", "Times no descriptor or memory was left for a connection.", &counters.starved),
        ("pillion_acceptor_wakeups", "Wake-ups of the acceptor threads.", &counters.wakeups),
    ];
    for (name, help, counter) in families {
        out.counter(name, help, alone(counter.value()))?;
    }
    Ok(())
}

//! What is set on every accepted socket before anything is read: a pod chose the options of the listener, and an accepted
//! socket inherits them (docs/threats.md rows 3 and 6).
//!
//! Failures are not errors: each option only narrows what the pod can do to its own traffic, and the socket's reader has
//! its own deadlines. SO_LINGER is the exception in kind: it comes first, and its call cannot fail on a socket.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;

use crate::sys;
use crate::tenant::SocketKind;

/// Charged to the gateway's memory, not to the pod's, and covered by the fixed charge of a connection in the ledger. As
/// large as HTTP/2's window at its start; the kernel doubles both figures for its own bookkeeping.
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;
const SEND_BUFFER_BYTES: usize = 16 * 1024;

/// How long sent bytes may stay unacknowledged. On loopback only a frozen or vanished pod takes that long.
const USER_TIMEOUT_MS: u32 = 30_000;

const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Resets what was inherited.
pub(super) fn prepare(socket: impl AsFd, kind: SocketKind) {
    let socket = socket.as_fd();
    if kind == SocketKind::Unix {
        // `otlp` is the gateway's own listener: nothing was inherited that a pod has chosen.
        let _ = sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER_BYTES);
        return;
    }
    let _ = sockopt::set_socket_linger(socket, None);
    let _ = sockopt::set_tcp_nodelay(socket, true);
    let _ = sockopt::set_socket_recv_buffer_size(socket, RECEIVE_BUFFER_BYTES);
    let _ = sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER_BYTES);
    let _ = sys::set_receive_low_water(socket, 1);
    let _ = sockopt::set_tcp_user_timeout(socket, USER_TIMEOUT_MS);
    let _ = sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE);
    let _ = sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL);
    let _ = sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES);
    let _ = sockopt::set_socket_keepalive(socket, true);
}

//! Brings up the loopback interface of a new network namespace: one RTM_NEWLINK message, rtnetlink(7).

use std::io;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, sendto, socket};

const RTM_NEWLINK: u16 = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const IFF_UP: u32 = 1;
/// The loopback interface is the first of every namespace.
const LOOPBACK: i32 = 1;

/// Sets IFF_UP on the loopback interface.
pub(super) fn bring_up_loopback() -> io::Result<()> {
    // No protocol number is NETLINK_ROUTE.
    let netlink = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    let message = set_up(LOOPBACK);
    sendto(&netlink, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0u8; 1024];
    let (length, _) = recv(&netlink, &mut answer[..], RecvFlags::empty())?;
    // struct nlmsghdr, then the error number.
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes);
    let error = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if length < 20 || kind != NLMSG_ERROR || error != 0 {
        return Err(io::Error::from_raw_os_error(-error));
    }
    Ok(())
}

/// struct nlmsghdr {len, type, flags, seq, pid}, struct ifinfomsg {family, pad, type, index, flags, change}.
fn set_up(index: i32) -> Vec<u8> {
    let mut message = Vec::with_capacity(32);
    message.extend(32u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(index.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message
}

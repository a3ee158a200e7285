//! Modes of a few lines.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Context, Result};

use super::{Options, until_terminated};

/// Nothing, until told to end: an application that is always ready, or a native sidecar to compare with.
pub(super) fn idle(options: &mut Options) -> Result<()> {
    options.finish()?;
    until_terminated()
}

/// A name server that knows one address.
pub(super) fn dns(options: &mut Options) -> Result<()> {
    let address: Ipv4Addr = options.take("answer")?;
    options.finish()?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).context("binding UDP port 53")?;
    std::thread::Builder::new().name("dns".into()).spawn(move || {
        let mut packet = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            if let Some(answer) = answer(&packet[..length], address) {
                // A lost answer is asked for again.
                drop(socket.send_to(&answer, from));
            }
        }
    })?;
    until_terminated()
}

/// The answer to a query of one question: the address for type A, no records for any other type.
fn answer(query: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let name = query.get(12..)?.iter().position(|byte| *byte == 0)?;
    let question = query.get(12..12 + name + 5)?;
    let is_a = question[name + 1..name + 3] == [0, 1];
    let mut out = query[..2].to_vec();
    // A response, authoritative, recursion as asked for; one question, zero or one answer.
    out.extend([0x85, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    out.extend(question);
    if is_a {
        // The name at offset 12, type A, class IN, 5 s, four bytes.
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        out.extend(address.octets());
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a query for the address of `a.b`, one for its IPv6 address, and half a query.
    /// Guarantees: the address, no records, nothing.
    #[test]
    fn it_answers_what_a_resolver_understands() {
        let query = |kind: u8| {
            let mut query = vec![7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 1, b'b', 0, 0, kind, 0, 1];
            query.extend([0; 11]);
            query
        };
        let address = Ipv4Addr::new(192, 0, 2, 7);
        let given = answer(&query(1), address).expect("a whole query");
        assert_eq!((&given[..2], given[7], &given[given.len() - 4..]), (&[7, 8][..], 1, &[192, 0, 2, 7][..]));
        assert_eq!(answer(&query(28), address).expect("a whole query")[7], 0);
        assert_eq!(answer(&query(1)[..15], address), None);
    }
}

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

const V4: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4317);
const V6: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 4318);

fn to_gateway() -> Vec<(ToGateway, &'static str)> {
    vec![
        (
            ToGateway::Hello(Hello {
                version: 1,
                shim_version: "0.1.0".to_owned(),
                instance: 0x0102_0304_0506_0708,
                capabilities: Capabilities::DONATE | Capabilities::RELAY,
            }),
            "50010100 00000000 0002 0001 0005 302e312e30 0008 0102030405060708 0004 00000005",
        ),
        (ToGateway::Donate { id: 7, address: V4 }, "50010200 00000007 0007 04 7f000001 10dd"),
        (ToGateway::Conn { id: 8, listener: V6 }, "50010300 00000008 0013 06 00000000000000000000000000000001 10de"),
        (ToGateway::Ready, "50010400 00000000"),
        (ToGateway::Dialed { id: 9, error: None }, "50010500 00000009 0001 00 0000"),
        (ToGateway::Dialed { id: 9, error: Some("no".to_owned()) }, "50010500 00000009 0001 01 0002 6e6f"),
        (ToGateway::Pong, "50010600 00000000"),
        (ToGateway::Bye { id: 0xffff_ffff }, "50010700 ffffffff"),
    ]
}

fn to_shim() -> Vec<(ToShim, &'static str)> {
    vec![
        (
            ToShim::Welcome(Welcome { version: 1, ports: vec![4317, 4318], mode: Mode::Donate }),
            "50018100 00000000 0002 0001 0004 10dd10de 0001 01",
        ),
        (ToShim::Return { address: V4 }, "50018200 00000000 0007 04 7f000001 10dd"),
        (ToShim::Returned, "50018300 00000000"),
        (ToShim::Ack { id: 7 }, "50018400 00000007"),
        (
            ToShim::Nack(Nack { id: 7, code: NackCode::FdMissing, reason: "é".to_owned() }),
            "50018500 00000007 0002 000b 0002 c3a9",
        ),
        (ToShim::Credit { connections: 64 }, "50018600 00000000 0004 00000040"),
        (ToShim::Dial { id: 3, port: 9090 }, "50018700 00000003 0002 2382"),
        (ToShim::Mode { mode: Mode::Relay }, "50018800 00000000 0001 03"),
        (ToShim::Handoff, "50018900 00000000"),
        (ToShim::Ping, "50018a00 00000000"),
    ]
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| *byte != b' ').collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// Scenario: every message of version 1 in both directions, in its released form.
/// Guarantees: the bytes on the wire never change, and read back as the same message.
#[test]
fn each_message_has_its_golden_bytes() {
    for (message, golden) in to_gateway() {
        assert_eq!(message.encode(), bytes(golden), "{message:?}");
        assert_eq!(ToGateway::decode(&bytes(golden)), Ok(Some(message)));
    }
    for (message, golden) in to_shim() {
        assert_eq!(message.encode(), bytes(golden), "{message:?}");
        assert_eq!(ToShim::decode(&bytes(golden)), Ok(Some(message)));
    }
}

/// Scenario: a peer of a later version adds a field to each message.
/// Guarantees: what this version knows is read as before.
#[test]
fn bytes_after_the_last_known_field_are_ignored() {
    for (message, golden) in to_gateway() {
        let longer = [bytes(golden), vec![0, 1, 42, 99]].concat();
        assert_eq!(ToGateway::decode(&longer), Ok(Some(message)));
    }
    for (message, golden) in to_shim() {
        let longer = [bytes(golden), vec![0, 1, 42, 99]].concat();
        assert_eq!(ToShim::decode(&longer), Ok(Some(message)));
    }
}

/// Scenario: a peer of a later version sends kinds that this one has never heard of.
/// Guarantees: they are told apart from garbage, so that the session goes on.
#[test]
fn unknown_kinds_are_none_and_not_an_error() {
    let kinds = |known: std::ops::RangeInclusive<u8>| (0..=u8::MAX).filter(move |kind| !known.contains(kind));
    for kind in kinds(0x01..=0x07) {
        assert_eq!(ToGateway::decode(&[b'P', 1, kind, 0, 0, 0, 0, 0, 1, 2, 3]), Ok(None), "{kind:#x}");
    }
    for kind in kinds(0x81..=0x8a) {
        assert_eq!(ToShim::decode(&[b'P', 1, kind, 0, 0, 0, 0, 0, 1, 2, 3]), Ok(None), "{kind:#x}");
    }
}

/// Scenario: each message is cut after each of its bytes.
/// Guarantees: nothing is read beyond the cut: every cut is an error, and none a shorter message.
#[test]
fn a_cut_message_is_refused() {
    for (message, golden) in to_gateway() {
        let whole = bytes(golden);
        for end in 0..whole.len() {
            assert_eq!(ToGateway::decode(&whole[..end]), Err(DecodeError::Truncated), "{message:?} cut at {end}");
        }
    }
    for (message, golden) in to_shim() {
        let whole = bytes(golden);
        for end in 0..whole.len() {
            assert_eq!(ToShim::decode(&whole[..end]), Err(DecodeError::Truncated), "{message:?} cut at {end}");
        }
    }
}

/// Scenario: one message for each way of being wrong.
/// Guarantees: the error says which it was.
#[test]
fn malformed_messages_say_what_is_wrong() {
    let cases = [
        ("47455420 2f204854", DecodeError::Magic),
        ("50020400 00000000", DecodeError::Encoding(2)),
        ("50018700 00000003 0003 002382", DecodeError::Length),
        ("50018100 00000000 0002 0001 0003 10dd10 0001 01", DecodeError::Length),
        ("50018100 00000000 0002 0001 0012 000100010001000100010001000100010001 0001 01", DecodeError::Length),
        ("50018800 00000000 0001 00", DecodeError::Value),
        ("50018200 00000000 0007 05 7f000001 10dd", DecodeError::Value),
        ("50018200 00000000 0006 04 7f000001 10", DecodeError::Length),
        ("50018200 00000000 0007 06 7f000001 10dd", DecodeError::Length),
        ("50018200 00000000 0000", DecodeError::Length),
        ("50018500 00000007 0002 000b 0001 ff", DecodeError::Text),
    ];
    for (hex, error) in cases {
        assert_eq!(ToShim::decode(&bytes(hex)), Err(error), "{hex}");
    }
    assert_eq!(ToGateway::decode(&bytes("50010500 00000009 0001 02 0000")), Err(DecodeError::Value));

    let mut longest = ToShim::Ping.encode();
    longest.resize(MESSAGE_BYTES_MAX, 0);
    assert_eq!(ToShim::decode(&longest), Ok(Some(ToShim::Ping)));
    longest.push(0);
    assert_eq!(ToShim::decode(&longest), Err(DecodeError::TooLong));
}

/// Scenario: a reason and a list of ports that are longer than their limits.
/// Guarantees: the packet stays within them, ends at a character boundary, and the peer can read it.
#[test]
fn what_is_too_long_is_cut_when_it_is_sent() {
    let reason = format!("{}é", "x".repeat(TEXT_BYTES_MAX - 1));
    let packet = ToShim::Nack(Nack { id: 1, code: NackCode::TooMany, reason }).encode();
    let Ok(Some(ToShim::Nack(nack))) = ToShim::decode(&packet) else { panic!("not a NACK any more") };
    assert_eq!(nack.reason, "x".repeat(TEXT_BYTES_MAX - 1));

    let packet = ToShim::Welcome(Welcome { version: 1, ports: (1..20).collect(), mode: Mode::Conn }).encode();
    let Ok(Some(ToShim::Welcome(welcome))) = ToShim::decode(&packet) else { panic!("not a WELCOME any more") };
    assert_eq!(welcome.ports, (1..=8).collect::<Vec<u16>>());
}

/// Scenario: every number that a NACK can carry.
/// Guarantees: codes of later versions keep their number, and no two known codes share one.
#[test]
fn every_refusal_code_survives_the_wire() {
    for number in 0..=u16::MAX {
        let code = NackCode::from_wire(number);
        assert_eq!(code.to_wire(), number, "{code:?}");
        assert_eq!(matches!(code, NackCode::Other(_)), !(1..=14).contains(&number), "{number}");
    }
}

/// Scenario: peers of every version meet this one.
/// Guarantees: the lower of the two is spoken, and what was given up is refused in words that help.
#[test]
fn the_lower_version_is_spoken() {
    assert_eq!(negotiate(VERSION), Ok(VERSION));
    assert_eq!(negotiate(u16::MAX), Ok(VERSION));
    let refusal = negotiate(OLDEST_VERSION - 1).expect_err("below the oldest");
    assert!(refusal.to_string().contains("upgrade"), "{refusal}");
}

/// Scenario: a shim that was told to relay only.
/// Guarantees: a mode is allowed by its own bit and by no other.
#[test]
fn capabilities_name_the_modes() {
    let modes = [(Mode::Donate, 1), (Mode::Conn, 2), (Mode::Relay, 4)];
    for (mode, bit) in modes {
        assert!(Capabilities(bit).allows(mode));
        assert!(!Capabilities(!bit).allows(mode));
    }
}

/// Scenario: one message of each kind.
/// Guarantees: only those that the table of the module names may bring a descriptor.
#[test]
fn only_some_messages_carry_a_descriptor() {
    let carriers = to_gateway().into_iter().filter(|(message, _)| message.carries_fd()).count();
    assert_eq!(carriers, 3, "DONATE, CONN and DIALED without an error");
    assert!(!ToGateway::Dialed { id: 1, error: Some(String::new()) }.carries_fd());
    let carriers: Vec<_> = to_shim().into_iter().filter(|(message, _)| message.carries_fd()).collect();
    assert!(matches!(carriers.as_slice(), [(ToShim::Return { .. }, _)]));
}

/// Scenario: 200,000 packets: random bytes, and valid ones with a few bytes changed, cut or appended.
/// Guarantees: decoding never panics, and what decodes encodes to a packet that decodes to the same.
#[test]
fn no_packet_panics_and_what_decodes_survives_a_round_trip() {
    let mut random = Random(0x5eed);
    let corpus: Vec<Vec<u8>> =
        to_gateway().iter().map(|case| bytes(case.1)).chain(to_shim().iter().map(|case| bytes(case.1))).collect();
    let mut understood = 0;
    for _ in 0..200_000 {
        let mut packet = corpus[random.below(corpus.len())].clone();
        for _ in 0..random.below(4) {
            match random.below(4) {
                0 => packet.truncate(random.below(packet.len() + 1)),
                1 => packet.push(random.byte()),
                2 => packet = (0..random.below(64)).map(|_| random.byte()).collect(),
                _ if packet.is_empty() => {}
                _ => {
                    let at = random.below(packet.len());
                    packet[at] = random.byte();
                }
            }
        }
        if let Ok(Some(message)) = ToGateway::decode(&packet) {
            assert_eq!(ToGateway::decode(&message.encode()), Ok(Some(message)), "{packet:?}");
            understood += 1;
        }
        if let Ok(Some(message)) = ToShim::decode(&packet) {
            assert_eq!(ToShim::decode(&message.encode()), Ok(Some(message)), "{packet:?}");
            understood += 1;
        }
    }
    assert!(understood > 50_000, "only {understood} packets were messages: the test looks at nothing");
}

/// xorshift64*: the same packets on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next()).unwrap() % end
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.next() & 0xff).unwrap()
    }
}

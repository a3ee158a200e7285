use super::*;

fn to_driver() -> Vec<(ToDriver, &'static str)> {
    let hello = ToDriver::Hello { version: 1, gateway_version: "0.1.0".to_owned(), instance: 0x0102_0304_0506_0708 };
    vec![
        (hello, "43010100 00000000 0002 0001 0005 302e312e30 0008 0102030405060708"),
        (ToDriver::Return, "43010200 00000000"),
        (ToDriver::Ready, "43010300 00000000"),
        (ToDriver::Attached { uid: "a-1".to_owned(), error: None }, "43010400 00000000 0003 612d31 0000"),
        (
            ToDriver::Attached { uid: "a-1".to_owned(), error: Some("no".to_owned()) },
            "43010400 00000000 0003 612d31 0002 6e6f",
        ),
    ]
}

fn to_gateway() -> Vec<(ToGateway, &'static str)> {
    let volume = Volume {
        uid: "a-1".to_owned(),
        namespace: "shop".to_owned(),
        pod: "cart".to_owned(),
        service_account: "sa".to_owned(),
        ports: vec![4317, 4318],
    };
    vec![
        (
            ToGateway::Welcome { version: 1, driver_version: "0.1.0".to_owned() },
            "43018100 00000000 0002 0001 0005 302e312e30",
        ),
        (
            ToGateway::Volume(volume),
            "43018200 00000000 0003 612d31 0004 73686f70 0004 63617274 0002 7361 0004 10dd10de",
        ),
        (ToGateway::Otlp { uid: "a-1".to_owned() }, "43018300 00000000 0003 612d31"),
        (ToGateway::Unpublished { uid: "a-1".to_owned() }, "43018400 00000000 0003 612d31"),
        (ToGateway::Ready, "43018500 00000000"),
        (ToGateway::Refused { reason: "no".to_owned() }, "43018600 00000000 0002 6e6f"),
    ]
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| *byte != b' ').collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// Scenario: every message of version 1 in both directions, in its released form, and with a field of a later version.
/// Guarantees: the bytes on the wire never change, and read back as the same message, whatever follows them.
#[test]
fn each_message_has_its_golden_bytes() {
    for (message, golden) in to_driver() {
        assert_eq!(message.encode(), bytes(golden), "{message:?}");
        assert_eq!(ToDriver::decode(&bytes(golden)), Ok(Some(message.clone())));
        assert_eq!(ToDriver::decode(&[bytes(golden), vec![0, 1, 42]].concat()), Ok(Some(message)));
    }
    for (message, golden) in to_gateway() {
        assert_eq!(message.encode(), bytes(golden), "{message:?}");
        assert_eq!(ToGateway::decode(&bytes(golden)), Ok(Some(message.clone())));
        assert_eq!(ToGateway::decode(&[bytes(golden), vec![0, 1, 42]].concat()), Ok(Some(message)));
    }
}

/// Scenario: each message is cut after each of its bytes; then a message of the control protocol, and an unknown kind.
/// Guarantees: a cut is an error and never a shorter message; the two protocols are told apart; unknown kinds are ignored.
#[test]
fn what_is_not_a_message_is_refused() {
    for (message, golden) in to_driver() {
        let whole = bytes(golden);
        for end in 0..whole.len() {
            assert_eq!(ToDriver::decode(&whole[..end]), Err(DecodeError::Truncated), "{message:?} cut at {end}");
        }
    }
    for (message, golden) in to_gateway() {
        let whole = bytes(golden);
        for end in 0..whole.len() {
            assert_eq!(ToGateway::decode(&whole[..end]), Err(DecodeError::Truncated), "{message:?} cut at {end}");
        }
    }
    assert_eq!(ToGateway::decode(&crate::control::ToGateway::Ready.encode()), Err(DecodeError::Magic));
    assert_eq!(ToDriver::decode(&[b'C', 1, 0x7f, 0, 0, 0, 0, 0, 9]), Ok(None));
    let long = [bytes("43018400 00000000"), vec![0, 254], vec![b'a'; 254]].concat();
    assert_eq!(ToGateway::decode(&long), Err(DecodeError::Length));
}

/// Scenario: fields longer than any that Kubernetes allows.
/// Guarantees: every packet keeps to its limit and can be read.
#[test]
fn a_packet_never_exceeds_its_limit() {
    let long = "é".repeat(3000);
    let volume = Volume {
        uid: long.clone(),
        namespace: long.clone(),
        pod: long.clone(),
        service_account: long.clone(),
        ports: vec![1; 100],
    };
    for message in [ToGateway::Volume(volume), ToGateway::Refused { reason: long.clone() }] {
        let packet = message.encode();
        assert!(packet.len() <= MESSAGE_BYTES_MAX && matches!(ToGateway::decode(&packet), Ok(Some(_))), "{message:?}");
    }
    let packet = ToDriver::Attached { uid: long.clone(), error: Some(long) }.encode();
    assert!(packet.len() <= MESSAGE_BYTES_MAX && matches!(ToDriver::decode(&packet), Ok(Some(_))));
}

/// Scenario: the paths that getsockname gives for sockets of ours, and for those of others.
/// Guarantees: only our own names tell a pod's uid, and a uid never holds a path.
#[test]
fn a_bound_name_tells_whose_socket_it_is() {
    for kind in Kind::ALL {
        let path = format!("/proc/self/fd/9/{}\0", bound_name(kind, "0a-F"));
        assert_eq!(parse_bound_name(path.as_bytes()), Some((kind, "0a-F")));
    }
    for foreign in ["", "/", "ctl", ".ctl", ".ctl.", ".ctl.a/b", ".ctl.a.b", "/x/.otl.a", "\0abstract", ".ctl.\u{fc}"] {
        assert_eq!(parse_bound_name(foreign.as_bytes()), None, "{foreign:?}");
    }
    assert_eq!(parse_bound_name(format!(".ctl.{}", "a".repeat(65)).as_bytes()), None);
}

/// Scenario: peers of every version.
/// Guarantees: the lower version is spoken, and one that was given up is refused.
#[test]
fn the_lower_version_is_spoken() {
    assert_eq!((negotiate(0), negotiate(1), negotiate(9)), (None, Some(1), Some(VERSION)));
}

//! The decoder of the custody protocol: whatever arrives, it must not panic, and what it understands must encode to
//! something that it understands in the same way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion_proto::custody::{MESSAGE_BYTES_MAX, ToDriver, ToGateway, bound_name, parse_bound_name};

fuzz_target!(|packet: &[u8]| {
    if let Ok(Some(message)) = ToDriver::decode(packet) {
        let again = message.encode();
        assert!(again.len() <= MESSAGE_BYTES_MAX);
        assert_eq!(ToDriver::decode(&again), Ok(Some(message)));
    }
    if let Ok(Some(message)) = ToGateway::decode(packet) {
        let again = message.encode();
        assert!(again.len() <= MESSAGE_BYTES_MAX);
        assert_eq!(ToGateway::decode(&again), Ok(Some(message)));
    }
    if let Some((kind, uid)) = parse_bound_name(packet) {
        assert_eq!(parse_bound_name(bound_name(kind, uid).as_bytes()), Some((kind, uid)));
    }
});

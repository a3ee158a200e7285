//! The decoder of the control protocol reads what any pod sends: it must never panic, and what it understands must
//! encode to something that it understands in the same way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion_proto::control::{MESSAGE_BYTES_MAX, ToGateway, ToShim};

fuzz_target!(|packet: &[u8]| {
    if let Ok(Some(message)) = ToGateway::decode(packet) {
        let again = message.encode();
        assert!(again.len() <= MESSAGE_BYTES_MAX);
        assert_eq!(ToGateway::decode(&again), Ok(Some(message)));
    }
    if let Ok(Some(message)) = ToShim::decode(packet) {
        let again = message.encode();
        assert!(again.len() <= MESSAGE_BYTES_MAX);
        assert_eq!(ToShim::decode(&again), Ok(Some(message)));
    }
});

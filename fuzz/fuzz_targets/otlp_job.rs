//! Arbitrary bytes as a request: never a panic or a hang, in one step or in many; what comes out is valid and keeps its
//! items; reading and splitting bytes that nobody validated is harmless.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pillion_gateway::base::{Attribute, Signal};
use pillion_gateway::pipeline::{Invalid, Job, Output, Plan, Step};
use pillion_gateway::wire;

fn run(signal: Signal, payload: &Bytes, plan: &Plan, budget: usize) -> Result<Output, Invalid> {
    let mut job = Job::new(signal, payload.clone());
    for _ in 0..payload.len() * 40 + 10_000 {
        if let Step::Done(output) = job.step(plan, budget)? {
            return Ok(output);
        }
    }
    panic!("no progress");
}

fuzz_target!(|input: &[u8]| {
    let [control, payload @ ..] = input else { return };
    let signal = Signal::ALL[usize::from(*control) % 3];
    let payload = Bytes::copy_from_slice(payload);
    let plan = Plan::new(&[Attribute::new("k", "attested")], &[Attribute::new("d", "default")]);
    let nothing = Plan::new(&[], &[]);

    let output = run(signal, &payload, &plan, usize::MAX);
    assert_eq!(run(signal, &payload, &plan, 1 + usize::from(*control)), output);
    for part in output.iter().flat_map(|output| &output.parts) {
        let again = run(signal, &part.payload, &nothing, usize::MAX).expect("an output is valid");
        assert_eq!(again.items, part.items);
        assert_eq!(wire::count(&part.payload, signal), part.items);
    }
    let max = usize::from(*control);
    for (part, items) in wire::split(&payload, signal, max).iter().flatten() {
        assert!(part.len() <= max);
        // The fields of malformed bytes are not the same fields elsewhere.
        assert!(output.is_err() || wire::count(part, signal) == *items);
    }
    wire::resources(&payload, signal).for_each(drop);
});

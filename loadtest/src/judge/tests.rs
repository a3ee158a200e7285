use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

use super::*;
use crate::profile::{CARDINAL, OWN, Profile, SHOP};
use crate::template::Stamp;

const TIME: u64 = 1_800_000_000_000_000_000;

struct World {
    judge: Judge,
    ledger: Ledger,
    plan: Arc<Plan>,
}

impl World {
    fn new() -> Self {
        Self::of(SHOP)
    }

    fn of(profile: &str) -> Self {
        let profile = Profile::parse(profile).unwrap();
        let plan = Arc::new(Plan::new(&profile, 11, 3, [20, 7, 5]).unwrap());
        let resource = profile.says().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let judge = Judge::new(Settings { plan: plan.clone(), attested: None, resource });
        Self { judge, ledger: Ledger::new(3), plan }
    }

    /// A request that was sent and acknowledged.
    fn request(&self, signal: Signal, pod: u16) -> Vec<u8> {
        let variant = 1;
        let template = &self.plan.templates(signal)[usize::from(variant)];
        let first = self.ledger.take(pod, signal, template.items()).unwrap();
        self.ledger.acknowledge(pod, signal, first, template.items());
        let mut out = Vec::new();
        template.write(signal, &self.plan.ids, Stamp { pod, variant, first, time: TIME }, &mut out);
        out
    }

    fn arrive(&self, signal: Signal, request: &[u8]) {
        self.judge.arrive(signal, request, TIME + 5_000_000).unwrap();
    }

    fn account(&self) -> Account {
        self.judge.account(&self.ledger)
    }
}

fn changed(request: &[u8], change: impl FnOnce(&mut ExportTraceServiceRequest)) -> Vec<u8> {
    let mut message = ExportTraceServiceRequest::decode(request).unwrap();
    change(&mut message);
    message.encode_to_vec()
}

/// Scenario: all signals of all pods arrive, the spans decoded and encoded again, in two halves and in another order.
/// Guarantees: nothing is wrong with that; reordering is counted.
#[test]
fn what_an_honest_agent_does_is_no_mistake() {
    let world = World::new();
    for pod in 0..3 {
        for signal in Signal::ALL {
            let request = world.request(signal, pod);
            if signal == Signal::Traces {
                let half = |upper: bool| {
                    changed(&request, |message| {
                        let spans = &mut message.resource_spans[0].scope_spans[0].spans;
                        let rest = spans.split_off(10);
                        if upper {
                            *spans = rest;
                        }
                    })
                };
                world.arrive(signal, &half(true));
                world.arrive(signal, &half(false));
            } else {
                world.arrive(signal, &request);
            }
        }
    }
    let account = world.account();
    assert_eq!(account.mistakes(), [""; 0], "{account:?}");
    assert_eq!((account.sent, account.acknowledged, account.delivered), (96, 96, 96));
    assert_eq!(account.reordered, 30);
    assert_eq!(world.judge.delivery(&world.ledger).max().map(|longest| longest.as_millis()), Some(5));
}

/// Scenario: two requests of each signal whose items have an attribute with a value of their own; the spans of two of them exchange
/// it, and one loses it.
/// Guarantees: no two items have the same value, of one template or of one place in it; an honest arrival is no mistake, and an item
/// with another's value or none is corrupted.
#[test]
fn values_of_their_own_are_each_items_alone() {
    let world = World::of(CARDINAL);
    let mut values = std::collections::HashSet::new();
    for signal in Signal::ALL.into_iter().cycle().take(6) {
        let request = world.request(signal, 1);
        each_item(signal, &request, &mut |place| {
            let own = Parts::of(signal, place.item)?.own.expect("the profile has it");
            assert!(values.insert((signal, own.value)), "{signal:?}: {own:x?} twice");
            Ok(())
        })
        .unwrap();
        world.arrive(signal, &request);
    }
    assert_eq!(values.len(), 64);
    assert_eq!(world.account().mistakes(), [""; 0]);

    let request = changed(&world.request(Signal::Traces, 2), |message| {
        let spans = spans(message);
        let place = spans[0].attributes.iter().position(|attribute| attribute.key == OWN).unwrap();
        let (first, rest) = spans.split_at_mut(1);
        std::mem::swap(&mut first[0].attributes[place], &mut rest[0].attributes[place]);
        rest[1].attributes.remove(place);
    });
    world.arrive(Signal::Traces, &request);
    assert_eq!(world.account().corrupted, 3);
}

/// Scenario: each kind of mistake, once, in an otherwise good run.
/// Guarantees: it is counted as what it is, exactly as often, and as nothing else.
#[test]
fn each_mistake_is_told_as_what_it_is() {
    type Change = fn(&mut ExportTraceServiceRequest);
    let cases: [(&str, Change, Account); 15] = [
        ("a span dropped", |m| drop(spans(m).pop()), Account { lost: 1, ..Account::default() }),
        (
            "a span twice",
            |m| {
                let last = spans(m)[19].clone();
                spans(m).push(last);
            },
            Account { duplicated: 1, ..Account::default() },
        ),
        ("a name", |m| spans(m)[3].name.push('x'), Account { corrupted: 1, ..Account::default() }),
        ("an attribute", |m| drop(spans(m)[3].attributes.pop()), Account { corrupted: 1, ..Account::default() }),
        ("a trace id", |m| spans(m)[3].trace_id[15] ^= 1, Account { corrupted: 1, ..Account::default() }),
        ("a parent", |m| spans(m)[3].parent_span_id.clear(), Account { corrupted: 1, ..Account::default() }),
        ("a duration", |m| spans(m)[3].end_time_unix_nano += 1, Account { corrupted: 1, ..Account::default() }),
        ("an end", |m| spans(m)[3].end_time_unix_nano = 0, Account { corrupted: 1, ..Account::default() }),
        (
            "both times, far back",
            |m| shift(&mut spans(m)[3], -2 * 86_400),
            Account { corrupted: 1, ..Account::default() },
        ),
        ("both times, ahead", |m| shift(&mut spans(m)[3], 60), Account { corrupted: 1, ..Account::default() }),
        ("an id", |m| spans(m)[3].span_id[0] ^= 1, Account { lost: 1, foreign: 1, ..Account::default() }),
        ("another pod", |m| rename(m, INSTANCE, "cart-0002"), Account { misattributed: 20, ..Account::default() }),
        ("the service", |m| rename(m, "service.name", "pay"), Account { corrupted: 20, ..Account::default() }),
        (
            "another attribute of the resource",
            |m| m.resource_spans[0].resource.as_mut().unwrap().attributes.retain(|one| one.key != "telemetry.sdk.name"),
            Account { corrupted: 20, ..Account::default() },
        ),
        (
            "a name that is there twice",
            |m| {
                let attributes = &mut m.resource_spans[0].resource.as_mut().unwrap().attributes;
                attributes.insert(0, crate::payload::attribute(INSTANCE, "cart-0000"));
            },
            Account { misattributed: 20, ..Account::default() },
        ),
    ];
    for (what, change, expected) in cases {
        let world = World::new();
        let good = world.request(Signal::Traces, 0);
        world.arrive(Signal::Traces, &good);
        let request = world.request(Signal::Traces, 1);
        world.arrive(Signal::Traces, &changed(&request, change));
        let account = world.account();
        let told = [account.lost, account.duplicated, account.corrupted, account.misattributed, account.foreign];
        let wanted = [expected.lost, expected.duplicated, expected.corrupted, expected.misattributed, expected.foreign];
        assert_eq!(told, wanted, "{what}: {account:?}");
        assert!(!account.mistakes().is_empty());
    }
}

/// Scenario: a request arrives twice, the second time an hour later; another one was acknowledged and never arrives.
/// Guarantees: a repeat makes no delivery slower, what is missing is slower than all.
#[test]
fn delivery_is_of_first_arrivals_and_of_what_is_missing() {
    let world = World::new();
    let request = world.request(Signal::Traces, 0);
    world.arrive(Signal::Traces, &request);
    world.judge.arrive(Signal::Traces, &request, TIME + 3_600 * SECOND).unwrap();
    let delivery = world.judge.delivery(&world.ledger);
    assert_eq!((delivery.count(), delivery.max().map(|longest| longest.as_millis())), (20, Some(5)));
    world.request(Signal::Traces, 1);
    let delivery = world.judge.delivery(&world.ledger);
    assert_eq!((delivery.count(), delivery.unanswered(), delivery.percentile(0.99)), (40, 20, None));
}

/// Scenario: the agent promises to say whose items are, and says it rightly, wrongly and not at all.
/// Guarantees: only the right name is no mistake.
#[test]
fn an_agents_own_word_is_held_against_the_pod() {
    let plan = World::new().plan;
    for (attested, misattributed) in [(Some("cart-0001"), 0), (Some("cart-0000"), 20), (None, 20)] {
        let settings = Settings { plan: plan.clone(), attested: Some("k8s.pod.name".to_owned()), resource: Vec::new() };
        let world = World { judge: Judge::new(settings), ledger: Ledger::new(3), plan: plan.clone() };
        let request = world.request(Signal::Traces, 1);
        let request = changed(&request, |message| {
            let resource = message.resource_spans[0].resource.as_mut().unwrap();
            resource.attributes.extend(attested.map(|name| crate::payload::attribute("k8s.pod.name", name)));
        });
        world.arrive(Signal::Traces, &request);
        assert_eq!(world.account().misattributed, misattributed, "{attested:?}");
    }
}

/// Scenario: an item is refused and arrives nevertheless; another is refused and does not.
/// Guarantees: neither is a mistake: only what was acknowledged is owed.
#[test]
fn only_what_was_acknowledged_is_owed() {
    let world = World::new();
    let template = &world.plan.templates(Signal::Logs)[0];
    for arrives in [true, false] {
        let first = world.ledger.take(0, Signal::Logs, template.items()).unwrap();
        let mut request = Vec::new();
        template.write(Signal::Logs, &world.plan.ids, Stamp { pod: 0, variant: 0, first, time: TIME }, &mut request);
        if arrives {
            world.arrive(Signal::Logs, &request);
        }
    }
    let account = world.account();
    assert_eq!((account.sent, account.delivered_unacknowledged, account.lost), (10, 5, 0));
    assert!(account.mistakes().is_empty());
}

/// Scenario: a request that ends in the middle of an item, and one of noise.
/// Guarantees: both are told, neither panics, and what was lost with them is owed.
#[test]
fn what_is_no_otlp_is_told() {
    let world = World::new();
    let request = world.request(Signal::Metrics, 2);
    assert!(world.judge.arrive(Signal::Metrics, &request[..request.len() - 3], TIME).is_err());
    assert!(world.judge.arrive(Signal::Logs, b"\xff\xff\xff", TIME).is_err());
    assert_eq!((world.account().malformed, world.account().lost), (2, 7));
}

/// Scenario: an agent that writes the fields of every message from the last to the first, and empty ones too.
/// Guarantees: that is the same message, and no mistake.
#[test]
fn the_order_of_fields_means_nothing() {
    let world = World::new();
    for signal in Signal::ALL {
        let request = world.request(signal, 1);
        let reversed = reversed(signal, &mut Vec::new(), &request);
        assert_ne!(reversed, request);
        world.arrive(signal, &reversed);
    }
    let account = world.account();
    assert_eq!((account.mistakes().as_slice(), account.delivered), (&[][..], 32), "{account:?}");
}

/// The same message with its fields in the other order, in all messages below it.
fn reversed(signal: Signal, path: &mut Vec<u64>, message: &[u8]) -> Vec<u8> {
    let fields: Vec<_> = crate::wire::Fields::of(message).map(Result::unwrap).collect();
    // The key of a field in these messages is one byte long.
    let starts = fields.iter().map(|field| match field.value {
        crate::wire::Value::Bytes(bytes) => field.at - 1 - prost::length_delimiter_len(bytes.len()),
        _ => field.at - 1,
    });
    let starts: Vec<usize> = starts.chain([message.len()]).collect();
    let mut out = Vec::new();
    for (index, field) in fields.iter().enumerate().rev() {
        path.push(field.number);
        match field.value {
            crate::wire::Value::Bytes(bytes) if is_message(signal, path) => {
                out.push(message[starts[index]]);
                let inner = reversed(signal, path, bytes);
                prost::encode_length_delimiter(inner.len(), &mut out).unwrap();
                out.extend(inner);
            }
            _ => out.extend_from_slice(&message[starts[index]..starts[index + 1]]),
        }
        path.pop();
    }
    if signal == Signal::Traces && matches!(path[..], [1, 2, 2]) {
        // An empty status.
        out.extend([0x7a, 0]);
    }
    out
}

fn is_message(signal: Signal, path: &[u64]) -> bool {
    let attribute = match signal {
        Signal::Traces => &[1, 2, 2, 9][..],
        Signal::Metrics => &[1, 2, 2, 5, 1, 7][..],
        Signal::Logs => &[1, 2, 2, 6][..],
    };
    let sum = &[1, 2, 2, 7, 1, 7][..];
    let is_on_the_way = |to: &[u64]| to.starts_with(path) || path.strip_prefix(to).is_some_and(|rest| rest == [2]);
    is_on_the_way(attribute)
        || signal == Signal::Metrics && is_on_the_way(sum)
        || matches!(path, [1, 1, ..] if path.len() < 4)
        || matches!(path, [1, 2, 1])
        || signal == Signal::Logs && matches!(path, [1, 2, 2, 5])
}

fn spans(message: &mut ExportTraceServiceRequest) -> &mut Vec<opentelemetry_proto::tonic::trace::v1::Span> {
    &mut message.resource_spans[0].scope_spans[0].spans
}

fn shift(span: &mut opentelemetry_proto::tonic::trace::v1::Span, seconds: i64) {
    for time in [&mut span.start_time_unix_nano, &mut span.end_time_unix_nano] {
        *time = time.saturating_add_signed(seconds * 1_000_000_000);
    }
}

fn rename(message: &mut ExportTraceServiceRequest, key: &str, value: &str) {
    let resource = message.resource_spans[0].resource.as_mut().unwrap();
    let attribute = resource.attributes.iter_mut().find(|attribute| attribute.key == key).unwrap();
    *attribute = crate::payload::attribute(key, value);
}

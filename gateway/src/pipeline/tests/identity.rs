//! Whose data it is: what a pod may not say about itself, and what enrichment leaves alone.

use super::*;

/// Scenario: the pod sent exactly what is attested and all that is added; or the policy adds nothing.
/// Guarantees: the payload comes out as the very same memory: no copy.
#[test]
fn no_change_means_no_copy() {
    let resource = resource_field(&[
        ("k8s.pod.uid", "cart"),
        ("k8s.pod.name", "größer"),
        ("service.name", "mine"),
        ("deployment.environment.name", ""),
    ]);
    for plan in [plan(), no_plan()] {
        let payload = Bytes::from(around_a_span(&resource));
        let Ok(Step::Done(output)) = Job::new(Signal::Traces, payload.clone()).step(&plan, usize::MAX) else {
            panic!("a valid request");
        };
        assert_eq!(single(&output).as_ptr(), payload.as_ptr());
        assert_eq!(output.overwritten, 0);
    }
}

/// Scenario: a pod claims another identity: by value, by type, several times, hidden behind a second key of the same
/// attribute, in a second resource field, without any value.
/// Guarantees: the backend sees the attested value once and no other; each false claim is counted, and only those.
#[test]
fn a_false_identity_is_overwritten_and_counted() {
    let uid = |value: &str| resource_field(&[("k8s.pod.uid", value)]);
    let raw = |attribute: &[u8]| {
        let (mut resource, mut field) = (Vec::new(), Vec::new());
        put_field(&mut resource, 1, attribute);
        put_field(&mut field, 1, &resource);
        field
    };
    let key = b"\x0a\x0bk8s.pod.uid";
    let cases: [(&str, Vec<u8>, u32); 11] = [
        ("absent", Vec::new(), 0),
        ("right", uid("cart"), 0),
        ("another value", uid("forged"), 1),
        ("right and another, in one resource", [uid("cart"), uid("forged")].concat(), 1),
        ("another and right", [uid("forged"), uid("cart")].concat(), 1),
        ("right twice", [uid("cart"), uid("cart")].concat(), 0),
        ("a number", raw(&[&key[..], b"\x12\x02\x18\x05"].concat()), 1),
        ("no value", raw(key), 1),
        ("behind another key", raw(&[b"\x0a\x01x", &key[..], b"\x12\x08\x0a\x06forged"].concat()), 1),
        ("right, then another member", raw(&[&key[..], b"\x12\x08\x0a\x04cart\x18\x05"].concat()), 1),
        ("right, with padded lengths", raw(&[&key[..], b"\x12\x87\x00\x0a\x84\x00cart"].concat()), 0),
    ];
    for (case, resource, overwritten) in cases {
        let output = run(Signal::Traces, &around_a_span(&resource), &plan()).expect(case);
        let attributes = attributes_in(single(&output));
        let claims: Vec<_> = attributes.iter().filter(|(key, _)| key == "k8s.pod.uid").collect();
        assert_eq!(claims.len(), 1, "{case}: {attributes:?}");
        assert_eq!(claims[0].1, text("cart"), "{case}");
        assert_eq!(output.overwritten, overwritten, "{case}");
    }
    let decoy = raw(&[&key[..], b"\x0a\x01x", b"\x12\x08\x0a\x06honest"].concat());
    let output = run(Signal::Traces, &around_a_span(&decoy), &plan()).expect("valid");
    assert_eq!(attributes_in(single(&output))[0], ("x".to_owned(), text("honest")), "the last key counts");
    assert_eq!(output.overwritten, 0);
}

/// Scenario: no, one and three resource fields around unknown fields and a schema URL.
/// Guarantees: one resource field comes out, at the first one's place, with the attributes of all in their order.
#[test]
fn several_resource_fields_become_one() {
    let (one, two, three) = (
        resource_field(&[("a", "1"), ("k8s.pod.uid", "forged")]),
        resource_field(&[("k8s.pod.uid", "false"), ("b", "2")]),
        resource_field(&[]),
    );
    let (unknown, url) = (b"\xa2\x06\x02hi".to_vec(), b"\x1a\x03url".to_vec());
    let sent = around_a_span(&[&unknown[..], &one, &url, &two, &unknown, &three].concat());
    let output = run(Signal::Traces, &sent, &plan()).expect("valid");

    let added = [
        ("a", "1"),
        ("b", "2"),
        ("k8s.pod.uid", "cart"),
        ("k8s.pod.name", "größer"),
        ("service.name", "fallback"),
        ("deployment.environment.name", "prod"),
    ];
    let expected = around_a_span(&[&unknown[..], &resource_field(&added), &url, &unknown].concat());
    assert_eq!(single(&output), expected);
    assert_eq!(output.overwritten, 2);
}

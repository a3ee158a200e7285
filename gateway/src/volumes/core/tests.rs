//! Whole stories, line by line: what happens, and what follows from it.

use super::*;

/// Carries out a story and checks each line of it, `event: effects`.
///
/// ```text
/// connected | welcomed | ready | gone (the connection) | retry
/// vol UID NAME COOKIE | otlp UID COOKIE | bad UID | unpublished UID | done NAME | failed NAME
/// ```
fn tell(core: &mut Core, story: &str) {
    for line in story.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (event, expected) = line.split_once(':').expect("event: effects");
        let effects: Vec<_> = core.step(parse(event)).iter().map(show).collect();
        assert_eq!(effects.join(", "), expected.trim(), "after {event:?} of\n{story}");
    }
}

fn name(text: &str) -> TenantName {
    TenantName::parse(&format!("shop/{text}")).expect("a name")
}

fn parse(event: &str) -> Event {
    let words: Vec<_> = event.split_whitespace().collect();
    let number = |text: &str| text.parse().expect("a cookie");
    match words[..] {
        ["connected"] => Event::Connected,
        ["welcomed"] => Event::Welcomed,
        ["ready"] => Event::Ready,
        ["gone"] => Event::Disconnected,
        ["retry"] => Event::Retry,
        ["vol", uid, pod, ctl] => {
            let info = Info {
                uid: uid.into(),
                name: name(pod),
                service_account: "default".to_owned(),
                ports: Ports::default(),
            };
            Event::Volume { info, ctl: number(ctl) }
        }
        ["otlp", uid, otlp] => Event::Otlp { uid: uid.into(), otlp: number(otlp) },
        ["bad", uid] => Event::Unusable { uid: uid.into(), reason: Refusal::Socket, words: "no socket".to_owned() },
        ["unpublished", uid] => Event::Unpublished { uid: uid.into() },
        ["done", pod] => Event::Changed { name: name(pod), outcome: Ok(()) },
        ["failed", pod] => Event::Changed { name: name(pod), outcome: Err("the log is full".to_owned()) },
        _ => panic!("no event: {event}"),
    }
}

fn show(effect: &Effect) -> String {
    match effect {
        Effect::Greet => "greet".to_owned(),
        Effect::Return { cookie } => format!("return {cookie}"),
        Effect::Returned => "returned".to_owned(),
        Effect::Keep { cookie } => format!("keep {cookie}"),
        Effect::CloseArrived => "close copy".to_owned(),
        Effect::Close { cookie } => format!("close {cookie}"),
        Effect::Change { name, from, to } => {
            let to = to.as_ref().map(|to| format!("{}({} {})", to.info.uid, to.ctl, to.otlp));
            format!("{}: {} -> {}", name.name(), from.as_deref().unwrap_or("-"), to.as_deref().unwrap_or("-"))
        }
        Effect::Tell { uid, error: None } => format!("attached {uid}"),
        Effect::Tell { uid, error: Some((reason, _)) } => format!("refused {uid} {reason:?}"),
        Effect::Announced(true) => "announced".to_owned(),
        Effect::Announced(false) => "unannounced".to_owned(),
        Effect::HangUp(_) => "hang up".to_owned(),
    }
}

const FIRST_START: &str = "
    connected: greet
    welcomed: returned
    vol a web 1: keep 1
    otlp a 2: keep 2, web: - -> a(1 2)
    vol b db 3: keep 3
    otlp b 4: keep 4, db: - -> b(3 4)
    done web: attached a
    ready: announced
    done db: attached b
";

fn served() -> Core {
    let mut core = Core::default();
    tell(&mut core, FIRST_START);
    core
}

fn states(core: &Core) -> String {
    let states = core.states().into_iter().map(|(name, pod)| format!("{} {} {}", name.name(), pod.uid, pod.state));
    states.collect::<Vec<_>>().join(", ")
}

/// Scenario: a gateway starts, and the driver tells two pods.
/// Guarantees: each is served once both its sockets are there, and the driver is told when it is.
#[test]
fn first_start() {
    let core = served();
    assert_eq!(states(&core), "db b served, web a served");
    assert!(core.is_live());
}

/// Scenario: a pod is published while the connection stands, twice; and unpublished, twice.
/// Guarantees: the second time changes nothing but the answer, and no descriptor is kept twice.
#[test]
fn a_volume_that_is_told_twice() {
    tell(
        &mut served(),
        "vol c api 5: keep 5
         otlp c 6: keep 6, api: - -> c(5 6)
         vol c api 5: close copy
         otlp c 6: close copy
         done api: attached c
         vol c api 5: close copy
         otlp c 6: close copy, attached c
         unpublished c: close 5, close 6, api: c -> -
         unpublished c:
         done api:",
    );
}

/// Scenario: the driver starts again: it is given its sockets back, and lists again.
/// Guarantees: the cookies are those of before, so that nothing is changed; no pod's end is announced in between.
#[test]
fn the_driver_starts_again() {
    tell(
        &mut served(),
        "gone: unannounced
         connected: greet
         welcomed: return 1, return 2, return 3, return 4, returned
         vol a web 1: close copy
         otlp a 2: close copy, attached a
         vol b db 3: close copy
         otlp b 4: close copy, attached b
         ready: announced",
    );
}

/// Scenario: both have started again, so that the driver has bound anew; and the driver alone while it held a socket that
/// the gateway had not yet been given.
/// Guarantees: sockets with other cookies replace the ones of before, one change each, and nothing of before is kept.
#[test]
fn both_start_again() {
    let mut fresh = Core::default();
    tell(&mut fresh, FIRST_START);
    tell(
        &mut fresh,
        "gone: unannounced
         connected: greet
         welcomed: return 1, return 2, return 3, return 4, returned
         vol a web 11: keep 11, close 1
         otlp a 12: keep 12, close 2, web: a -> a(11 12)
         vol b db 3: close copy
         otlp b 14: keep 14, close 4, db: b -> b(3 14)
         ready: announced
         done web: attached a
         done db: attached b",
    );
    assert_eq!(states(&fresh), "db b served, web a served");
}

/// Scenario: somebody has removed a pod's `ctl`, and the driver binds one anew and tells only that.
/// Guarantees: it is served from then on; shims that connect wait for nothing else.
#[test]
fn one_socket_is_bound_anew() {
    tell(
        &mut served(),
        "vol a web 11: keep 11, close 1, web: a -> a(11 2)
         done web: attached a
         otlp a 12: keep 12, close 2, web: a -> a(11 12)
         done web: attached a",
    );
}

/// Scenario: a driver that has started again tells a new `ctl` of a pod in its list, and its `otlp` is lost on the way.
/// Guarantees: the new one is served all the same when the list is complete.
#[test]
fn a_list_that_lost_half_of_a_pod() {
    tell(
        &mut served(),
        "gone: unannounced
         connected: greet
         welcomed: return 1, return 2, return 3, return 4, returned
         vol a web 11: keep 11, close 1
         vol b db 3: close copy
         otlp b 4: close copy, attached b
         ready: web: a -> a(11 2), announced
         done web: attached a",
    );
}

/// Scenario: a pod is deleted while the driver is away from the gateway.
/// Guarantees: it is gone when the next list is complete and not before; the other one stays.
#[test]
fn unpublished_while_disconnected() {
    let mut core = served();
    tell(
        &mut core,
        "gone: unannounced
         connected: greet
         gone: unannounced
         connected: greet
         welcomed: return 1, return 2, return 3, return 4, returned
         vol b db 3: close copy
         otlp b 4: close copy, attached b
         ready: close 1, close 2, web: a -> -, announced
         done web:",
    );
    assert_eq!((states(&core), core.len()), ("db b served".to_owned(), 1));
}

/// Scenario: a pod was deleted by force: one of the same name and another uid comes before it is unpublished.
/// Guarantees: the newer one supersedes it, after the older one has ended; the older one's unpublish touches nothing; a list
/// in which the older one comes last does not bring it back.
#[test]
fn a_newer_pod_of_the_same_name_supersedes() {
    let mut core = served();
    tell(
        &mut core,
        "vol z web 5: keep 5
         otlp z 6: keep 6, web: a -> z(5 6)
         done web: attached z
         gone: unannounced
         connected: greet
         welcomed: return 1, return 2, return 3, return 4, return 5, return 6, returned
         vol b db 3: close copy
         otlp b 4: close copy, attached b
         vol z web 5: close copy
         otlp z 6: close copy, attached z
         vol a web 1: close copy
         otlp a 2: close copy, refused a Superseded
         ready: announced",
    );
    assert_eq!(core.states()[&name("web")].superseded, 1);
    tell(&mut core, "unpublished a: close 1, close 2");
    assert_eq!(states(&core), "db b served, web z served");
}

/// Scenario: of two pods of one name the newer one is unpublished first.
/// Guarantees: the older one, which runs still, is served again.
#[test]
fn the_older_one_is_served_when_it_is_the_last() {
    tell(
        &mut served(),
        "vol z web 5: keep 5
         otlp z 6: keep 6, web: a -> z(5 6)
         done web: attached z
         unpublished z: close 5, close 6, web: z -> a(1 2)
         done web: attached a",
    );
}

/// Scenario: a pod comes and goes while the change before it has not ended.
/// Guarantees: changes of one name follow one another; what is no longer wanted is not begun.
#[test]
fn changes_of_a_name_follow_one_another() {
    let mut core = served();
    tell(
        &mut core,
        "unpublished a: close 1, close 2, web: a -> -
         vol z web 5: keep 5
         otlp z 6: keep 6
         unpublished z: close 5, close 6
         vol y web 7: keep 7
         otlp y 8: keep 8
         done web: web: - -> y(7 8)
         done web: attached y",
    );
    assert_eq!(states(&core), "db b served, web y served");
}

/// Scenario: a pod cannot be served, for example because the log is full.
/// Guarantees: the driver is told why; it is tried again when time has come, and at the next list; not otherwise.
#[test]
fn what_failed_is_tried_again() {
    let mut core = served();
    tell(
        &mut core,
        "vol c api 5: keep 5
         otlp c 6: keep 6, api: - -> c(5 6)
         failed api: refused c Failed
         otlp c 6: close copy",
    );
    assert!(core.has_failed());
    assert_eq!(states(&core), "api c failed, db b served, web a served");
    tell(
        &mut core,
        "retry: api: - -> c(5 6)
         failed api: refused c Failed
         gone: unannounced
         connected: greet
         welcomed: return 1, return 2, return 3, return 4, return 5, return 6, returned
         vol a web 1: close copy
         otlp a 2: close copy, attached a
         vol b db 3: close copy
         otlp b 4: close copy, attached b
         vol c api 5: close copy
         otlp c 6: close copy
         ready: api: - -> c(5 6), announced
         done api: attached c",
    );
    assert!(!core.has_failed());
    tell(
        &mut core,
        "vol d bad 7: keep 7
         otlp d 8: keep 8, bad: - -> d(7 8)
         failed bad: refused d Failed
         unpublished d: close 7, close 8",
    );
    assert!(!core.has_failed(), "it is gone");
}

/// Scenario: descriptors that are not what the message says, for a known pod and an unknown one; a driver out of turn.
/// Guarantees: a known pod is not taken for gone because of it; what comes out of turn ends the connection.
#[test]
fn what_cannot_be_taken() {
    tell(
        &mut served(),
        "bad q: close copy, refused q Socket
         otlp q 9: close copy
         gone: unannounced
         ready: hang up
         vol a web 1: close copy, hang up
         connected: greet
         ready: hang up
         welcomed: return 1, return 2, return 3, return 4, returned
         bad a: close copy, refused a Socket
         vol b db 3: close copy
         otlp b 4: close copy, attached b
         ready: announced",
    );
}

/// Scenario: more volumes than any node has.
/// Guarantees: those over the limit are refused by its name, and cost no descriptor.
#[test]
fn volumes_have_a_limit() {
    let mut core = Core::default();
    tell(&mut core, "connected: greet\nwelcomed: returned");
    for number in 0..VOLUMES_MAX {
        core.step(parse(&format!("vol u{number} n{number} {number}")));
    }
    tell(&mut core, "vol one too 99999: close copy, refused one TooMany\notlp one 99998: close copy");
    assert_eq!(core.len(), VOLUMES_MAX);
}

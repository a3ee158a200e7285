use super::*;

const OLD: u64 = 41;
const NEW: u64 = 42;
const GRACE: Duration = Duration::from_secs(5);

fn listener(cookie: u64) -> Listener {
    Listener { cookie, address: SocketAddr::from(([127, 0, 0, 1], 4317)) }
}

/// A custody in each phase, holding one listener (cookie 1, donated as id 7) wherever the phase allows it.
fn in_phase(name: &str, now: Instant) -> Custody {
    let mut custody = Custody::new(Some(GRACE));
    let script: &[Event] = match name {
        "absent" => &[],
        "listing" => &[Event::Greeted { namespace: OLD }, Event::Donated { id: 7, listener: listener(1) }],
        "serving" => {
            &[Event::Greeted { namespace: OLD }, Event::Donated { id: 7, listener: listener(1) }, Event::Ready]
        }
        "orphaned" => &[
            Event::Greeted { namespace: OLD },
            Event::Donated { id: 7, listener: listener(1) },
            Event::Ready,
            Event::Ended,
        ],
        "draining" => &[
            Event::Greeted { namespace: OLD },
            Event::Donated { id: 7, listener: listener(1) },
            Event::Ready,
            Event::Bye { id: 8 },
        ],
        "finishing" => &[
            Event::Greeted { namespace: OLD },
            Event::Donated { id: 7, listener: listener(1) },
            Event::Ready,
            Event::Bye { id: 8 },
            Event::BacklogEmpty,
        ],
        "gone" => &[Event::Greeted { namespace: OLD }, Event::Remove],
        other => panic!("no phase is called {other}"),
    };
    for event in script {
        custody.step(*event, now);
    }
    custody
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Absent => "absent",
        Phase::Listing => "listing",
        Phase::Serving => "serving",
        Phase::Orphaned { .. } => "orphaned",
        Phase::Draining { .. } => "draining",
        Phase::Finishing { .. } => "finishing",
        Phase::Gone => "gone",
    }
}

fn effect_name(effect: &Effect) -> String {
    match effect {
        Effect::Welcome(mode) => format!("welcome({})", mode.as_str()),
        Effect::Return(listener) => format!("return({})", listener.cookie),
        Effect::Returned => "returned".to_owned(),
        Effect::Keep { cookie } => format!("keep({cookie})"),
        Effect::CloseCopy { cookie } => format!("close_copy({cookie})"),
        Effect::Poll { cookie } => format!("poll({cookie})"),
        Effect::Release { cookie } => format!("release({cookie})"),
        Effect::Ack(id) => format!("ack({id})"),
        Effect::Nack(id, code) => format!("nack({id} {code:?})"),
        Effect::SetMode(mode) => format!("mode({})", mode.as_str()),
        Effect::HandOff => "handoff".to_owned(),
        Effect::Finish { .. } => "finish".to_owned(),
        Effect::HangUp => "hang_up".to_owned(),
    }
}

/// For each phase, what each event leads to. `tick` comes an hour later.
const TABLE: &str = "
absent    greeted  -> listing   : welcome(donate) returned
absent    moved    -> listing   : welcome(donate) returned
absent    donated  -> absent    : close_copy(2) nack(9 OutOfOrder)
absent    repeated -> absent    : close_copy(1) nack(9 OutOfOrder)
absent    ready    -> absent    :
absent    bye      -> absent    : nack(9 OutOfOrder)
absent    ended    -> absent    :
absent    died     -> absent    :
absent    hung     -> absent    :
absent    empty    -> absent    :
absent    finished -> absent    :
absent    tick     -> absent    :
absent    hand_off -> gone      : handoff hang_up
absent    remove   -> gone      : hang_up
listing   greeted  -> listing   : welcome(donate) return(1) returned
listing   moved    -> listing   : release(1) welcome(donate) returned
listing   donated  -> listing   : keep(2) ack(9)
listing   repeated -> listing   : close_copy(1) ack(9)
listing   ready    -> serving   : poll(1)
listing   bye      -> draining  : poll(1)
listing   ended    -> orphaned  : poll(1)
listing   died     -> listing   : release(1)
listing   hung     -> listing   : release(1) nack(7 ListenerDead) mode(relay)
listing   empty    -> listing   :
listing   finished -> listing   :
listing   tick     -> listing   :
listing   hand_off -> gone      : release(1) handoff hang_up
listing   remove   -> gone      : release(1) hang_up
serving   greeted  -> listing   : welcome(donate) return(1) returned
serving   moved    -> listing   : release(1) welcome(donate) returned
serving   donated  -> serving   : keep(2) poll(2) ack(9)
serving   repeated -> serving   : close_copy(1) ack(9)
serving   ready    -> serving   :
serving   bye      -> draining  :
serving   ended    -> orphaned  :
serving   died     -> serving   : release(1)
serving   hung     -> serving   : release(1) nack(7 ListenerDead) mode(relay)
serving   empty    -> serving   :
serving   finished -> serving   :
serving   tick     -> serving   :
serving   hand_off -> gone      : release(1) handoff hang_up
serving   remove   -> gone      : release(1) hang_up
orphaned  greeted  -> listing   : welcome(donate) return(1) returned
orphaned  moved    -> listing   : release(1) welcome(donate) returned
orphaned  donated  -> orphaned  : close_copy(2) nack(9 OutOfOrder)
orphaned  repeated -> orphaned  : close_copy(1) nack(9 OutOfOrder)
orphaned  ready    -> orphaned  :
orphaned  bye      -> orphaned  : nack(9 OutOfOrder)
orphaned  ended    -> orphaned  :
orphaned  died     -> absent    : release(1)
orphaned  hung     -> absent    : release(1)
orphaned  empty    -> orphaned  :
orphaned  finished -> orphaned  :
orphaned  tick     -> absent    : release(1) finish
orphaned  hand_off -> gone      : release(1) handoff hang_up
orphaned  remove   -> gone      : release(1) hang_up
draining  greeted  -> listing   : welcome(donate) return(1) returned
draining  moved    -> listing   : release(1) welcome(donate) returned
draining  donated  -> draining  : close_copy(2) nack(9 Draining)
draining  repeated -> draining  : close_copy(1) nack(9 Draining)
draining  ready    -> draining  :
draining  bye      -> draining  :
draining  ended    -> draining  :
draining  died     -> draining  : release(1)
draining  hung     -> draining  : release(1)
draining  empty    -> finishing : release(1) finish
draining  finished -> draining  :
draining  tick     -> finishing : release(1) finish
draining  hand_off -> gone      : release(1) handoff hang_up
draining  remove   -> gone      : release(1) hang_up
finishing greeted  -> listing   : welcome(donate) returned
finishing moved    -> listing   : welcome(donate) returned
finishing donated  -> finishing : close_copy(2) nack(9 Draining)
finishing repeated -> finishing : close_copy(1) nack(9 Draining)
finishing ready    -> finishing :
finishing bye      -> finishing :
finishing ended    -> finishing :
finishing died     -> finishing :
finishing hung     -> finishing :
finishing empty    -> finishing :
finishing finished -> absent    : ack(8)
finishing tick     -> finishing :
finishing hand_off -> gone      : handoff hang_up
finishing remove   -> gone      : hang_up
gone      greeted  -> gone      : hang_up
gone      moved    -> gone      : hang_up
gone      donated  -> gone      : close_copy(2) hang_up
gone      repeated -> gone      : close_copy(1) hang_up
gone      ready    -> gone      : hang_up
gone      bye      -> gone      : hang_up
gone      ended    -> gone      :
gone      died     -> gone      :
gone      hung     -> gone      :
gone      empty    -> gone      :
gone      finished -> gone      :
gone      tick     -> gone      :
gone      hand_off -> gone      :
gone      remove   -> gone      :
";

const PHASES: [&str; 7] = ["absent", "listing", "serving", "orphaned", "draining", "finishing", "gone"];

fn events() -> [(&'static str, Event); 14] {
    [
        ("greeted", Event::Greeted { namespace: OLD }),
        ("moved", Event::Greeted { namespace: NEW }),
        ("donated", Event::Donated { id: 9, listener: listener(2) }),
        ("repeated", Event::Donated { id: 9, listener: listener(1) }),
        ("ready", Event::Ready),
        ("bye", Event::Bye { id: 9 }),
        ("ended", Event::Ended),
        ("died", Event::Died { cookie: 1 }),
        ("hung", Event::Hung { cookie: 1 }),
        ("empty", Event::BacklogEmpty),
        ("finished", Event::Finished),
        ("tick", Event::Tick),
        ("hand_off", Event::HandOff),
        ("remove", Event::Remove),
    ]
}

/// Scenario: every event in every phase.
/// Guarantees: exactly the phases and effects of the table, in its order; a change of the rules is a change of the table.
#[test]
fn each_phase_meets_each_event_as_the_table_says() {
    let now = Instant::now();
    let mut table = String::from("\n");
    for phase in PHASES {
        for (name, event) in events() {
            let mut custody = in_phase(phase, now);
            assert_eq!(phase_name(custody.phase()), phase);
            let later = if event == Event::Tick { now + Duration::from_secs(3600) } else { now };
            let effects: Vec<_> = custody.step(event, later).iter().map(effect_name).collect();
            let line = format!("{phase:9} {name:8} -> {:9} : {}", phase_name(custody.phase()), effects.join(" "));
            table.push_str(line.trim_end());
            table.push('\n');
        }
    }
    assert_eq!(table, TABLE);
}

/// Scenario: a shim is gone without BYE, once for a site that somebody will remove, once for one with a grace.
/// Guarantees: the first is kept for ever; the second exactly until its grace is over, and the deadline says when.
#[test]
fn an_orphan_is_kept_for_its_grace_and_not_longer() {
    let now = Instant::now();
    let mut patient = Custody::new(None);
    for event in [Event::Greeted { namespace: OLD }, Event::Donated { id: 7, listener: listener(1) }, Event::Ended] {
        patient.step(event, now);
    }
    assert_eq!((patient.deadline(), patient.step(Event::Tick, now + 1000 * GRACE)), (None, vec![]));

    let mut custody = in_phase("orphaned", now);
    assert_eq!(custody.deadline(), Some(now + GRACE));
    assert_eq!(custody.step(Event::Tick, now + GRACE - Duration::from_nanos(1)), []);
    let over = now + GRACE;
    let expected = [Effect::Release { cookie: 1 }, Effect::Finish { until: over + BYE_LIMIT }];
    assert_eq!(custody.step(Event::Tick, over), expected);
    assert_eq!(custody.deadline(), None);
}

/// Scenario: whoever announces the end of pods goes and comes back, before and after a shim has gone without BYE.
/// Guarantees: while nobody announces it an orphan has its grace, counted from when it began to need one; never one whose
/// end will be announced.
#[test]
fn the_grace_of_an_orphan_begins_and_ends_with_who_announces_its_end() {
    let now = Instant::now();
    let later = now + GRACE / 2;
    let mut custody = Custody::new(None);
    for event in [Event::Greeted { namespace: OLD }, Event::Donated { id: 7, listener: listener(1) }, Event::Ended] {
        custody.step(event, now);
    }
    assert_eq!(custody.step(Event::Grace(Some(GRACE)), later), []);
    assert_eq!(custody.deadline(), Some(later + GRACE));
    custody.step(Event::Grace(Some(GRACE)), later + GRACE / 2);
    assert_eq!(custody.deadline(), Some(later + GRACE), "said twice, it does not begin anew");
    custody.step(Event::Grace(None), later + GRACE / 2);
    assert_eq!((custody.deadline(), custody.step(Event::Tick, now + 1000 * GRACE)), (None, vec![]));

    custody.step(Event::Grace(Some(GRACE)), later);
    let released = custody.step(Event::Tick, later + GRACE);
    assert_eq!(released.first(), Some(&Effect::Release { cookie: 1 }));
    let mut serving = in_phase("serving", now);
    serving.step(Event::Grace(None), now);
    serving.step(Event::Ended, now);
    assert_eq!(serving.deadline(), None, "a grace that was taken back before it was needed");
}

/// Scenario: a pod shuts its listeners down again and again.
/// Guarantees: each is asked for again after a delay that doubles up to 30 s, and begins anew after a quiet minute.
#[test]
fn a_dead_listener_is_asked_for_again_ever_more_slowly() {
    let start = Instant::now();
    let mut now = start;
    let mut custody = in_phase("serving", now);
    let mut delays = Vec::new();
    for cookie in 1..=11 {
        custody.step(Event::Died { cookie }, now);
        let ask = custody.deadline().expect("an ask is due");
        delays.push((ask - now).as_millis());
        now = ask;
        let expected = [Effect::Nack(7, NackCode::ListenerDead), Effect::SetMode(Mode::Donate)];
        assert_eq!(custody.step(Event::Tick, now), expected);
        custody.step(Event::Donated { id: 7, listener: listener(cookie + 1) }, now);
    }
    assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);

    now += 2 * DEATHS_FORGOTTEN;
    custody.step(Event::Died { cookie: 12 }, now);
    assert_eq!(custody.deadline(), Some(now + ASK_DELAY));
}

/// Scenario: listeners that die count while they are asked for, and one too many is donated.
/// Guarantees: never more than eight, dead ones that are still to be asked for included: the asks are bounded too.
#[test]
fn no_tenant_has_more_than_eight_listeners() {
    let now = Instant::now();
    let mut custody = in_phase("serving", now);
    for cookie in 2..=8 {
        let effects = custody.step(Event::Donated { id: 7, listener: listener(cookie) }, now);
        assert!(effects.contains(&Effect::Ack(7)), "{cookie}");
    }
    custody.step(Event::Died { cookie: 1 }, now);
    let ninth = custody.step(Event::Donated { id: 9, listener: listener(9) }, now);
    assert_eq!(ninth, [Effect::CloseCopy { cookie: 9 }, Effect::Nack(9, NackCode::TooMany)]);
}

/// Scenario: a listener made an accept hang; the shim reconnects, donates, and later its sandbox is recreated.
/// Guarantees: the tenant relays for as long as it lives in that namespace, and may donate again from a new one.
#[test]
fn who_hung_an_accept_relays_until_its_namespace_is_another() {
    let now = Instant::now();
    let mut custody = in_phase("serving", now);
    custody.step(Event::Donated { id: 8, listener: listener(2) }, now);
    let effects = custody.step(Event::Hung { cookie: 1 }, now);
    assert_eq!(
        effects,
        [
            Effect::Release { cookie: 1 },
            Effect::Release { cookie: 2 },
            Effect::Nack(7, NackCode::ListenerDead),
            Effect::SetMode(Mode::Relay)
        ]
    );
    custody.step(Event::Ended, now);
    let again = custody.step(Event::Greeted { namespace: OLD }, now);
    assert_eq!(again, [Effect::Welcome(Mode::Relay), Effect::Returned]);
    let refused = custody.step(Event::Donated { id: 9, listener: listener(3) }, now);
    assert_eq!(refused, [Effect::CloseCopy { cookie: 3 }, Effect::Nack(9, NackCode::Unsupported)]);

    let moved = custody.step(Event::Greeted { namespace: NEW }, now);
    assert_eq!(moved, [Effect::Welcome(Mode::Donate), Effect::Returned]);
}

//! Custody in a small world: a kernel that knows who holds which socket, drivers and gateways that die and come back.
//!
//! After each scenario the same promise is checked: every published pod has a name that leads to sockets which the driver
//! holds, and the gateway that serves has the same ones; and nothing was bound while somebody held what was there.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

type Key = (Uid, Kind);

/// What one process holds: sockets by number.
type Held = BTreeMap<Key, u32>;

#[derive(Default)]
struct World {
    /// What each name leads to.
    names: Held,
    /// The kernel's list of sockets that somebody holds.
    made: u32,
    driver: Option<Running>,
    gateways: Vec<Gateway>,
    /// Volumes in the kubelet's folders, with whether the driver has a record of them.
    published: BTreeMap<Uid, bool>,
}

#[derive(Default)]
struct Running {
    core: Core,
    held: Held,
    /// The number of the gateway that it talks with.
    session: Option<usize>,
}

#[derive(Default)]
struct Gateway {
    held: Held,
    /// What the driver has told since the session began.
    told: BTreeSet<Uid>,
    ready: bool,
}

fn uid(number: u8) -> Uid {
    Uid::parse(&format!("u-{number}")).expect("a uid")
}

impl World {
    fn new() -> Self {
        Self { driver: Some(Running::default()), ..Self::default() }
    }

    fn is_held(&self, socket: u32) -> bool {
        let holders = self.gateways.iter().map(|gateway| &gateway.held).chain(self.driver.iter().map(|it| &it.held));
        holders.into_iter().any(|held| held.values().any(|one| *one == socket))
    }

    fn step(&mut self, event: Event) {
        self.step_returning(event, None);
    }

    fn step_returning(&mut self, event: Event, mut returned: Option<u32>) {
        let effects = self.driver.as_mut().expect("it runs").core.step(event);
        for effect in effects {
            self.perform(effect, &mut returned);
        }
        assert_eq!(returned, None, "what was returned is adopted or discarded");
    }

    fn perform(&mut self, effect: Effect, returned: &mut Option<u32>) {
        match effect {
            Effect::Secure(uid, kind) => {
                let key = (uid.clone(), kind);
                let is_alive = self.names.get(&key).is_some_and(|socket| self.is_held(*socket));
                if !is_alive && self.published.contains_key(&uid) {
                    self.made += 1;
                    let made = self.made;
                    self.names.insert(key.clone(), made);
                    self.running().held.insert(key, made);
                    self.step(Event::Bound(uid, kind));
                }
            }
            Effect::Adopt(uid, kind) => {
                let socket = returned.take().expect("something was returned");
                assert!(self.running().held.insert((uid, kind), socket).is_none(), "one was in hand");
            }
            Effect::Discard => *returned = None,
            Effect::ThenSecured => self.step(Event::Secured),
            Effect::Release(uid) => self.running().held.retain(|(of, _), _| *of != uid),
            Effect::Tell(tell) => self.tell(tell),
        }
    }

    fn tell(&mut self, tell: Tell) {
        let running = self.driver.as_ref().expect("it runs");
        let held = running.held.clone();
        let Some(gateway) = running.session.and_then(|number| self.gateways.get_mut(number)) else {
            panic!("{tell:?} is told to nobody");
        };
        match tell {
            Tell::Volume(uid) => {
                gateway.held.insert((uid.clone(), Kind::Ctl), held[&(uid.clone(), Kind::Ctl)]);
                gateway.told.insert(uid);
            }
            Tell::Otlp(uid) => {
                assert!(gateway.told.contains(&uid), "VOLUME comes before OTLP");
                gateway.held.insert((uid.clone(), Kind::Otlp), held[&(uid, Kind::Otlp)]);
            }
            Tell::Unpublished(uid) => {
                assert!(gateway.told.remove(&uid), "{uid} was never told");
                gateway.held.retain(|(of, _), _| *of != uid);
            }
            Tell::Ready => {
                // What is not in the list is gone.
                gateway.ready = true;
                let told = &gateway.told;
                gateway.held.retain(|(uid, _), _| told.contains(uid));
            }
        }
    }

    fn running(&mut self) -> &mut Running {
        self.driver.as_mut().expect("it runs")
    }

    fn publish(&mut self, number: u8) {
        self.published.insert(uid(number), true);
        self.step(Event::Published(uid(number)));
    }

    fn unpublish(&mut self, number: u8) {
        self.published.remove(&uid(number));
        self.names.retain(|(of, _), _| *of != uid(number));
        self.step(Event::Unpublished(uid(number)));
    }

    /// kill -9, and a successor that finds the records.
    fn restart_driver(&mut self) {
        self.driver = None;
        self.driver = Some(Running::default());
        for (uid, recorded) in self.published.clone() {
            self.step(if recorded { Event::Published(uid) } else { Event::Found(uid) });
        }
    }

    fn start_gateway(&mut self) -> usize {
        self.gateways.push(Gateway::default());
        self.gateways.len() - 1
    }

    fn kill_gateway(&mut self, number: usize) {
        self.gateways[number] = Gateway::default();
        if self.driver.as_ref().is_some_and(|driver| driver.session == Some(number)) {
            self.running().session = None;
            self.step(Event::Ended);
        }
    }

    /// HELLO, and some of what it holds.
    fn greet(&mut self, number: usize) {
        self.gateways[number].told.clear();
        self.gateways[number].ready = false;
        self.running().session = Some(number);
        self.step(Event::Greeted);
    }

    fn give_back(&mut self, number: usize) {
        for ((uid, kind), socket) in self.gateways[number].held.clone() {
            self.step_returning(Event::Returned(uid, kind), Some(socket));
        }
    }

    fn connect(&mut self, number: usize) {
        self.greet(number);
        self.give_back(number);
        self.step(Event::GatewayReady);
    }

    /// The promise, with `gateway` serving all published pods.
    fn check(&mut self, what: &str, gateway: usize) {
        let published: BTreeSet<Uid> = self.published.keys().cloned().collect();
        let gateway = &self.gateways[gateway];
        assert!(gateway.ready, "{what}: the list has no end");
        assert_eq!(gateway.told, published, "{what}: what the gateway was told");
        assert_eq!(gateway.held, self.names, "{what}: the gateway holds what the names lead to");
        let driver = self.driver.as_ref().expect("it runs");
        assert_eq!(driver.held, self.names, "{what}: the driver holds what the names lead to");
        assert!(!driver.core.is_missing_any(), "{what}");
    }
}

/// A world with two pods and a gateway that serves them.
fn served() -> World {
    let mut world = World::new();
    world.publish(1);
    let gateway = world.start_gateway();
    world.connect(gateway);
    world.publish(2);
    world.check("two pods", gateway);
    assert_eq!(world.made, 4);
    world
}

/// Scenario: every way in which driver and gateway die, come back, overlap, and miss each other, in a table.
/// Guarantees: in the end the promise holds; and nothing is bound anew unless nobody held it.
#[test]
fn whoever_dies_the_sockets_end_up_where_they_belong() {
    type Story = fn(&mut World) -> usize;
    let table: &[(&str, Story, u32)] = &[
        ("nothing happens", |_| 0, 4),
        (
            "the kubelet publishes everything again, twice",
            |world| {
                (0..2).for_each(|_| [1, 2].into_iter().for_each(|number| world.publish(number)));
                0
            },
            4,
        ),
        (
            "the driver restarts, the gateway connects again",
            |world| {
                world.restart_driver();
                world.connect(0);
                0
            },
            4,
        ),
        (
            "the driver restarts and the kubelet is faster than the gateway",
            |world| {
                world.restart_driver();
                world.publish(1);
                world.step(Event::Tick);
                world.connect(0);
                0
            },
            4,
        ),
        (
            "the driver restarts twice while the gateway is on its way",
            |world| {
                world.restart_driver();
                world.greet(0);
                world.restart_driver();
                world.connect(0);
                0
            },
            4,
        ),
        (
            "the gateway restarts",
            |world| {
                world.kill_gateway(0);
                let next = world.start_gateway();
                world.connect(next);
                next
            },
            4,
        ),
        (
            "the gateway says that it is ready twice",
            |world| {
                world.step(Event::GatewayReady);
                world.step(Event::Secured);
                0
            },
            4,
        ),
        (
            "both die at once",
            |world| {
                world.driver = None;
                world.gateways[0] = Gateway::default();
                world.restart_driver();
                let next = world.start_gateway();
                world.connect(next);
                next
            },
            8,
        ),
        (
            "the driver dies, and the gateway before it has connected again",
            |world| {
                world.restart_driver();
                world.kill_gateway(0);
                world.step(Event::Tick);
                let next = world.start_gateway();
                world.connect(next);
                next
            },
            8,
        ),
        (
            "the driver dies, and the gateway in the middle of its list",
            |world| {
                world.restart_driver();
                world.greet(0);
                let (key, socket) = world.gateways[0].held.clone().pop_first().expect("it holds some");
                world.step_returning(Event::Returned(key.0, key.1), Some(socket));
                world.kill_gateway(0);
                let next = world.start_gateway();
                world.connect(next);
                next
            },
            7,
        ),
        (
            "a rollout: the next gateway greets before the end of the last is seen",
            |world| {
                let next = world.start_gateway();
                world.connect(next);
                world.kill_gateway(0);
                next
            },
            4,
        ),
        (
            "a rollout in which the driver restarts, while the last gateway lives on without the lock",
            |world| {
                world.restart_driver();
                let next = world.start_gateway();
                world.connect(next);
                assert!(world.driver.as_ref().is_some_and(|driver| driver.core.is_missing_any()));
                world.step(Event::Tick);
                assert_eq!(world.made, 4, "the last one still holds them");
                world.kill_gateway(0);
                world.step(Event::Tick);
                next
            },
            8,
        ),
        (
            "a volume ends while the gateway is away",
            |world| {
                world.running().session = None;
                world.step(Event::Ended);
                world.unpublish(1);
                world.connect(0);
                0
            },
            4,
        ),
        (
            "a volume ends while the gateway lists",
            |world| {
                world.greet(0);
                world.unpublish(1);
                world.give_back(0);
                world.step(Event::GatewayReady);
                0
            },
            4,
        ),
        (
            "a volume ends and another begins while both are away",
            |world| {
                world.driver = None;
                world.published.remove(&uid(1));
                world.names.retain(|(of, _), _| *of != uid(1));
                world.published.insert(uid(3), true);
                world.restart_driver();
                world.connect(0);
                0
            },
            6,
        ),
        (
            "the record of a volume is lost: it waits for the kubelet, and keeps its sockets",
            |world| {
                world.published.insert(uid(1), false);
                world.restart_driver();
                world.connect(0);
                assert!(!world.gateways[0].told.contains(&uid(1)));
                world.publish(1);
                0
            },
            4,
        ),
        (
            "somebody removes a name",
            |world| {
                world.names.remove(&(uid(1), Kind::Ctl));
                world.publish(1);
                0
            },
            5,
        ),
        (
            "an unpublish without a publish",
            |world| {
                world.unpublish(9);
                0
            },
            4,
        ),
    ];
    for (what, story, made) in table {
        let mut world = served();
        let gateway = story(&mut world);
        world.check(what, gateway);
        assert_eq!(world.made, *made, "{what}: sockets that were ever bound");
    }
}

/// Scenario: before there is a gateway, and while it lists, volumes come and go.
/// Guarantees: nothing is told before the list, and the list holds what is there at its time.
#[test]
fn nothing_is_told_before_the_list() {
    let mut world = World::new();
    world.publish(1);
    world.publish(2);
    world.unpublish(1);
    let gateway = world.start_gateway();
    world.greet(gateway);
    world.publish(3);
    world.unpublish(2);
    world.publish(4);
    assert!(world.gateways[gateway].told.is_empty());
    world.step(Event::GatewayReady);
    world.check("after the list", gateway);
    world.unpublish(3);
    world.check("after it was told", gateway);
}

/// Scenario: the gateway says that it does not serve a volume, because a descriptor did not reach it; then the kubelet publishes
/// it again, and once more.
/// Guarantees: it is told again, once, with both sockets; others are not, and its unpublish is still told.
#[test]
fn what_the_gateway_declined_is_told_again_when_the_kubelet_publishes_it() {
    let mut core = Core::default();
    for number in [1, 2] {
        core.step(Event::Published(uid(number)));
        for kind in Kind::ALL {
            core.step(Event::Bound(uid(number), kind));
        }
    }
    for event in [Event::Greeted, Event::GatewayReady, Event::Secured] {
        core.step(event);
    }
    let tells = |effects: Vec<Effect>| {
        let tells = effects.into_iter().filter(|effect| matches!(effect, Effect::Tell(_)));
        tells.collect::<Vec<_>>()
    };
    assert!(core.step(Event::Declined(uid(1))).is_empty());
    assert_eq!(tells(core.step(Event::Published(uid(2)))), []);
    let again = [Effect::Tell(Tell::Volume(uid(1))), Effect::Tell(Tell::Otlp(uid(1)))];
    assert_eq!(tells(core.step(Event::Published(uid(1)))), again);
    assert_eq!(tells(core.step(Event::Published(uid(1)))), []);
    core.step(Event::Declined(uid(1)));
    assert_eq!(tells(core.step(Event::Unpublished(uid(1)))), [Effect::Tell(Tell::Unpublished(uid(1)))]);
}

//! Accepting from listeners that their pod shares and tampers with (docs/threats.md rows 3 to 6 and 8).

use std::net::SocketAddr;
use std::time::Duration;

use pillion_proto::control::{Mode, NackCode, ToGateway, ToShim};
use rustix::net::{Shutdown, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::support::{
    Ground, STALL, STALLED, Shim, Unusual, ask, connect_otlp, hear, listen_on, listeners, served, within,
};

/// Scenario: a pod sets SO_LINGER on its listener, which accepted sockets inherit.
/// Guarantees: the accepted socket has none, and everything else is set as well.
#[tokio::test]
async fn what_accepted_sockets_inherit_is_reset() {
    within(async {
        let ground = Ground::new();
        let (own, ports) = listeners();
        let dir = ground.site("shop/cart", ports);
        sockopt::set_socket_linger(&own[0], Some(Duration::from_secs(60))).unwrap();
        let _shim = Shim::serving(&dir, &own).await;

        assert_eq!(ask(own[0].local_addr().unwrap()).await, served("shop/cart"));
    })
    .await;
}

/// Scenario: a pod clears O_NONBLOCK on the open file description that it shares with the gateway, so that accepting from
/// an empty backlog hangs; a neighbour's listener is on the same thread.
/// Guarantees: the neighbour is served all the same; the pod is told that its listener is dead, relays from then on, and
/// is served through `otlp`; its later donations are refused.
#[tokio::test]
async fn an_accept_that_hangs_is_freed_and_its_tenant_relays() {
    within(async {
        let ground = Ground::new();
        let ([bad, _spare], ports) = listeners();
        let (elsewhere, other_ports) = listeners();
        let (neighbours, neighbour_ports) = listeners();
        let dir = ground.site("shop/cart", ports);
        ground.site("shop/other-thread", other_ports);
        let neighbour_dir = ground.site("shop/till", neighbour_ports);
        let mut shim = Shim::serving(&dir, std::slice::from_ref(&bad)).await;
        let _neighbour = Shim::serving(&neighbour_dir, &neighbours).await;

        bad.set_nonblocking(false).unwrap();
        assert_eq!(ask(bad.local_addr().unwrap()).await, served("shop/cart"), "the one that was waiting");
        assert_eq!(ask(neighbours[0].local_addr().unwrap()).await, served("shop/till"));

        let Some((ToShim::Nack(nack), None)) = shim.receive().await else { panic!("the listener is dead") };
        assert_eq!((nack.id, nack.code), (1, NackCode::ListenerDead));
        shim.expect(ToShim::Mode { mode: Mode::Relay }).await;
        assert_eq!(ground.lifecycle.counters().watchdog_trips.value(), 1);
        ground.when("shop/cart", |site| site.mode == "relay" && site.listeners.is_empty()).await;

        assert_eq!(shim.donate(2, &elsewhere[0]).await.map_err(|nack| nack.code), Err(NackCode::PortNotOffered));
        let again = listen_on(SocketAddr::from(([127, 0, 0, 2], ports.grpc)));
        assert_eq!(shim.donate(3, &again).await.map_err(|nack| nack.code), Err(NackCode::Unsupported));
        assert_eq!(hear(&mut connect_otlp(&dir).await).await, "shop/cart unix\n");
    })
    .await;
}

/// Scenario: a pod shuts its own listener down.
/// Guarantees: the hang-up wakes an acceptor a few times and not in a storm; the pod is asked for another, and that serves.
#[tokio::test]
async fn a_listener_that_was_shut_down_is_let_go_and_asked_for_again() {
    within(async {
        let ground = Ground::new();
        let ([first, second], ports) = listeners();
        let dir = ground.site("shop/cart", ports);
        let mut shim = Shim::serving(&dir, std::slice::from_ref(&first)).await;
        ground.when("shop/cart", |site| site.listeners.len() == 1).await;

        rustix::net::shutdown(&first, Shutdown::Both).unwrap();
        ground.when("shop/cart", |site| site.listeners.is_empty()).await;
        let Some((ToShim::Nack(nack), None)) = shim.receive().await else { panic!("asked for another") };
        assert_eq!((nack.id, nack.code), (1, NackCode::ListenerDead));
        shim.expect(ToShim::Mode { mode: Mode::Donate }).await;

        assert_eq!(shim.donate(2, &second).await, Ok(()));
        assert_eq!(ask(second.local_addr().unwrap()).await, served("shop/cart"));
        let counters = ground.lifecycle.counters();
        assert_eq!(counters.listeners_dead.value(), 1);
        // The delay before the ask alone would be thousands of wake-ups of a storm.
        assert!(counters.wakeups.value() < 20, "{} wake-ups", counters.wakeups.value());
    })
    .await;
}

/// Scenario: a pod has more connections than it may have, then closes one.
/// Guarantees: the excess waits in the pod's own backlog, refused by nobody, and is served when there is room.
#[tokio::test]
async fn over_its_limit_a_pods_connections_wait_in_its_own_kernel() {
    within(async {
        let ground = Ground::new();
        let ([own, _other], ports) = listeners();
        let dir = ground.unusual_site("shop/cart", ports, Unusual { connections: 2, ..Unusual::default() });
        let _shim = Shim::serving(&dir, std::slice::from_ref(&own)).await;
        let address = own.local_addr().unwrap();
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push(TcpStream::connect(address).await.unwrap());
        }
        for stream in &mut open[..2] {
            assert_eq!(hear(stream).await, served("shop/cart"));
        }
        let counters = ground.lifecycle.counters();
        while counters.pauses.value() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(ground.accepted("shop/cart"), 2);

        drop(open.remove(0));
        assert_eq!(hear(&mut open[1]).await, served("shop/cart"));
    })
    .await;
}

/// Scenario: the tenant's worker is busy while more connections come than its inbox has places.
/// Guarantees: all of them are served when it is free again; none is closed because it came at a busy moment.
#[tokio::test]
async fn a_full_inbox_delays_connections_and_closes_none() {
    within(async {
        let ground = Ground::new();
        let ([own, _other], ports) = listeners();
        let dir = ground.site(STALLED, ports);
        let _shim = Shim::serving(&dir, std::slice::from_ref(&own)).await;
        let address = own.local_addr().unwrap();
        let mut waiting = vec![TcpStream::connect(address).await.unwrap()];
        // READY has to leave this thread first.
        ground.when(STALLED, |site| site.listeners.len() == 1).await;
        let counters = ground.lifecycle.counters();
        while counters.connections.value() == 0 {
            tokio::task::yield_now().await;
        }
        STALL.wait();
        for _ in 1..200 {
            waiting.push(TcpStream::connect(address).await.unwrap());
        }
        while counters.connections_given_back.value() == 0 {
            tokio::task::yield_now().await;
        }
        STALL.wait();
        for stream in &mut waiting {
            assert_eq!(hear(stream).await, served(STALLED));
        }
        assert_eq!(ground.accepted(STALLED), 200);
    })
    .await;
}

/// Scenario: a pod donates a loopback listener whose port the kernel chose, so that it is not locked, and then moves the
/// same socket to every address. (IP_LOCAL_PORT_RANGE lets a pod say which port that is, Linux 6.3.)
/// Guarantees: nobody is served through it from the network: it is let go, and the connection closed unanswered.
#[tokio::test]
async fn a_listener_that_was_moved_off_loopback_serves_nobody() {
    within(async {
        let ground = Ground::new();
        let ([good, moving], ports) = listeners();
        let dir = ground.site("shop/cart", ports);
        let mut shim = Shim::connect(&dir);
        shim.hello().await;
        assert_eq!(shim.donate(1, &moving).await, Ok(()));
        // Not accepted from before READY: so the acceptor does not see it hang up on the way.
        rustix::net::shutdown(&moving, Shutdown::Both).unwrap();
        rustix::net::bind(&moving, &SocketAddr::from(([0, 0, 0, 0], ports.http))).unwrap();
        rustix::net::listen(&moving, 16).unwrap();
        shim.send(&ToGateway::Ready, &[]);

        // Through another address than the one donated; on a machine without a network 127.0.0.2 is as good.
        let mut stray = TcpStream::connect(SocketAddr::from(([127, 0, 0, 2], ports.http))).await.unwrap();
        let outcome = stray.read_u8().await;
        assert!(outcome.is_err(), "answered with {outcome:?}");
        assert_eq!(ground.lifecycle.counters().connections_strayed.value(), 1);
        ground.when("shop/cart", |site| site.listeners.is_empty()).await;

        assert_eq!(shim.donate(2, &good).await, Ok(()));
        assert_eq!(ask(good.local_addr().unwrap()).await, served("shop/cart"));
    })
    .await;
}

/// The variable that makes this program the one that runs out of descriptors: a limit is a whole process's.
const POOR: &str = "PILLION_TEST_POOR";

/// Scenario: the process may open ten more files, and fifty connections wait.
/// Guarantees: accepting pauses, closes nothing, and leaves descriptors to the rest of the process; when there are more,
/// all fifty are served.
#[tokio::test]
async fn without_descriptors_accepting_pauses_and_nothing_else_stops() {
    if std::env::var_os(POOR).is_none() {
        let name = "lifecycle::tests::accepting::without_descriptors_accepting_pauses_and_nothing_else_stops";
        let mut poor = std::process::Command::new(std::env::current_exe().unwrap());
        assert!(poor.args(["--exact", name, "--nocapture"]).env(POOR, "1").status().unwrap().success());
        return;
    }
    within(async {
        let ground = Ground::new();
        let ([own, _other], ports) = listeners();
        let dir = ground.site("shop/cart", ports);
        let mut shim = Shim::connect(&dir);
        shim.hello().await;
        assert_eq!(shim.donate(1, &own).await, Ok(()));
        let mut waiting = Vec::new();
        for _ in 0..50 {
            waiting.push(TcpStream::connect(own.local_addr().unwrap()).await.unwrap());
        }
        let rich = getrlimit(Resource::Nofile);
        let next = std::os::fd::AsRawFd::as_raw_fd(&std::fs::File::open("/dev/null").unwrap());
        let poor = Rlimit { current: Some(u64::try_from(next).unwrap() + 10), ..rich };
        setrlimit(Resource::Nofile, poor).unwrap();
        shim.send(&ToGateway::Ready, &[]);
        let counters = ground.lifecycle.counters();
        while counters.starved.value() == 0 {
            tokio::task::yield_now().await;
        }
        // Listeners are tried again after each pause: whenever that is, the reserve is the rest's.
        let tries = counters.pauses.value() + 4;
        while counters.pauses.value() < tries {
            let _others = [(); 32].map(|()| std::fs::File::open("/dev/null").expect("the reserve is for this"));
            tokio::task::yield_now().await;
        }

        setrlimit(Resource::Nofile, rich).unwrap();
        for stream in &mut waiting {
            assert_eq!(hear(stream).await, served("shop/cart"));
        }
        assert_eq!(ground.accepted("shop/cart"), 50);
    })
    .await;
}

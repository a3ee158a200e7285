//! Custody across restarts of either side, and the conversation on `ctl` (docs/threats.md rows 7, 9 and 14).

use std::cell::Cell;
use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use pillion_proto::control::{Capabilities, Hello, Mode, NackCode, ToGateway, ToShim};
use rustix::net::sockopt;
use tokio::net::TcpStream;

use super::support::{
    Ground, Shim, Unusual, ask, connect_otlp, donation, hear, hello, hello_with, listeners, served, within,
};

/// Scenario: 200 connections arrive between the hand-off of one gateway and the READY to the next.
/// Guarantees: all 200 are served by the successor: handing over the same socket loses nothing. The shim is told HANDOFF.
#[tokio::test]
async fn two_hundred_queued_connections_survive_a_hand_over() {
    within(async {
        let mut ground = Ground::new();
        let (own, ports) = listeners();
        let dir = ground.site("shop/cart", ports);
        let mut shim = Shim::serving(&dir, &own).await;
        assert_eq!(ask(own[0].local_addr().unwrap()).await, served("shop/cart"));

        ground.restart().await;
        shim.expect(ToShim::Handoff).await;
        assert!(shim.receive().await.is_none(), "the end of the session follows");
        let mut queued = Vec::new();
        for index in 0..200 {
            queued.push(TcpStream::connect(own[index % 2].local_addr().unwrap()).await.unwrap());
        }
        ground.site("shop/cart", ports);
        let _shim = Shim::serving(&dir, &own).await;
        for stream in &mut queued {
            assert_eq!(hear(stream).await, served("shop/cart"));
        }
    })
    .await;
}

/// Scenario: a shim dies while its listeners are served, and its successor finds the ports taken.
/// Guarantees: accepting never stops; the successor gets both listeners back, the very same ones, and may donate them
/// again without anything being held twice.
#[tokio::test]
async fn a_shims_successor_gets_the_listeners_back() {
    within(async {
        let ground = Ground::new();
        let (own, ports) = listeners();
        let addresses: Vec<SocketAddr> = own.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let cookies: HashSet<u64> = own.iter().map(|listener| sockopt::socket_cookie(listener).unwrap()).collect();
        let dir = ground.site("shop/cart", ports);
        drop(Shim::serving(&dir, &own).await);
        drop(own);
        ground.when("shop/cart", |site| !site.shim_connected && site.listeners.len() == 2).await;
        assert!(TcpListener::bind(addresses[0]).is_err(), "the gateway holds the port");
        assert_eq!(ask(addresses[0]).await, served("shop/cart"));

        let mut successor = Shim::connect(&dir);
        let returned = successor.hello().await.returned;
        assert_eq!(returned.iter().map(|(address, _)| *address).collect::<Vec<_>>(), addresses);
        assert_eq!(returned.iter().map(|(_, fd)| sockopt::socket_cookie(fd).unwrap()).collect::<HashSet<_>>(), cookies);
        for (id, (_, fd)) in (1..).zip(&returned) {
            assert_eq!(successor.donate(id, fd).await, Ok(()));
        }
        successor.send(&ToGateway::Ready, &[]);
        assert_eq!(ask(addresses[1]).await, served("shop/cart"));
        assert_eq!(ground.snapshot("shop/cart").listeners.len(), 2);
    })
    .await;
}

/// Scenario: donations without READY, while a client waits.
/// Guarantees: nothing is accepted before everything is told; READY is what starts it.
#[tokio::test]
async fn nothing_is_accepted_before_ready() {
    within(async {
        let ground = Ground::new();
        let (own, ports) = listeners();
        let dir = ground.site("shop/cart", ports);
        let mut client = TcpStream::connect(own[0].local_addr().unwrap()).await.unwrap();
        let mut shim = Shim::connect(&dir);
        shim.hello().await;
        assert_eq!(shim.donate(1, &own[0]).await, Ok(()));
        assert_eq!(shim.donate(2, &own[1]).await, Ok(()));
        // The same acceptor would have taken the client first.
        assert_eq!(hear(&mut connect_otlp(&dir).await).await, "shop/cart unix\n");
        assert_eq!(ground.accepted("shop/cart"), 1);

        shim.send(&ToGateway::Ready, &[]);
        assert_eq!(hear(&mut client).await, served("shop/cart"));
    })
    .await;
}

/// Scenario: a shim ends without BYE and nobody comes; the pod itself holds no duplicate any more.
/// Guarantees: after the grace the gateway closes the listeners, so that no network namespace is kept alive by it: a
/// connection that waits there is reset.
#[tokio::test]
async fn an_orphans_listeners_are_closed_after_the_grace() {
    within(async {
        let ground = Ground::new();
        let (own, ports) = listeners();
        let address = own[0].local_addr().unwrap();
        let grace = Some(Duration::from_millis(1));
        let unusual = Unusual { connections: 0, orphan_grace: grace, ..Unusual::default() };
        let dir = ground.unusual_site("shop/cart", ports, unusual);
        let shim = Shim::serving(&dir, &own).await;
        ground.when("shop/cart", |site| site.listeners.len() == 2).await;
        let mut client = TcpStream::connect(address).await.unwrap();

        drop((shim, own));
        let end = tokio::io::AsyncReadExt::read_u8(&mut client).await.unwrap_err();
        assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
        ground.when("shop/cart", |site| site.listeners.is_empty()).await;
    })
    .await;
}

/// Scenario: BYE while more connections wait in the backlog than the tenant may have at once.
/// Guarantees: all are accepted and answered before BYE is acknowledged; then the listeners are closed.
#[tokio::test]
async fn bye_is_acknowledged_after_the_backlog_is_served() {
    within(async {
        let ground = Ground::new();
        let (own, ports) = listeners();
        let address = own[0].local_addr().unwrap();
        let dir = ground.unusual_site("shop/cart", ports, Unusual { connections: 25, ..Unusual::default() });
        let mut shim = Shim::connect(&dir);
        shim.hello().await;
        assert_eq!(shim.donate(1, &own[0]).await, Ok(()));
        let mut waiting = Vec::new();
        for _ in 0..50 {
            waiting.push(TcpStream::connect(address).await.unwrap());
        }
        shim.send(&ToGateway::Bye { id: 2 }, &[]);
        let answered = Cell::new(0);
        let clients = async {
            for mut stream in waiting {
                assert_eq!(hear(&mut stream).await, served("shop/cart"));
                answered.set(answered.get() + 1);
            }
        };
        let acknowledged = async {
            assert_eq!(shim.answer(2).await, Ok(()));
            answered.get()
        };
        assert_eq!(tokio::join!(acknowledged, clients).0, 50);
        assert_eq!(ground.slots(), 1, "only `otlp` is left");
        ground.when("shop/cart", |site| site.listeners.is_empty()).await;
    })
    .await;
}

/// Scenario: a shim connects while another session of the tenant lives, then the older one ends.
/// Guarantees: the newest is served, the older one is closed, and its end costs the tenant nothing.
#[tokio::test]
async fn the_newest_session_is_served_and_the_end_of_the_older_one_ignored() {
    within(async {
        let ground = Ground::new();
        let (own, ports) = listeners();
        let grace = Some(Duration::from_millis(1));
        let dir = ground.unusual_site("shop/cart", ports, Unusual { orphan_grace: grace, ..Unusual::default() });
        let mut older = Shim::serving(&dir, &own).await;
        let mut newer = Shim::connect(&dir);
        assert_eq!(newer.hello().await.returned.len(), 2);
        newer.send(&ToGateway::Ready, &[]);

        assert!(older.receive().await.is_none(), "superseded");
        drop(older);
        assert_eq!(newer.donate(7, &own[0]).await, Ok(()), "a grace of a millisecond would be over by now");
        assert_eq!(ask(own[0].local_addr().unwrap()).await, served("shop/cart"));
    })
    .await;
}

/// Scenario: a shim asks on and on, and never reads an answer.
/// Guarantees: the gateway's sends do not block: the session is closed when its buffer is full, a neighbour is served
/// meanwhile, and the next session works.
#[tokio::test]
async fn a_shim_that_does_not_read_loses_its_session() {
    within(async {
        let ground = Ground::new();
        let (own, ports) = listeners();
        let (neighbours, neighbour_ports) = listeners();
        let dir = ground.site("shop/cart", ports);
        let neighbour_dir = ground.site("shop/till", neighbour_ports);
        let deaf = Shim::connect(&dir);
        deaf.send(&hello(), &[]);
        let counters = ground.lifecycle.counters();
        let mut id = 0;
        while counters.sessions_unread.value() == 0 {
            id += 1;
            let _ = deaf.send_bytes(&donation(id).encode(), &[]);
            tokio::task::yield_now().await;
        }
        let _neighbour = Shim::serving(&neighbour_dir, &neighbours).await;
        assert_eq!(ask(neighbours[0].local_addr().unwrap()).await, served("shop/till"));

        let _shim = Shim::serving(&dir, &own).await;
        assert_eq!(ask(own[0].local_addr().unwrap()).await, served("shop/cart"));
    })
    .await;
}

/// Scenario: a shim speaks out of turn, asks for what is not there, is too old, or can only relay.
/// Guarantees: each gets a clear answer, and none of it keeps the next good word from working.
#[tokio::test]
async fn every_odd_word_gets_a_clear_answer() {
    within(async {
        let ground = Ground::new();
        let (own, ports) = listeners();
        let dir = ground.site("shop/cart", ports);
        let mut shim = Shim::connect(&dir);
        assert_eq!(shim.donate(1, &own[0]).await.map_err(|nack| nack.code), Err(NackCode::OutOfOrder));
        shim.send(&ToGateway::Bye { id: 2 }, &[]);
        assert_eq!(shim.answer(2).await.map_err(|nack| nack.code), Err(NackCode::OutOfOrder));
        shim.hello().await;
        shim.send(&hello(), &[]);
        assert_eq!(shim.answer(0).await.map_err(|nack| nack.code), Err(NackCode::OutOfOrder));
        let listener = own[0].local_addr().unwrap();
        shim.send(&ToGateway::Conn { id: 3, listener }, &[]);
        assert_eq!(shim.answer(3).await.map_err(|nack| nack.code), Err(NackCode::Unsupported));
        assert_eq!(shim.donate(4, &own[0]).await, Ok(()));

        let mut old = Shim::connect(&dir);
        let ancient = Hello { version: 0, shim_version: String::new(), instance: 0, capabilities: Capabilities(1) };
        old.send(&ToGateway::Hello(ancient), &[]);
        assert_eq!(old.answer(0).await.map_err(|nack| nack.code), Err(NackCode::VersionTooOld));
        assert!(old.receive().await.is_none());

        let mut relaying = Shim::connect(&dir);
        relaying.send(&hello_with(Capabilities::RELAY), &[]);
        let Some((ToShim::Welcome(welcome), None)) = relaying.receive().await else { panic!("WELCOME") };
        assert_eq!((welcome.mode, welcome.ports), (Mode::Relay, vec![ports.grpc, ports.http]));
        assert_eq!(hear(&mut connect_otlp(&dir).await).await, "shop/cart unix\n");
    })
    .await;
}

/// Scenario: a socket directory far below the root, so that its sockets' paths exceed the 107 bytes of sun_path, with
/// stale sockets and a link in it.
/// Guarantees: it is made with mode 0755 and its sockets 0666; what stood there is replaced, not followed; `remove`
/// takes both names away, and takes nothing away from a successor.
#[tokio::test]
async fn long_paths_stale_sockets_and_links_are_no_obstacle() {
    within(async {
        let ground = Ground::new();
        let (own, ports) = listeners();
        let deep: PathBuf = ground.root.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        let victim = ground.root.path().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        std::fs::set_permissions(&victim, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(deep.join("ctl"), "stale").unwrap();
        std::os::unix::fs::symlink(&victim, deep.join("otlp")).unwrap();
        std::os::unix::fs::symlink(&victim, deep.join(".ctl")).unwrap();

        let unusual = || Unusual { dir: Some(deep.clone()), ..Unusual::default() };
        let dir = ground.unusual_site("shop/cart", ports, unusual());
        let _shim = Shim::serving(&dir, &own).await;
        assert_eq!(ask(own[0].local_addr().unwrap()).await, served("shop/cart"));
        assert_eq!(hear(&mut connect_otlp(&dir).await).await, "shop/cart unix\n");
        let mode = |name: &str| std::fs::symlink_metadata(deep.join(name)).unwrap().mode();
        assert_eq!([mode("ctl"), mode("otlp")], [0o140_666; 2]);
        assert_eq!(std::fs::metadata(&victim).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");

        let successor = Ground::new();
        successor.unusual_site("shop/cart", ports, unusual());
        assert!(ground.remove("shop/cart").await);
        assert!(deep.join("ctl").exists() && deep.join("otlp").exists(), "the successor's");
        assert!(successor.remove("shop/cart").await);
        assert_eq!(std::fs::read_dir(&deep).unwrap().count(), 0);

        let fresh = ground.site("shop/new", ports);
        assert_eq!(std::fs::metadata(fresh).unwrap().mode() & 0o777, 0o755);
    })
    .await;
}

/// Scenario: 10,000 times a listener is donated and closed again; half of the time there is one descriptor too many.
/// Guarantees: nothing of it is left: no descriptor of any of these sockets, and no slot in an acceptor.
#[tokio::test]
async fn ten_thousand_donations_leave_no_descriptor_behind() {
    within(async {
        let ground = Ground::new();
        let ([own, _other], ports) = listeners();
        let address = own.local_addr().unwrap();
        drop(own);
        let dir = ground.site("shop/cart", ports);
        let mut sockets = HashSet::new();
        for cycle in 0..10_000 {
            // Free again when the gateway's last copy is closed, which is the reaper's work.
            let listener = loop {
                match TcpListener::bind(address) {
                    Ok(listener) => break listener,
                    Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse),
                }
                tokio::task::yield_now().await;
            };
            sockets.insert(rustix::fs::fstat(&listener).unwrap().st_ino);
            let mut shim = Shim::connect(&dir);
            shim.hello().await;
            if cycle % 2 == 0 {
                shim.send(&donation(1), &[std::os::fd::AsFd::as_fd(&listener); 2]);
                assert!(shim.receive().await.is_none());
            } else {
                assert_eq!(shim.donate(1, &listener).await, Ok(()));
                shim.send(&ToGateway::Bye { id: 2 }, &[]);
                assert_eq!(shim.answer(2).await, Ok(()));
            }
        }
        let is_left = |entry: std::io::Result<std::fs::DirEntry>| {
            std::fs::metadata(entry.unwrap().path()).is_ok_and(|found| sockets.contains(&found.ino()))
        };
        while std::fs::read_dir("/proc/self/fd").unwrap().any(is_left) {
            tokio::task::yield_now().await;
        }
        assert_eq!(ground.lifecycle.counters().donations_accepted.value(), 5_000);
        assert_eq!(ground.slots(), 1, "the `otlp` of the one site");
    })
    .await;
}

//! What may be donated, and what happens to the rest (docs/threats.md rows 1, 2, 3, 7 and 12).

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use pillion_proto::control::{NackCode, ToGateway, ToShim};
use rustix::event::epoll::CreateFlags;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use super::support::{Ground, Shim, ask, connect_otlp, donation, hello, listen_on, listeners, pass, served, within};

/// An MPTCP listener; `None` where the kernel has no MPTCP, so that no pod can donate one either.
fn mptcp_listener() -> Option<OwnedFd> {
    let made =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::MPTCP));
    let socket = match made {
        Err(Errno::PROTONOSUPPORT | Errno::NOPROTOOPT | Errno::INVAL) => return None,
        made => made.unwrap(),
    };
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    rustix::net::listen(&socket, 1).unwrap();
    Some(socket)
}

/// Scenario: one after the other, everything that is no TCP listener on an offered loopback port is donated.
/// Guarantees: each gets a NACK with its code and a reason, and the next good donation works and serves.
#[tokio::test]
async fn whatever_is_no_loopback_listener_is_refused_by_its_name() {
    within(async {
        let ground = Ground::new();
        let ([good, _other], ports) = listeners();
        let dir = ground.site("shop/cart", ports);
        let mut shim = Shim::connect(&dir);
        shim.hello().await;

        let path = ground.root.path().join("a-file");
        let wild = |port| listen_on(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
        let mut bad: Vec<(&str, OwnedFd, NackCode)> = vec![
            ("a file", std::fs::File::create(&path).unwrap().into(), NackCode::NotAListener),
            ("a memfd", rustix::fs::memfd_create("m", MemfdFlags::CLOEXEC).unwrap(), NackCode::NotAListener),
            ("O_PATH", rustix::fs::open(&path, OFlags::PATH, Mode::empty()).unwrap(), NackCode::NotAListener),
            ("an epoll", rustix::event::epoll::create(CreateFlags::CLOEXEC).unwrap(), NackCode::NotAListener),
            ("UDP", UdpSocket::bind("127.0.0.1:0").unwrap().into(), NackCode::NotAListener),
            ("unix", UnixListener::bind(ground.root.path().join("u")).unwrap().into(), NackCode::NotAListener),
            ("a connection", TcpStream::connect(good.local_addr().unwrap()).unwrap().into(), NackCode::NotAListener),
            ("every address", wild(0).into(), NackCode::NotLoopback),
            ("another port", listen_on(SocketAddr::from(([127, 0, 0, 1], 0))).into(), NackCode::PortNotOffered),
        ];
        bad.extend(mptcp_listener().map(|fd| ("MPTCP", fd, NackCode::NotAListener)));
        for (id, (what, fd, code)) in (1..).zip(&bad) {
            let nack = shim.donate(id, fd).await.expect_err(what);
            assert_eq!(nack.code, *code, "{what}: {}", nack.reason);
            assert!(!nack.reason.is_empty(), "{what}");
        }
        shim.send(&donation(99), &[]);
        assert_eq!(shim.answer(99).await.map_err(|nack| nack.code), Err(NackCode::FdMissing));

        assert_eq!(shim.donate(100, &good).await, Ok(()));
        shim.send(&ToGateway::Ready, &[]);
        assert_eq!(ask(good.local_addr().unwrap()).await, served("shop/cart"));
        assert_eq!(ground.snapshot("shop/cart").refused_donations, bad.len() as u64 + 1);
    })
    .await;
}

/// Scenario: a shim claims to be somebody else, wherever HELLO and DONATE have room for a claim.
/// Guarantees: its connections are those of the tenant whose path it used.
#[tokio::test]
async fn a_tenant_is_the_path_and_not_the_claim() {
    within(async {
        let ground = Ground::new();
        let (own, ports) = listeners();
        let dir = ground.site("shop/cart", ports);
        ground.site("kube-system/etcd", ports);
        let _shim = Shim::serving(&dir, &own).await;

        assert_eq!(ask(own[0].local_addr().unwrap()).await, served("shop/cart"));
    })
    .await;
}

/// Scenario: nine listeners, more than one descriptor in a message, a message that is too long, one of an unknown kind.
/// Guarantees: the ninth is refused; the malformed ones end the session and nothing else; the unknown one is ignored and
/// its descriptor closed; the next good session works.
#[tokio::test]
async fn floods_of_descriptors_and_bytes_end_where_they_began() {
    within(async {
        let ground = Ground::new();
        let ([good, _other], ports) = listeners();
        let dir = ground.site("shop/cart", ports);
        let mut shim = Shim::connect(&dir);
        shim.hello().await;
        let nine: Vec<TcpListener> =
            (2..=10).map(|host| listen_on(SocketAddr::from(([127, 0, 0, host], ports.grpc)))).collect();
        for (id, listener) in (1..).zip(&nine[..8]) {
            assert_eq!(shim.donate(id, listener).await, Ok(()), "{id}");
        }
        assert_eq!(shim.donate(9, &nine[8]).await.map_err(|nack| nack.code), Err(NackCode::TooMany));

        let (mut reader, writer) = std::io::pipe().unwrap();
        let unknown = [0x50, 1, 0x7f, 0, 0, 0, 0, 0];
        shim.send_bytes(&unknown, &[writer.as_fd()]).unwrap();
        assert_eq!(shim.donate(10, &nine[0]).await, Ok(()), "a repeated donation after what is ignored");
        drop(writer);
        assert_eq!(std::io::Read::read(&mut reader, &mut [0]).unwrap(), 0, "the gateway has closed its copy");

        shim.send_bytes(&donation(11).encode(), &[good.as_fd(), nine[8].as_fd()]).unwrap();
        assert!(shim.receive().await.is_none(), "two descriptors end the session");
        let mut shim = Shim::connect(&dir);
        shim.hello().await;
        shim.send_bytes(&[0x50; 5000], &[]).unwrap();
        assert!(shim.receive().await.is_none(), "an overlong message ends the session");
        assert_eq!(ground.lifecycle.counters().messages_malformed.value(), 2);

        let mut shim = Shim::connect(&dir);
        assert_eq!(shim.hello().await.returned.len(), 8);
    })
    .await;
}

/// A connected socket whose last close takes a minute: SO_LINGER, and bytes that nobody reads.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let receiver = listener.accept().unwrap().0;
    sender.set_nonblocking(true).unwrap();
    while std::io::Write::write(&mut &sender, &[0; 65536]).is_ok() {}
    sockopt::set_socket_linger(&sender, Some(Duration::from_secs(60))).unwrap();
    (sender, receiver)
}

/// Scenario: a pod hides sockets with SO_LINGER and unsent bytes in a session that is closed unread, holding no other
/// reference.
/// Guarantees: the close, which waits for as long as the pod likes, holds up that pod's conversation and nobody else's;
/// when it is over, the pod's next donation works.
#[tokio::test]
async fn a_close_that_takes_a_minute_is_the_offenders_own_problem() {
    within(async {
        let ground = Ground::new();
        let (own, ports) = listeners();
        let (neighbours, neighbour_ports) = listeners();
        let dir = ground.site("shop/cart", ports);
        let neighbour_dir = ground.site("shop/till", neighbour_ports);

        let (sender, receiver) = lingering();
        let hidden = Shim::connect(&dir);
        hidden.send(&donation(1), &[sender.as_fd()]);
        drop(sender);
        // Both wait in the queue of `ctl` when the gateway looks: this one is the newest.
        let mut shim = Shim::connect(&dir);
        shim.send(&hello(), &[]);

        let _neighbour = Shim::serving(&neighbour_dir, &neighbours).await;
        assert_eq!(ask(neighbours[0].local_addr().unwrap()).await, served("shop/till"));
        assert_eq!(ground.lifecycle.counters().sessions_superseded.value(), 1);
        assert_eq!(ground.lifecycle.counters().donations_accepted.value(), 2, "the neighbour's");

        drop(receiver);
        assert!(matches!(shim.receive().await, Some((ToShim::Welcome(_), None))));
        shim.expect(ToShim::Returned).await;
        assert_eq!(shim.donate(1, &own[0]).await, Ok(()));
    })
    .await;
}

/// Scenario: a descriptor is passed along with bytes on `otlp`, where no message carries one.
/// Guarantees: the kernel refuses it to the sender (Linux 6.16 and later), so no data worker ever has to close it.
#[tokio::test]
async fn otlp_takes_bytes_and_no_descriptors() {
    within(async {
        let ground = Ground::new();
        let (own, ports) = listeners();
        let dir = ground.site("shop/cart", ports);
        let stream = connect_otlp(&dir).await;

        let outcome = pass(&stream, own[0].as_fd());
        match crate::sys::refuse_descriptors(&stream) {
            Ok(()) => assert_eq!(outcome, Err(Errno::PERM)),
            Err(unsupported) => assert_eq!(unsupported.raw_os_error(), Some(libc::ENOPROTOOPT)),
        }
    })
    .await;
}

//! Pods in network namespaces of their own (docs/threats.md row 10).
//!
//! A pod is this test program, started again by `unshare -Urn`: a user and a network namespace, so no privilege is needed.
//! The second process finds [`POD`] in its environment and plays the pod instead of the test. Where such namespaces cannot
//! be made the tests fail: what they prove is not to be taken on trust.
//!
//! Test and pod talk over the pod's standard input, a SOCK_SEQPACKET: one order a packet, one answer a packet.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use pillion_proto::control::{NackCode, ToGateway, ToShim};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

use super::support::{Ground, Shim, Unusual, ask, hello, listen_on, receive, send, served, within};
use crate::config::Ports;
use crate::lifecycle::NamespaceRule;
use crate::sys;

/// The variable that makes this program a pod.
const POD: &str = "PILLION_TEST_POD";

const PORTS: Ports = Ports { grpc: 4317, http: 4318 };

/// A pod, from outside.
struct Pod {
    process: Child,
    socket: AsyncFd<OwnedFd>,
}

impl Pod {
    /// Starts the test of that name again, as a pod.
    async fn start(test: &str) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let process = Command::new("unshare")
            .arg("-Urn")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &format!("lifecycle::tests::namespaces::{test}")])
            .env(POD, "1")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare (util-linux) starts");
        rustix::io::ioctl_fionbio(&ours, true).unwrap();
        let pod = Self { process, socket: sys::readable(ours).unwrap() };
        assert_eq!(pod.answer().await, "ready");
        pod
    }

    async fn order(&self, words: &str) -> String {
        self.order_with(words, &[]).await
    }

    async fn order_with(&self, words: &str, fds: &[BorrowedFd<'_>]) -> String {
        send(&self.socket, words.as_bytes(), fds).unwrap();
        self.answer().await
    }

    /// A duplicate of one of its listeners.
    async fn give(&self, index: usize) -> OwnedFd {
        send(&self.socket, format!("give {index}").as_bytes(), &[]).unwrap();
        receive(&self.socket).await.and_then(|(_, fd)| fd).expect("the pod gives what it has")
    }

    async fn answer(&self) -> String {
        let (bytes, _) = receive(&self.socket).await.expect("the pod lives: user and network namespaces can be made");
        String::from_utf8(bytes).unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn is_pod() -> bool {
    std::env::var_os(POD).is_some()
}

/// Does as it is told, until it is told no more.
async fn play_pod() {
    sys::bring_loopback_up().unwrap();
    let orders = sys::readable(std::io::stdin().as_fd().try_clone_to_owned().unwrap()).unwrap();
    send(&orders, b"ready", &[]).unwrap();
    let mut listeners: Vec<TcpListener> = Vec::new();
    let mut shim: Option<Shim> = None;
    while let Some((order, fd)) = receive(&orders).await {
        let order = String::from_utf8(order).unwrap();
        let answer = match order.split_once(' ').unwrap_or((&order, "")) {
            ("listen", port) => {
                listeners.push(listen_on(loopback(port.parse().unwrap())));
                "ok".to_owned()
            }
            ("hello", dir) => greet(shim.insert(Shim::connect(Path::new(dir)))).await,
            ("donate", index) => {
                let given =
                    fd.unwrap_or_else(|| listeners[index.parse::<usize>().unwrap()].try_clone().unwrap().into());
                match shim.as_mut().unwrap().donate(1, given).await {
                    Ok(()) => "ack".to_owned(),
                    Err(nack) => format!("{:?}", nack.code),
                }
            }
            ("give", index) => {
                send(&orders, b"given", &[listeners[index.parse::<usize>().unwrap()].as_fd()]).unwrap();
                continue;
            }
            ("ready", _) => {
                shim.as_mut().unwrap().send(&ToGateway::Ready, &[]);
                "ok".to_owned()
            }
            ("ask", port) => ask(loopback(port.parse().unwrap())).await,
            ("end", _) => format!("{:?}", shim.as_mut().unwrap().receive().await),
            _ => panic!("no such order: {order}"),
        };
        send(&orders, answer.as_bytes(), &[]).unwrap();
    }
}

/// The first answer to HELLO, and how many listeners came after it.
async fn greet(shim: &mut Shim) -> String {
    shim.send(&hello(), &[]);
    let mut returned = 0;
    loop {
        match shim.receive().await {
            Some((ToShim::Welcome(_), _)) => {}
            Some((ToShim::Return { .. }, Some(_))) => returned += 1,
            Some((ToShim::Returned, _)) => return format!("returned {returned}"),
            Some((ToShim::Nack(nack), _)) => return format!("{:?}", nack.code),
            other => panic!("{other:?}"),
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn exclusive() -> Unusual {
    Unusual { namespace: NamespaceRule::Exclusive, ..Unusual::default() }
}

/// Scenario: a pod donates a listener of another pod that it came by, then its own; it tries the socket of
/// another tenant; a process of the gateway's own namespace tries the pod's.
/// Guarantees: each of the three is refused by its name; the pod's own listener is accepted and serves, as the pod's.
#[tokio::test]
async fn a_namespace_serves_one_tenant_and_lends_it_no_other() {
    if is_pod() {
        return play_pod().await;
    }
    within(async {
        let ground = Ground::new();
        let dir = ground.unusual_site("shop/cart", PORTS, exclusive());
        let other = ground.unusual_site("shop/till", PORTS, exclusive());
        let pod = Pod::start("a_namespace_serves_one_tenant_and_lends_it_no_other").await;

        let mut host = Shim::connect(&dir);
        host.send(&hello(), &[]);
        assert_eq!(host.answer(0).await.map_err(|nack| nack.code), Err(NackCode::OwnNamespace));
        assert!(host.receive().await.is_none());

        assert_eq!(pod.order(&format!("hello {}", dir.display())).await, "returned 0");
        let neighbour = Pod::start("a_namespace_serves_one_tenant_and_lends_it_no_other").await;
        assert_eq!(neighbour.order("listen 4317").await, "ok");
        let foreign = neighbour.give(0).await;
        assert_eq!(pod.order_with("donate 0", &[foreign.as_fd()]).await, "WrongNamespace");

        assert_eq!(pod.order("listen 4317").await, "ok");
        assert_eq!(pod.order("donate 0").await, "ack");
        assert_eq!(pod.order("ready").await, "ok");
        assert_eq!(pod.order("ask 4317").await, served("shop/cart"));

        assert_eq!(pod.order(&format!("hello {}", other.display())).await, "NamespaceTaken");
        assert_eq!(pod.order(&format!("hello {}", dir.display())).await, "returned 1");
    })
    .await;
}

/// Scenario: the sandbox of a pod is recreated: the same path, another network namespace.
/// Guarantees: the old listeners are let go before anything is returned, the old session ends, and the new ones serve; the
/// old namespace is no longer this tenant's.
#[tokio::test]
async fn a_recreated_sandbox_takes_its_tenant_along() {
    if is_pod() {
        return play_pod().await;
    }
    within(async {
        let ground = Ground::new();
        let dir = ground.unusual_site("shop/cart", PORTS, exclusive());
        let other = ground.unusual_site("shop/till", PORTS, exclusive());
        let before = Pod::start("a_recreated_sandbox_takes_its_tenant_along").await;
        assert_eq!(before.order("listen 4317").await, "ok");
        assert_eq!(before.order(&format!("hello {}", dir.display())).await, "returned 0");
        assert_eq!(before.order("donate 0").await, "ack");
        assert_eq!(before.order("ready").await, "ok");
        assert_eq!(before.order("ask 4317").await, served("shop/cart"));

        let after = Pod::start("a_recreated_sandbox_takes_its_tenant_along").await;
        assert_eq!(after.order(&format!("hello {}", dir.display())).await, "returned 0");
        assert_eq!(before.order("end").await, "None");
        assert!(ground.snapshot("shop/cart").listeners.is_empty());
        assert_eq!(ground.slots(), 2, "the two `otlp`");

        assert_eq!(after.order("listen 4318").await, "ok");
        assert_eq!(after.order("donate 0").await, "ack");
        assert_eq!(after.order("ready").await, "ok");
        assert_eq!(after.order("ask 4318").await, served("shop/cart"));
        assert_eq!(before.order(&format!("hello {}", other.display())).await, "returned 0");
    })
    .await;
}

//! The admin socket: HTTP/1.1 on a Unix socket in the data directory, for the tools of whoever runs the gateway.
//!
//! It belongs to the process that has the directory's lock: a standby has none. What a killed gateway has left there is
//! replaced in one step. The kernel says who connects: this process's user or root, nobody else, whatever the modes of the
//! directory and of the socket (0600) let through.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::net::SocketType;
use tokio::net::UnixListener;

use crate::sockets::{self, Inode, Spec};
use crate::sys;

/// In the data directory.
pub const NAME: &str = "admin.sock";

const TEMPORARY: &str = ".admin.sock";

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// The name of a socket, removed when this is dropped, unless a successor's stands there.
#[derive(Debug)]
pub(super) struct Name {
    dir: OwnedFd,
    own: Inode,
}

impl Drop for Name {
    fn drop(&mut self) {
        sockets::remove_own(&self.dir, NAME, self.own);
    }
}

/// Makes the socket of a data directory. Must be called on the control runtime.
pub(super) fn bind(data_dir: &Path) -> io::Result<(UnixListener, Name)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(data_dir, flags, Mode::empty())?;
    let spec =
        Spec { name: NAME, temporary: TEMPORARY, kind: SocketType::STREAM, backlog: BACKLOG, mode: 0o600, group: None };
    let (socket, own) = sockets::bind(&dir, &spec)?;
    let listener = UnixListener::from_std(StdListener::from(socket))?;
    Ok((listener, Name { dir, own }))
}

/// Whether our own user or root has connected.
pub(super) fn is_trusted(stream: impl AsFd) -> bool {
    match sys::peer_uid(stream) {
        Ok(peer) if peer == 0 || peer == rustix::process::geteuid().as_raw() => true,
        Ok(peer) => {
            tracing::warn!(user = peer, "somebody else has connected to the admin socket: closed");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "the kernel does not say who has connected to the admin socket: closed");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::super::Server;
    use super::super::testing::Made;
    use super::*;

    fn start(data_dir: &Path) -> Server {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let mut server = Server::start(listener, Made::default().sources()).expect("within a runtime");
        server.serve_at(data_dir).expect("the directory is writable");
        server
    }

    async fn get(path: &Path, request: &str) -> String {
        let mut stream = UnixStream::connect(path).await.expect("it listens");
        stream
            .write_all(format!("GET {request} HTTP/1.1\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .expect("open");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        answer
    }

    /// Scenario: a gateway with the name of a killed one's socket in its way, a directory with a long path, a successor that
    /// takes the name over, and the end of both in the wrong order.
    /// Guarantees: the socket is for its owner alone and shows what pods sent, without a Host header; a dead name is no
    /// obstacle; who ends takes away its own name only.
    #[tokio::test]
    async fn the_socket_is_its_owners_and_follows_the_gateway() {
        let dir = tempfile::tempdir().expect("writable");
        let data_dir = dir.path().join("long".repeat(40));
        std::fs::create_dir(&data_dir).expect("writable");
        let path = data_dir.join(NAME);
        let near = std::path::PathBuf::from("/proc/self/fd");
        let directory = std::fs::File::open(&data_dir).expect("it is there");
        let near = near.join(std::os::fd::AsRawFd::as_raw_fd(&directory).to_string()).join(NAME);

        // As kill -9 leaves it.
        drop(StdListener::bind(&near).expect("the directory is writable"));
        assert!(path.exists());

        let first = start(&data_dir);
        let metadata = std::fs::metadata(&path).expect("it is there");
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert!(get(&near, "/livez").await.contains("alive"));
        assert!(get(&near, "/tenants?format=json").await.contains("shop/cart"));

        let mut second = start(&data_dir);
        drop(first);
        assert!(get(&near, "/livez").await.contains("alive"), "the name is the second one's");
        second.withdraw();
        assert!(!path.exists());
    }
}

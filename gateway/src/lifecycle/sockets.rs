//! A tenant's two sockets, given or made here; and their names in its directory: `ctl` and `otlp`.
//!
//! Owns the descriptor of the directory, to remove what it has put there and nothing else. How a socket is made is
//! [`crate::sockets`]'s.

use std::os::fd::OwnedFd;
use std::path::Path;

use pillion_proto::custody::Kind;

use super::LifecycleError;
use crate::sockets::{self, Inode};

/// A tenant's sockets, both listening.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) ctl: OwnedFd,
    pub(super) otlp: OwnedFd,
    /// What is to be removed with the site; `None` for sockets that were made by somebody else.
    pub(super) names: Option<Names>,
}

/// What stands in the directory.
#[derive(Debug)]
pub(super) struct Names {
    dir: OwnedFd,
    bound: [(Kind, Inode); 2],
}

impl Sockets {
    /// Makes the directory if it is absent, and both sockets.
    pub(super) fn bind(path: &Path) -> Result<Self, LifecycleError> {
        let dir = sockets::open_directory(path).map_err(|source| LifecycleError {
            action: "opening the directory",
            path: path.to_owned(),
            source,
        })?;
        let bind = |kind: Kind| {
            let failed = |source| LifecycleError { action: "binding", path: path.join(kind.as_str()), source };
            sockets::bind_for_pod(&dir, kind, &format!(".{}", kind.as_str())).map_err(failed)
        };
        let (ctl, ctl_inode) = bind(Kind::Ctl)?;
        let (otlp, otlp_inode) = bind(Kind::Otlp)?;
        let bound = [(Kind::Ctl, ctl_inode), (Kind::Otlp, otlp_inode)];
        Ok(Self { ctl, otlp, names: Some(Names { dir, bound }) })
    }

    /// Sockets that listen already and do not block.
    pub(super) fn given(ctl: OwnedFd, otlp: OwnedFd) -> Self {
        sockets::refuse_descriptors(&otlp);
        Self { ctl, otlp, names: None }
    }
}

impl Names {
    /// Removes the names, unless a successor has put its own sockets there.
    pub(super) fn remove(&self) {
        for (kind, inode) in self.bound {
            sockets::remove_own(&self.dir, kind.as_str(), inode);
        }
    }
}

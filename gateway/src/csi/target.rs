//! Whose volume a call is about: the kubelet's `target_path`, taken apart.
//!
//! Owns the form `KUBELET/pods/UID/volumes/kubernetes.io~csi/NAME/mount` and the walk to it: component by component below
//! the descriptor of `KUBELET/pods`, following no link. Pure but for that walk.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use pillion_proto::custody;
use rustix::fs::{Mode, OFlags};

/// The kubelet's folder for the volumes of all CSI drivers of a pod.
pub(super) const PLUGIN_DIR: &str = "kubernetes.io~csi";

/// What the driver makes in the volume's directory, and the kubelet mounts into the container.
pub(super) const MOUNT: &str = "mount";

/// Longest name of a volume: a DNS label.
const NAME_BYTES_MAX: usize = 63;

/// A pod's `metadata.uid`, safe as a part of a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Uid(Arc<str>);

impl Uid {
    pub(super) fn parse(text: &str) -> Option<Self> {
        custody::is_uid(text).then(|| Self(text.into()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One volume of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) uid: Uid,
    /// The name of the volume in the pod's spec.
    pub(super) volume: String,
}

impl Target {
    /// Takes apart what the kubelet sends. `None`: it has another form.
    pub(super) fn parse(kubelet_dir: &Path, target_path: &str) -> Option<Self> {
        let below = target_path.strip_prefix(kubelet_dir.to_str()?.trim_end_matches('/'))?;
        let mut parts = below.trim_end_matches('/').split('/');
        let fixed = |part: Option<&str>, wanted: &str| (part == Some(wanted)).then_some(());
        fixed(parts.next(), "")?;
        fixed(parts.next(), "pods")?;
        let uid = Uid::parse(parts.next()?)?;
        fixed(parts.next(), "volumes")?;
        fixed(parts.next(), PLUGIN_DIR)?;
        let target = Self::new(uid, parts.next()?)?;
        fixed(parts.next(), MOUNT)?;
        parts.next().is_none().then_some(target)
    }

    /// `None`: this cannot be the name of a volume.
    pub(super) fn new(uid: Uid, volume: &str) -> Option<Self> {
        let is_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_name = (1..=NAME_BYTES_MAX).contains(&volume.len()) && volume.bytes().all(is_label);
        is_name.then(|| Self { uid, volume: volume.to_owned() })
    }

    /// Opens the volume's directory, which the kubelet has made: the parent of `mount`.
    pub(super) fn open_volume_dir(&self, pods: impl AsFd) -> io::Result<OwnedFd> {
        walk(pods, [self.uid.as_str(), "volumes", PLUGIN_DIR, &self.volume])
    }

    /// Opens `mount`.
    pub(super) fn open_mount(&self, pods: impl AsFd) -> io::Result<OwnedFd> {
        walk(pods, [self.uid.as_str(), "volumes", PLUGIN_DIR, &self.volume, MOUNT])
    }
}

/// Opens a directory below another one, following no link on the way.
pub(super) fn walk<'a>(from: impl AsFd, parts: impl IntoIterator<Item = &'a str>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut dir: Option<OwnedFd> = None;
    for part in parts {
        let parent = dir.as_ref().map_or_else(|| from.as_fd(), AsFd::as_fd);
        dir = Some(rustix::fs::openat(parent, part, flags, Mode::empty())?);
    }
    dir.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: target paths as the kubelet makes them, and such that lead elsewhere.
    /// Guarantees: uid and volume come out of the right form, and nothing else has one.
    #[test]
    fn a_target_path_has_one_form() {
        let parse = |path: &str| Target::parse(Path::new("/var/lib/kubelet/"), path);
        let target = parse("/var/lib/kubelet/pods/0a-1/volumes/kubernetes.io~csi/pillion/mount").expect("the form");
        assert_eq!((target.uid.as_str(), target.volume.as_str()), ("0a-1", "pillion"));

        for wrong in [
            "",
            "/",
            "/var/lib/kubelet",
            "/var/lib/kubelets/pods/0a-1/volumes/kubernetes.io~csi/pillion/mount",
            "/var/lib/kubelet/pods/0a-1/volumes/kubernetes.io~csi/pillion",
            "/var/lib/kubelet/pods/0a-1/volumes/kubernetes.io~csi/pillion/mount/x",
            "/var/lib/kubelet/pods/0a-1/volumes/kubernetes.io~csi/../mount",
            "/var/lib/kubelet/pods/../volumes/kubernetes.io~csi/pillion/mount",
            "/var/lib/kubelet/pods/0a-1/volumes/kubernetes.io~csi//mount",
            "/var/lib/kubelet/pods/0a-1/volumes/kubernetes.io~empty-dir/pillion/mount",
            "/var/lib/kubelet/pods/0a_1/volumes/kubernetes.io~csi/pillion/mount",
            "/var/lib/kubelet/plugins/kubernetes.io/csi/pv/x/globalmount",
            "pods/0a-1/volumes/kubernetes.io~csi/pillion/mount",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}

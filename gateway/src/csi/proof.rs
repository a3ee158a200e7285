//! Whether a descriptor proves that its sender holds the data directory.
//!
//! Owns the check of HELLO's lock file, and the directory's preparation for the gateway, which has no privilege to make one.
//! It never keeps the descriptor: a duplicate would keep the lock after its holder's death.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Gid, Mode, OFlags};
use rustix::io::Errno;

use super::foreign::Foreign;

/// The queue's lock file.
const LOCK: &str = "lock";

/// root:GID, and what is made inside belongs to the group as well.
const DATA_DIR_MODE: u32 = 0o2770;

/// Why the sender does not get the sockets.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoProof {
    #[error("HELLO came without the descriptor of the data directory's lock file")]
    Missing,
    #[error("what came with HELLO is not {path}/lock: mount the same host directory into gateway and CSI driver")]
    OtherFile { path: String },
    #[error("the lock file of {path} is locked by another process: another gateway serves this node")]
    NotHeld { path: String },
    #[error("cannot look at {path}/lock: {source}")]
    Unreadable { path: String, source: io::Error },
}

/// Checks it, and closes it.
pub(super) fn check(lock: Option<Foreign>, data_dir: &Path) -> Result<(), NoProof> {
    let lock = lock.ok_or(NoProof::Missing)?;
    let path = || data_dir.display().to_string();
    let unreadable = |source: Errno| NoProof::Unreadable { path: path(), source: source.into() };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(data_dir, flags, Mode::empty()).map_err(unreadable)?;
    let ours = rustix::fs::statat(&dir, LOCK, AtFlags::SYMLINK_NOFOLLOW).map_err(unreadable)?;
    let theirs = rustix::fs::fstat(&lock).map_err(unreadable)?;
    let is_file = FileType::from_raw_mode(theirs.st_mode) == FileType::RegularFile;
    if !is_file || (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino) {
        return Err(NoProof::OtherFile { path: path() });
    }
    // A file of the data directory: its close waits for nothing. A duplicate that waited would keep the lock.
    let lock = lock.trust();
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(NoProof::NotHeld { path: path() }),
        Err(error) => Err(unreadable(error)),
    }
}

/// Makes the data directory one that the gateway can use: root:`group`, mode 2770.
pub(super) fn prepare(data_dir: &Path, group: u32) -> Result<(), Unprepared> {
    let failed =
        |action: &'static str| move |source: io::Error| Unprepared { path: data_dir.to_owned(), action, group, source };
    fs::DirBuilder::new().recursive(true).mode(0o755).create(data_dir).map_err(failed("make"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = rustix::fs::open(data_dir, flags, Mode::empty());
    let dir = open.map_err(|error| failed("open")(error.into()))?;
    let stat = rustix::fs::fstat(&dir).map_err(|error| failed("look at")(error.into()))?;
    if stat.st_gid != group {
        let outcome = rustix::fs::fchown(&dir, None, Some(Gid::from_raw(group)));
        outcome.map_err(|error| failed("give the group")(error.into()))?;
    }
    if stat.st_mode & 0o7777 != DATA_DIR_MODE || stat.st_gid != group {
        let outcome = rustix::fs::fchmod(&dir, Mode::from_raw_mode(DATA_DIR_MODE));
        outcome.map_err(|error| failed("set the mode of")(error.into()))?;
    }
    // A process outside of the group may not set the setgid bit, and the kernel drops it in silence.
    let mode = rustix::fs::fstat(&dir).map_err(|error| failed("look at")(error.into()))?.st_mode & 0o7777;
    if mode == DATA_DIR_MODE { Ok(()) } else { Err(failed("set the mode of")(Errno::PERM.into())) }
}

/// Why the data directory is not ready for the gateway.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the data directory {} for group {group}: {source}; {}", path.display(), advice(source, *group))]
pub(super) struct Unprepared {
    path: PathBuf,
    action: &'static str,
    group: u32,
    source: io::Error,
}

fn advice(error: &io::Error, group: u32) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "the driver must own the directory and be a member of the group: runAsUser: 0 and supplementalGroups: [{group}]"
        ),
        io::ErrorKind::ReadOnlyFilesystem => "mount it writable, and look at the node's disk".to_owned(),
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "something else has its name, or a link: remove it".to_owned()
        }
        _ => "look at the node's disk".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    use std::sync::Arc;

    use super::*;

    fn foreign(file: &File) -> Foreign {
        Foreign::new(file.try_clone().expect("a descriptor").into(), &Arc::default())
    }

    fn locked(path: &Path) -> File {
        let file = File::create(path).expect("writable");
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).expect("nobody else has it");
        file
    }

    /// Scenario: the holder of the lock, another opener of the same file, the holder of another file, and nothing at all.
    /// Guarantees: only the holder's own open file description passes, and the lock ends with the holder: the check keeps
    /// nothing.
    #[test]
    fn only_the_holder_of_the_lock_passes() {
        let dir = tempfile::tempdir().expect("writable");
        let holder = locked(&dir.path().join(LOCK));
        let other = locked(&dir.path().join("other"));
        let again = File::open(dir.path().join(LOCK)).expect("there");
        let check = |file: &File| check(Some(foreign(file)), dir.path());

        check(&holder).expect("it holds the lock");
        assert!(matches!(check(&again), Err(NoProof::NotHeld { .. })));
        assert!(matches!(check(&other), Err(NoProof::OtherFile { .. })));
        assert!(matches!(super::check(None, dir.path()), Err(NoProof::Missing)));
        drop(holder);
        check(&again).expect("nobody held it any more, so now it does");
    }

    /// Scenario: the lock's name is a link, or the data directory is not there.
    /// Guarantees: nothing is followed, and the words name the file.
    #[test]
    fn a_link_is_no_lock_file() {
        let dir = tempfile::tempdir().expect("writable");
        let elsewhere = locked(&dir.path().join("elsewhere"));
        symlink(dir.path().join("elsewhere"), dir.path().join(LOCK)).expect("a link");
        let fd = || Some(foreign(&elsewhere));
        assert!(matches!(check(fd(), dir.path()), Err(NoProof::OtherFile { .. })));
        let absent = check(fd(), &dir.path().join("absent")).expect_err("there is no such directory");
        assert!(absent.to_string().contains("absent/lock"), "{absent}");
    }

    /// Scenario: an absent directory, one with other modes, a link, a file, and a group that the driver is no member of.
    /// Guarantees: the directory is root:group 2770, or the error says what to set.
    #[test]
    fn the_data_directory_is_the_groups() {
        let root = tempfile::tempdir().expect("writable");
        let group = rustix::process::getegid().as_raw();
        let path = root.path().join("a/data");
        for _ in 0..2 {
            prepare(&path, group).expect("prepared");
            let metadata = fs::metadata(&path).expect("there");
            assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (DATA_DIR_MODE, group));
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("its owner may");
        }
        let link = root.path().join("link");
        symlink(&path, &link).expect("a link");
        let error = prepare(&link, group).expect_err("a link is not followed").to_string();
        assert!(error.contains("open the data directory") && error.contains("remove it"), "{error}");
        let advice = advice(&Errno::PERM.into(), 64317);
        assert!(advice.contains("supplementalGroups: [64317]"), "{advice}");
        assert!(super::advice(&Errno::ROFS.into(), 1).contains("writable"));
    }
}

//! Removing a directory that anybody may have written into (docs/threats.md row 19).
//!
//! Owns the walk: by descriptors, following no link, entering no mount. A directory found inside another is moved up to the
//! top before it is entered, so that no depth costs more than three descriptors. One call handles at most [`ENTRIES_MAX`]
//! entries; the next one goes on.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Entries that one call removes: the kubelet and the gateway wait meanwhile, up to a few seconds on a slow disk.
const ENTRIES_MAX: usize = 10_000;

/// Names read before they are removed.
const BATCH: usize = 256;

/// What keeps a directory from being removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stuck {
    #[error("more than {ENTRIES_MAX} entries were in it: the next try goes on")]
    TooMany,
    #[error("{name:?} cannot be removed: {source}; remove it by hand, or unmount it")]
    Entry { name: CString, source: io::Error },
}

/// Removes `name` below `parent`, whatever it is and whatever is in it. Absent is what is wanted.
pub(super) fn remove(parent: impl AsFd, name: &CStr) -> Result<(), Stuck> {
    let parent = parent.as_fd();
    if remove_entry(parent, name)? {
        return Ok(());
    }
    let top = open(parent, name)?;
    let mut left = ENTRIES_MAX;
    let mut hoisted = 0;
    loop {
        let batch = names(top.as_fd()).map_err(|source| stuck(name, source))?;
        if batch.is_empty() {
            break;
        }
        for entry in batch {
            spend(&mut left)?;
            if !remove_entry(top.as_fd(), &entry)? {
                clear(top.as_fd(), &entry, &mut left, &mut hoisted)?;
            }
        }
    }
    if remove_entry(parent, name)? { Ok(()) } else { Err(stuck(name, Errno::NOTEMPTY)) }
}

/// Empties a directory of the top and removes it; directories in it come to the top.
fn clear(top: BorrowedFd<'_>, name: &CStr, left: &mut usize, hoisted: &mut usize) -> Result<(), Stuck> {
    let dir = open(top, name)?;
    loop {
        let batch = names(dir.as_fd()).map_err(|source| stuck(name, source))?;
        if batch.is_empty() {
            break;
        }
        for entry in batch {
            spend(left)?;
            if !remove_entry(dir.as_fd(), &entry)? {
                hoist(dir.as_fd(), &entry, top, hoisted)?;
            }
        }
    }
    if remove_entry(top, name)? { Ok(()) } else { Err(stuck(name, Errno::NOTEMPTY)) }
}

/// Moves a directory to the top under a name that nothing there has.
fn hoist(from: BorrowedFd<'_>, name: &CStr, top: BorrowedFd<'_>, hoisted: &mut usize) -> Result<(), Stuck> {
    loop {
        *hoisted += 1;
        let fresh = format!(".pillion-{hoisted}");
        match rustix::fs::renameat_with(from, name, top, fresh.as_str(), rustix::fs::RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(stuck(name, error)),
        }
    }
}

/// False: it is a directory with something in it. A directory that something is mounted on is never entered: rmdir says so
/// (EBUSY) before it looks inside.
fn remove_entry(dir: BorrowedFd<'_>, name: &CStr) -> Result<bool, Stuck> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(stuck(name, error)),
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(stuck(name, error)),
    }
}

/// Opens a directory, and makes it one that its owner may empty.
fn open(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Stuck> {
    let failed = |error: Errno| stuck(name, error);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&node).map_err(failed)?;
    debug_assert_eq!(FileType::from_raw_mode(stat.st_mode), FileType::Directory, "O_DIRECTORY opens nothing else");
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    if stat.st_mode & 0o700 != 0o700 {
        rustix::fs::chmod(&path, Mode::RWXU).map_err(failed)?;
    }
    // The link in /proc leads to the directory itself, wherever its name leads by now.
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)
}

/// Some of what is in a directory.
fn names(dir: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
        if names.len() == BATCH {
            break;
        }
    }
    Ok(names)
}

fn spend(left: &mut usize) -> Result<(), Stuck> {
    *left = left.checked_sub(1).ok_or(Stuck::TooMany)?;
    Ok(())
}

fn stuck(name: &CStr, source: Errno) -> Stuck {
    Stuck::Entry { name: name.to_owned(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use super::*;
    use crate::sockets::open_directory;

    fn deep(at: &Path, levels: usize) {
        // By descriptor: no path of that length can be named.
        let mut dir = open_directory(at).expect("can be made");
        for _ in 0..levels {
            dir = crate::sockets::open_directory_at(&dir, "d").expect("can be made");
        }
    }

    /// Scenario: a volume's directory with everything in it that keeps rmdir from working: files, sockets, links to files and
    /// directories elsewhere, names that are no text, directories without permissions, a tree too deep for any path, and names
    /// like those that the walk uses itself.
    /// Guarantees: it is gone afterwards, and nothing that a link led to has changed.
    #[test]
    fn a_directory_full_of_traps_is_removed_and_nothing_else() {
        let root = tempfile::tempdir().expect("writable");
        let victim = root.path().join("victim");
        fs::create_dir_all(victim.join("inner")).expect("writable");
        fs::write(victim.join("file"), "untouched").expect("writable");
        let mount = root.path().join("mount");
        fs::create_dir_all(mount.join("closed/inside")).expect("writable");
        fs::set_permissions(mount.join("closed"), fs::Permissions::from_mode(0o0)).expect("its owner may");
        fs::create_dir_all(mount.join(".pillion-1/x/y")).expect("writable");
        fs::write(mount.join(".pillion-2"), "in the way").expect("writable");
        symlink(&victim, mount.join("dir-link")).expect("a link");
        symlink(victim.join("file"), mount.join("file-link")).expect("a link");
        symlink("/nowhere", mount.join("ctl")).expect("a link");
        fs::create_dir(mount.join("sub")).expect("writable");
        symlink(&victim, mount.join("sub/dir-link")).expect("a link");
        fs::write(mount.join(std::ffi::OsString::from_vec_lossless(b"no\xfftext")), "").expect("writable");
        let _listener = UnixListener::bind(mount.join("otlp")).expect("bound");
        (0..600).for_each(|number| fs::write(mount.join(format!("f{number}")), "").expect("writable"));
        deep(&mount.join("deep"), 2_100);

        let parent = open_directory(root.path()).expect("there");
        remove(&parent, c"mount").expect("removed");

        assert!(!mount.exists());
        assert_eq!(fs::read_to_string(victim.join("file")).expect("there"), "untouched");
        assert!(victim.join("inner").is_dir());
        remove(&parent, c"mount").expect("absent is what is wanted");
        symlink(&victim, &mount).expect("a link in its place");
        remove(&parent, c"mount").expect("removed");
        assert!(fs::symlink_metadata(&mount).is_err() && victim.join("file").exists());
    }

    /// Scenario: there is more in the directory than one call may remove.
    /// Guarantees: it stops, says so, and has come further.
    #[test]
    fn a_call_has_an_end() {
        let root = tempfile::tempdir().expect("writable");
        fs::create_dir(root.path().join("sub")).expect("writable");
        (0..10).for_each(|number| fs::write(root.path().join(format!("sub/{number}")), "").expect("writable"));
        let top = open_directory(root.path()).expect("there");
        let (mut left, mut hoisted) = (4, 0);
        assert!(matches!(clear(top.as_fd(), c"sub", &mut left, &mut hoisted), Err(Stuck::TooMany)));
        assert_eq!(fs::read_dir(root.path().join("sub")).expect("there").count(), 6);
        left = 100;
        clear(top.as_fd(), c"sub", &mut left, &mut hoisted).expect("cleared");
        assert!(!root.path().join("sub").exists());
    }

    trait FromVec {
        fn from_vec_lossless(bytes: &[u8]) -> Self;
    }

    impl FromVec for std::ffi::OsString {
        fn from_vec_lossless(bytes: &[u8]) -> Self {
            std::os::unix::ffi::OsStringExt::from_vec(bytes.to_vec())
        }
    }
}

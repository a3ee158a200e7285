//! Who may touch the data directory: its owner and its group, nobody else.
//!
//! It holds what pods sent, and the socket that changes what is queued. One that is open to others is closed where it is
//! certainly ours: it belongs to us and holds nothing but what Pillion makes. Anything else is left as it is and refused, since
//! a mode that is changed in the wrong place (`data_dir: /var`) breaks more than a gateway.
//!
//! ```text
//! owner   this process, or root: the CSI driver makes the directory root:GATEWAY 2770 for a gateway that is not root.
//!         Not a third user, who could replace every file; nor another one while we are root, whose files ours would be
//!         unreadable to
//! others  nothing
//! ```

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::super::OpenError;
use super::failure;

/// What Pillion makes in it, and what a filesystem of its own has.
const OURS: [&str; 14] = [
    "damaged",
    "lock",
    "format",
    "format.new",
    "meta.discarded",
    "log",
    "meta",
    "sink",
    "sockets",
    "shim.log",
    "supervisor.lock",
    "admin.sock",
    ".admin.sock",
    "lost+found",
];

/// What is to be done about a directory.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Ours, and open to others.
    Close,
    /// In words: what is wrong, and what to do.
    Refuse(String, String),
}

/// Refuses a directory that others could read or change; closes it where that is safe.
pub(crate) fn check(dir: &Path) -> Result<(), OpenError> {
    let metadata = std::fs::metadata(dir).map_err(|source| failure("looking at", dir, source))?;
    let us = rustix::process::geteuid().as_raw();
    match judge((metadata.uid(), metadata.mode()), us, holds_only_ours(dir)) {
        Verdict::Good => Ok(()),
        Verdict::Refuse(problem, advice) => Err(OpenError::Exposed { dir: dir.to_owned(), problem, advice }),
        Verdict::Close => {
            let mode = metadata.mode() & 0o7770;
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))
                .map_err(|source| failure("closing to others", dir, source))?;
            tracing::warn!(
                dir = %dir.display(), before = format!("{:04o}", metadata.mode() & 0o7777), now = format!("{mode:04o}"),
                "the data directory was open to every user of the machine: it is closed now"
            );
            Ok(())
        }
    }
}

/// What a check would refuse or change, in words.
pub(crate) fn exposed(dir: &Path) -> Result<Option<String>, OpenError> {
    let metadata = std::fs::metadata(dir).map_err(|source| failure("looking at", dir, source))?;
    Ok(match judge((metadata.uid(), metadata.mode()), metadata.uid(), false) {
        Verdict::Good | Verdict::Close => None,
        Verdict::Refuse(problem, advice) => Some(format!("the data directory {problem}: {advice}")),
    })
}

fn judge((owner, mode): (u32, u32), us: u32, only_ours: bool) -> Verdict {
    if owner != us && owner != 0 {
        let advice = match us {
            0 => format!(
                "what root makes in it could not be read by that user's gateway: run this as that user, for example \
                 `setpriv --reuid={owner} --regid={owner} --clear-groups pillion ...`"
            ),
            _ => "its owner could replace every file in it: choose another directory, or give it to the gateway's user"
                .to_owned(),
        };
        return Verdict::Refuse(format!("belongs to user {owner}, and this process runs as user {us}"), advice);
    }
    match mode & 0o007 {
        0 => Verdict::Good,
        _ if owner == us && only_ours => Verdict::Close,
        _ => Verdict::Refuse(
            format!("is open to every user of the machine (mode {:04o})", mode & 0o7777),
            "it holds what applications sent: `chmod o-rwx` it, if it is meant for Pillion alone".to_owned(),
        ),
    }
}

/// Empty, or with nothing in it that somebody else may have put there.
fn holds_only_ours(dir: &Path) -> bool {
    let is_ours = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_str().is_some_and(|name| OURS.contains(&name)))
    };
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.all(is_ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: every owner, as root and as another user, with modes that let others in or keep them out.
    /// Guarantees: nothing is ever opened where others may read or write; a mode is changed only where owner and content say
    /// that the directory is ours.
    #[test]
    fn nothing_is_for_others() {
        let refused = |verdict| matches!(verdict, Verdict::Refuse(..));
        for (us, root) in [(64317, 0), (1000, 0), (0, 0)] {
            for only_ours in [true, false] {
                for mode in [0o700, 0o750, 0o770, 0o2770] {
                    assert_eq!(judge((us, mode), us, only_ours), Verdict::Good, "{mode:o}");
                    assert_eq!(judge((root, mode), us, only_ours), Verdict::Good, "made by the driver: {mode:o}");
                    assert!(refused(judge((4711, mode), us, only_ours)), "a third user's: {mode:o}");
                }
                for mode in [0o755, 0o701, 0o702, 0o1777, 0o2775] {
                    let own = judge((us, mode), us, only_ours);
                    assert_eq!(own == Verdict::Close, only_ours, "{mode:o}");
                    assert!(only_ours || refused(own), "{mode:o}");
                    assert!(us == root || refused(judge((root, mode), us, only_ours)), "{mode:o}");
                }
            }
        }
    }

    /// Scenario: a new directory that is open to others, one of an earlier start, and one with a stranger's file.
    /// Guarantees: the first two are closed, their other bits kept; the third is left as it was, and the refusal says what to do.
    #[test]
    fn only_what_is_certainly_ours_is_closed() {
        let dir = tempfile::tempdir().expect("writable");
        let path = dir.path().join("data");
        let mode = |path: &Path| std::fs::metadata(path).expect("it is there").mode() & 0o7777;
        let open = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("its owner may");
        };
        std::fs::create_dir(&path).expect("writable");
        open(&path, 0o2775);
        check(&path).expect("an empty one is ours");
        assert_eq!(mode(&path), 0o2770);

        std::fs::write(path.join("lock"), "").expect("writable");
        open(&path, 0o755);
        check(&path).expect("so is one with a lock");
        assert_eq!(mode(&path), 0o750);

        std::fs::write(path.join("letter.txt"), "").expect("writable");
        open(&path, 0o755);
        let refusal = check(&path).expect_err("somebody uses it").to_string();
        assert!(refusal.contains("mode 0755") && refusal.contains("chmod o-rwx"), "{refusal}");
        assert_eq!(mode(&path), 0o755);
    }
}

//! What the kubelet's folders say about volumes of this driver.
//!
//! Owns the walk over `KUBELET/pods/*/volumes/kubernetes.io~csi/*/vol_data.json`, and the age at which something absent is
//! believed to be gone. It follows no link and changes nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use pillion_proto::custody::Kind;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use serde::Deserialize;

use super::DRIVER;
use super::records::VOLUMES_MAX;
use super::target::{PLUGIN_DIR, Target, Uid, walk};

const VOL_DATA_BYTES_MAX: u64 = 64 * 1024;

/// How long a volume must have been absent before it is collected. The kubelet makes its directory before it publishes, and
/// removes it after the unpublish: a moment without it is no end.
pub(super) const ABSENT_MAX: Duration = Duration::from_secs(120);

#[derive(Deserialize)]
struct VolData {
    #[serde(rename = "driverName")]
    driver_name: String,
}

/// Volumes of this driver that have been published once: the kubelet's directory names the driver, and there is a `ctl`. What
/// has none was refused, or never came so far.
pub(super) fn published(pods: impl AsFd) -> io::Result<Vec<Target>> {
    let mut found = Vec::new();
    for uid in names(&pods)? {
        let Some(uid) = Uid::parse(&uid) else { continue };
        // Most pods have no volume of any CSI driver.
        let Ok(plugin) = walk(&pods, [uid.as_str(), "volumes", PLUGIN_DIR]) else { continue };
        for volume in names(&plugin)? {
            let Some(target) = Target::new(uid.clone(), &volume) else { continue };
            if is_ours(&plugin, &volume) && has_ctl(&pods, &target) {
                found.push(target);
            }
        }
        if found.len() >= VOLUMES_MAX {
            break;
        }
    }
    Ok(found)
}

/// Whether the kubelet's directory of the volume is there. When that cannot be told, it is.
pub(super) fn is_present(pods: impl AsFd, target: &Target) -> bool {
    match target.open_volume_dir(pods) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

fn is_ours(plugin: impl AsFd, volume: &str) -> bool {
    let read = || -> io::Result<VolData> {
        let dir = walk(plugin, [volume])?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&dir, "vol_data.json", flags, Mode::empty())?);
        let mut bytes = Vec::new();
        file.take(VOL_DATA_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes)?)
    };
    read().is_ok_and(|data| data.driver_name == DRIVER)
}

fn has_ctl(pods: impl AsFd, target: &Target) -> bool {
    let stat = target.open_mount(pods).map(|dir| {
        rustix::fs::statat(&dir, Kind::Ctl.as_str(), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
    });
    stat.unwrap_or(false)
}

/// What is in a directory, as far as it is text.
fn names(dir: impl AsFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Since when each volume is absent. Pure.
#[derive(Debug, Default)]
pub(super) struct Absence(BTreeMap<Uid, Instant>);

impl Absence {
    /// Takes what is absent now; returns what has been for [`ABSENT_MAX`].
    pub(super) fn step(&mut self, absent: &[Uid], now: Instant) -> Vec<Uid> {
        self.0.retain(|uid, _| absent.contains(uid));
        for uid in absent {
            self.0.entry(uid.clone()).or_insert(now);
        }
        self.0.iter().filter(|(_, since)| now >= **since + ABSENT_MAX).map(|(uid, _)| uid.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: volumes are absent for a moment, for long, and come back just before the end.
    /// Guarantees: only what was absent at every look for two minutes is collected.
    #[test]
    fn what_is_absent_long_enough_is_gone() {
        let both = ["u-1", "u-2"].map(|uid| Uid::parse(uid).expect("a uid"));
        let mut absence = Absence::default();
        let start = Instant::now();
        let almost = start + ABSENT_MAX - Duration::from_nanos(1);
        let gone = &both[..1];
        assert!(absence.step(&both, start).is_empty());
        assert!(absence.step(&both, almost).is_empty());
        assert!(absence.step(gone, almost).is_empty());
        assert_eq!(absence.step(&both, start + ABSENT_MAX), gone);
        assert_eq!(absence.step(&both, almost + ABSENT_MAX), gone, "the other began anew");
        assert_eq!(absence.step(&both, start + 2 * ABSENT_MAX), both);
    }
}

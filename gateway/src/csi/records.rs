//! What is known about each published volume, kept over a restart of the driver.
//!
//! The kubelet's own `vol_data.json` names driver and handle, but not the pod. So there is a small file for each volume,
//! written before the publish is answered and removed at its end. It is written beside and renamed, never synced: after a
//! power loss the kubelet publishes everything again.
//!
//! ```text
//! KUBELET/plugins/csi.pillion.dev/volumes/UID.json    {"uid": ..., "volume": ..., "namespace": ..., "ports": [4317, 4318], ...}
//! ```

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use pillion_proto::custody;
use serde::{Deserialize, Serialize};

use super::target::{Target, Uid};

/// Volumes that the driver serves. The kubelet allows 110 pods by default, and nobody runs more than a few hundred.
pub(super) const VOLUMES_MAX: usize = 1024;

const RECORD_BYTES_MAX: u64 = 16 * 1024;

/// A published volume, as the kubelet asserts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) uid: String,
    /// The name of the volume in the pod's spec.
    pub(super) volume: String,
    pub(super) volume_id: String,
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) service_account: String,
    pub(super) ports: Vec<u16>,
}

impl Record {
    /// What the gateway is told.
    pub(super) fn message(&self) -> custody::Volume {
        custody::Volume {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            service_account: self.service_account.clone(),
            ports: self.ports.clone(),
        }
    }

    /// `None`: it is not one of ours.
    pub(super) fn target(&self) -> Option<Target> {
        Target::new(Uid::parse(&self.uid)?, &self.volume)
    }
}

/// The folder of all records.
#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
}

impl Records {
    /// Makes the folder if it is absent.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// All that can be read, in the order in which they were published, at most [`VOLUMES_MAX`]. What cannot is told in the
    /// log and left alone: the kubelet's next publish writes it again.
    pub(super) fn load(&self) -> io::Result<Vec<(Target, Record)>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(uid) = name.to_str().and_then(|name| name.strip_suffix(".json")) else { continue };
            if records.len() >= VOLUMES_MAX {
                tracing::error!(limit = VOLUMES_MAX, "more records than volumes can be served: the rest is left alone");
                break;
            }
            match self.read(uid) {
                // The file is written once, when the pod is published.
                Ok(record) => records.push((entry.metadata()?.modified()?, record)),
                Err(error) => tracing::warn!(uid, %error, "cannot read a volume's record: it waits for the kubelet"),
            }
        }
        records.sort_by_key(|(published, _)| *published);
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }

    /// Replaces the volume's record in one step.
    pub(super) fn write(&self, record: &Record) -> io::Result<()> {
        let bytes = serde_json::to_vec(record)?;
        let temporary = self.dir.join(format!(".{}.json", record.uid));
        let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&bytes)?;
        fs::rename(&temporary, self.path(&record.uid))
    }

    /// A record that is not there is what is wanted.
    pub(super) fn remove(&self, uid: &Uid) {
        match fs::remove_file(self.path(uid.as_str())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%uid, %error, "cannot remove a volume's record: it is collected later");
            }
            _ => {}
        }
    }

    fn read(&self, uid: &str) -> io::Result<(Target, Record)> {
        let mut bytes = Vec::new();
        fs::File::open(self.path(uid))?.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
        let record: Record = serde_json::from_slice(&bytes)?;
        let target = record.target().filter(|target| target.uid.as_str() == uid);
        let target = target.ok_or_else(|| io::Error::other("it is of another pod than its name says"))?;
        Ok((target, record))
    }

    fn path(&self, uid: &str) -> PathBuf {
        self.dir.join(format!("{uid}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: records are written, replaced, and damaged in every way that a crash or a person may damage them.
    /// Guarantees: what is whole is found again, and what is not never stops the driver nor names another pod.
    #[test]
    fn what_is_whole_is_found_again() {
        let dir = tempfile::tempdir().expect("writable");
        let records = Records::open(&dir.path().join("volumes")).expect("can be made");
        let mut record = Record {
            uid: "u-1".to_owned(),
            volume: "pillion".to_owned(),
            volume_id: "csi-1".to_owned(),
            namespace: "shop".to_owned(),
            pod: "cart".to_owned(),
            service_account: "default".to_owned(),
            ports: vec![4317, 4318],
        };
        records.write(&record).expect("written");
        record.ports = vec![1, 2];
        records.write(&record).expect("replaced");
        for (name, content) in [
            ("u-2.json", "{"),
            ("u-3.json", ""),
            (".u-4.json", "half"),
            ("u-5.txt", "other"),
            ("u-6.json", &serde_json::to_string(&record).expect("a record")),
        ] {
            fs::write(records.dir.join(name), content).expect("writable");
        }

        let found = records.load().expect("the folder can be read");

        assert_eq!(found.iter().map(|(_, record)| record).collect::<Vec<_>>(), [&record]);
        records.remove(&found[0].0.uid);
        records.remove(&found[0].0.uid);
        assert!(records.load().expect("the folder can be read").is_empty());
    }
}

//! A filesystem of a few hundred MiB under the arm's data, and somebody else's file that fills it.
//!
//! A tmpfs, mounted in the mount namespace of the run, which ends with it: so no figure of a durable arm is taken on it. Processes
//! that are started later see it; what is mounted is unmounted when dropped.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// It is mounted.
#[derive(Debug)]
pub struct SmallDisk {
    dir: PathBuf,
}

impl SmallDisk {
    /// Mounts so many MiB on `dir`, which is made.
    pub fn mount(dir: PathBuf, mib: u64) -> Result<Self> {
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        let size = format!("size={mib}m,mode=0700");
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&dir).status().context("starting mount")?;
        ensure!(status.success(), "a small filesystem could not be mounted on {}: {status}", dir.display());
        Ok(Self { dir })
    }

    fn foreign(&self) -> PathBuf {
        self.dir.join("somebody-elses")
    }

    /// Takes all that is left.
    pub fn fill(&self) -> Result<()> {
        let free = statvfs(&self.dir)?;
        let file = File::create(self.foreign()).context("somebody else's file")?;
        match fallocate(&file, FallocateFlags::empty(), 0, free.f_bavail * free.f_frsize) {
            // What the agent has taken meanwhile is as good.
            Ok(()) | Err(rustix::io::Errno::NOSPC) => Ok(()),
            Err(error) => Err(error).context("filling the disk"),
        }
    }

    /// Gives it back.
    pub fn free(&self) -> Result<()> {
        fs::remove_file(self.foreign()).context("somebody else's file")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // It ends with the run's namespace at the latest.
        drop(Command::new("umount").arg("-l").arg(&self.dir).status());
    }
}

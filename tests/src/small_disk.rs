//! A real filesystem of a few hundred MiB, for the gateway alone: ext4 on a loop device where that is permitted, else tmpfs.
//!
//! Mounted in a mount namespace that the gateway's processes live in and that ends with them, so nothing is left behind
//! however a test ends. The test reaches it through `/proc/PID/root`.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::FallocateFlags;

/// What was made, and how.
#[derive(Debug)]
pub struct SmallDisk {
    kind: &'static str,
    mount: PathBuf,
    bytes: u64,
    /// Only for a loop device.
    image: Option<PathBuf>,
}

impl SmallDisk {
    /// In `dir`; `DIR/disk` is where the gateway finds it.
    pub fn make(dir: &Path, bytes: u64) -> Self {
        let (mount, image) = (dir.join("disk"), dir.join("disk.ext4"));
        std::fs::create_dir(&mount).expect("the test's directory is writable");
        let loops = Self { kind: "ext4 on a loop device", mount: mount.clone(), bytes, image: Some(image.clone()) };
        let disk = match loops.make_image(&image).and_then(|()| loops.try_out()) {
            Ok(()) => loops,
            Err(error) => {
                println!("no loop device here ({error}): tmpfs");
                Self { kind: "tmpfs", mount, bytes, image: None }
            }
        };
        println!("the small filesystem is {}", disk.kind);
        disk
    }

    fn make_image(&self, image: &Path) -> io::Result<()> {
        File::create(image)?.set_len(self.bytes)?;
        let output = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image).output()?;
        if output.status.success() { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&output.stderr))) }
    }

    fn try_out(&self) -> io::Result<()> {
        let output = self.command().arg("true").stderr(Stdio::piped()).output()?;
        if output.status.success() { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&output.stderr))) }
    }

    /// Executes its further arguments where the filesystem is mounted.
    pub fn command(&self) -> Command {
        const MOUNT: &str = r#"set -e; case "$1" in tmpfs) mount -t tmpfs -o "size=$2,mode=0700" tmpfs "$3";; *) mount -o loop "$1" "$3";; esac
            shift 3; exec "$@""#;
        let mut command = Command::new("unshare");
        match &self.image {
            Some(image) => command.args(["--mount", "sh", "-c", MOUNT, "sh"]).arg(image),
            None => command.args(["--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh", "tmpfs"]),
        };
        command.arg(self.bytes.to_string()).arg(&self.mount);
        command
    }

    /// Where a process that runs there has it, as seen from here.
    pub fn seen_through(&self, pid: u32) -> PathBuf {
        let mount = self.mount.strip_prefix("/").expect("a temporary directory is absolute");
        Path::new("/proc").join(pid.to_string()).join("root").join(mount)
    }
}

/// A file of somebody else's on the same filesystem.
#[derive(Debug)]
pub struct Foreign {
    file: File,
}

impl Foreign {
    /// Empty.
    pub fn make(root: &Path) -> Self {
        let file = OpenOptions::new().write(true).create_new(true).open(root.join("foreign"));
        Self { file: file.expect("there is room for a name") }
    }

    /// Takes space until only so much is left.
    pub fn leave(&self, bytes: u64) {
        let free = self.free();
        if let Some(take) = free.checked_sub(bytes).filter(|take| *take > 0) {
            let length = self.length();
            rustix::fs::fallocate(&self.file, FallocateFlags::empty(), length, take).expect("so much is free");
        }
    }

    /// Takes all of it, to the last block.
    pub fn take_everything(&self) {
        let mut step = 1 << 24;
        while step >= 512 {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), self.length(), step) {
                Ok(()) => {}
                Err(rustix::io::Errno::NOSPC) => step /= 2,
                Err(error) => panic!("taking space: {error}"),
            }
        }
    }

    /// What the filesystem has left.
    pub fn free(&self) -> u64 {
        let found = rustix::fs::fstatvfs(&self.file).expect("an open file");
        found.f_bavail * found.f_frsize
    }

    /// Gives everything back.
    pub fn give_back(&self) {
        self.file.set_len(0).expect("a file can be shortened on a full disk");
    }

    fn length(&self) -> u64 {
        self.file.metadata().expect("an open file").len()
    }
}

//! How `pillion` ends: the numbers that supervisors, scripts and people may rely on.

use std::process::ExitCode;

use crate::queue::OpenError;

/// An exit status. The number never changes its meaning between releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Drained and stopped as asked, or the command did what it should.
    Ok = 0,
    /// Something unforeseen; the log says what. The supervisor starts the worker again.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The configuration is wrong. Starting again would not help.
    Config = 3,
    /// Another process has the data directory.
    DataDirLocked = 4,
    /// The data directory cannot be made, read or written, or is of a newer release.
    DataDirUnusable = 5,
    /// A port that the gateway itself must have is taken.
    AddressInUse = 6,
    /// A write or an fsync of the log failed. Starting again recovers what is on the disk.
    PoisonedLog = 7,
    /// The worker found that its supervisor is gone.
    Orphaned = 8,
    /// `pillion inject`: a pod asks for a shim and cannot have it.
    NotInjected = 9,
    /// `pillion queue verify`: something is not as it was written.
    Damaged = 10,
}

impl Exit {
    const ALL: [Self; 11] = [
        Self::Ok,
        Self::Failure,
        Self::Usage,
        Self::Config,
        Self::DataDirLocked,
        Self::DataDirUnusable,
        Self::AddressInUse,
        Self::PoisonedLog,
        Self::Orphaned,
        Self::NotInjected,
        Self::Damaged,
    ];

    /// The status of that number; anything that is none of ours (101 is a panic) is `None`.
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| i32::from(*exit as u8) == number)
    }

    /// Why a data directory does not open.
    pub fn of_queue(error: &OpenError) -> Self {
        match error {
            OpenError::Locked { .. } => Self::DataDirLocked,
            OpenError::Exposed { .. } | OpenError::NewerFormat { .. } | OpenError::Io { .. } => Self::DataDirUnusable,
        }
    }

    /// Whether a worker that ended so is started again. The others say something that only a person can change.
    pub fn is_restartable(self) -> bool {
        matches!(self, Self::Failure | Self::PoisonedLog)
    }

    /// The reason in words, for the log and for /metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Ok => "ended as asked",
            Self::Failure => "failed",
            Self::Usage => "wrong command line",
            Self::Config => "invalid configuration",
            Self::DataDirLocked => "data directory in use",
            Self::DataDirUnusable => "data directory unusable",
            Self::AddressInUse => "address in use",
            Self::PoisonedLog => "poisoned log",
            Self::Orphaned => "supervisor gone",
            Self::NotInjected => "not injected",
            Self::Damaged => "damage found",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command ends before it has begun: what to tell the person, and the status.
#[derive(Debug)]
pub struct Refusal {
    /// The status.
    pub exit: Exit,
    /// One or more lines: what is wrong and what to do.
    pub message: String,
}

impl Refusal {
    /// Says it on stderr.
    pub fn print(&self) -> ExitCode {
        eprintln!("error: {}", self.message);
        self.exit.into()
    }
}

//! Where the queue is: with a gateway that runs, or in a data directory at rest.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::Failed;
use super::client::Client;
use crate::admin::queue::{self as desk, Changed, Chosen, LetterId, LetterRow, Overview, Page};
use crate::app::cli::queue::PlaceArgs;
use crate::app::exit::Exit;
use crate::base::handoff::Handoff;
use crate::queue::{Config, MinFree, OpenError, Queue, Verdict};

/// Looked for when none is named.
const USUAL: [&str; 2] = ["./pillion-data", "/var/lib/pillion"];

/// A directory at rest is changed as little as the next start of its gateway would change it.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Letters that one request names.
const CHOSEN_MAX: usize = 10_000;

/// A way to the queue.
pub(super) enum Place {
    Running(Client),
    AtRest(Queue),
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Self::AtRest(queue) = self
            && let Err(error) = queue.close()
        {
            eprintln!("warning: closing the queue: {error}");
        }
    }
}

impl Place {
    /// Asks the gateway of that directory, or opens it where there is none; says which of them on stderr.
    pub(super) fn find(args: &PlaceArgs) -> Result<Self, Failed> {
        let dir = directory(args)?;
        match Client::connect(&dir) {
            Ok(client) => {
                eprintln!("asking the gateway that runs on {}", dir.display());
                Ok(Self::Running(client))
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => at_rest(&dir),
            Err(error) => Err(Failed {
                exit: Exit::DataDirUnusable,
                message: format!("{}: {error}\n       run this as the gateway's user, or as root", dir.display()),
            }),
        }
    }

    pub(super) fn overview(&self) -> Result<Overview, Failed> {
        match self {
            Self::Running(client) => client.get("/queue"),
            Self::AtRest(queue) => desk::overview(queue).map_err(troubled),
        }
    }

    /// All dead letters, without their data.
    pub(super) fn letters(&self) -> Result<Vec<LetterRow>, Failed> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let Page { letters, next } = match self {
                Self::Running(client) => client.get(&match after {
                    Some(after) => format!("/queue/letters?after={after}"),
                    None => "/queue/letters".to_owned(),
                })?,
                Self::AtRest(queue) => desk::letters(queue, after).map_err(troubled)?,
            };
            all.extend(letters);
            after = next;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// The data of one; `None` if it is gone meanwhile.
    pub(super) fn data(&self, id: LetterId) -> Result<Option<Bytes>, Failed> {
        match self {
            Self::Running(client) => client.data(&format!("/queue/letter?id={id}")),
            Self::AtRest(queue) => Ok(desk::data(queue, id).map_err(troubled)?.map(|(_, data)| data)),
        }
    }

    /// How many were changed.
    pub(super) fn change(&self, letters: &[LetterId], verdict: Verdict) -> Result<u64, Failed> {
        let mut sum = 0;
        for letters in letters.chunks(CHOSEN_MAX) {
            let chosen = Chosen { letters: letters.to_vec() };
            let Changed { changed } = match self {
                Self::Running(client) => {
                    let path = if verdict == Verdict::Again { "/queue/replay" } else { "/queue/purge" };
                    client.post(path, &chosen)?
                }
                Self::AtRest(queue) => desk::change(queue, &chosen, verdict).map_err(troubled)?,
            };
            sum += u64::from(changed);
        }
        Ok(sum)
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self, Self::Running(_))
    }
}

fn troubled(trouble: desk::Trouble) -> Failed {
    Failed::new(trouble.to_string())
}

fn directory(args: &PlaceArgs) -> Result<PathBuf, Failed> {
    let is_one = |dir: &Path| dir.join("format").is_file() || dir.join("log").is_dir();
    let unusable = |message| Failed { exit: Exit::DataDirUnusable, message };
    match &args.data_dir {
        Some(dir) if is_one(dir) => Ok(dir.clone()),
        Some(dir) => Err(unusable(match std::fs::metadata(dir).and_then(|_| std::fs::read_dir(dir)) {
            Err(error) => format!("{}: {error}", dir.display()),
            Ok(_) => format!("{} is no data directory: no gateway has ever queued anything there", dir.display()),
        })),
        None => USUAL.iter().map(PathBuf::from).find(|dir| is_one(dir)).ok_or_else(|| {
            unusable("there is no data directory here: name the gateway's node.data_dir with --data-dir DIR".to_owned())
        }),
    }
}

fn at_rest(dir: &Path) -> Result<Place, Failed> {
    // Files made by another user could not be written by the gateway.
    let us = rustix::process::geteuid().as_raw();
    let owner = std::fs::metadata(dir.join("log")).map(|metadata| (metadata.uid(), metadata.gid()));
    if let Ok((owner, group)) = owner
        && owner != us
    {
        return Err(Failed {
            exit: Exit::DataDirUnusable,
            message: format!(
                "no gateway runs on {}, and its files belong to user {owner}: run this as that user, for example\n       \
                 setpriv --reuid={owner} --regid={group} --clear-groups pillion queue ...",
                dir.display()
            ),
        });
    }
    let config = Config {
        data_dir: dir.to_owned(),
        // As much as is there: nothing is refused or dropped that the gateway has kept.
        disk_bytes_max: 1 << 50,
        segment_bytes: SEGMENT_BYTES,
        inbox_bytes_max: 64 << 20,
        dead_letter_bytes_max: u64::MAX,
        min_free: MinFree::Bytes(0),
        // It registers nobody.
        begin_at_tail: BTreeSet::new(),
    };
    match Queue::open(config, Arc::new(Handoff::new(0))) {
        Ok((queue, _)) => {
            eprintln!("no gateway runs on {}: opened as its next start would find it", dir.display());
            Ok(Place::AtRest(queue))
        }
        Err(OpenError::Locked { dir, holder }) => Err(Failed {
            exit: Exit::DataDirLocked,
            message: format!(
                "process {holder} has {} and does not answer on its admin socket: it is starting or ending; try again",
                dir.display()
            ),
        }),
        Err(error) => Err(error.into()),
    }
}

//! The sink's one file: what was, and what came after it.
//!
//! ```text
//! journal   header frame(Image) frame(Change)*
//! header    magic "PLNSINK\n", version u32, crc32c u32 of the two before it
//! frame     length u32 (of the message; at most FRAME_BYTES_MAX), crc32c u32 of length and message, message
//! ```
//!
//! Numbers are little-endian; messages are those of `record`. A change is complete or it is not there: a torn one at the
//! end is cut off at the next open, and its records are delivered again. When the file has grown by [`GROWTH_MAX`] it is
//! written anew: beside the old one, synced, renamed, the directory synced. After a failed write or sync nothing is known
//! about the file's end, so that nothing more is appended to it: it is written anew as well.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::record::{Change, Image};
use super::state::State;

const MAGIC: &[u8; 8] = b"PLNSINK\n";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
const FRAME_HEADER_BYTES: usize = 8;

/// No message is longer. Far above what the limits of `state` and of one store allow.
const FRAME_BYTES_MAX: usize = 64 << 20;

/// Bytes of changes before the file is written anew.
const GROWTH_MAX: u64 = 4 << 20;

/// The open file.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    file: File,
    len: u64,
    /// Its length when it was written anew.
    base: u64,
    sound: bool,
}

/// Why a file is put aside.
#[derive(Debug, thiserror::Error)]
enum Damage {
    #[error("it is not a sink's journal")]
    Header,
    #[error("it was written by another release (format {0})")]
    Version(u32),
    #[error("its first frame is damaged")]
    Image,
}

/// What a file held.
struct Replay {
    state: State,
    base: u64,
    good: u64,
}

impl Journal {
    /// Opens or makes the journal in `dir` and replays it.
    pub(super) fn open(dir: &Path) -> io::Result<(Self, State)> {
        fs::create_dir_all(dir)?;
        let path = dir.join("journal");
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(mut file) => match replay(&mut file)? {
                Ok(replay) => Self::resume(dir, file, replay),
                Err(damage) => {
                    put_aside(&path, &damage)?;
                    Self::create(dir)
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::create(dir),
            Err(error) => Err(error),
        }
    }

    fn create(dir: &Path) -> io::Result<(Self, State)> {
        let state = State::default();
        let (file, len) = write_anew(dir, &state.image())?;
        Ok((Self { dir: dir.to_owned(), file, len, base: len, sound: true }, state))
    }

    fn resume(dir: &Path, file: File, replay: Replay) -> io::Result<(Self, State)> {
        let len = file.metadata()?.len();
        if len > replay.good {
            tracing::warn!(bytes = len - replay.good, "the end of the sink's journal is torn and was cut off");
            file.set_len(replay.good)?;
        }
        // What a killed process had written but not synced is counted from here on, so it must not vanish later.
        file.sync_all()?;
        let Replay { state, base, good } = replay;
        Ok((Self { dir: dir.to_owned(), file, len: good, base, sound: true }, state))
    }

    /// False after a failed write: [`Journal::rewrite`] before anything is appended.
    pub(super) fn is_sound(&self) -> bool {
        self.sound
    }

    /// Whether it should be written anew.
    pub(super) fn is_long(&self) -> bool {
        self.len - self.base > GROWTH_MAX
    }

    /// Appends a change; durable when it returns.
    pub(super) fn append(&mut self, change: &Change) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(FRAME_HEADER_BYTES + change.encoded_len());
        put_frame(&mut bytes, change)?;
        self.sound = false;
        self.file.write_all_at(&bytes, self.len)?;
        self.file.sync_data()?;
        self.len += bytes.len() as u64;
        self.sound = true;
        Ok(())
    }

    /// Begins a new file with this state; durable when it returns.
    pub(super) fn rewrite(&mut self, image: &Image) -> io::Result<()> {
        self.sound = false;
        let (file, len) = write_anew(&self.dir, image)?;
        (self.file, self.len, self.base, self.sound) = (file, len, len, true);
        Ok(())
    }

    /// Makes the next append fail as on a full disk.
    #[cfg(test)]
    pub(super) fn break_file(&mut self) {
        self.file = OpenOptions::new().write(true).open("/dev/full").expect("every Linux has it");
    }
}

fn write_anew(dir: &Path, image: &Image) -> io::Result<(File, u64)> {
    let mut bytes = header(VERSION).to_vec();
    put_frame(&mut bytes, image)?;
    let temporary = dir.join("journal.new");
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&temporary)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join("journal"))?;
    File::open(dir)?.sync_all()?;
    Ok((file, bytes.len() as u64))
}

fn header(version: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&version.to_le_bytes());
    let crc = crc32c::crc32c(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

fn put_frame(out: &mut Vec<u8>, message: &impl Message) -> io::Result<()> {
    let body = message.encode_to_vec();
    if body.len() > FRAME_BYTES_MAX {
        return Err(io::Error::other(format!("{} bytes are too many for one frame of the sink's journal", body.len())));
    }
    let length = u32::try_from(body.len()).map_err(io::Error::other)?.to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&crc32c::crc32c_append(crc32c::crc32c(&length), &body).to_le_bytes());
    out.extend_from_slice(&body);
    Ok(())
}

/// The outer error is the disk's, the inner one the file's.
fn replay(file: &mut File) -> io::Result<Result<Replay, Damage>> {
    let mut reader = io::BufReader::new(file);
    let mut found = [0; HEADER_BYTES];
    if !fill(&mut reader, &mut found)? {
        return Ok(Err(Damage::Header));
    }
    let version = u32::from_le_bytes([found[8], found[9], found[10], found[11]]);
    if found != header(version) {
        return Ok(Err(Damage::Header));
    }
    if version != VERSION {
        return Ok(Err(Damage::Version(version)));
    }
    let Some(image) = next_frame(&mut reader)? else { return Ok(Err(Damage::Image)) };
    let base = (HEADER_BYTES + FRAME_HEADER_BYTES + image.len()) as u64;
    let Ok(image) = Image::decode(&image[..]) else { return Ok(Err(Damage::Image)) };
    let (mut state, mut good) = (State::from_image(image), base);
    while let Some(frame) = next_frame(&mut reader)? {
        let Ok(change) = Change::decode(&frame[..]) else { break };
        state.apply(change);
        good += (FRAME_HEADER_BYTES + frame.len()) as u64;
    }
    Ok(Ok(Replay { state, base, good }))
}

/// The next message, or `None` where no whole one follows.
fn next_frame(reader: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut header = [0; FRAME_HEADER_BYTES];
    if !fill(reader, &mut header)? {
        return Ok(None);
    }
    let [l0, l1, l2, l3, c0, c1, c2, c3] = header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > FRAME_BYTES_MAX {
        return Ok(None);
    }
    let mut body = Vec::new();
    reader.by_ref().take(length as u64).read_to_end(&mut body)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..4]), &body);
    Ok((body.len() == length && crc == u32::from_le_bytes([c0, c1, c2, c3])).then_some(body))
}

/// False at the end of the file.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn put_aside(path: &Path, damage: &Damage) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let aside = path.with_file_name(format!("journal.damaged-{now}"));
    fs::rename(path, &aside)?;
    tracing::warn!("the sink starts from zero; its journal is kept as {}: {damage}", aside.display());
    Ok(())
}

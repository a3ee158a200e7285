//! `pillion queue export`: the data of dead letters in files that other programs read.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::Failed;
use super::choose::choose;
use super::inspect::signal_of;
use super::place::Place;
use crate::app::cli::queue::{ExportArgs, FileFormat};
use crate::app::exit::Exit;
use crate::app::output;
use crate::base::Signal;
use crate::readable;

/// The files, made when they are needed.
struct Files<'a> {
    dir: &'a Path,
    format: FileFormat,
    open: [Option<(PathBuf, BufWriter<File>)>; 3],
}

pub(super) fn run(args: &ExportArgs) -> Result<Exit, Failed> {
    let place = Place::find(&args.place)?;
    let chosen = choose(&place, &args.filter)?;
    let mut files = Files { dir: &args.to, format: args.format, open: [None, None, None] };
    let mut written = 0;
    for letter in &chosen {
        let Some(data) = place.data(letter.id)? else { continue };
        files
            .put(signal_of(letter), &data)
            .map_err(|words| Failed::new(format!("dead letter {}: {words}", letter.id)))?;
        written += 1;
    }
    let names = files.finish().map_err(Failed::new)?;
    match written {
        0 => eprintln!("no dead letters: nothing is written"),
        _ => output::line(format_args!("{written} dead letters written to {}", names.join(", "))),
    }
    Ok(Exit::Ok)
}

impl Files<'_> {
    fn put(&mut self, signal: Signal, data: &[u8]) -> Result<(), String> {
        let bytes = match self.format {
            FileFormat::Json => {
                let value = readable::json(data, signal).map_err(|error| error.to_string())?;
                format!("{value}\n").into_bytes()
            }
            FileFormat::Proto => {
                let mut bytes = Vec::with_capacity(data.len() + 10);
                prost::encoding::encode_varint(data.len() as u64, &mut bytes);
                bytes.extend_from_slice(data);
                bytes
            }
        };
        let (path, file) = self.file(signal)?;
        file.write_all(&bytes).map_err(|error| format!("writing {}: {error}", path.display()))
    }

    fn file(&mut self, signal: Signal) -> Result<&mut (PathBuf, BufWriter<File>), String> {
        let slot = &mut self.open[signal.index()];
        if slot.is_none() {
            let end = if self.format == FileFormat::Json { "jsonl" } else { "binpb" };
            let path = self.dir.join(format!("{}.{end}", signal.name()));
            // What applications sent is not for everybody.
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(self.dir);
            made.map_err(|error| format!("making {}: {error}", self.dir.display()))?;
            let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
            let file = file.map_err(|error| format!("making {}: {error}", path.display()))?;
            *slot = Some((path, BufWriter::new(file)));
        }
        slot.as_mut().ok_or_else(|| "no file".to_owned())
    }

    fn finish(self) -> Result<Vec<String>, String> {
        let mut names = Vec::new();
        for (path, file) in self.open.into_iter().flatten() {
            let synced = file.into_inner().map_err(|error| error.to_string());
            let synced = synced.and_then(|file| file.sync_all().map_err(|error| error.to_string()));
            synced.map_err(|error| format!("writing {}: {error}", path.display()))?;
            names.push(path.display().to_string());
        }
        Ok(names)
    }
}

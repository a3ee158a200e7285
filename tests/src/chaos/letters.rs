//! Dead letters, as `pillion queue export` takes them out of the data directory of a gateway that has ended.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use pillion_loadtest::payload::item_ids;

use super::DESTINATIONS;

/// The ids of all items, by destination.
pub(super) fn read(node: &Path, data_dir: &Path) -> Result<Vec<BTreeSet<u64>>> {
    DESTINATIONS.iter().map(|destination| of(node, data_dir, destination)).collect()
}

fn of(node: &Path, data_dir: &Path, destination: &str) -> Result<BTreeSet<u64>> {
    let dir = crate::gateway::directory();
    let status = Command::new(node)
        .args(["queue", "export", "--format", "proto", "--destination", destination, "--data-dir"])
        .arg(data_dir)
        .arg("--to")
        .arg(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("starting {}", node.display()))?;
    ensure!(status.success(), "`pillion queue export` ended with {status}");
    let mut out = BTreeSet::new();
    for signal in ["traces", "metrics", "logs"] {
        let path = dir.path().join(format!("{signal}.binpb"));
        // Without letters of the signal there is no file.
        let Ok(bytes) = fs::read(&path) else { continue };
        out.extend(ids(signal, &bytes).with_context(|| format!("reading {}", path.display()))?);
    }
    Ok(out)
}

/// Of requests, each after its length.
fn ids(signal: &str, mut bytes: &[u8]) -> Result<Vec<u64>> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let length = prost::decode_length_delimiter(&mut bytes)?;
        let (request, rest) = bytes.split_at_checked(length).context("a request is cut off")?;
        out.extend(item_ids(signal, request, "")?.into_iter().map(|(id, _)| id));
        bytes = rest;
    }
    Ok(out)
}

//! Bytes that a program copies, counted by valgrind's dhat.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// What to put before a command line. What is copied by a function of the C library is counted, with who called it: `memcpy`, `memmove` and
/// their like, which the compiler calls for all but the shortest copies.
pub(crate) fn command(file: &Path) -> Vec<OsString> {
    let file = format!("--dhat-out-file={}", file.display());
    ["valgrind", "--tool=dhat", "--mode=copy", "--fair-sched=yes", "--quiet", &file].map(OsString::from).into()
}

/// Bytes copied, by the function of the gateway, or of h2 below it, that asked for it.
pub(crate) type Places = BTreeMap<String, u64>;

/// Reads what a program left behind that has ended.
pub(crate) fn read(file: &Path) -> Result<Places> {
    let profile: Value = serde_json::from_slice(&std::fs::read(file).context("valgrind left no profile")?)?;
    let frames = profile["ftbl"].as_array().context("a table of frames")?;
    let mut places = Places::new();
    for point in profile["pps"].as_array().context("points of the program")? {
        let stack = point["fs"].as_array().into_iter().flatten().filter_map(Value::as_u64);
        let names: Vec<&str> =
            stack.filter_map(|frame| frames.get(usize::try_from(frame).ok()?)?.as_str()).map(name).collect();
        *places.entry(place(&names).to_owned()).or_default() += point["tb"].as_u64().context("bytes")?;
    }
    Ok(places)
}

/// `0xADDRESS: NAME (FILE:LINE)`
fn name(frame: &str) -> &str {
    let name = frame.split_once(": ").map_or(frame, |(_, name)| name);
    name.rsplit_once(" (").map_or(name, |(name, _)| name)
}

/// The innermost of those that say what it is for.
fn place<'a>(stack: &[&'a str]) -> &'a str {
    const TELL: [&str; 4] = ["pillion", "h2::", "tokio_util::", "hyper::"];
    let tells = |name: &&&str| TELL.iter().any(|word| name.contains(word)) && !name.contains("sys::");
    stack.iter().find(tells).or(stack.first()).copied().unwrap_or("?")
}

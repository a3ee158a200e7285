//! Configuration: YAML in, typed values that cannot be invalid out.
//!
//! Two steps. `read` walks a tree with places (`tree`, `reader`) and collects every error with file, line, path and the nearest
//! known key; `check` compares sections with one another. `types` is what the rest of the gateway sees. Knows nothing of
//! how the values are used. Paths stay as written: relative ones begin at the process's working directory.

mod check;
mod error;
mod expand;
mod read;
mod reader;
mod tree;
pub mod types;
mod unit;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

pub use error::ConfigError;
pub use types::*;

use reader::Reader;
use tree::Place;

/// What a variable of the environment is set to.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Default for Config {
    /// No destination and no tenant yet.
    fn default() -> Self {
        Self {
            node: Node::default(),
            defaults: Policy::default(),
            destinations: BTreeMap::new(),
            tenants: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Reads and checks a file, with this process's environment. The errors are in the order of the file, at most 200.
    pub fn load(path: &Path) -> Result<Self, Vec<ConfigError>> {
        let name = path.display().to_string();
        let whole = |message: String, help: &str| {
            vec![ConfigError {
                file: name.clone(),
                line: 0,
                column: 0,
                path: String::new(),
                message,
                help: help.to_owned(),
            }]
        };
        let text = read_bounded(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => whole("there is no such file".to_owned(), "check the path"),
            _ => whole(format!("cannot be read: {error}"), ""),
        })?;
        Self::parse(&text, &name, &|variable| std::env::var(variable).ok())
    }

    /// Reads and checks a text; `file_name` is for the errors only.
    pub fn parse(text: &str, file_name: &str, env: Environment<'_>) -> Result<Self, Vec<ConfigError>> {
        let reader = Reader::new(file_name, env);
        let tree = if text.len() > tree::BYTES_MAX {
            reader.report(Place { line: 1, column: 1 }, "", "larger than 1 MiB".to_owned(), "split it by node");
            None
        } else {
            tree::parse(text).map_err(|error| reader.report(error.at, "", error.message, error.help)).ok()
        };
        let config = tree.as_ref().and_then(|tree| read::config(&reader, tree));
        match config {
            Some(config) if !reader.has_errors() => Ok(config),
            _ => Err(reader.into_errors()),
        }
    }
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    // One byte more than is accepted, so that `parse` sees that it is too much; a device has no end.
    std::fs::File::open(path)?.take(tree::BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

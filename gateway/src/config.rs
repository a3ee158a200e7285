//! Configuration: YAML in, typed values that cannot be invalid out.
//!
//! Two steps. `read` walks the marked YAML tree and collects every error with file, line, path and the nearest known key.
//! `types` is what the rest of the gateway sees. Knows nothing of how the values are used.

mod error;
pub mod types;

use std::path::Path;

pub use error::ConfigError;
pub use types::*;

/// What a variable of the environment is set to.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Config {
    /// Reads and checks a file, with this process's environment.
    pub fn load(path: &Path) -> Result<Self, Vec<ConfigError>> {
        let _ = path;
        todo!()
    }

    /// Reads and checks a text; `file_name` is for the errors only.
    pub fn parse(text: &str, file_name: &str, env: Environment<'_>) -> Result<Self, Vec<ConfigError>> {
        let _ = (text, file_name, env);
        todo!()
    }
}

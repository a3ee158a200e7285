//! standalone
use crate::config::Config;

/// What a person sees first: where to send data, one line to try it with, and the page. To be printed when all three work.
pub fn banner(config: &Config) -> String {
    let _ = config;
    todo!()
}

//! The headers of a destination's requests, credentials among them.
//!
//! Files are looked at (one stat) at most once a second, read when they changed, and read in any case after a refusal of
//! the credentials. Values are never logged: they are marked sensitive, and errors name the file only. The reads are
//! done in place: they are of small local files, and a thread for them would cost more than they do.

use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};

use super::classify::{Failure, Fault};
use super::stamp::Stamp;
use crate::config::{Header, HeaderSource};

/// Between two looks at the files.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A header's value is no larger: servers refuse 16 KiB of headers as a rule.
const VALUE_BYTES_MAX: u64 = 64 * 1024;

/// All headers of a request, ready to be cloned.
#[derive(Debug)]
pub(crate) struct Headers {
    sources: Vec<Header>,
    base: HeaderMap,
    stamps: Vec<Option<Stamp>>,
    current: Result<HeaderMap, Failure>,
    looked: Option<Instant>,
}

impl Headers {
    /// `base` are the headers that the protocol needs; configured ones of the same name are ignored.
    pub(crate) fn new(base: HeaderMap, sources: Vec<Header>) -> Self {
        Self { sources, base, stamps: Vec::new(), current: Ok(HeaderMap::new()), looked: None }
    }

    /// The headers as they are now.
    pub(crate) fn current(&mut self, now: Instant) -> Result<HeaderMap, Failure> {
        if self.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK_INTERVAL) {
            let stamps: Vec<_> = self.sources.iter().map(|header| file_of(&header.value).and_then(Stamp::of)).collect();
            if self.looked.is_none() || stamps != self.stamps || self.current.is_err() {
                self.stamps = stamps;
                self.current = self.read();
            }
            self.looked = Some(now);
        }
        self.current.clone()
    }

    /// The destination refused the credentials: read the files again before the next request.
    pub(crate) fn distrust(&mut self) {
        self.looked = None;
    }

    fn read(&self) -> Result<HeaderMap, Failure> {
        let mut map = HeaderMap::with_capacity(self.base.len() + self.sources.len());
        for header in self.sources.iter().filter(|header| !self.base.contains_key(&header.name)) {
            map.append(&header.name, value(header)?);
        }
        map.extend(self.base.clone());
        Ok(map)
    }
}

fn file_of(source: &HeaderSource) -> Option<&Path> {
    match source {
        HeaderSource::Literal(_) => None,
        HeaderSource::File(file) | HeaderSource::Template { file, .. } => Some(file),
    }
}

fn value(header: &Header) -> Result<HeaderValue, Failure> {
    let text = match &header.value {
        HeaderSource::Literal(text) => text.clone(),
        HeaderSource::File(file) => contents(header, file)?,
        HeaderSource::Template { prefix, file, suffix } => format!("{prefix}{}{suffix}", contents(header, file)?),
    };
    let mut value = HeaderValue::from_str(&text).map_err(|_| {
        let place = file_of(&header.value).map_or("its value".to_owned(), |file| file.display().to_string());
        Failure::new(Fault::Destination, format!("header {}: {place} holds characters that no header may", header.name))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn contents(header: &Header, file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = std::fs::File::open(file).and_then(|open| open.take(VALUE_BYTES_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(text.trim_end_matches(['\n', '\r']).to_owned()),
        Err(error) => {
            let reason = format!("header {}: reading {}: {error}", header.name, file.display());
            Err(Failure::new(Fault::Destination, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(headers: &mut Headers, now: Instant) -> Option<String> {
        let map = headers.current(now).ok()?;
        Some(map.get("authorization")?.to_str().expect("text").to_owned())
    }

    /// Scenario: a token file is absent, appears, is rotated within the same second, and the destination refuses the old.
    /// Guarantees: absence is the destination's fault and heals; a refusal makes the new token count at once; otherwise
    /// it counts after a second; the value never appears in a debug print or an error.
    #[test]
    fn a_rotated_token_is_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("token");
        let value = HeaderSource::Template { prefix: "Bearer ".into(), file: file.clone(), suffix: String::new() };
        let header = Header { name: http::header::AUTHORIZATION, value };
        let mut headers = Headers::new(HeaderMap::new(), vec![header]);
        let start = Instant::now();

        let missing = headers.current(start).expect_err("there is no file");
        assert_eq!(missing.fault, Fault::Destination);
        std::fs::write(&file, "one\n").expect("written");
        headers.distrust();
        assert_eq!(token(&mut headers, start).as_deref(), Some("Bearer one"));

        std::fs::write(&file, "three\r\n").expect("written");
        assert_eq!(token(&mut headers, start).as_deref(), Some("Bearer one"), "not looked at yet");
        headers.distrust();
        assert_eq!(token(&mut headers, start).as_deref(), Some("Bearer three"));

        std::fs::write(&file, "fourth").expect("written");
        assert_eq!(token(&mut headers, start + LOOK_INTERVAL).as_deref(), Some("Bearer fourth"));
        assert!(!format!("{headers:?}").contains("fourth"));

        std::fs::write(&file, "b\u{1}d").expect("written");
        headers.distrust();
        let bad = headers.current(start).expect_err("no header may hold it");
        assert!(!bad.reason.contains('d'.to_string().repeat(2).as_str()) && bad.reason.contains("token"), "{bad:?}");
    }
}

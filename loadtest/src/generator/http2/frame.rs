//! Frames as they are on the wire.
//!
//! ```text
//! frame     length u24, kind u8, flags u8, stream u31, payload
//! SETTINGS  (id u16, value u32)*
//! ```

use anyhow::{Context, Result};

/// What a client begins with.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Names of settings.
pub(super) mod setting {
    pub(in super::super) const HEADER_TABLE_SIZE: u16 = 1;
    pub(in super::super) const ENABLE_PUSH: u16 = 2;
    pub(in super::super) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(in super::super) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(in super::super) const MAX_FRAME_SIZE: u16 = 5;
    pub(in super::super) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Data,
    Headers,
    Priority,
    RstStream,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
}

impl Kind {
    pub(super) const ALL: [Self; 10] = [
        Self::Data,
        Self::Headers,
        Self::Priority,
        Self::RstStream,
        Self::Settings,
        Self::PushPromise,
        Self::Ping,
        Self::GoAway,
        Self::WindowUpdate,
        Self::Continuation,
    ];
}

/// What stands before a payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    /// Bytes of the payload.
    pub(super) length: usize,
    /// `None`: of an extension, to be ignored.
    pub(super) kind: Option<Kind>,
    pub(super) flags: u8,
    /// 0: the connection.
    pub(super) stream: u32,
}

impl Head {
    /// Bytes of it.
    pub(super) const LENGTH: usize = 9;

    /// `None`: it is not whole yet.
    pub(super) fn read(input: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, stream @ ..] = *input.first_chunk::<{ Self::LENGTH }>()?;
        Some(Self {
            length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            kind: Kind::ALL.get(usize::from(kind)).copied(),
            flags,
            stream: u32::from_be_bytes(stream) & !(1 << 31),
        })
    }
}

pub(super) fn put_head(out: &mut Vec<u8>, kind: Kind, flags: u8, stream: u32, length: usize) {
    let [_, length @ ..] = number(length).to_be_bytes();
    let [a, b, c] = length;
    let [d, e, f, g] = stream.to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind as u8, flags, d, e, f, g]);
}

pub(super) fn put_frame(out: &mut Vec<u8>, kind: Kind, flags: u8, stream: u32, payload: &[u8]) {
    out.reserve(Head::LENGTH + payload.len());
    put_head(out, kind, flags, stream, payload.len());
    out.extend_from_slice(payload);
}

pub(super) fn put_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    put_head(out, Kind::Settings, 0, 0, settings.len() * 6);
    for (id, value) in settings {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// The settings in a payload whose length is a multiple of 6.
pub(super) fn parameters(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> {
    payload.chunks_exact(6).map(|one| {
        let [a, b, value @ ..] = *one.first_chunk::<6>().expect("a chunk of six");
        (u16::from_be_bytes([a, b]), u32::from_be_bytes(value))
    })
}

/// The payload without what only hides its length.
pub(super) fn unpadded(payload: &[u8], is_padded: bool) -> Result<&[u8]> {
    if !is_padded {
        return Ok(payload);
    }
    let (padding, rest) = payload.split_first().context("a padded frame without a length")?;
    let length = rest.len().checked_sub(usize::from(*padding)).context("a frame of less than its padding")?;
    Ok(&rest[..length])
}

/// Lengths here are of at most 24 bits, and of bodies below 4 GiB.
pub(super) fn number(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// An error code in words.
pub(super) fn code_name(code: u32) -> String {
    const NAMES: [&str; 14] = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
    usize::try_from(code)
        .ok()
        .and_then(|code| NAMES.get(code))
        .map_or_else(|| format!("code {code}"), |name| (*name).into())
}

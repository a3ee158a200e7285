//! The client's half of HTTP/2, as gRPC's unary calls use it: bytes in, ends of calls out; requests in, bytes out.
//!
//! ```text
//! connection   preface, SETTINGS, WINDOW_UPDATE ->     <- SETTINGS first, then anything
//! call         HEADERS, DATA, DATA with END_STREAM ->  <- HEADERS, DATA, HEADERS with grpc-status; or HEADERS with it alone
//! ```
//!
//! It knows no socket and no clock, allocates nothing for a call that fits into the windows, and keeps what does not: HEADERS wait
//! for the peer's SETTINGS_MAX_CONCURRENT_STREAMS, DATA for both windows. Who starts calls bounds how many there are.
//!
//! A peer may send anything. What it sends has limits in bytes (a frame, a header block, an answer, what it wants replies to),
//! and whatever is beyond them or against [RFC 9113](https://www.rfc-editor.org/rfc/rfc9113) breaks the connection: it is not
//! told why, since nobody reads that, and all calls of it fail.

mod blocks;
mod frame;
mod statuses;

#[cfg(test)]
mod tests;

use std::mem;

use anyhow::{Context, Result, bail, ensure};

use self::blocks::Blocks;
use self::frame::{Head, Kind, PREFACE, code_name, number, parameters, put_frame, put_settings, setting, unpadded};
use self::statuses::Statuses;
use super::answer::{ANSWER_MAX, Answer, Ended, rejects_some};
use super::out::Out;
use crate::identity::Signal;

/// Bytes of answers that the peer may send before it is told that there is room again: of one call, of all.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Payload bytes of a frame of the peer: the least that may be announced, and what is if nothing is.
const FRAME_MAX: usize = 16_384;

/// Bytes of a header block, CONTINUATIONs and their heads included.
const BLOCK_MAX: usize = 64 << 10;

/// Answers to what the peer sends of itself (PING, SETTINGS, data) that wait to be sent.
const REPLIES_MAX: u32 = 1_024;

/// Both kinds of window end here, and so do the numbers of streams.
const U31_MAX: u32 = (1 << 31) - 1;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

const FLOW_CONTROL_ERROR: u32 = 3;
const CANCEL: u32 = 8;

/// One connection.
pub(super) struct Http2 {
    sending: Sending,
    blocks: Blocks,
    /// The beginning of a frame: at most a head and [`FRAME_MAX`].
    input: Vec<u8>,
    statuses: Statuses,
    /// A header block whose end is still to come.
    block: Option<Block>,
    /// In the order of their start, so those that wait for a stream are the last.
    calls: Vec<Call>,
    /// Of the calls, how many have a stream.
    streams: usize,
    streams_max: usize,
    next_stream: u32,
    stream_window: i64,
    /// Bytes of DATA since the peer was last told that there is room.
    received: u32,
    /// Such answers since all was last sent.
    replies: u32,
    has_settings: bool,
    /// The peer has said that it takes no more calls.
    is_leaving: bool,
}

/// What leaves.
struct Sending {
    out: Out,
    window: i64,
    frame_max: usize,
}

struct Block {
    stream: u32,
    ends_stream: bool,
    /// The heads of its frames count as well, or a peer could send empty ones for ever.
    size: usize,
    bytes: Vec<u8>,
}

struct Call {
    /// 0: waits for one.
    stream: u32,
    token: usize,
    signal: Signal,
    window: i64,
    /// What did not fit into the windows, from `at` on.
    rest: Vec<u8>,
    at: usize,
    is_sent: bool,
    /// `:status`, once it is there.
    status: Option<u16>,
    /// Bytes of DATA.
    received: usize,
    /// Bytes of the gRPC message's prefix so far.
    prefix: usize,
    /// The rest of the message.
    message: Vec<u8>,
}

impl Http2 {
    /// A connection on which nothing was sent yet; `encoding` is that of the messages.
    pub(super) fn new(encoding: Option<&'static str>) -> Self {
        let mut out = Out::default();
        out.bytes().extend_from_slice(PREFACE);
        put_settings(
            out.bytes(),
            &[
                (setting::ENABLE_PUSH, 0),
                (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW),
                (setting::MAX_HEADER_LIST_SIZE, number(BLOCK_MAX)),
            ],
        );
        put_frame(out.bytes(), Kind::WindowUpdate, 0, 0, &(CONNECTION_WINDOW - 65_535).to_be_bytes());
        Self {
            sending: Sending { out, window: 65_535, frame_max: FRAME_MAX },
            blocks: Blocks::new(encoding),
            input: Vec::new(),
            statuses: Statuses::new(),
            block: None,
            calls: Vec::new(),
            streams: 0,
            streams_max: usize::MAX,
            next_stream: 1,
            stream_window: 65_535,
            received: 0,
            replies: 0,
            has_settings: false,
            is_leaving: false,
        }
    }

    /// Whether another call may be started.
    pub(super) fn is_open(&self) -> bool {
        // Those that wait need a number as well.
        !self.is_leaving && self.next_stream < U31_MAX - 2 * number(self.calls.len())
    }

    /// Whether no call is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.calls.is_empty()
    }

    /// Whether it is to be heard at once what the peer says: either a call waits for room, or there are several, of whose answers the
    /// earlier ones would have the stamp of the last one.
    pub(super) fn is_pressing(&self) -> bool {
        self.calls.len() > 1 || self.calls.iter().any(|call| !call.is_sent)
    }

    /// What is to be sent.
    pub(super) fn out(&mut self) -> &mut Out {
        if self.sending.out.is_empty() {
            self.replies = 0;
        }
        &mut self.sending.out
    }

    /// Starts a call with a framed message. `token` names it when it ends; only while [`Http2::is_open`].
    pub(super) fn start(&mut self, token: usize, signal: Signal, body: &[u8]) {
        let mut call = Call::new(token, signal, self.stream_window);
        // Who came before goes first.
        if self.streams < self.streams_max && self.streams == self.calls.len() {
            self.open(&mut call);
            let sent = self.sending.data(&mut call, body);
            call.rest.extend_from_slice(&body[sent..]);
        } else {
            call.rest.extend_from_slice(body);
        }
        self.calls.push(call);
    }

    /// Gives a call up. Nothing is heard of it any more.
    pub(super) fn cancel(&mut self, token: usize) {
        if let Some(at) = self.calls.iter().position(|call| call.token == token) {
            self.remove(at, Some(CANCEL));
            self.pump();
        }
    }

    /// Gives up all calls, and names them.
    pub(super) fn abandon(&mut self) -> Vec<usize> {
        self.streams = 0;
        self.calls.drain(..).map(|call| call.token).collect()
    }

    /// Takes what has arrived. After an error the connection is of no use any more; its calls are still to be abandoned.
    pub(super) fn receive(&mut self, bytes: &[u8], ends: &mut Vec<Ended>) -> Result<()> {
        if self.input.is_empty() {
            let used = self.frames(bytes, ends)?;
            self.input.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        let mut input = mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let used = self.frames(&input, ends)?;
        input.drain(..used);
        self.input = input;
        Ok(())
    }

    /// Handles the frames that are whole; returns their length.
    fn frames(&mut self, input: &[u8], ends: &mut Vec<Ended>) -> Result<usize> {
        let mut at = 0;
        while let Some(head) = Head::read(&input[at..]) {
            ensure!(head.length <= FRAME_MAX, "the peer sent a frame of {} bytes, or no HTTP/2", head.length);
            let begin = at + Head::LENGTH;
            let Some(payload) = input.get(begin..begin + head.length) else { break };
            self.frame(head, payload, ends)?;
            at = begin + head.length;
        }
        Ok(at)
    }

    fn frame(&mut self, head: Head, payload: &[u8], ends: &mut Vec<Ended>) -> Result<()> {
        if !self.has_settings {
            ensure!(head.kind == Some(Kind::Settings) && head.flags & ACK == 0, "the peer did not begin with SETTINGS");
        }
        if let Some(block) = &self.block {
            let continues = head.kind == Some(Kind::Continuation) && head.stream == block.stream;
            ensure!(continues, "the peer sent something within a header block");
        }
        match head.kind {
            Some(Kind::Data) => self.data(head, payload, ends),
            Some(Kind::Headers) => self.headers(head, payload, ends),
            Some(Kind::Continuation) => self.continuation(head, payload, ends),
            Some(Kind::RstStream) => self.reset(head, payload, ends),
            Some(Kind::Settings) => self.settings(head, payload),
            Some(Kind::PushPromise) => bail!("the peer pushes, although it must not"),
            Some(Kind::Ping) => self.ping(head, payload),
            Some(Kind::GoAway) => self.go_away(head, payload, ends),
            Some(Kind::WindowUpdate) => self.window_update(head, payload, ends),
            Some(Kind::Priority) | None => Ok(()),
        }
    }

    fn data(&mut self, head: Head, payload: &[u8], ends: &mut Vec<Ended>) -> Result<()> {
        self.received += number(payload.len());
        if self.received > CONNECTION_WINDOW / 2 {
            let room = mem::take(&mut self.received);
            self.reply(Kind::WindowUpdate, 0, &room.to_be_bytes())?;
        }
        let Some(at) = self.find(head.stream)? else { return Ok(()) };
        let data = unpadded(payload, head.flags & PADDED != 0)?;
        let call = &mut self.calls[at];
        call.received += payload.len();
        if call.status.is_none() {
            self.end(at, Err("the peer answered without headers".into()), Some(CANCEL), ends);
        } else if call.received > ANSWER_MAX {
            self.end(at, Err(format!("the answer is longer than {ANSWER_MAX} bytes")), Some(CANCEL), ends);
        } else if head.flags & END_STREAM != 0 {
            let code = (!call.is_sent).then_some(CANCEL);
            self.end(at, Err("the response has no trailers".into()), code, ends);
        } else {
            let of_prefix = data.len().min(5 - call.prefix);
            call.prefix += of_prefix;
            call.message.extend_from_slice(&data[of_prefix..]);
        }
        Ok(())
    }

    fn headers(&mut self, head: Head, payload: &[u8], ends: &mut Vec<Ended>) -> Result<()> {
        let mut bytes = unpadded(payload, head.flags & PADDED != 0)?;
        if head.flags & PRIORITY != 0 {
            bytes = bytes.get(5..).context("the peer sent a frame that ends too early")?;
        }
        let ends_stream = head.flags & END_STREAM != 0;
        if head.flags & END_HEADERS != 0 {
            return self.answered(head.stream, ends_stream, bytes, ends);
        }
        let block = Block { stream: head.stream, ends_stream, size: payload.len(), bytes: bytes.to_vec() };
        self.block = Some(block);
        Ok(())
    }

    fn continuation(&mut self, head: Head, payload: &[u8], ends: &mut Vec<Ended>) -> Result<()> {
        let mut block = self.block.take().context("the peer continues a header block that it did not begin")?;
        block.size += Head::LENGTH + payload.len();
        ensure!(block.size <= BLOCK_MAX, "the peer sent a header block of more than {BLOCK_MAX} bytes");
        block.bytes.extend_from_slice(payload);
        if head.flags & END_HEADERS != 0 {
            return self.answered(block.stream, block.ends_stream, &block.bytes, ends);
        }
        self.block = Some(block);
        Ok(())
    }

    /// Headers or trailers.
    fn answered(&mut self, stream: u32, ends_stream: bool, block: &[u8], ends: &mut Vec<Ended>) -> Result<()> {
        // Also for a call that was given up: later blocks refer to the fields of this one.
        let statuses = self.statuses.read(block)?;
        let Some(at) = self.find(stream)? else { return Ok(()) };
        let call = &mut self.calls[at];
        // Unless both sides have ended the stream, the peer is told that nothing more is wanted or sent.
        let code = (!ends_stream || !call.is_sent).then_some(CANCEL);
        if let Some(status) = statuses.grpc {
            let answer = call.answer(status);
            self.end(at, Ok(answer), code, ends);
        } else if ends_stream || call.status.is_some() {
            let status = statuses.http.or(call.status).unwrap_or_default();
            self.end(at, Err(format!("the trailers have no grpc-status (HTTP status {status})")), code, ends);
        } else if statuses.http.is_none_or(|status| status >= 200) {
            // Before it there may be others that only inform.
            call.status = Some(statuses.http.unwrap_or_default());
        }
        Ok(())
    }

    fn reset(&mut self, head: Head, payload: &[u8], ends: &mut Vec<Ended>) -> Result<()> {
        let code = u32::from_be_bytes(payload.try_into().context("a RST_STREAM of another length")?);
        if let Some(at) = self.find(head.stream)? {
            self.end(at, Err(format!("the peer reset the call: {}", code_name(code))), None, ends);
        }
        Ok(())
    }

    fn settings(&mut self, head: Head, payload: &[u8]) -> Result<()> {
        ensure!(head.stream == 0 && payload.len().is_multiple_of(6), "SETTINGS of another length, or of a stream");
        if head.flags & ACK != 0 {
            return Ok(());
        }
        self.has_settings = true;
        for (id, value) in parameters(payload) {
            match id {
                setting::HEADER_TABLE_SIZE => self.blocks.set_table_max(value),
                setting::MAX_CONCURRENT_STREAMS => self.streams_max = usize::try_from(value).unwrap_or(usize::MAX),
                setting::INITIAL_WINDOW_SIZE => self.set_stream_window(value)?,
                setting::MAX_FRAME_SIZE => {
                    ensure!((1 << 14..1 << 24).contains(&value), "the peer takes frames of {value} bytes");
                    self.sending.frame_max = usize::try_from(value).unwrap_or(FRAME_MAX);
                }
                _ => {}
            }
        }
        self.reply(Kind::Settings, ACK, &[])?;
        self.pump();
        Ok(())
    }

    fn set_stream_window(&mut self, value: u32) -> Result<()> {
        ensure!(value <= U31_MAX, "the peer's windows are of {value} bytes");
        let more = i64::from(value) - self.stream_window;
        self.stream_window = i64::from(value);
        for call in &mut self.calls {
            call.window += more;
            ensure!(call.window <= i64::from(U31_MAX), "the peer opened a window beyond its limit");
        }
        Ok(())
    }

    fn ping(&mut self, head: Head, payload: &[u8]) -> Result<()> {
        ensure!(head.stream == 0 && payload.len() == 8, "a PING of another length, or of a stream");
        if head.flags & ACK != 0 { Ok(()) } else { self.reply(Kind::Ping, ACK, payload) }
    }

    fn reply(&mut self, kind: Kind, flags: u8, payload: &[u8]) -> Result<()> {
        self.replies += 1;
        ensure!(self.replies <= REPLIES_MAX, "the peer wants more replies than it takes");
        put_frame(self.sending.out.bytes(), kind, flags, 0, payload);
        Ok(())
    }

    fn go_away(&mut self, head: Head, payload: &[u8], ends: &mut Vec<Ended>) -> Result<()> {
        let (Some(last), Some(code), 0) =
            (payload.first_chunk(), payload[4.min(payload.len())..].first_chunk(), head.stream)
        else {
            bail!("a GOAWAY that ends too early, or of a stream");
        };
        let (last, code) = (u32::from_be_bytes(*last) & U31_MAX, u32::from_be_bytes(*code));
        self.is_leaving = true;
        // None of these was looked at. From the last one on, so that the places of the others stay.
        for at in (0..self.calls.len()).rev() {
            let stream = self.calls[at].stream;
            if stream == 0 || stream > last {
                self.end(at, Err(format!("the peer is leaving: {}", code_name(code))), None, ends);
            }
        }
        Ok(())
    }

    fn window_update(&mut self, head: Head, payload: &[u8], ends: &mut Vec<Ended>) -> Result<()> {
        let more = u32::from_be_bytes(payload.try_into().context("a WINDOW_UPDATE of another length")?) & U31_MAX;
        if head.stream == 0 {
            ensure!(more > 0, "a WINDOW_UPDATE of nothing");
            self.sending.window += i64::from(more);
            ensure!(self.sending.window <= i64::from(U31_MAX), "the peer opened a window beyond its limit");
        } else if let Some(at) = self.find(head.stream)? {
            let call = &mut self.calls[at];
            call.window += i64::from(more);
            if more == 0 || call.window > i64::from(U31_MAX) {
                let why = "the peer opened a window by nothing, or beyond its limit";
                self.end(at, Err(why.into()), Some(FLOW_CONTROL_ERROR), ends);
            }
        }
        self.pump();
        Ok(())
    }

    /// The call of a stream; `None` if it has ended.
    fn find(&self, stream: u32) -> Result<Option<usize>> {
        ensure!(
            stream % 2 == 1 && stream < self.next_stream,
            "the peer speaks of stream {stream}, which nobody opened"
        );
        Ok(self.calls.iter().position(|call| call.stream == stream))
    }

    fn end(&mut self, at: usize, answer: Result<Answer, String>, code: Option<u32>, ends: &mut Vec<Ended>) {
        let token = self.calls[at].token;
        self.remove(at, code);
        ends.push(Ended { token, answer });
        self.pump();
    }

    /// With the code that the peer is told; `None`: it knows that the stream has ended.
    fn remove(&mut self, at: usize, code: Option<u32>) {
        let call = self.calls.remove(at);
        if call.stream == 0 {
            return;
        }
        self.streams -= 1;
        if let Some(code) = code {
            put_frame(self.sending.out.bytes(), Kind::RstStream, 0, call.stream, &code.to_be_bytes());
        }
    }

    /// Opens streams and sends data as far as the peer's limits allow.
    fn pump(&mut self) {
        let mut calls = mem::take(&mut self.calls);
        for call in calls.iter_mut().filter(|call| !call.is_sent) {
            if call.stream == 0 {
                if self.is_leaving || self.streams >= self.streams_max {
                    break;
                }
                self.open(call);
            }
            let rest = mem::take(&mut call.rest);
            call.at += self.sending.data(call, &rest[call.at..]);
            if !call.is_sent {
                call.rest = rest;
            }
        }
        self.calls = calls;
    }

    fn open(&mut self, call: &mut Call) {
        (call.stream, call.window) = (self.next_stream, self.stream_window);
        self.next_stream += 2;
        self.streams += 1;
        self.blocks.put(self.sending.out.bytes(), call.stream, call.signal);
    }
}

impl Sending {
    /// Sends as much as the windows allow; returns how much that was.
    fn data(&mut self, call: &mut Call, body: &[u8]) -> usize {
        let mut at = 0;
        loop {
            let left = body.len() - at;
            let room = usize::try_from(self.window.min(call.window)).unwrap_or(0);
            let length = left.min(room).min(self.frame_max);
            if length == 0 && left > 0 {
                return at;
            }
            call.is_sent = length == left;
            let flags = if call.is_sent { END_STREAM } else { 0 };
            put_frame(self.out.bytes(), Kind::Data, flags, call.stream, &body[at..at + length]);
            at += length;
            let length = i64::from(number(length));
            self.window -= length;
            call.window -= length;
            if call.is_sent {
                return at;
            }
        }
    }
}

impl Call {
    fn new(token: usize, signal: Signal, window: i64) -> Self {
        Self {
            stream: 0,
            token,
            signal,
            window,
            rest: Vec::new(),
            at: 0,
            is_sent: false,
            status: None,
            received: 0,
            prefix: 0,
            message: Vec::new(),
        }
    }

    fn answer(&self, status: u32) -> Answer {
        match status {
            0 if rejects_some(&self.message) => Answer::Partly,
            0 => Answer::Accepted,
            status => Answer::Refused(status),
        }
    }
}

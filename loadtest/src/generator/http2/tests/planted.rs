use super::super::frame::put_head;
use super::*;
use crate::generator::chop;

/// A client, and what a peer sends it.
struct World {
    client: Http2,
    ends: Vec<Ended>,
}

impl World {
    /// Two calls of 1,000 bytes, tokens 1 and 2 on streams 1 and 3, of which the second has not left as a whole.
    fn new() -> Self {
        let mut world = Self::greeted(&[(setting::INITIAL_WINDOW_SIZE, 1_000)]);
        world.client.start(1, Signal::Traces, &[0; 1_000]);
        world.client.start(2, Signal::Traces, &[0; 1_001]);
        world.sent();
        world
    }

    fn greeted(values: &[(u16, u32)]) -> Self {
        let mut world = Self { client: Http2::new(None), ends: Vec::new() };
        let mut out = Vec::new();
        put_settings(&mut out, values);
        world.client.receive(&out, &mut world.ends).unwrap();
        world.sent();
        world
    }

    fn send(&mut self, kind: Kind, flags: u8, stream: u32, payload: &[u8]) -> Result<(), String> {
        let mut out = Vec::new();
        put_frame(&mut out, kind, flags, stream, payload);
        self.client.receive(&out, &mut self.ends).map_err(|error| format!("{error:#}"))
    }

    /// The frames that have left since: kind, flags, stream, payload's length.
    fn sent(&mut self) -> Vec<(Kind, u8, u32, usize)> {
        let out = self.client.out();
        let mut bytes = out.unsent().to_vec();
        out.advance(bytes.len());
        if bytes.starts_with(PREFACE) {
            bytes.drain(..PREFACE.len());
        }
        let mut frames = Vec::new();
        let mut rest = &bytes[..];
        while let Some(head) = Head::read(rest) {
            frames.push((head.kind.unwrap(), head.flags, head.stream, head.length));
            rest = &rest[Head::LENGTH + head.length..];
        }
        assert!(rest.is_empty(), "whole frames leave");
        frames
    }

    fn why(&self, at: usize) -> &str {
        self.ends[at].answer.as_ref().unwrap_err()
    }
}

/// `:status 200`, and a literal `grpc-status: 0`.
const OK: &[u8] = &[0x88];
const STATUS_0: &[u8] = b"\x00\x0bgrpc-status\x010";

/// Scenario: the windows for a stream, then for the connection, are closed, opened by a little and then by enough.
/// Guarantees: not a byte leaves that the peer has not allowed, in frames no longer than it takes, and the last ends the stream.
#[test]
fn data_leaves_as_the_windows_open() {
    let mut world = World::greeted(&[(setting::INITIAL_WINDOW_SIZE, 0)]);
    world.client.start(1, Signal::Traces, &vec![0; 100_000]);
    assert_eq!(world.sent()[0].0, Kind::Headers);
    assert_eq!(world.sent(), []);
    world.send(Kind::WindowUpdate, 0, 1, &10u32.to_be_bytes()).unwrap();
    assert_eq!(world.sent(), [(Kind::Data, 0, 1, 10)]);
    world.send(Kind::Settings, 0, 0, &[0, 4, 0, 1, 0, 0]).unwrap();
    let lengths: Vec<usize> = world.sent().iter().filter(|frame| frame.0 == Kind::Data).map(|frame| frame.3).collect();
    assert_eq!(lengths, [16_384, 16_384, 16_384, 65_535 - 10 - 3 * 16_384], "all that the connection's window allows");
    world.send(Kind::WindowUpdate, 0, 0, &100_000u32.to_be_bytes()).unwrap();
    assert_eq!(world.sent(), [(Kind::Data, 0, 1, 11)], "the stream's window is the limit again");
    world.send(Kind::WindowUpdate, 0, 1, &100_000u32.to_be_bytes()).unwrap();
    let (_, flags, _, _) = *world.sent().last().unwrap();
    assert_eq!((flags, world.client.calls[0].rest.len()), (END_STREAM, 0));
}

/// Scenario: the peer answers, resets, leaves or opens too much while a body has not left as a whole.
/// Guarantees: the call ends as what it is, nothing more of it leaves, and the other call is not concerned.
#[test]
fn a_call_may_end_before_its_body() {
    let mut world = World::new();
    let mut block = OK.to_vec();
    block.extend_from_slice(b"\x00\x0bgrpc-status\x0214");
    world.send(Kind::Headers, END_HEADERS | END_STREAM, 3, &block).unwrap();
    assert_eq!(world.ends, [Ended { token: 2, answer: Ok(Answer::Refused(14)) }]);
    assert_eq!(world.sent(), [(Kind::RstStream, 0, 3, 4)], "the peer need not wait for the rest");
    world.send(Kind::WindowUpdate, 0, 3, &1u32.to_be_bytes()).unwrap();
    assert_eq!(world.sent(), []);

    let mut world = World::new();
    world.send(Kind::RstStream, 0, 3, &7u32.to_be_bytes()).unwrap();
    assert!(world.why(0).contains("REFUSED_STREAM"));
    assert_eq!(world.sent(), [], "a reset is not answered");

    let mut world = World::new();
    for _ in 0..2 {
        world.send(Kind::WindowUpdate, 0, 3, &U31_MAX.to_be_bytes()).unwrap();
    }
    assert!(world.ends.len() == 1 && world.why(0).contains("window"));

    let mut world = World::new();
    world.send(Kind::GoAway, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 11]).unwrap();
    assert!(world.ends.len() == 1 && world.ends[0].token == 2 && world.why(0).contains("ENHANCE_YOUR_CALM"));
    assert!(!world.client.is_open() && !world.client.is_idle(), "the first may still be answered");
    world.send(Kind::Headers, END_HEADERS, 1, OK).unwrap();
    world.send(Kind::Data, 0, 1, &[0; 5]).unwrap();
    world.send(Kind::Headers, END_HEADERS | END_STREAM, 1, STATUS_0).unwrap();
    assert_eq!(world.ends[1], Ended { token: 1, answer: Ok(Answer::Accepted) });
    assert!(world.client.is_idle());
}

/// Scenario: an answer in padded frames with priorities and frames of an unknown kind, after one that only informs.
/// Guarantees: it is read as any other.
#[test]
fn an_answer_may_be_dressed_up() {
    let mut world = World::new();
    world.send(Kind::Headers, END_HEADERS, 1, b"\x08\x03103").unwrap();
    let padded = [&[2, 0, 0, 0, 0, 9], OK, &[0, 0]].concat();
    world.send(Kind::Headers, END_HEADERS | PADDED | PRIORITY, 1, &padded).unwrap();
    world.send(Kind::Priority, 0, 1, &[0; 5]).unwrap();
    let mut unknown = Vec::new();
    put_head(&mut unknown, Kind::Continuation, 0xff, 77, 0);
    unknown[3] = 0xee;
    world.client.receive(&unknown, &mut world.ends).unwrap();
    world.send(Kind::Data, PADDED, 1, &[3, 0, 0, 0, 0, 4, 0x0a, 2, 8, 7, 0, 0, 0]).unwrap();
    let (first, rest) = STATUS_0.split_at(4);
    world.send(Kind::Headers, END_STREAM, 1, first).unwrap();
    world.send(Kind::Continuation, 0, 1, &[]).unwrap();
    world.send(Kind::Continuation, END_HEADERS, 1, rest).unwrap();
    assert_eq!(world.ends, [Ended { token: 1, answer: Ok(Answer::Partly) }]);
}

/// Scenario: answers without an end, without a status, without headers, and of more bytes than are taken.
/// Guarantees: each ends its call with its reason; the connection goes on.
#[test]
fn answers_that_are_none_fail_their_call_alone() {
    type Frames<'a> = &'a [(Kind, u8, &'a [u8])];
    let large = [0; FRAME_MAX];
    let head = (Kind::Headers, END_HEADERS, OK);
    let cases: [(Frames<'_>, &str); 5] = [
        (&[(Kind::Headers, END_HEADERS | END_STREAM, b"\x8d")], "grpc-status (HTTP status 404)"),
        (&[head, (Kind::Headers, END_HEADERS | END_STREAM, OK)], "grpc-status"),
        (&[head, (Kind::Data, END_STREAM, &[0; 5])], "no trailers"),
        (&[(Kind::Data, 0, &[0; 5])], "without headers"),
        (
            &[
                head,
                (Kind::Data, 0, &large),
                (Kind::Data, 0, &large),
                (Kind::Data, 0, &large),
                (Kind::Data, 0, &large),
                (Kind::Data, 0, &[0]),
            ],
            "longer",
        ),
    ];
    for (frames, words) in cases {
        let mut world = World::new();
        for (kind, flags, payload) in frames {
            world.send(*kind, *flags, 1, payload).unwrap();
        }
        assert!(world.ends.len() == 1 && world.why(0).contains(words), "{words}: {:?}", world.ends);
        world.send(Kind::Headers, END_HEADERS | END_STREAM, 3, STATUS_0).unwrap();
        assert_eq!(world.ends[1].answer, Ok(Answer::Accepted), "{words}");
    }
}

/// Scenario: what is against the protocol or beyond a limit, each on a connection of its own.
/// Guarantees: the connection breaks, with its reason, and what was kept of it is within its limits.
#[test]
fn a_peer_beyond_a_limit_breaks_its_connection() {
    type Frame<'a> = (Kind, u8, u32, &'a [u8]);
    let cases: [(Frame<'_>, &str); 17] = [
        ((Kind::PushPromise, 0, 1, &[0; 8]), "pushes"),
        ((Kind::Ping, 0, 0, &[0; 7]), "PING"),
        ((Kind::Settings, 0, 0, &[0; 5]), "SETTINGS"),
        ((Kind::Settings, 0, 1, &[0; 6]), "SETTINGS"),
        ((Kind::Settings, 0, 0, &[0, 4, 0xff, 0, 0, 0]), "windows"),
        ((Kind::Settings, 0, 0, &[0, 5, 0, 0, 0, 1]), "frames of 1 bytes"),
        ((Kind::RstStream, 0, 1, &[0; 3]), "RST_STREAM"),
        ((Kind::GoAway, 0, 0, &[0; 7]), "GOAWAY"),
        ((Kind::GoAway, 0, 1, &[0; 8]), "GOAWAY"),
        ((Kind::WindowUpdate, 0, 0, &[0; 4]), "nothing"),
        ((Kind::WindowUpdate, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), "limit"),
        ((Kind::WindowUpdate, 0, 0, &[0; 5]), "WINDOW_UPDATE"),
        ((Kind::Data, 0, 2, &[]), "nobody opened"),
        ((Kind::Data, 0, 5, &[]), "nobody opened"),
        ((Kind::Data, PADDED, 1, &[1]), "padding"),
        ((Kind::Headers, END_HEADERS, 1, &[0xff, 0xff]), "headers"),
        ((Kind::Continuation, END_HEADERS, 1, &[]), "did not begin"),
    ];
    for ((kind, flags, stream, payload), words) in cases {
        let mut world = World::new();
        let why = world.send(kind, flags, stream, payload).unwrap_err();
        assert!(why.contains(words), "{kind:?}: {words}: {why}");
        assert_eq!(world.client.abandon(), [1, 2], "its calls are known");
    }
    let first = |bytes: &[u8]| Http2::new(None).receive(bytes, &mut Vec::new()).unwrap_err().to_string();
    assert!(first(b"HTTP/1.1 400 Bad Request\r\n").contains("no HTTP/2"));
    assert!(first(&[0, 0, 0, 4, ACK, 0, 0, 0, 0]).contains("SETTINGS"));
    assert!(first(&[0, 0x40, 1, 4, 0, 0, 0, 0, 0]).contains("16385"), "before any of its payload");

    floods(Kind::Ping, 0, 0, &[0; 8], "replies");
    floods(Kind::Settings, 0, 0, &[], "replies");
    floods(Kind::Continuation, 0, 1, &[], "header block");
    floods(Kind::Data, 0, 1, &[0; FRAME_MAX], "replies");
}

/// The same frame over and over breaks the connection before it has made it keep much.
fn floods(kind: Kind, flags: u8, stream: u32, payload: &[u8], words: &str) {
    let mut world = World::new();
    if kind == Kind::Continuation {
        world.send(Kind::Headers, 0, stream, OK).unwrap();
    }
    // A reply for each 2 MiB only: so it is told that most of them were sent before.
    world.client.replies = if kind == Kind::Data { REPLIES_MAX - 2 } else { 0 };
    let why = (0..100_000).find_map(|_| world.send(kind, flags, stream, payload).err());
    assert!(why.as_ref().is_some_and(|why| why.contains(words)), "{kind:?}: {why:?}");
    assert!(world.client.kept() <= 2 * (BLOCK_MAX + ANSWER_MAX), "{kind:?}: {}", world.client.kept());
    assert!(world.client.sending.out.unsent().len() < 64 << 10, "{kind:?}");
}

/// Scenario: 20,000 random peers: frames of all kinds with flags, streams and payloads that are sometimes right, in random pieces.
/// Guarantees: nothing panics, memory stays within the limits, and every call ends at most once.
#[test]
fn whatever_a_peer_sends_is_survived() {
    let mut rng = chop::rng();
    for _ in 0..20_000 {
        let mut world = World::new();
        world.client.start(3, Signal::Logs, &[0; 10]);
        let mut bytes = Vec::new();
        for _ in 0..rng.usize(..20) {
            let kind = Kind::ALL[rng.usize(..Kind::ALL.len())];
            let flags = if rng.bool() { rng.u8(..) } else { END_HEADERS };
            let stream = [0, 1, 3, 5, 2, 7][rng.usize(..6)];
            let mut payload: Vec<u8> = match rng.u8(..6) {
                0 => OK.to_vec(),
                1 => STATUS_0.to_vec(),
                2 => 5u32.to_be_bytes().to_vec(),
                3 => vec![0; 6 * rng.usize(..4)],
                4 => b"\x40\x85\xf2\xb5\x85\xed\x69\x83\x1c\x64\x5f".to_vec(),
                _ => (0..rng.usize(..100)).map(|_| rng.u8(..)).collect(),
            };
            if rng.u8(..8) == 0 && !payload.is_empty() {
                let at = rng.usize(..payload.len());
                payload[at] = rng.u8(..);
            }
            put_frame(&mut bytes, kind, flags, stream, &payload);
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(chop::piece(&mut rng).min(rest.len()));
            rest = later;
            if world.client.receive(piece, &mut world.ends).is_err() {
                break;
            }
        }
        assert!(world.client.kept() <= 4 * (FRAME_MAX + BLOCK_MAX + ANSWER_MAX));
        let mut tokens: Vec<usize> = world.ends.iter().map(|ended| ended.token).collect();
        tokens.extend(world.client.abandon());
        tokens.sort_unstable();
        assert_eq!(tokens, [1, 2, 3]);
    }
}

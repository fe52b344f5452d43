//! What strangers do.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use crate::{
    frames::{
        CONTINUATION, END_HEADERS, HEADERS, RST_STREAM, Random, begun, call, frame, header, request,
    },
    target::{Line, Target},
};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Attack {
    /// Bytes.
    Noise,
    /// The beginning of a handshake, cut or damaged.
    Hello,
    /// HTTP/2 that begins well and goes on with frames of any kind, or HTTP/1 with anything in it.
    Frames,
    /// Headers that do not end.
    GiantHeaders,
    /// Calls whose messages are no messages, with tokens that are none.
    Garbage,
    /// Requests that are taken back as soon as they are made.
    RapidReset,
    /// A byte at a time.
    Slow,
}

pub(crate) const ATTACKS: [Attack; 7] = [
    Attack::Noise,
    Attack::Hello,
    Attack::Frames,
    Attack::GiantHeaders,
    Attack::Garbage,
    Attack::RapidReset,
    Attack::Slow,
];

/// Everything there is to call, and something else.
const METHODS: [&str; 12] = [
    "/orb8.OrbitService/QueryFlows",
    "/orb8.OrbitService/QueryPods",
    "/orb8.OrbitService/QuerySyscalls",
    "/orb8.OrbitService/QueryAnomalies",
    "/orb8.OrbitService/GetSyscallProfile",
    "/orb8.OrbitService/GetAgentStatus",
    "/orb8.OrbitService/StreamEvents",
    "/orb8.OrbitService/ListNodes",
    "/orb8.OrbitService/GetTotals",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/nothing/../at all",
];

/// Does it once.
pub(crate) async fn run(attack: Attack, target: &Target, random: &mut Random, end: Instant) {
    let bytes = match attack {
        Attack::Slow => return slow(target, random, end).await,
        Attack::Noise => return throw(target.tcp().await, &random.bytes(4_000)).await,
        Attack::Hello => {
            let mut hello = target.hello();
            if random.below(2) == 0 {
                hello.truncate(random.below(hello.len()));
            } else {
                let at = random.below(hello.len());
                if let Some(byte) = hello.get_mut(at) {
                    *byte = random.byte();
                }
            }
            return throw(target.tcp().await, &hello).await;
        }
        Attack::Frames if target.is_grpc => frames(random),
        Attack::GiantHeaders if target.is_grpc => giant_headers(random),
        Attack::Garbage if target.is_grpc => garbage(random),
        Attack::RapidReset if target.is_grpc => rapid_reset(random),
        Attack::GiantHeaders => {
            let mut bytes = b"GET /metrics HTTP/1.1\r\n".to_vec();
            for n in 0..random.below(2_000) {
                bytes.extend(format!("x-{n}: ").into_bytes());
                bytes.extend(vec![b'a'; random.below(2_000)]);
                bytes.extend(b"\r\n");
            }
            bytes
        }
        Attack::Frames | Attack::Garbage => http1(random),
        Attack::RapidReset => b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(20),
    };
    let line = target.line().await;
    throw(line, &bytes).await;
}

/// Sends, reads what comes for a moment, and leaves without a word.
async fn throw<L: Line>(line: Option<L>, bytes: &[u8]) {
    let Some(mut line) = line else { return };
    // It may be refused at any point, or not be read: both are right.
    let _sent = timeout(Duration::from_secs(2), async {
        line.write_all(bytes).await?;
        line.flush().await
    })
    .await;
    let mut answer = vec![0; 16 << 10];
    for _ in 0..4 {
        let read = timeout(Duration::from_millis(20), line.read(&mut answer)).await;
        if !matches!(read, Ok(Ok(1..))) {
            break;
        }
    }
}

fn frames(random: &mut Random) -> Vec<u8> {
    let mut bytes = begun();
    for _ in 0..random.below(40) {
        let kind = u8::try_from(random.below(12)).unwrap_or(0);
        let stream = u32::try_from(random.below(8)).unwrap_or(0);
        let payload = random.bytes(300);
        let flags = random.byte();
        let mut frame = frame(kind, flags, stream, &payload);
        if random.below(10) == 0 {
            // A length that is not the payload's.
            frame[random.below(3)] = random.byte();
        }
        bytes.extend(frame);
    }
    bytes
}

fn giant_headers(random: &mut Random) -> Vec<u8> {
    let mut bytes = begun();
    bytes.extend(frame(HEADERS, 0, 1, &request(METHODS[1], &[])));
    let ends = random.below(2) == 0;
    let blocks = random.below(60);
    for n in 0..blocks {
        let block = header(&format!("x-{n}"), &vec![b'a'; 16_000]);
        let last = ends && n + 1 == blocks;
        bytes.extend(frame(CONTINUATION, if last { END_HEADERS } else { 0 }, 1, &block));
    }
    bytes
}

fn garbage(random: &mut Random) -> Vec<u8> {
    let mut bytes = begun();
    let tokens: [&[u8]; 4] =
        [b"Bearer nobody", b"Bearer of-root", b"Basic eDp5", &[b'B', 0xff, 0x80, b' ', 1]];
    for n in 0..=random.below(20) {
        let stream = u32::try_from(n * 2 + 1).unwrap_or(1);
        let payload = random.bytes(3_000);
        let length = match random.below(4) {
            0 => random.next().to_be_bytes()[..4].to_vec(),
            1 => vec![0xff; 4],
            _ => u32::try_from(payload.len()).unwrap_or(0).to_be_bytes().to_vec(),
        };
        let compressed = u8::from(random.below(5) == 0);
        let message = [&[compressed], &*length, &*payload].concat();
        let token = tokens[random.below(tokens.len())];
        let mut more = vec![("authorization", token)];
        if random.below(4) == 0 {
            more.push(("grpc-timeout", b"99999999999999S"));
            more.push(("grpc-encoding", b"gzip"));
        }
        let path = METHODS[random.below(METHODS.len())];
        bytes.extend(call(stream, path, &more, &message));
    }
    bytes
}

fn rapid_reset(random: &mut Random) -> Vec<u8> {
    let mut bytes = begun();
    for n in 0..500_u32 {
        let stream = n * 2 + 1;
        let path = METHODS[random.below(METHODS.len())];
        bytes.extend(frame(HEADERS, END_HEADERS, stream, &request(path, &[])));
        bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    bytes
}

fn http1(random: &mut Random) -> Vec<u8> {
    let mut bytes = match random.below(4) {
        0 => b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n".to_vec(),
        1 => b"POST /healthz HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n".to_vec(),
        2 => b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(3),
        _ => [b"GET /".as_slice(), &random.bytes(9_000), b" HTTP/1.1\r\n\r\n"].concat(),
    };
    bytes.extend(random.bytes(2_000));
    bytes
}

/// Many lines, each with a request that does not end, a byte at a time, for seconds.
async fn slow(target: &Target, random: &mut Random, end: Instant) {
    let begin = if target.is_grpc {
        [begun(), frame(HEADERS, END_HEADERS, 1, &request(METHODS[1], &[]))].concat()
    } else {
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ".to_vec()
    };
    let mut lines: Vec<Box<dyn Line>> = Vec::new();
    for n in 0..40 {
        if let Some(tcp) = target.tcp().await {
            lines.push(Box::new(tcp));
        }
        if n % 2 == 0 {
            lines.extend(target.line().await);
        }
    }
    let sent = random.below(begin.len());
    for line in &mut lines {
        let _refused = timeout(Duration::from_millis(100), line.write_all(&begin[..sent])).await;
    }
    let until = end.min(Instant::now() + Duration::from_secs(3));
    let mut at = sent;
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let byte = [begin.get(at).copied().unwrap_or(b'a')];
        at += 1;
        for line in &mut lines {
            let _cut = timeout(Duration::from_millis(100), line.write_all(&byte)).await;
        }
    }
}

//! Bytes of HTTP/2 and HTTP/1, right and wrong.

/// What every client of HTTP/2 begins with (RFC 9113, section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const DATA: u8 = 0;

const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// Random numbers that are the same in every run (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 1).unwrap_or(0) % end.max(1)
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    pub(crate) fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most + 1);
        (0..length).map(|_| self.byte()).collect()
    }
}

/// A frame, whose length is right.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The preface and empty settings.
pub(crate) fn begun() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// A header without Huffman or table (RFC 7541, section 6.2.2).
pub(crate) fn header(name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name.as_bytes(), value] {
        length(text.len(), &mut bytes);
        bytes.extend(text);
    }
    bytes
}

/// A prefixed integer of seven bits (RFC 7541, section 5.1).
fn length(mut length: usize, bytes: &mut Vec<u8>) {
    let small = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
    if length < 127 {
        return bytes.push(small(length));
    }
    bytes.push(127);
    length -= 127;
    while length >= 128 {
        bytes.push(small(length % 128) | 128);
        length /= 128;
    }
    bytes.push(small(length));
}

/// Headers of a request of gRPC.
pub(crate) fn request(path: &str, more: &[(&str, &[u8])]) -> Vec<u8> {
    let mut block = vec![0x83, 0x87]; // POST, https
    for (name, value) in [
        (":path", path.as_bytes()),
        (":authority", b"localhost".as_slice()),
        ("te", b"trailers"),
        ("content-type", b"application/grpc"),
    ]
    .iter()
    .chain(more)
    {
        block.extend(header(name, value));
    }
    block
}

/// A whole call of `path` with `message` on `stream`, as it goes over the line.
pub(crate) fn call(stream: u32, path: &str, more: &[(&str, &[u8])], message: &[u8]) -> Vec<u8> {
    let headers = frame(HEADERS, END_HEADERS, stream, &request(path, more));
    let data: Vec<u8> = if message.is_empty() {
        frame(DATA, END_STREAM, stream, &[])
    } else {
        let chunks = message.chunks(16 << 10);
        let last = chunks.len() - 1;
        let frames = chunks.enumerate();
        let frames = frames.flat_map(|(n, c)| frame(DATA, u8::from(n == last), stream, c));
        frames.collect()
    };
    [headers, data].concat()
}

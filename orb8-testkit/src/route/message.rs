//! Messages and attributes of netlink, in bytes.

use anyhow::Result;

const HEADER: usize = 16;
const ALIGNMENT: usize = 4;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
pub(super) const NLM_F_REPLACE: u16 = 0x100;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// One order or question.
pub(super) struct Message {
    /// After "cannot".
    pub(super) what: String,
    pub(super) kind: u16,
    pub(super) flags: u16,
    /// The fixed part of the kind, then attributes.
    pub(super) body: Vec<u8>,
}

impl Message {
    pub(super) fn encode(&self, sequence: u32, bytes: &mut Vec<u8>) -> Result<()> {
        let length = u32::try_from(HEADER + self.body.len())?;
        bytes.extend(length.to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((self.flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.body);
        pad(bytes);
        Ok(())
    }
}

/// `body` with one more attribute.
pub(super) fn with(mut body: Vec<u8>, kind: u16, value: &[u8]) -> Result<Vec<u8>> {
    body.extend(u16::try_from(4 + value.len())?.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    pad(&mut body);
    Ok(body)
}

/// `body` with one more attribute, which holds others.
pub(super) fn with_nested(body: Vec<u8>, kind: u16, attributes: &[u8]) -> Result<Vec<u8>> {
    with(body, kind | NLA_F_NESTED, attributes)
}

/// `body` with a name.
pub(super) fn with_text(body: Vec<u8>, kind: u16, text: &str) -> Result<Vec<u8>> {
    with(body, kind, &[text.as_bytes(), &[0]].concat())
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
}

/// One answer of the kernel.
pub(super) struct Answer<'a> {
    kind: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

impl Answer<'_> {
    /// Zero, or an error's number below zero, when it is the last word on a request.
    pub(super) fn receipt(&self) -> Option<i32> {
        (self.kind == NLMSG_ERROR).then(|| number(self.body).map_or(0, i32::from_ne_bytes))
    }
}

/// The messages of a datagram.
pub(super) fn answers(datagram: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(number(rest)?)).ok()?;
        let message = rest.get(..length)?;
        let answer = Answer {
            kind: u16::from_ne_bytes(number(message.get(4..)?)?),
            sequence: u32::from_ne_bytes(number(message.get(8..)?)?),
            body: message.get(HEADER..)?,
        };
        rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some(answer)
    })
}

/// Kind and value of each attribute.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(number(rest)?));
        let kind = u16::from_ne_bytes(number(rest.get(2..)?)?) & NLA_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of this kind.
pub(super) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// The first bytes as an array.
pub(super) fn number<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk().copied()
}

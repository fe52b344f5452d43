//! DNS over UDP (RFC 1035): one question, at most one answer.

use std::collections::HashMap;
use std::net::{IpAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orb8_testkit::Summary;
use orb8_testkit::program::{DnsClient, DnsServer};

use super::run_time::RunTime;
use super::{report, udp};

const A: u16 = 1;
const AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
const HEADER: usize = 12;

/// Flags of a query: recursion desired.
const QUERY: u16 = 0x0100;
/// Flags of an answer: response, authoritative, recursion desired and available.
const ANSWER: u16 = 0x8580;
/// Response code: there is no such name.
const NO_SUCH_NAME: u16 = 3;

/// Seconds for which an answer is good.
const TTL: u32 = 30;

/// Answers from its list until the end.
pub(super) fn server(server: &DnsServer, run_time: RunTime) -> Result<()> {
    let mut zone: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for record in &server.record {
        let (name, address) = record.split_once('=').context("a record without =")?;
        let address = address.parse().with_context(|| format!("no address in {record}"))?;
        zone.entry(name.trim_end_matches('.').to_ascii_lowercase()).or_default().push(address);
    }
    let socket =
        UdpSocket::bind(server.bind).with_context(|| format!("cannot bind {}", server.bind))?;
    report::ready(socket.local_addr().ok())?;
    thread::spawn(move || {
        let mut buffer = [0; 512];
        loop {
            // What is no query gets no answer, and an answer that cannot be sent is lost like any datagram.
            if let Ok((size, from)) = socket.recv_from(&mut buffer)
                && let Some(reply) = answer(&buffer[..size], &zone)
            {
                let _ = socket.send_to(&reply, from);
            }
        }
    });
    run_time.wait_for_the_end();
    Ok(())
}

/// Asks for the names in turn, A and AAAA, and counts the answers.
pub(super) fn client(client: &DnsClient) -> Result<()> {
    let mut summary = Summary::default();
    let questions: Vec<(&str, u16)> =
        client.name.iter().flat_map(|name| [(name.as_str(), A), (name.as_str(), AAAA)]).collect();
    for (request, (name, kind)) in (0..client.requests).zip(questions.iter().cycle()) {
        if request > 0 {
            thread::sleep(Duration::from_millis(client.every));
        }
        // A socket each, as a resolver has it: the source port is part of what makes an answer credible.
        let socket = udp::connected(client.to, 0)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let id = u16::try_from(request % 0x1_0000)?;
        let query = query(id, name, *kind)?;
        udp::send_one(&socket, &query)?;
        let mut buffer = [0; 512];
        let size = socket.recv(&mut buffer).with_context(|| format!("no answer for {name}"))?;
        let echoed = buffer[..size].get(..2) == Some(&id.to_be_bytes()[..])
            && buffer[..size].get(HEADER..query.len()) == Some(&query[HEADER..]);
        ensure!(echoed, "the answer for {name} does not repeat its question");
        summary.packets += 1;
        summary.bytes += query.len() as u64;
        summary.replies += 1;
        summary.flows += 1;
    }
    report::summary(&summary)
}

fn query(id: u16, name: &str, kind: u16) -> Result<Vec<u8>> {
    let mut message = header(id, QUERY, 0);
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length));
        message.push(length.with_context(|| format!("{name:?}: a label has 1 to 63 bytes"))?);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    Ok(message)
}

/// The reply to `message`, or `None` if that is no query of one question.
fn answer(message: &[u8], zone: &HashMap<String, Vec<IpAddr>>) -> Option<Vec<u8>> {
    let id = u16_at(message, 0)?;
    let is_query = u16_at(message, 2)? & 0x8000 == 0;
    if !is_query || u16_at(message, 4)? != 1 {
        return None;
    }
    let (name, end) = name_at(message, HEADER)?;
    let kind = u16_at(message, end)?;
    let question = message.get(HEADER..end + 4)?;

    let known = zone.get(&name);
    let found = known.into_iter().flatten().find_map(|address| match (address, kind) {
        (IpAddr::V4(v4), A) => Some(v4.octets().to_vec()),
        (IpAddr::V6(v6), AAAA) => Some(v6.octets().to_vec()),
        _ => None,
    });
    let code = if known.is_some() { 0 } else { NO_SUCH_NAME };
    let mut reply = header(id, ANSWER | code, u16::from(found.is_some()));
    reply.extend(question);
    if let Some(address) = found {
        // The name is a pointer to the question's.
        reply.extend([0xc0, 0x0c]);
        reply.extend(kind.to_be_bytes());
        reply.extend(CLASS_IN.to_be_bytes());
        reply.extend(TTL.to_be_bytes());
        reply.extend(u16::try_from(address.len()).ok()?.to_be_bytes());
        reply.extend(address);
    }
    Some(reply)
}

fn header(id: u16, flags: u16, answers: u16) -> Vec<u8> {
    [id, flags, 1, answers, 0, 0].into_iter().flat_map(u16::to_be_bytes).collect()
}

/// The uncompressed name at `at`, in lower case, and where it ends.
fn name_at(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        match length {
            0 => return Some((labels.join("."), at)),
            1..64 => labels.push(
                std::str::from_utf8(message.get(at..at + length)?).ok()?.to_ascii_lowercase(),
            ),
            _ => return None,
        }
        at += length;
    }
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> HashMap<String, Vec<IpAddr>> {
        HashMap::from([("web.shop".to_owned(), vec![[10, 96, 0, 10].into()])])
    }

    #[test]
    fn a_known_name_is_answered_with_its_address() {
        let query = query(7, "Web.shop.", A).unwrap();
        let reply = answer(&query, &zone()).unwrap();
        assert_eq!((u16_at(&reply, 0), u16_at(&reply, 2)), (Some(7), Some(ANSWER)));
        assert_eq!(u16_at(&reply, 6), Some(1), "one answer");
        assert_eq!(&reply[HEADER..query.len()], &query[HEADER..]);
        assert!(reply.ends_with(&[0, 4, 10, 96, 0, 10]));
    }

    #[test]
    fn a_name_without_that_address_has_no_answer_and_an_unknown_one_does_not_exist() {
        let empty = answer(&query(1, "web.shop", AAAA).unwrap(), &zone()).unwrap();
        assert_eq!((u16_at(&empty, 2), u16_at(&empty, 6)), (Some(ANSWER), Some(0)));
        let unknown = answer(&query(1, "db.shop", A).unwrap(), &zone()).unwrap();
        assert_eq!(u16_at(&unknown, 2), Some(ANSWER | NO_SUCH_NAME));
    }

    #[test]
    fn what_is_cut_off_or_no_query_gets_no_answer() {
        let query = query(1, "web.shop", A).unwrap();
        for size in 0..query.len() {
            assert_eq!(answer(&query[..size], &zone()), None, "{size} bytes");
        }
        let mut response = query;
        response[2] |= 0x80;
        assert_eq!(answer(&response, &zone()), None);
    }
}

//! HTTP/1.1, as much of it as one GET takes.

use std::io::{BufRead, BufReader, Read, Write, copy, repeat, sink};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use orb8_testkit::Summary;
use orb8_testkit::program::{Bind, HttpClient};

use super::run_time::RunTime;
use super::{report, tcp};

/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(30);

/// The longest head of a message that is read; more is an error.
const HEAD_LIMIT: u64 = 8 << 10;

/// Serves every connection on a thread of its own, until the end.
pub(super) fn server(server: &Bind, run_time: RunTime) -> Result<()> {
    let listener = tcp::listen(server.bind)?;
    report::ready(listener.local_addr().ok())?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that breaks off or talks nonsense ends its own connection only.
            thread::spawn(move || serve(stream));
        }
    });
    run_time.wait_for_the_end();
    Ok(())
}

/// Asks as often as told, and reads every answer to its end.
pub(super) fn client(client: &HttpClient) -> Result<()> {
    let mut summary = Summary::default();
    let mut kept = None;
    for request in 0..client.requests {
        if request > 0 {
            thread::sleep(Duration::from_millis(client.every));
        }
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => {
                summary.flows += 1;
                BufReader::new(tcp::connected(client.to, 0)?)
            }
        };
        summary.bytes += get(&mut stream, client.to, client.size, client.keep_alive)?;
        summary.replies += 1;
        kept = client.keep_alive.then_some(stream);
    }
    report::summary(&summary)
}

/// One request; returns the size of the answer's body in bytes.
fn get(stream: &mut BufReader<TcpStream>, to: SocketAddr, size: u64, keep: bool) -> Result<u64> {
    let connection = if keep { "keep-alive" } else { "close" };
    let request =
        format!("GET /bytes/{size} HTTP/1.1\r\nHost: {to}\r\nConnection: {connection}\r\n\r\n");
    stream.get_mut().write_all(request.as_bytes())?;
    let head = read_head(stream)?.context("the server closed the connection")?;
    ensure!(head.first.split(' ').nth(1) == Some("200"), "the server answered {:?}", head.first);
    let length: u64 = head.header("content-length").context("no Content-Length")?.parse()?;
    let read = copy(&mut stream.take(length), &mut sink())?;
    ensure!(read == size, "{read} bytes in the body, expected {size}");
    Ok(read)
}

fn serve(stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(head) = read_head(&mut reader)? {
        let size = head
            .first
            .strip_prefix("GET /bytes/")
            .and_then(|rest| rest.split(' ').next()?.parse().ok());
        let (status, length) = match size {
            Some(size) => ("200 OK", size),
            None => ("404 Not Found", 0),
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
        );
        let stream = reader.get_mut();
        stream.write_all(answer.as_bytes())?;
        copy(&mut repeat(b'*').take(length), stream)?;
        if head.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            break;
        }
    }
    Ok(())
}

/// First line and headers of a message.
struct Head {
    first: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Reads up to the empty line; `None` when the peer closed before a message began.
fn read_head(reader: &mut impl BufRead) -> Result<Option<Head>> {
    let mut limited = reader.take(HEAD_LIMIT);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if limited.read_line(&mut line)? == 0 {
            if lines.is_empty() && limited.limit() > 0 {
                return Ok(None);
            }
            bail!("a head of a message without an end, or longer than {HEAD_LIMIT} bytes");
        }
        match line.trim_end() {
            "" => break,
            text => lines.push(text.to_owned()),
        }
    }
    let mut lines = lines.into_iter();
    let first = lines.next().context("a message without a first line")?;
    let headers = lines
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect();
    Ok(Some(Head { first, headers }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_up_to_its_empty_line_and_an_endless_one_is_refused() {
        let mut message = &b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"[..];
        let head = read_head(&mut message).unwrap().unwrap();
        assert_eq!(
            (head.first.as_str(), head.header("content-length")),
            ("HTTP/1.1 200 OK", Some("3"))
        );
        assert_eq!(message, b"abc");
        assert!(read_head(&mut &b""[..]).unwrap().is_none());
        assert!(read_head(&mut &b"GET / HTTP/1.1\r\n"[..]).is_err());
        assert!(read_head(&mut "x: y\r\n".repeat(3000).as_bytes()).is_err());
    }
}

//! `query pods` of a Prometheus, whose answers are known.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use crate::fake_agent::{FakeAgent, Run, Script, orb8};

/// What is answered to a query that contains the first, in HTTP: status and body. A body that is
/// shorter than it says is cut off.
type Answers = Vec<(&'static str, u16, String)>;

/// Answers requests one by one until the test ends.
struct FakePrometheus {
    address: SocketAddr,
    queries: Arc<Mutex<Vec<String>>>,
}

impl FakePrometheus {
    fn start(answers: Answers, cut: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let queries = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&queries);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let request = read_request(&mut stream);
                let query = decoded(&request);
                let found = answers.iter().find(|(part, ..)| query.contains(part));
                let (_, status, body) = found.unwrap();
                let length = body.len() + if cut { 100 } else { 0 };
                seen.lock().unwrap().push(request);
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n\
                     content-length: {length}\r\n\r\n{body}"
                );
            }
        });
        FakePrometheus { address, queries }
    }

    fn run(&self, arguments: &[&str]) -> Run {
        let url = format!("http://{}/base/", self.address);
        let mut command = orb8(&["query", "pods", "--since", "24h", "--history", &url]);
        command.args(arguments);
        Run::new(command.output().unwrap(), Duration::ZERO)
    }
}

fn read_request(stream: &mut std::net::TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
            });
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        let n = stream.read(&mut piece).unwrap();
        assert!(n > 0, "a request that ends early: {text}");
        bytes.extend_from_slice(&piece[..n]);
    }
}

/// The expression in a request.
fn decoded(request: &str) -> String {
    let body = request.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let mut text = String::new();
    let mut bytes = body.bytes();
    while let Some(byte) = bytes.next() {
        text.push(match byte {
            b'+' => ' ',
            b'%' => {
                let hex = [bytes.next().unwrap(), bytes.next().unwrap()];
                let hex = std::str::from_utf8(&hex).unwrap().to_owned();
                char::from(u8::from_str_radix(&hex, 16).unwrap())
            }
            byte => char::from(byte),
        });
    }
    text
}

fn vector(samples: &[(&str, &str, &str)], rest: &str) -> String {
    let samples: Vec<String> = samples
        .iter()
        .map(|(pod, direction, value)| {
            format!(
                r#"{{"metric":{{"namespace":"prod","pod":"{pod}","owner":"pod","direction":"{direction}"}},"value":[1,"{value}"]}}"#
            )
        })
        .collect();
    let samples = samples.join(",");
    format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{samples}]}}{rest}}}"#)
}

fn a_day() -> Answers {
    let bytes = [("web", "ingress", "3145728.4"), ("web", "egress", "10"), ("db", "egress", "99")];
    let bytes = vector(&bytes, r#","warnings":["PromQL warning: hm"]"#);
    let packets = vector(&[("web", "ingress", "7")], "");
    vec![("bytes_total", 200, bytes), ("packets_total", 200, packets)]
}

#[test]
fn a_day_of_pods_comes_from_prometheus_in_the_table_of_pods() {
    let prometheus = FakePrometheus::start(a_day(), false);
    let run = prometheus.run(&["-n", "prod", "--pod", "we"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(
        run.stdout,
        "NAMESPACE   POD   BYTES-IN   BYTES-OUT   PACKETS-IN   PACKETS-OUT\n\
         prod        web   3.0 MiB    10 B        7            0\n\
         prod        db    0 B        99 B        0            0\n"
    );
    assert!(run.stderr.contains("mode: history, asking the Prometheus at http://"), "{run:?}");
    assert!(run.stderr.contains("warning: Prometheus: PromQL warning: hm"), "{run:?}");
    let last =
        "2 rows from Prometheus, the last 1day: approximate, to a scrape interval at either end";
    assert_eq!(run.last_line(), last);
    let requests = prometheus.queries.lock().unwrap().clone();
    for request in &requests {
        assert!(request.starts_with("POST /base/api/v1/query "), "{request}");
        let query = decoded(request);
        let matchers = r#"_total{namespace="prod",pod=~"we.*"}[86400000ms]"#;
        assert!(query.contains(matchers), "{query}");
    }
    assert_eq!(requests.len(), 2);
}

#[test]
fn what_a_prometheus_does_not_know_is_not_shown_as_nought() {
    let prometheus = FakePrometheus::start(a_day(), false);
    let run = prometheus.run(&["-o", "jsonl", "--limit", "1"]);
    let row: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(row["ingress_bytes"], 3_145_728);
    assert!(row.get("flows").is_none(), "{row}");
    assert!(run.stderr.contains("1 of 2 rows shown"), "{}", run.stderr);
    let run = prometheus.run(&["--fields", "flows"]);
    assert_eq!(run.code, 64, "{run:?}");
    let run = prometheus.run(&["--sort-by", "flows"]);
    assert_eq!(run.code, 64, "{run:?}");
}

#[test]
fn no_rows_say_what_there_is_instead() {
    let nothing = || vector(&[], "");
    let there = vector(&[("web", "", "1"), ("db", "", "1")], "");
    let answers = vec![("count by", 200, there), ("increase", 200, nothing())];
    let run = FakePrometheus::start(answers, false).run(&["-n", "prod", "--pod", "wbe"]);
    assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{run:?}");
    let said = "nothing counted for namespace prod, pod wbe in this window; known: db, web";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    let answers = vec![("", 200, nothing())];
    let run = FakePrometheus::start(answers, false).run(&[]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stderr.contains("does it scrape the agents?"), "{}", run.stderr);
}

#[test]
fn errors_are_told_in_prometheus_words_and_nonsense_as_what_it_is() {
    let error = |kind: &str, text: &str| {
        format!(r#"{{"status":"error","errorType":"{kind}","error":"{text}"}}"#)
    };
    for (status, body, cut, said) in [
        (
            400,
            error("bad_data", "parse error: oops"),
            false,
            "refused (bad_data): parse error: oops",
        ),
        (
            503,
            error("unavailable", "TSDB not ready"),
            false,
            "refused (unavailable): TSDB not ready",
        ),
        (
            503,
            "upstream connect error".into(),
            false,
            "503 Service Unavailable, and not the answer",
        ),
        (
            200,
            "<html>login\u{1b}[2J</html>".into(),
            false,
            "not the answer of a Prometheus: <html>",
        ),
        (
            200,
            r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#.into(),
            false,
            "it is a matrix",
        ),
        (200, vector(&[("web", "egress", "1")], ""), true, "the answer broke off"),
    ] {
        let answers = vec![("", status, body)];
        let run = FakePrometheus::start(answers, cut).run(&[]);
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{said}: {run:?}");
        assert!(run.stderr.contains(said) && !run.stderr.contains('\u{1b}'), "{said:?} in {run:?}");
    }
    let mut command = orb8(&["query", "pods", "--since", "1h", "--history", "http://127.0.0.1:1"]);
    let run = Run::new(command.output().unwrap(), Duration::ZERO);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("cannot reach the Prometheus at http://127.0.0.1:1"), "{run:?}");
}

#[test]
fn the_environments_prometheus_is_asked_for_what_agents_do_not_keep() {
    let prometheus = FakePrometheus::start(a_day(), false);
    let agent = FakeAgent::start(Script::default());
    let url = format!("http://{}", prometheus.address);
    for (since, from_prometheus) in [("1m", false), ("5m", false), ("6m", true)] {
        let mut command = agent.command(&["query", "pods", "--since", since]);
        let run = Run::new(command.env("ORB8_HISTORY", &url).output().unwrap(), Duration::ZERO);
        assert_eq!(run.code, 0, "{run:?}");
        assert_eq!(run.stderr.contains("mode: history"), from_prometheus, "{}", run.stderr);
    }
}

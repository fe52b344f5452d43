//! Totals of pods from a Prometheus that scrapes the agents: what is older than their memory.

mod prometheus;

use std::{collections::BTreeMap, time::Duration};

use orb8_proto::{AttributedBy, PodSort, PodTraffic};

use self::prometheus::Sample;
pub(crate) use self::prometheus::{HistoryError, Prometheus};

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct HistoryQuery {
    /// Exact; empty: all.
    pub namespace: String,
    /// Prefix; empty: all.
    pub pod: String,
    /// Exact, by the label that the scrape configuration sets; empty: all.
    pub node: String,
    /// How long ago the window begins.
    pub since: Duration,
    /// How long ago it ends.
    pub until: Duration,
    pub sort_by: PodSort,
}

/// What a Prometheus said.
#[derive(Debug)]
pub(crate) struct History {
    /// Sorted.
    pub pods: Vec<PodTraffic>,
    /// What it warned of.
    pub warnings: Vec<String>,
}

/// Labels that make a row.
const LABELS: &str = "node,namespace,pod,workload,owner";

/// Asks for bytes and packets.
///
/// # Errors
/// When there is no usable answer.
pub(crate) async fn ask(
    prometheus: &Prometheus,
    query: &HistoryQuery,
) -> Result<History, HistoryError> {
    let bytes_query = increase("orb8_network_bytes_total", query);
    let packets_query = increase("orb8_network_packets_total", query);
    let (bytes, packets) =
        tokio::try_join!(prometheus.query(&bytes_query), prometheus.query(&packets_query))?;
    let mut warnings = bytes.warnings;
    warnings.extend(packets.warnings);
    warnings.dedup();
    let mut pods = rows(&bytes.samples, &packets.samples);
    sort(&mut pods, query.sort_by);
    Ok(History { pods, warnings })
}

/// The pods, as `namespace/pod`, or with a namespace its pods alone, that there are any series of.
///
/// # Errors
/// When there is no usable answer.
pub(crate) async fn candidates(
    prometheus: &Prometheus,
    query: &HistoryQuery,
) -> Result<Vec<String>, HistoryError> {
    let window = window(query);
    let asked =
        format!("count by (namespace,pod) (count_over_time(orb8_network_bytes_total{window}))");
    let found = prometheus.query(&asked).await?.samples;
    let label = |sample: &Sample, name: &str| sample.label(name).to_owned();
    let in_namespace = |sample: &&Sample| sample.label("namespace") == query.namespace;
    let mut names: Vec<String> = if found.iter().any(|sample| in_namespace(&sample)) {
        found.iter().filter(in_namespace).map(|sample| label(sample, "pod")).collect()
    } else if query.namespace.is_empty() {
        let text = |s: &Sample| format!("{}/{}", s.label("namespace"), s.label("pod"));
        found.iter().filter(|s| !s.label("pod").is_empty()).map(text).collect()
    } else {
        found.iter().map(|sample| label(sample, "namespace")).collect()
    };
    names.retain(|name| !name.is_empty());
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

fn increase(metric: &str, query: &HistoryQuery) -> String {
    let window = window(query);
    let mut matchers = Vec::new();
    for (label, operator, value) in [
        ("namespace", "=", query.namespace.clone()),
        ("pod", "=~", prefix(&query.pod)),
        ("node", "=", query.node.clone()),
    ] {
        if !value.is_empty() {
            matchers.push(format!("{label}{operator}{}", quoted(&value)));
        }
    }
    let matchers = matchers.join(",");
    format!("sum by ({LABELS},direction) (increase({metric}{{{matchers}}}{window}))")
}

/// A range, and where it ends.
fn window(query: &HistoryQuery) -> String {
    let range = query.since.saturating_sub(query.until).as_millis();
    let offset = query.until.as_millis();
    if offset == 0 { format!("[{range}ms]") } else { format!("[{range}ms] offset {offset}ms") }
}

/// A regular expression (RE2, whole by itself) for what starts like this.
fn prefix(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let mut pattern = String::new();
    for c in text.chars() {
        if !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_') && c.is_ascii() {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern + ".*"
}

/// A string of PromQL, whose escapes are those of Go.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

fn rows(bytes: &[Sample], packets: &[Sample]) -> Vec<PodTraffic> {
    let mut rows: BTreeMap<Vec<&str>, PodTraffic> = BTreeMap::new();
    for (samples, is_bytes) in [(bytes, true), (packets, false)] {
        for sample in samples {
            let key = LABELS.split(',').map(|label| sample.label(label)).collect();
            let row = rows.entry(key).or_insert_with(|| row(sample));
            let total = match (sample.label("direction"), is_bytes) {
                ("ingress", true) => &mut row.ingress_bytes,
                ("egress", true) => &mut row.egress_bytes,
                ("ingress", false) => &mut row.ingress_packets,
                ("egress", false) => &mut row.egress_packets,
                _ => continue,
            };
            *total = total.saturating_add(whole(sample.value));
        }
    }
    // A pod that was there and did nothing in the window has no line, as agents have it.
    let moved = |pod: &PodTraffic| {
        pod.ingress_bytes + pod.egress_bytes + pod.ingress_packets + pod.egress_packets > 0
    };
    rows.into_values().filter(moved).collect()
}

fn row(sample: &Sample) -> PodTraffic {
    let label = |name| sample.label(name).to_owned();
    let mut pod = PodTraffic {
        node: label("node"),
        namespace: label("namespace"),
        pod_name: label("pod"),
        workload: label("workload"),
        ..PodTraffic::default()
    };
    // As the agents' metrics have it: all processes of a node are one series.
    match sample.label("owner") {
        "process" => pod.unit = String::from("processes"),
        "node" => pod.set_attributed_by(AttributedBy::Host),
        "unknown" => pod.set_attributed_by(AttributedBy::None),
        _ => {}
    }
    pod
}

/// `increase` extrapolates, so it gives fractions of bytes.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

fn sort(pods: &mut [PodTraffic], by: PodSort) {
    let bytes = |pod: &PodTraffic| pod.ingress_bytes.saturating_add(pod.egress_bytes);
    let packets = |pod: &PodTraffic| pod.ingress_packets.saturating_add(pod.egress_packets);
    let name = |pod: &PodTraffic| {
        (pod.namespace.clone(), pod.pod_name.clone(), pod.unit.clone(), pod.node.clone())
    };
    pods.sort_by(|a, b| {
        let larger = match by {
            PodSort::Name => std::cmp::Ordering::Equal,
            PodSort::Packets => packets(b).cmp(&packets(a)),
            _ => bytes(b).cmp(&bytes(a)),
        };
        larger.then_with(|| name(a).cmp(&name(b)))
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query() -> HistoryQuery {
        HistoryQuery {
            namespace: String::new(),
            pod: String::new(),
            node: String::new(),
            since: Duration::from_secs(86_400),
            until: Duration::ZERO,
            sort_by: PodSort::Bytes,
        }
    }

    #[test]
    fn a_window_and_filters_become_promql() {
        assert_eq!(
            increase("m", &query()),
            "sum by (node,namespace,pod,workload,owner,direction) (increase(m{}[86400000ms]))"
        );
        let filtered = HistoryQuery {
            namespace: "pr\"od".into(),
            pod: "we.b".into(),
            until: Duration::from_secs(3_600),
            ..query()
        };
        let text = increase("m", &filtered);
        let matchers = r#"{namespace="pr\"od",pod=~"we\\.b.*"}[82800000ms] offset 3600000ms"#;
        assert!(text.contains(matchers), "{text}");
    }

    #[test]
    fn series_of_one_pod_are_one_row_and_the_largest_comes_first() {
        let sample = |pod: &str, owner: &str, direction: &str, value: f64| Sample {
            metric: [("pod", pod), ("owner", owner), ("direction", direction)]
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            value,
        };
        let bytes = [
            sample("a", "pod", "ingress", 10.4),
            sample("b", "pod", "egress", 99.6),
            sample("", "node", "egress", 5.0),
            sample("idle", "pod", "egress", 0.0),
        ];
        let mut rows = rows(&bytes, &[sample("a", "pod", "egress", 2.0)]);
        sort(&mut rows, PodSort::Bytes);
        let seen: Vec<_> = rows
            .iter()
            .map(|r| (&*r.pod_name, r.ingress_bytes, r.egress_bytes, r.egress_packets))
            .collect();
        assert_eq!(seen, [("b", 0, 100, 0), ("a", 10, 0, 2), ("", 0, 5, 0)]);
        assert_eq!(rows[2].attributed_by(), AttributedBy::Host);
    }

    proptest! {
        #[test]
        fn no_name_gets_out_of_its_string(name: String) {
            let text = quoted(&name);
            let inner = &text[1..text.len() - 1];
            let mut escaped = false;
            for c in inner.chars() {
                prop_assert!(escaped || c != '"');
                prop_assert!(!c.is_control());
                escaped = c == '\\' && !escaped;
            }
            prop_assert!(!escaped);
        }
    }
}

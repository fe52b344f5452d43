//! Totals per interface and direction, from orb8's records and from the kernel's counters, and the
//! table of both.

use std::{collections::BTreeMap, io::BufRead};

use anyhow::{Context, Result, bail};
use orb8_testkit::LinkCounters;
use serde_json::Value;

use super::styled;

/// As the pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    Egress,
    Ingress,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Volume {
    packets: u64,
    bytes: u64,
}

/// Packets and bytes per interface and direction.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Totals(BTreeMap<(String, Direction), Volume>);

/// Whether every total of orb8 is the kernel's.
pub(super) enum Verdict {
    Equal,
    Different,
}

impl Totals {
    /// Sums up the records of `orb8 trace network -o jsonl`: deltas, so the sum is the total.
    pub(super) fn of_records(lines: impl BufRead) -> Result<Self> {
        let mut totals = Self::default();
        for line in lines.lines() {
            let line = line?;
            let (interface, direction, volume) =
                parse_record(&line).with_context(|| format!("record {line}"))?;
            totals.add(interface, direction, volume);
        }
        Ok(totals)
    }

    /// What the counters of each interface grew by. On the host side of a veth, what is received
    /// is what the pod sent.
    pub(super) fn of_counters<'a>(
        changes: impl Iterator<Item = (&'a str, (&'a LinkCounters, &'a LinkCounters))>,
    ) -> Self {
        let mut totals = Self::default();
        for (interface, (before, after)) in changes {
            let egress = Volume {
                packets: after.rx_packets - before.rx_packets,
                bytes: after.rx_bytes - before.rx_bytes,
            };
            let ingress = Volume {
                packets: after.tx_packets - before.tx_packets,
                bytes: after.tx_bytes - before.tx_bytes,
            };
            totals.add(interface.to_owned(), Direction::Egress, egress);
            totals.add(interface.to_owned(), Direction::Ingress, ingress);
        }
        totals
    }

    fn get(&self, interface: &str, direction: Direction) -> Volume {
        self.0.get(&(interface.to_owned(), direction)).copied().unwrap_or_default()
    }

    fn add(&mut self, interface: String, direction: Direction, volume: Volume) {
        let total = self.0.entry((interface, direction)).or_default();
        total.packets += volume.packets;
        total.bytes += volume.bytes;
    }
}

fn parse_record(line: &str) -> Result<(String, Direction, Volume)> {
    let record: Value = serde_json::from_str(line)?;
    let text = |field: &str| {
        record[field].as_str().with_context(|| format!("`{field}` is {}, not text", record[field]))
    };
    let number = |field: &str| {
        record[field].as_u64().with_context(|| format!("`{field}` is {}, no count", record[field]))
    };
    let direction = match text("direction")? {
        "egress" => Direction::Egress,
        "ingress" => Direction::Ingress,
        other => bail!("direction is {other:?}, neither egress nor ingress"),
    };
    let volume = Volume { packets: number("packets")?, bytes: number("bytes")? };
    Ok((text("interface")?.to_owned(), direction, volume))
}

/// Prints both side by side, in the order of `names` (interface, pod), then what follows from it.
pub(super) fn print(names: &[(String, String)], seen: &Totals, counted: &Totals) -> Verdict {
    println!(
        "\n  {:<21}{:<6}{:>14}{:>14}{:>12}{:>9}{:>9}{:>7}",
        "pod", "", "bytes: orb8", "kernel", "difference", "packets", "kernel", "diff."
    );
    let mut sum = Volume::default();
    for (interface, name) in names {
        for (direction, word) in [(Direction::Egress, "sent"), (Direction::Ingress, "got")] {
            let orb8 = seen.get(interface, direction);
            let kernel = counted.get(interface, direction);
            println!(
                "  {name:<21}{word:<6}{:>14}{:>14}{:>12}{:>9}{:>9}{:>7}",
                grouped(orb8.bytes),
                grouped(kernel.bytes),
                difference(orb8.bytes, kernel.bytes),
                grouped(orb8.packets),
                grouped(kernel.packets),
                difference(orb8.packets, kernel.packets),
            );
            sum.bytes += kernel.bytes;
            sum.packets += kernel.packets;
        }
    }
    // Of the whole maps: what orb8 saw where there is no interface is a difference too.
    if seen == counted {
        println!(
            "\n  {}: {} interfaces, {} packets, {} bytes, difference 0",
            styled("32", "exact"),
            names.len(),
            grouped(sum.packets),
            grouped(sum.bytes)
        );
        return Verdict::Equal;
    }
    let verdict = styled("31", "NOT EQUAL");
    println!("\n  {verdict}: orb8's totals differ from the interface counters");
    Verdict::Different
}

/// With a comma between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn difference(orb8: u64, kernel: u64) -> i128 {
    i128::from(orb8) - i128::from(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: LinkCounters = LinkCounters {
        rx_bytes: 100,
        rx_packets: 1,
        rx_dropped: 0,
        tx_bytes: 1000,
        tx_packets: 10,
        tx_dropped: 0,
    };
    const AFTER: LinkCounters =
        LinkCounters { rx_bytes: 166, rx_packets: 2, tx_bytes: 1200, tx_packets: 12, ..BEFORE };

    fn records(text: &str) -> Result<Totals> {
        Totals::of_records(text.as_bytes())
    }

    #[test]
    fn records_that_sum_up_to_what_the_host_side_counted_are_equal_to_it() {
        let counted = Totals::of_counters([("veth1", (&BEFORE, &AFTER))].into_iter());
        let seen = records(
            r#"{"interface":"veth1","direction":"egress","bytes":66,"packets":1}
               {"interface":"veth1","direction":"ingress","bytes":150,"packets":1}
               {"interface":"veth1","direction":"ingress","bytes":50,"packets":1}"#,
        )
        .unwrap();
        assert_eq!(seen, counted);
        let names = [("veth1".to_owned(), "shop/web".to_owned())];
        assert!(matches!(print(&names, &seen, &counted), Verdict::Equal));
    }

    #[test]
    fn one_byte_or_one_interface_more_is_a_difference() {
        let counted = Totals::of_counters([("veth1", (&BEFORE, &AFTER))].into_iter());
        let right = r#"{"interface":"veth1","direction":"egress","bytes":66,"packets":1}
                       {"interface":"veth1","direction":"ingress","bytes":200,"packets":2}"#;
        for (from, to) in [("66", "67"), ("200", "199"), ("\"packets\":2", "\"packets\":1")] {
            let seen = records(&right.replace(from, to)).unwrap();
            assert!(matches!(print(&[], &seen, &counted), Verdict::Different), "{from} → {to}");
        }
        let more = format!("{right}\n{}", right.replace("veth1", "veth2"));
        let seen = records(&more).unwrap();
        assert!(matches!(print(&[], &seen, &counted), Verdict::Different));
    }

    #[test]
    fn thousands_are_grouped() {
        let shown = [0, 999, 1_000, 268_435_456].map(grouped);
        assert_eq!(shown, ["0", "999", "1,000", "268,435,456"]);
    }

    #[test]
    fn a_record_without_a_count_is_an_error_that_shows_it() {
        for broken in
            [r#"{"interface":"v","direction":"egress","bytes":"1"}"#, r#"{"direction":"up"}"#, "x"]
        {
            let error = records(broken).unwrap_err().to_string();
            assert!(error.contains(broken), "{error}");
        }
    }
}

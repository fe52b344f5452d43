//! Totals per interface and direction, from orb8's records and from the kernel's counters, and the
//! table of both.

use std::{collections::BTreeMap, io::BufRead};

use anyhow::{Context, Result, bail};
use orb8_testkit::LinkCounters;
use serde_json::Value;

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

/// Prints both side by side for each interface, then what follows from it. What orb8 saw on an
/// interface that is not in `names` would be a difference too: there is no such interface.
pub(super) fn print(names: &[(String, String)], seen: &Totals, counted: &Totals) -> Verdict {
    println!(
        "\n  {:<21}{:<8}{:>13}{:>13}{:>11}{:>9}{:>9}{:>8}",
        "pod", "", "bytes: orb8", "kernel", "difference", "packets", "kernel", "diff."
    );
    let mut sum = Volume::default();
    for ((interface, direction), kernel) in &counted.0 {
        let name = names.iter().find(|(known, _)| known == interface).map_or("?", |(_, n)| n);
        let word = match direction {
            Direction::Egress => "sent",
            Direction::Ingress => "got",
        };
        let orb8 = seen.0.get(&(interface.clone(), *direction)).copied().unwrap_or_default();
        println!(
            "  {name:<21}{word:<8}{:>13}{:>13}{:>11}{:>9}{:>9}{:>8}",
            orb8.bytes,
            kernel.bytes,
            difference(orb8.bytes, kernel.bytes),
            orb8.packets,
            kernel.packets,
            difference(orb8.packets, kernel.packets),
        );
        sum.bytes += kernel.bytes;
        sum.packets += kernel.packets;
    }
    if seen == counted {
        println!(
            "\n  \x1b[32mexact\x1b[0m: {} interfaces, {} packets, {} bytes, difference 0",
            names.len(),
            sum.packets,
            sum.bytes
        );
        return Verdict::Equal;
    }
    println!("\n  \x1b[31mNOT EQUAL\x1b[0m: orb8's totals differ from the interface counters");
    Verdict::Different
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
    fn a_record_without_a_count_is_an_error_that_shows_it() {
        for broken in
            [r#"{"interface":"v","direction":"egress","bytes":"1"}"#, r#"{"direction":"up"}"#, "x"]
        {
            let error = records(broken).unwrap_err().to_string();
            assert!(error.contains(broken), "{error}");
        }
    }
}

//! Families of metrics, each written whole from numbers that are there.

use std::fmt;

use orb8_proto::Usage;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

/// A label and its value.
pub type Label<'a> = (&'static str, &'a str);

/// What one scrape tells.
pub trait Scrape: fmt::Debug + Send + Sync + 'static {
    /// Writes it.
    ///
    /// # Errors
    /// The writer's own; numbers that are there can always be written.
    fn write(&self, families: &mut Families<'_>) -> fmt::Result;
}

/// Takes families, one after the other.
#[derive(Debug)]
pub struct Families<'e>(DescriptorEncoder<'e>);

impl Families<'_> {
    /// A counter with one series for each of `series`. `name` comes without its unit and `_total`.
    ///
    /// # Errors
    /// The writer's own.
    pub fn counter<'l, L: AsRef<[Label<'l>]>>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        self.family((name, help, unit, MetricType::Counter), series, ConstCounter::new)
    }

    /// A gauge with one series for each of `series`. `name` comes without its unit.
    ///
    /// # Errors
    /// The writer's own.
    pub fn gauge<'l, L: AsRef<[Label<'l>]>>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        self.family((name, help, unit, MetricType::Gauge), series, ConstGauge::new)
    }

    /// What a process costs, under the names that Prometheus' client libraries use.
    ///
    /// # Errors
    /// The writer's own.
    pub fn process(&mut self, usage: &Usage) -> fmt::Result {
        #[expect(clippy::cast_precision_loss, reason = "numbers below 2^53")]
        let float = |n: u64| n as f64;
        let one = |value| [([] as [Label<'_>; 0], value)];
        let (seconds, bytes) = (Some(&Unit::Seconds), Some(&Unit::Bytes));
        let cpu = "User and system CPU time of this process";
        self.counter("process_cpu", cpu, seconds, one(usage.cpu_seconds))?;
        let memory = "Resident memory of this process";
        let resident = float(usage.resident_bytes);
        self.gauge("process_resident_memory", memory, bytes, one(resident))?;
        let fds = "Open descriptors of this process";
        self.gauge("process_open_fds", fds, None, one(float(usage.open_fds)))
    }

    fn family<'l, L: AsRef<[Label<'l>]>, M: EncodeMetric>(
        &mut self,
        (name, help, unit, kind): (&str, &str, Option<&Unit>, MetricType),
        series: impl IntoIterator<Item = (L, f64)>,
        metric: impl Fn(f64) -> M,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in series {
            metric(value).encode(family.encode_family(&labels.as_ref())?)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Collected(Box<dyn Scrape>);

impl Collector for Collected {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.write(&mut Families(encoder))
    }
}

/// The text of a scrape: OpenMetrics 1.0.
pub(crate) fn encode(scrape: Box<dyn Scrape>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Collected(scrape)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Two;

    impl Scrape for Two {
        fn write(&self, families: &mut Families<'_>) -> fmt::Result {
            let bytes = [([("pod", "a\"b"), ("namespace", "x")], 3.0)];
            families.counter("orb8_network", "L2 length", Some(&Unit::Bytes), bytes)?;
            families.gauge("up", "Whether it is", None, [([] as [Label<'_>; 0], 1.0)])
        }
    }

    #[test]
    fn families_are_written_as_the_format_has_them() {
        let expected = "\
# HELP orb8_network_bytes L2 length.
# TYPE orb8_network_bytes counter
# UNIT orb8_network_bytes bytes
orb8_network_bytes_total{pod=\"a\\\"b\",namespace=\"x\"} 3.0
# HELP up Whether it is.
# TYPE up gauge
up 1.0
# EOF
";
        assert_eq!(encode(Box::new(Two)).unwrap(), expected);
    }
}

//! Families of metrics, each written whole from numbers that are there.

use std::fmt;

use orb8_proto::Usage;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric, text},
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
    pub fn counter<'l, L: AsRef<[Label<'l>]>, N: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (L, N)>,
    ) -> fmt::Result {
        self.family((name, help, unit, MetricType::Counter), series, ConstCounter::new)
    }

    /// A gauge with one series for each of `series`. `name` comes without its unit.
    ///
    /// # Errors
    /// The writer's own.
    pub fn gauge<'l, L: AsRef<[Label<'l>]>, N: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (L, N)>,
    ) -> fmt::Result {
        self.family((name, help, unit, MetricType::Gauge), series, ConstGauge::new)
    }

    /// What the process of `whom` costs, such as "the agent", under the names that Prometheus' client
    /// libraries use.
    ///
    /// # Errors
    /// The writer's own.
    pub fn process(&mut self, whom: &str, usage: &Usage) -> fmt::Result {
        let (seconds, bytes) = (Some(&Unit::Seconds), Some(&Unit::Bytes));
        let help = format!("User and system CPU time of {whom}");
        self.counter("process_cpu", &help, seconds, one(usage.cpu_seconds))?;
        let help = format!("Resident memory of {whom}");
        self.gauge("process_resident_memory", &help, bytes, one(usage.resident_bytes))?;
        let help = format!("Open descriptors of {whom}");
        self.gauge("process_open_fds", &help, None, one(usage.open_fds))
    }

    fn family<'l, L: AsRef<[Label<'l>]>, N, M: EncodeMetric>(
        &mut self,
        (name, help, unit, kind): (&str, &str, Option<&Unit>, MetricType),
        series: impl IntoIterator<Item = (L, N)>,
        metric: impl Fn(N) -> M,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in series {
            metric(value).encode(family.encode_family(&labels.as_ref())?)?;
        }
        Ok(())
    }
}

/// The only series of a family, without labels.
pub fn one<N>(value: N) -> [([Label<'static>; 0], N); 1] {
    [([], value)]
}

#[derive(Debug)]
struct Collected(Box<dyn Scrape>);

impl Collector for Collected {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.write(&mut Families(encoder))
    }
}

/// The text of a scrape: OpenMetrics 1.0.
///
/// # Errors
/// The writer's own.
pub fn encode(scrape: Box<dyn Scrape>) -> Result<String, fmt::Error> {
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
            let bytes = [([("pod", "a\"b"), ("namespace", "x")], (1_u64 << 53) + 1)];
            families.counter("orb8_network", "L2 length", Some(&Unit::Bytes), bytes)?;
            families.gauge("up", "Whether it is", None, one(1.0))
        }
    }

    #[test]
    fn families_are_written_as_the_format_has_them() {
        let expected = "\
# HELP orb8_network_bytes L2 length
# TYPE orb8_network_bytes counter
# UNIT orb8_network_bytes bytes
orb8_network_bytes_total{pod=\"a\\\"b\",namespace=\"x\"} 9007199254740993
# HELP up Whether it is
# TYPE up gauge
up{} 1.0
# EOF
";
        assert_eq!(encode(Box::new(Two)).unwrap(), expected);
    }
}

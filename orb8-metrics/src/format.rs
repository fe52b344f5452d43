//! The two texts of metrics: OpenMetrics for whoever asks for it by name, as Prometheus does, and the
//! older one for everybody else, whose readers know no other.

use std::mem;

/// How a scrape is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Format {
    /// What a request's `Accept` asks for.
    pub(crate) fn asked(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Text }
    }

    /// The answer's `Content-Type`.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Writes what is there as OpenMetrics in this format.
    pub(crate) fn of(self, open_metrics: String) -> String {
        match self {
            Self::OpenMetrics => open_metrics,
            Self::Text => text(&open_metrics),
        }
    }
}

/// There, a counter's family has the name of its samples, with `_total`; units and an end are not told.
fn text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // A family's help comes before its type, which says how the family is called.
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(family) = line.strip_prefix("# HELP ") {
            help = family.split_once(' ').map(|(_, help)| help.replace("\\\"", "\""));
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|family| family.split_once(' '))
        {
            let total = if kind == "counter" { "_total" } else { "" };
            if let Some(help) = mem::take(&mut help) {
                text.extend(["# HELP ", name, total, " ", &help, "\n"]);
            }
            text.extend(["# TYPE ", name, total, " ", kind, "\n"]);
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_asks_for_open_metrics_gets_it() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
        assert_eq!(Format::asked(prometheus), Format::OpenMetrics);
        for other in ["", "*/*", "text/plain;version=0.0.4"] {
            assert_eq!(Format::asked(other), Format::Text);
        }
    }

    #[test]
    fn the_older_text_has_the_same_samples_under_families_of_their_names() {
        let open_metrics = "\
# HELP a_bytes With \\\"quotes\\\".
# TYPE a_bytes counter
# UNIT a_bytes bytes
a_bytes_total{pod=\"# EOF\"} 3
# HELP up Whether.
# TYPE up gauge
up 1.0
# EOF
";
        let expected = "\
# HELP a_bytes_total With \"quotes\".
# TYPE a_bytes_total counter
a_bytes_total{pod=\"# EOF\"} 3
# HELP up Whether.
# TYPE up gauge
up 1.0
";
        assert_eq!(Format::Text.of(open_metrics.into()), expected);
        assert_eq!(Format::OpenMetrics.of(open_metrics.into()), open_metrics);
    }
}

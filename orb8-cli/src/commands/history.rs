//! `orb8 query pods` of a window that is longer than what agents keep: from a Prometheus.

use std::{collections::BTreeSet, time::Duration};

use orb8_proto::PodSort;

use super::{filter_text, look, question::check_order};
use crate::{
    args::{Cli, HistoryArgs, PodOrder, QueryPodsArgs, WindowArgs},
    exit::{Exit, Failure},
    history::{self, History, HistoryError, HistoryQuery, Prometheus},
    notes::Notes,
    output::{Printer, columns, pods as pod_columns},
    summary::grouped,
    target::Mode,
};

/// The environment variable that stands in for `--history`.
const HISTORY_ENV: &str = "ORB8_HISTORY";
/// What agents keep.
const KEPT: Duration = orb8_agent::config::WINDOW;
/// Names that are listed where none was meant.
const CANDIDATES: usize = 10;

/// The URL, if the question is one for a Prometheus: it was named here, or it was named by the
/// environment and the window begins before what agents keep.
pub(super) fn wanted(
    history: &HistoryArgs,
    window: &WindowArgs,
) -> Result<Option<String>, Failure> {
    match (&history.history, window.since) {
        (Some(url), Some(_)) => Ok(Some(url.clone())),
        (Some(_), None) => Err(Failure::Usage(String::from(
            "--history asks for a window of time: give --since, such as --since 24h",
        ))),
        (None, Some(since)) if since > KEPT => {
            Ok(std::env::var(HISTORY_ENV).ok().filter(|url| !url.is_empty()))
        }
        (None, _) => Ok(None),
    }
}

pub(super) async fn pods(
    cli: &Cli,
    args: &QueryPodsArgs,
    url: &str,
    notes: &Notes,
) -> Result<Exit, Failure> {
    let window = &args.window;
    let fields = &window.records.fields;
    columns::select(pod_columns::HISTORY, fields, window.records.output).map_err(Failure::Usage)?;
    check_order(window)?;
    let wrong = match () {
        () if args.sort_by == PodOrder::Flows => {
            Some("--sort-by flows: a Prometheus knows of no flows; it has bytes, packets and name")
        }
        () if window.duration.is_some() => {
            Some("--duration is the time to watch in standalone mode; --history takes --since")
        }
        () if cli.global.mode == Some(Mode::Standalone) => Some(
            "--mode standalone watches this node from now on; --history asks a Prometheus about \
             the past",
        ),
        () => None,
    };
    if let Some(message) = wrong {
        return Err(Failure::Usage(message.to_owned()));
    }
    let query = HistoryQuery {
        namespace: window.filter.namespace.clone().unwrap_or_default(),
        pod: window.filter.pod.clone().unwrap_or_default(),
        node: window.filter.node.clone().unwrap_or_default(),
        since: window.since.unwrap_or(KEPT),
        until: window.until.unwrap_or_default(),
        sort_by: match args.sort_by {
            PodOrder::Bytes | PodOrder::Flows => PodSort::Bytes,
            PodOrder::Packets => PodSort::Packets,
            PodOrder::Name => PodSort::Name,
        },
    };
    let (ca, token) = (&args.history.history_ca, &args.history.history_token_file);
    let prometheus = Prometheus::new(url, ca.as_deref(), token.as_deref()).map_err(failure)?;
    notes.info(&format!("mode: history, asking the Prometheus at {url}"));
    let History { mut pods, warnings } =
        history::ask(&prometheus, &query).await.map_err(failure)?;
    for warning in &warnings {
        notes.warning(&format!("Prometheus: {warning}"));
    }
    let found = pods.len();
    if found == 0 {
        explain(&prometheus, &query, window, notes).await?;
    }
    if let Some(limit) = window.limit.and_then(|limit| usize::try_from(limit).ok()) {
        pods.truncate(limit);
    }
    let count = |rows: usize| grouped(u64::try_from(rows).unwrap_or(u64::MAX));
    let nodes: BTreeSet<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
    let select = if nodes.len() > 1 { columns::of_nodes } else { columns::select };
    let columns =
        select(pod_columns::HISTORY, fields, window.records.output).map_err(Failure::Usage)?;
    Printer::stdout(columns, look(cli, &window.records)).all(&pods).map_err(Failure::output)?;
    if pods.len() < found {
        notes.info(&format!(
            "{} of {} rows shown: --limit takes more",
            count(pods.len()),
            count(found)
        ));
    }
    notes.info(&format!(
        "{} rows from Prometheus, {}: approximate, to a scrape interval at either end",
        count(found),
        span(&query)
    ));
    Ok(Exit::Complete)
}

/// The window, for people.
fn span(query: &HistoryQuery) -> String {
    let since = humantime::format_duration(query.since);
    match query.until {
        Duration::ZERO => format!("the last {since}"),
        until => format!("from {since} to {} ago", humantime::format_duration(until)),
    }
}

/// Why there are no rows.
///
/// # Errors
/// When what was named is not there, with what is.
async fn explain(
    prometheus: &Prometheus,
    query: &HistoryQuery,
    window: &WindowArgs,
    notes: &Notes,
) -> Result<(), Failure> {
    let known = history::candidates(prometheus, query).await.map_err(failure)?;
    let filter = filter_text(&window.filter, "");
    if known.is_empty() {
        notes.info(&format!(
            "no rows{filter}: the Prometheus has no orb8_network_bytes_total in this window; does \
             it scrape the agents?"
        ));
        return Ok(());
    }
    if filter.is_empty() {
        notes.info("no rows: nothing was counted in this window");
        return Ok(());
    }
    let listed = known.iter().take(CANDIDATES).cloned().collect::<Vec<_>>().join(", ");
    let more = match known.len().saturating_sub(CANDIDATES) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Err(anyhow::anyhow!("nothing counted{filter} in this window; known: {listed}{more}").into())
}

fn failure(error: HistoryError) -> Failure {
    if error.is_usage() {
        Failure::Usage(error.to_string())
    } else {
        Failure::Other(anyhow::Error::new(error))
    }
}

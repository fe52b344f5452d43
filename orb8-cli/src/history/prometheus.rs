//! Prometheus' HTTP API, as far as it is needed: `/api/v1/query`
//! (<https://prometheus.io/docs/prometheus/latest/querying/api/>).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use kube::{Client, Config, client::Body};
use serde::Deserialize;
use tokio::time::timeout;

/// For one answer. Sums over a day of many pods take a Prometheus seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// For a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer: some hundred bytes for each pod and direction. More is an error.
const LARGEST_ANSWER: usize = 256 << 20;
/// How much of what is no answer is shown.
const SHOWN: usize = 200;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HistoryError {
    #[error(
        "--history {url:?}: expected http://HOST:PORT or https://HOST:PORT, with a path or not"
    )]
    Url { url: String },
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("cannot reach the Prometheus at {url}: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("the Prometheus at {url} did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Late { url: String },
    /// In its own words.
    #[error("the Prometheus at {url} refused ({kind}): {error}")]
    Refused { url: String, kind: String, error: String },
    #[error("{url}: {status}, and not the answer of a Prometheus: {text}")]
    NotPrometheus { url: String, status: StatusCode, text: String },
    #[error("the Prometheus at {url}: the answer broke off: {reason}")]
    Broken { url: String, reason: String },
}

impl HistoryError {
    /// Whether it is the user's words that are wrong.
    pub(crate) fn is_usage(&self) -> bool {
        matches!(self, HistoryError::Url { .. } | HistoryError::File { .. })
    }
}

/// A Prometheus.
pub(crate) struct Prometheus {
    url: String,
    client: Client,
}

/// One series' value at the end of the window.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) metric: BTreeMap<String, String>,
    pub(super) value: f64,
}

impl Sample {
    /// Empty where the series has no such label.
    pub(super) fn label(&self, name: &str) -> &str {
        self.metric.get(name).map_or("", String::as_str)
    }
}

/// What a query gave.
#[derive(Debug, PartialEq)]
pub(super) struct Vector {
    pub(super) samples: Vec<Sample>,
    pub(super) warnings: Vec<String>,
}

impl Prometheus {
    /// At a base URL, such as `https://prometheus.example/prefix`. Nothing is sent yet.
    ///
    /// # Errors
    /// When that is no URL, or a file cannot be used.
    pub(crate) fn new(
        url: &str,
        ca: Option<&Path>,
        token_file: Option<&Path>,
    ) -> Result<Self, HistoryError> {
        let wrong = || HistoryError::Url { url: url.to_owned() };
        let uri: Uri = url.trim_end_matches('/').parse().map_err(|_| wrong())?;
        let scheme = uri.scheme_str().is_some_and(|scheme| matches!(scheme, "http" | "https"));
        if !scheme || uri.host().is_none_or(str::is_empty) || uri.query().is_some() {
            return Err(wrong());
        }
        let file = |path: &Path, reason: String| HistoryError::File { path: path.into(), reason };
        // kube's client is one of HTTP with TLS, a base URL and a token, and it is here anyway.
        let mut config = Config::new(uri);
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.default_retry = false;
        if let Some(path) = ca {
            fs::metadata(path).map_err(|error| file(path, error.to_string()))?;
            config.root_cert_file = Some(path.to_owned());
        }
        if let Some(path) = token_file {
            let token = fs::read_to_string(path).map_err(|error| file(path, error.to_string()))?;
            let token = token.trim();
            if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(file(path, "expected a bearer token on one line".into()));
            }
            config.auth_info.token = Some(token.to_owned().into());
        }
        let client = Client::try_from(config).map_err(|error| match ca {
            Some(path) => file(path, error.to_string()),
            None => HistoryError::Unreachable { url: url.to_owned(), reason: error.to_string() },
        })?;
        Ok(Prometheus { url: url.to_owned(), client })
    }

    /// Evaluates an expression whose value is a vector, now.
    ///
    /// # Errors
    /// When there is no usable answer.
    pub(super) async fn query(&self, expression: &str) -> Result<Vector, HistoryError> {
        let late = || HistoryError::Late { url: self.url.clone() };
        timeout(ANSWER_TIMEOUT, self.ask(expression)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn ask(&self, expression: &str) -> Result<Vector, HistoryError> {
        let unreachable =
            |reason: String| HistoryError::Unreachable { url: self.url.clone(), reason };
        let broken = |reason: String| HistoryError::Broken { url: self.url.clone(), reason };
        // By POST, as names may be long.
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("query", expression)
            .append_pair("timeout", &format!("{}s", ANSWER_TIMEOUT.as_secs()))
            .finish();
        let request = Request::post("/api/v1/query")
            .header("content-type", "application/x-www-form-urlencoded")
            .header("accept", "application/json")
            .body(Body::from(form.into_bytes()))
            .map_err(|error| unreachable(error.to_string()))?;
        let response =
            self.client.send(request).await.map_err(|error| unreachable(innermost(&error)))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
        let body = body.map_err(|error| {
            broken(match error.downcast_ref::<LengthLimitError>() {
                Some(_) => format!("it is longer than {} MiB", LARGEST_ANSWER >> 20),
                None => innermost(&*error),
            })
        })?;
        self.parse(status, &body.to_bytes())
    }

    fn parse(&self, status: StatusCode, body: &[u8]) -> Result<Vector, HistoryError> {
        let url = self.url.clone();
        match parse(body) {
            Ok(Parsed::Vector(vector)) => Ok(vector),
            Ok(Parsed::Error { kind, error }) => Err(HistoryError::Refused { url, kind, error }),
            Err(reason) if status.is_success() && looks_like_json(body) => {
                Err(HistoryError::Broken { url, reason })
            }
            Err(_) => {
                let text = String::from_utf8_lossy(body);
                let text: String = text.trim().chars().take(SHOWN).collect();
                Err(HistoryError::NotPrometheus { url, status, text })
            }
        }
    }
}

fn looks_like_json(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"{")
}

#[derive(Debug, PartialEq)]
enum Parsed {
    Vector(Vector),
    Error { kind: String, error: String },
}

fn parse(body: &[u8]) -> Result<Parsed, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        status: String,
        data: Option<Data>,
        error_type: Option<String>,
        error: Option<String>,
        #[serde(default)]
        warnings: Vec<String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Data {
        result_type: String,
        result: serde_json::Value,
    }
    #[derive(Deserialize)]
    struct Series {
        #[serde(default)]
        metric: BTreeMap<String, String>,
        // Seconds since the epoch, and a number as text: JSON has no NaN.
        value: (f64, String),
    }
    let answer: Answer = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if answer.status != "success" {
        return Ok(Parsed::Error {
            kind: answer.error_type.unwrap_or(answer.status),
            error: answer.error.unwrap_or_default(),
        });
    }
    let data = answer.data.ok_or("it has no data")?;
    if data.result_type != "vector" {
        return Err(format!("it is a {}; expected a vector", data.result_type));
    }
    let series: Vec<Series> =
        serde_json::from_value(data.result).map_err(|error| error.to_string())?;
    let samples = series
        .into_iter()
        .map(|series| {
            let text = series.value.1;
            let value = text.parse().map_err(|_| format!("{text:?} is no number"))?;
            Ok(Sample { metric: series.metric, value })
        })
        .collect::<Result<_, String>>()?;
    Ok(Parsed::Vector(Vector { samples, warnings: answer.warnings }))
}

/// The last cause of an error says what happened; those before say where.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_vector_is_read_with_its_warnings() {
        let body = br#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"pod":"web"},"value":[1700000000.5,"12.5"]},
            {"metric":{},"value":[1,"NaN"]}]},"warnings":["PromQL: careful"],"infos":["x"]}"#;
        let Ok(Parsed::Vector(vector)) = parse(body) else { panic!("{:?}", parse(body)) };
        assert_eq!(vector.warnings, ["PromQL: careful"]);
        assert_eq!((vector.samples[0].label("pod"), vector.samples[0].value), ("web", 12.5));
        assert!(vector.samples[1].value.is_nan() && vector.samples[1].label("pod").is_empty());
    }

    #[test]
    fn errors_are_prometheus_own_words() {
        let body = br#"{"status":"error","errorType":"bad_data","error":"parse error: x"}"#;
        let error = "parse error: x".to_owned();
        assert_eq!(parse(body), Ok(Parsed::Error { kind: "bad_data".into(), error }));
    }

    #[test]
    fn what_is_not_a_vector_is_an_error_that_says_so() {
        for (body, said) in [
            ("{\"status\":\"success\"}", "no data"),
            (
                "{\"status\":\"success\",\"data\":{\"resultType\":\"scalar\",\"result\":[1,\"2\"]}}",
                "it is a scalar",
            ),
            (
                "{\"status\":\"success\",\"data\":{\"resultType\":\"vector\",\"result\":[{\"value\":[1,\"x\"]}]}}",
                "\"x\" is no number",
            ),
            ("{\"status\":\"succ", "EOF"),
        ] {
            let error = parse(body.as_bytes()).unwrap_err();
            assert!(error.contains(said), "{said:?} in {error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_an_answer(body: Vec<u8>, text in "\\{\"status\":\"success\".*") {
            let _ = parse(&body);
            let _ = parse(text.as_bytes());
        }
    }
}

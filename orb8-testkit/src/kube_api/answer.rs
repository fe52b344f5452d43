//! From a request to its answer.

use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, to_bytes};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, USER_AGENT};
use axum::http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::body::Writer;
use super::faults::Faults;
use super::forward;
use super::kinds::{Kind, Resource, resource};
use super::reviews;
use super::selector::Selector;
use super::store::padded;
use super::watch::{self, Watch};
use super::{LoggedRequest, Shared, lock};

/// A status that is not success, and the message.
pub(super) type Refusal = (StatusCode, String);

pub(super) async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
    cut: CancellationToken,
) -> Response<Body> {
    let query = request.uri().query().unwrap_or_default();
    let header = |name| request.headers().get(name).and_then(|v| v.to_str().ok());
    let mut logged = LoggedRequest {
        at: Instant::now(),
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        user_agent: header(USER_AGENT).unwrap_or_default().to_owned(),
        status: 0,
    };
    let faults = lock(&shared.faults).clone();
    let response = match admit(&faults, request.method(), request.headers()) {
        Ok(()) if request.method() == Method::POST => {
            review(&shared, &logged.path, Body::new(request.into_body())).await
        }
        Ok(()) => match forward::pod_of(&logged.path) {
            Some((namespace, pod)) => port(&shared, &logged, (namespace, pod), request, cut),
            None => respond(&shared, &logged, &faults, cut),
        },
        Err(refusal) => Err(refusal),
    };
    // What is known is taken now and arrives late.
    tokio::time::sleep(faults.delay).await;
    let response = response.unwrap_or_else(|(status, message)| refused(status, &message));
    logged.status = response.status().as_u16();
    lock(&shared.log).push(logged);
    response
}

fn admit(faults: &Faults, method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = bearer.and_then(|value| value.strip_prefix("Bearer "));
    if let Some(status) = faults.status {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return Err((status, "the test wants it so".to_owned()));
    }
    if let Some(tokens) = &faults.tokens
        && !token.is_some_and(|token| tokens.iter().any(|t| t == token))
    {
        return Err((StatusCode::UNAUTHORIZED, "Unauthorized".to_owned()));
    }
    if faults.forbidden {
        let message = "pods is forbidden: User \"system:serviceaccount:orb8:orb8-agent\" cannot list resource \
                       \"pods\" in API group \"\" at the cluster scope";
        return Err((StatusCode::FORBIDDEN, message.to_owned()));
    }
    if method != Method::GET && method != Method::POST {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "this API is only read".to_owned()));
    }
    Ok(())
}

/// Forwards a port of a pod.
fn port(
    shared: &Shared,
    logged: &LoggedRequest,
    (namespace, pod): (&str, &str),
    request: Request<Incoming>,
    cut: CancellationToken,
) -> Result<Response<Body>, Refusal> {
    let kind = Kind::named("Pod").map_err(|error| (StatusCode::NOT_FOUND, error.to_string()))?;
    if lock(&shared.store).get(kind, namespace, pod).is_none() {
        return Err((StatusCode::NOT_FOUND, format!("pods {pod:?} not found")));
    }
    let port = forward::port_of(logged.parameter("ports"))?;
    let key = (namespace.to_owned(), pod.to_owned(), port);
    let there = lock(&shared.listeners).get(&key).copied();
    forward::forward(request, pod.to_owned(), port, there, cut)
}

/// The only objects that can be created are questions, which are not kept.
async fn review(shared: &Shared, path: &str, body: Body) -> Result<Response<Body>, Refusal> {
    let body = to_bytes(body, reviews::LONGEST).await;
    let body = body.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    let answer = lock(&shared.reviews).answer(path, &body);
    let only_read = || (StatusCode::METHOD_NOT_ALLOWED, "this API is only read".to_owned());
    let answer = answer.ok_or_else(only_read)??;
    Ok(json_response(StatusCode::CREATED, Body::from(answer.to_string())))
}

fn respond(
    shared: &Arc<Shared>,
    request: &LoggedRequest,
    faults: &Faults,
    cut: CancellationToken,
) -> Result<Response<Body>, Refusal> {
    if request.path == "/version" {
        let version = json!({ "major": "1", "minor": "37", "gitVersion": "v1.37.0" });
        return Ok(json_response(StatusCode::OK, Body::from(version.to_string())));
    }
    let not_found = |what: &str| (StatusCode::NOT_FOUND, format!("{what} not found"));
    let asked = resource(&request.path).ok_or_else(|| not_found(&request.path))?;
    if !asked.name.is_empty() {
        let object = lock(&shared.store).get(asked.kind, asked.namespace, asked.name);
        let object = object.ok_or_else(|| not_found(asked.name))?;
        let text = padded(&object, faults.padding).to_string();
        return Ok(json_response(StatusCode::OK, Body::from(text)));
    }
    let parameter = |name| request.parameter(name).unwrap_or_default();
    let selector = Selector::parse(parameter("fieldSelector"), parameter("labelSelector"))
        .map_err(|message| (StatusCode::BAD_REQUEST, message))?;
    let (writer, body) = Writer::new(Arc::clone(shared), cut);
    if request.is_watch() {
        let watch = Watch::new(shared, request, &asked, selector)?;
        tokio::spawn(watch::run(watch, Arc::clone(shared), writer));
    } else {
        let list = list(shared, request, &asked, &selector, faults.padding)?;
        tokio::spawn(async move {
            // Nobody waits for it when the client hangs up.
            let _done = writer.send(list.to_string().into_bytes()).await;
        });
    }
    Ok(json_response(StatusCode::OK, body))
}

fn list(
    shared: &Shared,
    request: &LoggedRequest,
    asked: &Resource<'_>,
    selector: &Selector,
    padding: usize,
) -> Result<Value, Refusal> {
    let mut store = lock(&shared.store);
    let expired = |what: &str| (StatusCode::GONE, format!("{what} is too old, list again"));
    let (version, mut items) = if let Some(token) = request.parameter("continue") {
        store.page(token).ok_or_else(|| expired("The provided continue parameter"))?
    } else {
        let version = store.version();
        let wanted = wanted_version(request)?;
        if wanted > version {
            let message = format!("Too large resource version: {wanted}, current: {version}");
            return Err((StatusCode::GATEWAY_TIMEOUT, message));
        }
        if request.parameter("resourceVersionMatch") == Some("Exact") && wanted != version {
            return Err(expired("The resourceVersion for the provided list"));
        }
        let mut items = store.list(asked.kind, asked.namespace);
        items.retain(|object| selector.matches(object));
        (version, items)
    };
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    // As the watch cache does, which knows no pages.
    let cached = request.parameter("resourceVersion") == Some("0");
    let limit = request.parameter("limit").and_then(|text| text.parse().ok());
    if let Some(limit) = limit.filter(|limit| !cached && (1..items.len()).contains(limit)) {
        let rest = items.split_off(limit);
        metadata["remainingItemCount"] = rest.len().into();
        metadata["continue"] = store.keep_page(version, rest).into();
    }
    Ok(json!({
        "apiVersion": asked.kind.api_version,
        "kind": format!("{}List", asked.kind.name),
        "metadata": metadata,
        "items": items.iter().map(|object| padded(object, padding)).collect::<Vec<_>>(),
    }))
}

/// 0 where the request names none.
pub(super) fn wanted_version(request: &LoggedRequest) -> Result<u64, Refusal> {
    match request.parameter("resourceVersion").unwrap_or_default() {
        "" => Ok(0),
        text => text.parse().map_err(|_| {
            (StatusCode::BAD_REQUEST, format!("resourceVersion: Invalid value: {text:?}"))
        }),
    }
}

/// A v1 `Status`.
pub(super) fn status_object(status: StatusCode, message: &str) -> Value {
    let reason = match status.as_u16() {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        410 => "Expired",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    };
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": status.as_u16(),
    })
}

fn refused(status: StatusCode, message: &str) -> Response<Body> {
    json_response(status, Body::from(status_object(status, message).to_string()))
}

fn json_response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let json = axum::http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

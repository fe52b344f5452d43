//! The bearer token of a kubeconfig's user, which orb8's server has the API server look at.

use std::{error::Error, future::ready};

use http::{Request, Response, header::AUTHORIZATION};
use kube::{
    Config,
    client::{Body, ConfigExt as _},
};
use tower::{Layer as _, ServiceExt as _, service_fn};

/// Gets the token by whatever way the kubeconfig names: a word, a file, a program. It is kept in
/// `config`, so that a program, which may ask the user something, is run once. None where the user
/// has a certificate or a password: those are for the API server alone.
///
/// # Errors
/// When that fails, in words.
pub(super) async fn resolve(config: &mut Config) -> Result<Option<String>, String> {
    // It may run a program and wait for that.
    let asked = config.clone();
    let layer = tokio::task::spawn_blocking(move || asked.auth_layer())
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| super::chain(&error))?;
    let Some(layer) = layer else { return Ok(None) };
    // What would go into a request is in a request that goes nowhere.
    let nowhere = service_fn(|request: Request<Body>| {
        let value = request.headers().get(AUTHORIZATION).cloned();
        ready(Ok::<_, Box<dyn Error + Send + Sync>>(Response::new(value)))
    });
    let value = layer.layer(nowhere).oneshot(Request::new(Body::empty())).await;
    let value = value.map_err(|error| super::chain(&*error))?;
    let value = value.into_body();
    let value = value.as_ref().and_then(|value| value.to_str().ok());
    let Some(token) = value.and_then(|value| value.strip_prefix("Bearer ")) else {
        return Ok(None);
    };
    let (token, user) = (token.trim().to_owned(), &mut config.auth_info);
    (user.exec, user.auth_provider, user.token_file) = (None, None, None);
    user.token = Some(token.clone().into());
    Ok(Some(token))
}

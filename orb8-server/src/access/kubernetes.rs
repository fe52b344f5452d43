//! Asking the Kubernetes API who somebody is (TokenReview) and what they may list
//! (SubjectAccessReview).

use std::{
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, Resource, api::PostParams};
use orb8_k8s::{ClientError, KubernetesSource};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{RwLock, Semaphore};
use tonic::Status;

use super::{Timing, User, Want, memory::Memory};

/// People and programs whose answers are kept; one more displaces the oldest, who is asked about
/// again. Refusals are kept apart, so that whoever tries tokens displaces nobody.
const MOST: usize = 4_096;
/// Questions that the API has from us at a time. More wait for as long as an answer may take.
const AT_A_TIME: usize = 64;

/// A token as it is remembered: of a token itself nothing is kept.
type Digest = [u8; 32];

/// The Kubernetes API as the one who decides.
pub struct Kubernetes {
    source: KubernetesSource,
    /// `None`: what it was made of is no good any more, and is read again.
    client: RwLock<Option<Client>>,
    asking: Semaphore,
    /// How long the API has.
    limit: Duration,
    users: Memory<Digest, Arc<User>>,
    /// Why a token is nobody's.
    strangers: Memory<Digest, String>,
    /// What somebody may see, and what not.
    granted: Memory<(Arc<User>, Want), ()>,
    denied: Memory<(Arc<User>, Want), ()>,
}

impl Kubernetes {
    /// Asks the API of `source` as somebody who has the rights to create token reviews and subject
    /// access reviews.
    ///
    /// # Errors
    /// When `source` cannot be used.
    pub async fn new(source: KubernetesSource, timing: &Timing) -> Result<Self, ClientError> {
        let client = orb8_k8s::client(&source).await?;
        Ok(Self {
            source,
            client: RwLock::new(Some(client)),
            asking: Semaphore::new(AT_A_TIME),
            limit: timing.answer,
            users: Memory::new(MOST, timing.believed),
            strangers: Memory::new(MOST, timing.refused),
            granted: Memory::new(MOST, timing.believed),
            denied: Memory::new(MOST, timing.refused),
        })
    }

    /// Who a token is of.
    pub(super) async fn whose(&self, token: &str) -> Result<Arc<User>, Status> {
        let invalid =
            |reason: &str| Status::unauthenticated(format!("the token is not valid: {reason}"));
        let mut digest = Digest::default();
        digest.copy_from_slice(
            ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref(),
        );
        if let Some(user) = self.users.get(&digest, Instant::now()) {
            return Ok(user);
        }
        if let Some(reason) = self.strangers.get(&digest, Instant::now()) {
            return Err(invalid(&reason));
        }
        match self.review(token).await? {
            Ok(user) => {
                let user = Arc::new(user);
                self.users.learn(digest, Arc::clone(&user), Instant::now());
                Ok(user)
            }
            Err(reason) => {
                let status = invalid(&reason);
                self.strangers.learn(digest, reason, Instant::now());
                Err(status)
            }
        }
    }

    async fn review(&self, token: &str) -> Result<Result<User, String>, Status> {
        let spec = TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let status = self.ask(&review).await?.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            let reason = status.error.filter(|error| !error.is_empty());
            let reason = reason.unwrap_or_else(|| "the Kubernetes API does not know it".into());
            return Ok(Err(reason.chars().take(200).collect()));
        }
        let user = status.user.unwrap_or_default();
        let mut extra: Vec<_> = user.extra.unwrap_or_default().into_iter().collect();
        extra.sort();
        Ok(Ok(User {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra,
        }))
    }

    /// Whether somebody may see something.
    pub(super) async fn may(&self, user: &Arc<User>, want: &Want) -> Result<bool, Status> {
        let question = (Arc::clone(user), want.clone());
        if self.granted.get(&question, Instant::now()).is_some() {
            return Ok(true);
        }
        if self.denied.get(&question, Instant::now()).is_some() {
            return Ok(false);
        }
        let (resource, namespace) = match want {
            Want::Presence => return Ok(true),
            // Of all namespaces where it is empty, which is what it means to the API as well.
            Want::Pods(namespace) => ("pods", Some(namespace.clone())),
            Want::Nodes => ("nodes", None),
        };
        let attributes = ResourceAttributes {
            verb: Some("list".into()),
            resource: Some(resource.into()),
            namespace,
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
            groups: Some(user.groups.clone()),
            extra: Some(user.extra.iter().cloned().collect()),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let status = self.ask(&review).await?.status;
        let allowed = status.is_some_and(|status| status.allowed);
        let memory = if allowed { &self.granted } else { &self.denied };
        memory.learn(question, (), Instant::now());
        Ok(allowed)
    }

    /// An answer of the API. Without one nobody is let in.
    async fn ask<T>(&self, review: &T) -> Result<T, Status>
    where
        T: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    {
        let answer = async {
            let _place = self.asking.acquire().await;
            let client = self.client().await.map_err(|error| error.to_string())?;
            let reviews: Api<T> = Api::all(client);
            Ok(reviews.create(&PostParams::default(), review).await)
        };
        let reason = match tokio::time::timeout(self.limit, answer).await {
            Ok(Ok(Ok(answer))) => return Ok(answer),
            Ok(Ok(Err(kube::Error::Api(status)))) => {
                if status.code == 401 {
                    self.renew().await;
                }
                format!("it answered {} {}: {}", status.code, status.reason, status.message)
            }
            Ok(Ok(Err(error))) => {
                self.renew().await;
                orb8_transport::cause(&error)
            }
            Ok(Err(no_client)) => no_client,
            Err(_late) => format!("no answer within {:?}", self.limit),
        };
        let said = "the Kubernetes API does not say who may see this";
        Err(Status::unavailable(format!("{said}: {reason}")))
    }

    async fn client(&self) -> Result<Client, ClientError> {
        if let Some(client) = &*self.client.read().await {
            return Ok(client.clone());
        }
        let mut place = self.client.write().await;
        // Somebody else may have been quicker.
        if let Some(client) = &*place {
            return Ok(client.clone());
        }
        let client = orb8_k8s::client(&self.source).await?;
        *place = Some(client.clone());
        Ok(client)
    }

    /// The CA, the certificate or the token may be new ones: the next question reads them.
    async fn renew(&self) {
        *self.client.write().await = None;
    }
}

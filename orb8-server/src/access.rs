//! Who may see what. Kubernetes decides: who may list the pods of a namespace may see what they do.
//!
//! A request comes with a caller, who is let in for what it wants, or refused with a reason. What
//! the answer says of others is then taken out of it: see `sight`.

mod caller;
mod kubernetes;
mod memory;
mod pass;
mod refusals;
mod sight;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tonic::{Request, Status};

pub use self::kubernetes::Kubernetes;
use self::{
    caller::{Caller, User},
    refusals::Refusals,
};
pub(crate) use self::{pass::Pass, sight::Sight};

/// Who decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authority {
    /// Nobody: whoever reaches the port sees everything.
    #[default]
    Nobody,
    /// Whoever has a certificate of the client CA sees everything.
    Certificates,
    /// The Kubernetes API: a bearer token is reviewed, the name in a certificate is believed, and
    /// for either it is asked what it may list.
    Kubernetes,
}

/// For how long answers count, and how long they may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Who somebody is and that it may see something is believed for so long: a right that was
    /// taken away, and a token that has ended, last no longer than that.
    pub believed: Duration,
    /// That it may not is asked about again sooner: somebody may be setting it up just now.
    pub refused: Duration,
    /// The API answers by then, or not at all.
    pub answer: Duration,
    /// Between two looks at whether a stream's client may still see it.
    pub recheck: Duration,
    /// A stream goes on for so long while nobody can say whether it may: an API server that is
    /// restarted ends no traces.
    pub grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            believed: Duration::from_secs(30),
            refused: Duration::from_secs(5),
            answer: Duration::from_secs(5),
            recheck: Duration::from_secs(30),
            grace: Duration::from_secs(120),
        }
    }
}

/// What is to be seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Want {
    /// Nothing that is anybody's: it is enough to be known.
    Presence,
    /// What pods of a namespace do; of all where it is empty.
    Pods(String),
    /// How nodes are.
    Nodes,
}

impl fmt::Display for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Presence => f.write_str("anything"),
            Self::Pods(namespace) if namespace.is_empty() => {
                f.write_str("the pods of all namespaces")
            }
            Self::Pods(namespace) => write!(f, "the pods of namespace {namespace:?}"),
            Self::Nodes => f.write_str("nodes"),
        }
    }
}

/// The decision for each request. Clones decide alike.
#[derive(Clone)]
pub(crate) struct Access {
    decider: Decider,
    timing: Timing,
    refusals: Arc<Refusals>,
}

#[derive(Clone)]
enum Decider {
    Nobody,
    Certificates,
    Kubernetes(Arc<Kubernetes>),
}

impl Access {
    /// Decides by `authority`; `kubernetes` is what is asked where that is Kubernetes.
    pub(crate) fn new(
        authority: Authority,
        timing: Timing,
        kubernetes: Option<Kubernetes>,
    ) -> Self {
        let decider = match (authority, kubernetes) {
            (_, Some(kubernetes)) => Decider::Kubernetes(Arc::new(kubernetes)),
            (Authority::Nobody, None) => Decider::Nobody,
            // Without an API to ask, it is the stricter of the others.
            (Authority::Certificates | Authority::Kubernetes, None) => Decider::Certificates,
        };
        Self { decider, timing, refusals: Arc::default() }
    }

    /// Lets a request pass.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` for somebody who does not show who they are, `PERMISSION_DENIED` for
    /// somebody who may not see it, `UNAVAILABLE` where that cannot be found out. Each is counted
    /// and logged.
    pub(crate) async fn check<T>(&self, request: &Request<T>, want: Want) -> Result<Pass, Status> {
        let caller = Caller::of(request).map_err(|status| self.refused("", &want, status))?;
        match self.decide(&caller, &want).await {
            Ok(sight) => Ok(Pass { access: self.clone(), caller, want, sight }),
            Err(status) => Err(self.refused(&caller.from(), &want, status)),
        }
    }

    /// How many requests were refused, by reason. Every reason is there.
    pub(crate) fn refusals(&self) -> Vec<(&'static str, u64)> {
        self.refusals.counts()
    }

    fn refused(&self, from: &str, want: &Want, status: Status) -> Status {
        self.refusals.note(from, want, &status);
        status
    }

    async fn decide(&self, caller: &Caller, want: &Want) -> Result<Sight, Status> {
        let ended = caller.identity().and_then(|one| one.out_of_date(SystemTime::now()));
        match (&self.decider, ended) {
            (Decider::Nobody, _) => Ok(Sight::All),
            // It held when the connection was made.
            (_, Some(when)) => {
                Err(Status::unauthenticated(format!("the client certificate {when}")))
            }
            (Decider::Certificates, None) if caller.identity().is_some() => Ok(Sight::All),
            (Decider::Certificates, None) => {
                Err(Status::unauthenticated("expected a client certificate, and none was shown"))
            }
            (Decider::Kubernetes(kubernetes), None) => ask(kubernetes, caller, want).await,
        }
    }
}

async fn ask(kubernetes: &Kubernetes, caller: &Caller, want: &Want) -> Result<Sight, Status> {
    let user: Arc<User> = match (caller.token(), caller.user()) {
        (Some(token), _) => kubernetes.whose(token).await?,
        (None, Some(user)) => user,
        (None, None) => {
            return Err(Status::unauthenticated(
                "expected a bearer token or a client certificate with a name, and neither was \
                 shown",
            ));
        }
    };
    let everything = Want::Pods(String::new());
    let (all, this) = match want {
        Want::Presence => return Ok(Sight::Nothing),
        Want::Pods(namespace) if namespace.is_empty() => {
            let all = kubernetes.may(&user, &everything).await?;
            (all, all)
        }
        Want::Pods(namespace) if !is_namespace(namespace) => {
            return Err(Status::invalid_argument(format!(
                "namespace: {:?} is none; expected up to 63 lower-case letters, digits and -",
                namespace.chars().take(80).collect::<String>()
            )));
        }
        _ => tokio::try_join!(kubernetes.may(&user, &everything), kubernetes.may(&user, want))?,
    };
    match want {
        Want::Pods(namespace) if namespace.is_empty() && !this => Err(Status::permission_denied(
            format!("{:?} may not list {want}; name one with -n", user.name),
        )),
        _ if !this => {
            Err(Status::permission_denied(format!("{:?} may not list {want}", user.name)))
        }
        _ if all => Ok(Sight::All),
        Want::Pods(namespace) => Ok(Sight::Namespace(namespace.clone())),
        Want::Presence | Want::Nodes => Ok(Sight::Nothing),
    }
}

/// Whether it can be the name of a namespace (RFC 1123 label). What cannot be is not asked about.
fn is_namespace(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    name.len() <= 63 && name.chars().all(fits)
}

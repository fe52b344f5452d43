//! A Kubernetes API over real HTTP, with TLS where it is wanted: lists, watches, versions, tokens, and every way in which one can fail.
//!
//! State is driven by calls, not by requests: [`KubeApi::apply`] and [`KubeApi::delete`] are what a kubelet or a
//! controller would have done. Clients only read, and ask who somebody is and what they may do.

mod answer;
mod body;
mod faults;
mod forward;
mod kinds;
mod request_log;
mod reviews;
mod selector;
mod serve;
mod store;
mod tls;
mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

pub use faults::{Break, Faults, Gone, Trickle};
pub use request_log::LoggedRequest;

use crate::Netns;
use crate::pki::{CertificateAuthority, write_file};
use kinds::Kind;
use reviews::Reviews;
use store::Store;
use tls::Tls;

/// A running API. Dropping it closes its port and every connection.
#[derive(Debug)]
pub struct KubeApi {
    shared: Arc<Shared>,
    addr: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// What the server's tasks and the test share.
#[derive(Debug)]
pub(crate) struct Shared {
    store: Mutex<Store>,
    faults: Mutex<Faults>,
    reviews: Mutex<Reviews>,
    log: Mutex<Vec<LoggedRequest>>,
    /// The version of the newest change; watches wait for it.
    newest: channel::Sender<u64>,
    /// Bookmarks and expiries that were asked for, so far.
    signals: channel::Sender<Signals>,
    /// Ends every connection of now with a reset.
    cut: Mutex<CancellationToken>,
    accepting: channel::Sender<bool>,
    open_watches: AtomicUsize,
    /// What listens at ports of pods, by namespace, name and port.
    listeners: Mutex<BTreeMap<(String, String, u16), SocketAddr>>,
    /// `None`: plain HTTP.
    tls: Mutex<Option<Tls>>,
}

/// Counts, so that nobody misses one by looking late.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Signals {
    bookmarks: u64,
    expiries: u64,
}

impl KubeApi {
    /// Starts an API without objects, on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When there is no port or no thread.
    pub fn start() -> Result<Self> {
        Self::launch(None, Ipv4Addr::LOCALHOST, None)
    }

    /// Starts an API that speaks TLS, with a certificate of `ca`, on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with_tls(ca: &CertificateAuthority) -> Result<Self> {
        Self::launch(None, Ipv4Addr::LOCALHOST, Some(ca))
    }

    /// Starts an API on a free port of a namespace's 127.0.0.1.
    ///
    /// # Errors
    /// As [`start`](Self::start), and when the namespace cannot be entered.
    pub fn start_in(netns: &Netns) -> Result<Self> {
        Self::start_at(netns, Ipv4Addr::LOCALHOST)
    }

    /// Starts an API on a free port of an address that a namespace has.
    ///
    /// # Errors
    /// As [`start_in`](Self::start_in).
    pub fn start_at(netns: &Netns, address: Ipv4Addr) -> Result<Self> {
        Self::launch(Some(netns.clone()), address, None)
    }

    /// As [`start_in`](Self::start_in), with TLS.
    ///
    /// # Errors
    /// As [`start_in`](Self::start_in).
    pub fn start_with_tls_in(netns: &Netns, ca: &CertificateAuthority) -> Result<Self> {
        Self::launch(Some(netns.clone()), Ipv4Addr::LOCALHOST, Some(ca))
    }

    fn launch(
        netns: Option<Netns>,
        address: Ipv4Addr,
        ca: Option<&CertificateAuthority>,
    ) -> Result<Self> {
        let tls = ca.map(|ca| Tls::issued_by(ca, address)).transpose()?;
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            faults: Mutex::default(),
            reviews: Mutex::default(),
            log: Mutex::default(),
            newest: channel::Sender::new(0),
            signals: channel::Sender::default(),
            cut: Mutex::default(),
            accepting: channel::Sender::new(true),
            open_watches: AtomicUsize::new(0),
            listeners: Mutex::default(),
            tls: Mutex::new(tls),
        });
        let stop = CancellationToken::new();
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let (for_thread, stop_thread) = (Arc::clone(&shared), stop.clone());
        let thread = thread::Builder::new()
            .name("orb8-kube-api".into())
            .spawn(move || serve::run(for_thread, netns, address, &stop_thread, &tell))?;
        let addr = told.recv().context("the API's thread is gone")??;
        Ok(Self { shared, addr, stop, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://<address>:<port>`, or `https://` where it speaks TLS.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if lock(&self.shared.tls).is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.addr)
    }

    /// Shows a certificate of this CA from now on, and resets the connections that were made with the
    /// old one.
    ///
    /// # Errors
    /// When there is no key, or it listens on IPv6.
    pub fn change_ca(&self, ca: &CertificateAuthority) -> Result<()> {
        let SocketAddr::V4(addr) = self.addr else { bail!("{}: expected IPv4", self.addr) };
        *lock(&self.shared.tls) = Some(Tls::issued_by(ca, *addr.ip())?);
        self.cut();
        Ok(())
    }

    /// Writes into `dir` what a kubelet mounts for a service account: `token`, `namespace` and, of an
    /// API that speaks TLS, `ca.crt`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_service_account(&self, dir: &Path, namespace: &str, token: &str) -> Result<()> {
        write_file(&dir.join("token"), token)?;
        write_file(&dir.join("namespace"), namespace)?;
        if let Some(tls) = &*lock(&self.shared.tls) {
            write_file(&dir.join("ca.crt"), &tls.ca)?;
        }
        Ok(())
    }

    /// Writes a kubeconfig that leads here, with the token that is in `token_file`, if any. The CA of an
    /// API that speaks TLS goes beside it, as `<path>.ca`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path, token_file: Option<&Path>) -> Result<()> {
        let user = token_file.map_or_else(|| json!({}), |file| json!({ "tokenFile": file }));
        let mut cluster = json!({ "server": self.url() });
        if let Some(tls) = &*lock(&self.shared.tls) {
            let file = write_file(&path.with_added_extension("ca"), &tls.ca)?;
            cluster["certificate-authority"] = json!(file);
        }
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "testkit", "cluster": cluster }],
            "users": [{ "name": "testkit", "user": user }],
            "contexts": [{ "name": "testkit", "context": { "cluster": "testkit", "user": "testkit" } }],
            "current-context": "testkit",
        });
        fs::write(path, serde_json::to_vec_pretty(&config)?)
            .with_context(|| path.display().to_string())
    }

    /// Adds an object, or replaces the one of the same kind, namespace and name. What the API server fills in is filled
    /// in: `uid` and `creationTimestamp` where they are missing, `resourceVersion` always. Gives the version.
    ///
    /// # Errors
    /// When it has no name, or is of a kind that this API does not serve.
    pub fn apply(&self, object: Value) -> Result<u64> {
        self.shared.apply(object)
    }

    /// Removes an object; false when there is none.
    ///
    /// # Errors
    /// When this API does not serve the kind.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<bool> {
        self.shared.delete(kind, namespace, name)
    }

    /// An object as it is now, whatever clients are told; none when there is none.
    ///
    /// # Errors
    /// When this API does not serve the kind.
    pub fn object(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let object = lock(&self.shared.store).get(Kind::named(kind)?, namespace, name);
        Ok(object.map(|object| Value::clone(&object)))
    }

    /// Says what listens at a port of a pod: who forwards the port is connected to it. A port of
    /// which nothing was said refuses connections.
    pub fn listen(&self, namespace: &str, pod: &str, port: u16, there: SocketAddr) {
        let key = (namespace.to_owned(), pod.to_owned(), port);
        lock(&self.shared.listeners).insert(key, there);
    }

    /// Lets every answer and every event reach clients this late. What they tell of has happened by then.
    pub fn delay(&self, delay: Duration) {
        self.faults(|faults| faults.delay = delay);
    }

    /// Changes how it fails, from now on.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.shared.faults));
    }

    /// Knows a bearer token from now on, by TokenReview: whose it is, and of which groups.
    pub fn add_token(&self, token: &str, user: &str, groups: &[&str]) {
        lock(&self.shared.reviews).add_token(token, user, groups);
    }

    /// Says of a token from now on that its time is over.
    pub fn expire_token(&self, token: &str) {
        lock(&self.shared.reviews).expire_token(token);
    }

    /// Gives a user or a group a right, which SubjectAccessReview tells of, such as to `list` `pods`
    /// in a namespace; empty: in all of them, and outside.
    pub fn grant(&self, who: &str, verb: &str, resource: &str, namespace: &str) {
        lock(&self.shared.reviews).grant(who, verb, resource, namespace);
    }

    /// Takes every right from a user or a group.
    pub fn revoke(&self, who: &str) {
        lock(&self.shared.reviews).revoke(who);
    }

    /// Resets every connection of now.
    pub fn cut(&self) {
        std::mem::take(&mut *lock(&self.shared.cut)).cancel();
    }

    /// Closes the port and resets every connection, or opens the port again.
    pub fn refuse(&self, refuse: bool) {
        self.shared.accepting.send_replace(!refuse);
        if refuse {
            self.cut();
        }
    }

    /// Forgets the history: watches from a version before now are gone.
    pub fn compact(&self) {
        lock(&self.shared.store).compact();
    }

    /// Ends every running watch with an `ERROR` event of code 410.
    pub fn expire_watches(&self) {
        self.shared.signals.send_modify(|signals| signals.expiries += 1);
    }

    /// Sends a bookmark to every watch that allows them.
    pub fn bookmark(&self) {
        self.shared.signals.send_modify(|signals| signals.bookmarks += 1);
    }

    /// Requests that were answered so far, in that order.
    #[must_use]
    pub fn requests(&self) -> Vec<LoggedRequest> {
        lock(&self.shared.log).clone()
    }

    /// Watches that run now.
    #[must_use]
    pub fn open_watches(&self) -> usize {
        self.shared.open_watches.load(Ordering::SeqCst)
    }

    /// Waits until this many watches run.
    ///
    /// # Errors
    /// When it takes longer than `limit`; the error shows the requests so far.
    pub fn await_watches(&self, count: usize, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.open_watches() != count {
            if Instant::now() > deadline {
                bail!(
                    "{} watches, expected {count} within {limit:?}; requests: {:#?}",
                    self.open_watches(),
                    self.requests()
                );
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }
}

impl Shared {
    pub(crate) fn apply(&self, object: Value) -> Result<u64> {
        let version = lock(&self.store).apply(object)?;
        self.newest.send_replace(version);
        Ok(version)
    }

    pub(crate) fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<bool> {
        let version = lock(&self.store).delete(kind, namespace, name)?;
        if let Some(version) = version {
            self.newest.send_replace(version);
        }
        Ok(version.is_some())
    }
}

impl Drop for KubeApi {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("orb8-testkit: the Kubernetes API panicked");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

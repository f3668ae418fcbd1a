//! The agent: registration, election, directory and balancing over HTTP, for any language; and the dashboard.
//!
//! | question | file |
//! |---|---|
//! | what can be asked, and what is answered | `docs/agent.md`, `api.rs`, `api/` |
//! | who is let in | `gate.rs` |
//! | how connections come and go | `server.rs`, `http2.rs` |
//! | how events reach those who watch | `feed.rs`, `feed/`, `api/watch.rs` |
//! | what is kept registered for clients | `registrations.rs`, `registrations/` |
//! | what is picked for clients | `claims.rs` |
//! | what other agents are asked for clients | `peers.rs` |
//! | who was master, and what operators have done | `history.rs` |
//! | go-micro-service's agent | `go_micro_service.rs`, `go_micro_service/` |
//! | what operators see in a browser | `dashboard.rs`, `assets/` |
//! | how a failure is told | `problem.rs` |
//!
//! One way: the directory's snapshots become text in the feed, once; those who watch read it at their own pace. An agent
//! keeps nothing that another could not find out: it may be killed, and its clients go to the next.

mod api;
mod body;
mod claims;
mod dashboard;
mod error;
mod feed;
mod gate;
mod go_micro_service;
mod history;
mod http2;
mod metrics;
mod peers;
mod problem;
mod registrations;
mod server;
mod settings;
#[cfg(test)]
mod year;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use pointsman_net::tls;
use pointsman_registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub use pointsman_net::tls::{ServerTls as Tls, TlsError, TlsFile};

pub use self::error::Error;
pub use self::settings::{InvalidToken, Limits, Settings, Token};

use self::claims::Claims;
use self::feed::Feed;
use self::gate::Gate;
use self::go_micro_service::GoMicroService;
use self::history::Audit;
use self::metrics::Metrics;
use self::peers::OtherAgents;
use self::problem::Problem;
use self::registrations::Registrations;

/// A running agent. It serves until it is closed, or dropped; then its connections end.
#[derive(Debug)]
pub struct Agent {
    state: Arc<State>,
    address: SocketAddr,
    settings: Settings,
    /// The listener, the feed, and what ends claims. They end with this value.
    _tasks: JoinSet<()>,
}

/// How long the last answers may take once the agent ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the parts of an agent share.
struct State {
    registry: Registry,
    feed: Feed,
    registrations: Registrations,
    claims: Claims,
    agents: OtherAgents,
    go_micro_service: GoMicroService,
    audit: Audit,
    metrics: Metrics,
    limits: Limits,
    access: ArcSwap<Access>,
    /// Permits for requests over HTTP/2, which a connection may have many of at a time: as many in all as over HTTP/1.1, where each takes a
    /// connection.
    requests: Arc<Semaphore>,
    closing: watch::Sender<bool>,
    /// Each connection holds a receiver, so that closing can wait for their ends.
    open: watch::Sender<()>,
    /// What else is to be said under `/metrics`.
    more_metrics: Mutex<Option<MoreMetrics>>,
    started_ms: u64,
}

impl State {
    /// Carries out a change of the registry within the time that it may take. After that it is dropped: what has not been sent by then is never
    /// sent, so that nothing happens long after its caller was told that it has failed.
    async fn write<T, E: Into<Problem>>(
        &self,
        step: impl FnOnce() -> String,
        change: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Problem> {
        let limit = self.limits.write_time;
        match tokio::time::timeout(limit, change).await {
            Ok(result) => result.map_err(Into::into),
            Err(_) => Err(Problem::too_late(&step(), limit)),
        }
    }
}

type MoreMetrics = Box<dyn Fn() -> futures_util::future::BoxFuture<'static, String> + Send + Sync>;

/// What may change while the agent runs.
struct Access {
    gate: Gate,
    tls: Option<TlsAcceptor>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl Agent {
    /// Starts an agent of this registry. Returns once it listens and has a first view of the registry.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`], [`Error::Tls`], [`Error::Listen`]; [`Error::Registry`] when there is no view within the registry's
    /// connect timeout.
    pub async fn start(registry: &Registry, settings: Settings) -> Result<Self, Error> {
        let registry = registry.clone();
        check(&settings)?;
        let access = access(&settings)?;
        let directory = registry.discover_all().await?;
        // Not before there is something to say: clients would wait here instead of asking another agent.
        let fail = |source| Error::Listen { address: settings.listen, source };
        let listener = TcpListener::bind(settings.listen).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        // Before anything is read, so that nothing is missed.
        let changes = directory.updates();
        let present = directory.snapshots();
        let (feed, updates) = Feed::new(directory);
        let agents = OtherAgents::join(&registry)?;
        let state = Arc::new(State {
            feed,
            registrations: Registrations::new(
                registry.clone(),
                settings.limits.registrations,
                settings.limits.write_time,
            ),
            claims: Claims::new(settings.limits.claims, &agents.own_id()),
            agents,
            go_micro_service: GoMicroService::default(),
            audit: Audit::default(),
            metrics: Metrics::new(),
            limits: settings.limits,
            access: ArcSwap::from_pointee(access),
            requests: Arc::new(Semaphore::new(settings.limits.connections)),
            closing: watch::Sender::new(false),
            open: watch::Sender::new(()),
            more_metrics: Mutex::default(),
            started_ms: feed::now_ms(),
            registry,
        });
        state.agents.answer_for(&state);
        let mut tasks = JoinSet::new();
        let (router, closing) = (api::router(&state, &settings), state.closing.subscribe());
        tasks.spawn(server::accept(listener, router, state.clone(), closing));
        let shared = state.clone();
        tasks.spawn(async move { shared.feed.run(updates).await });
        let shared = state.clone();
        tasks.spawn(async move { shared.claims.run().await });
        tasks.spawn(history::follow_masters(state.registry.clone(), present, changes));
        tracing::info!(%address, registry = state.registry.url(), "agent listens");
        Ok(Self { state, address, settings, _tasks: tasks })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes over tokens, names, and certificates; also certificates whose files have changed under the same names. Connections
    /// that are open keep theirs. What is returned are the names of settings that are different and need a restart.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`], [`Error::Tls`]: then everything stays as it was.
    pub fn reload(&mut self, settings: Settings) -> Result<Vec<&'static str>, Error> {
        let was = &self.settings;
        let mut restart = Vec::new();
        for (differs, name) in [
            (was.listen != settings.listen, "listen"),
            (was.tls.is_some() != settings.tls.is_some(), "tls_cert"),
            (was.limits != settings.limits, "limits"),
            (was.go_micro_service != settings.go_micro_service, "go_micro_service"),
        ] {
            if differs {
                restart.push(name);
            }
        }
        let mut kept = settings;
        (kept.listen, kept.limits, kept.go_micro_service) = (was.listen, was.limits, was.go_micro_service);
        if was.tls.is_some() != kept.tls.is_some() {
            kept.tls.clone_from(&was.tls);
        }
        // What is going to be in force: it still listens where it did.
        check(&kept)?;
        self.state.access.store(Arc::new(access(&kept)?));
        self.settings = kept;
        Ok(restart)
    }

    /// Says what else is to stand under `/metrics`: text as Prometheus reads it, without `# EOF`.
    pub fn add_metrics<F>(&self, more: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = String> + Send + 'static,
    {
        let more: MoreMetrics = Box::new(move || Box::pin(more()));
        *self.state.more_metrics.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(more);
    }

    /// Everything that is counted, as Prometheus reads it, without `# EOF`.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.state.metrics.text(&self.state)
    }

    /// Ends: no connection is accepted any more, streams end with a word, and what is registered is left to the registry, where
    /// it lasts a while (not over `memory://`), so that clients take it over through another agent without a gap.
    ///
    /// What is returned is how many registrations are left so. If there are any, end the process without closing the registry
    /// ([`Registry::abandon`]): closing it would deregister them.
    pub async fn close(self) -> usize {
        let left = self.state.registrations.close();
        // Before they have ended: those who watch must not be told that instances are gone, where it is only the agent that ends.
        self.state.closing.send_replace(true);
        for registered in &left {
            registered.ended().await;
        }
        self.state.agents.leave();
        self.state.go_micro_service.close().await;
        // What is being answered just now is answered, if whoever asked takes it.
        if tokio::time::timeout(FAREWELL, self.state.open.closed()).await.is_err() {
            tracing::debug!("connections are still open");
        }
        left.len()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.state.closing.send_replace(true);
        self.state.agents.leave();
    }
}

fn check(settings: &Settings) -> Result<(), Error> {
    match settings.problems().into_iter().next() {
        None => Ok(()),
        Some((setting, reason)) => Err(Error::Setting { setting, reason }),
    }
}

fn access(settings: &Settings) -> Result<Access, Error> {
    let tls = settings.tls.as_ref().map(|tls| tls.load(&[tls::HTTP_2, tls::HTTP_1_1])).transpose()?;
    let tls = tls.map(TlsAcceptor::from);
    Ok(Access { gate: Gate::new(settings.clone()), tls })
}

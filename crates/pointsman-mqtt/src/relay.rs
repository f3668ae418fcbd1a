//! The relay: the MQTT load balancer.
//!
//! It receives what senders publish, finds the route, lets the balancer choose an instance of its service, and publishes under
//! that instance's code. Answers go the same way back.
//!
//! | question | file |
//! |---|---|
//! | what can be set, and what is wrong with it | `settings.rs` |
//! | which topic filters cover what routes can match | `prefix.rs` |
//! | how topics name codes; go-micro-service's envelopes | `address.rs` |
//! | which message is for whom | `routes.rs` |
//! | to which topics answers go | `engine/response_topic.rs` |
//! | what is done with a message | `engine.rs`: `forward.rs` there, `respond.rs` back, `dead_letter.rs` nowhere |
//! | messages for instances that are away for a moment | `engine/away.rs` |
//! | messages that wait for the next master | `engine/waiting.rs`, and behind which others: `engine/unsettled.rs` |
//! | what a gone instance has not acknowledged to the embedded broker | `engine/take_back.rs` |
//! | requests that wait for an answer | `requests.rs` |
//! | reading and writing, connecting, leaving | `driver.rs` |
//! | what survives the process | `journal.rs` |
//! | from alone to a group, and back | `changeover.rs` |
//! | how it lets messages gather when very busy | `pace.rs` |
//! | what is counted | `metrics.rs` |

pub(crate) mod address;
mod changeover;
mod driver;
mod engine;
mod journal;
mod metrics;
mod pace;
mod prefix;
mod requests;
mod routes;
mod settings;

use tokio::sync::{mpsc, oneshot, watch};

pub use metrics::Figures;
pub use routes::Views;
pub use settings::{Invalid, Route, RouteRole, Settings, Topics};

use self::driver::{Command, Driver, Leave, Ready};
use self::engine::Engine;
use self::journal::Journal;
use self::metrics::Metrics;
use self::routes::Routes;
use crate::broker::{Handle, Routed};
use crate::wire::Target;

/// A running relay. Dropped, it ends as by [`Relay::close`], without anybody waiting for it.
#[derive(Debug)]
pub struct Relay {
    commands: mpsc::Sender<Command>,
    embedded: Option<Handle>,
    ready: watch::Receiver<Ready>,
}

/// Why a relay cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The settings are wrong.
    #[error("the relay's settings: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Invalid>),
    /// No broker is named, and none is embedded.
    #[error("the relay's settings name no ingress broker, and none is embedded")]
    NoBroker,
    /// The folder for what must survive the process cannot be used.
    #[error("the relay's folder {}: {source}", .path.display())]
    State {
        /// The folder.
        path: std::path::PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The relay has ended.
    #[error("the relay has ended")]
    Closed,
}

impl Relay {
    /// Starts a relay, which connects, and connects again, by itself. `views` has the instances of every service that a route
    /// names; `changed` tells when one of them has changed. `embedded` stands for the brokers that the settings leave out.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with all problems of the settings, [`Error::NoBroker`], [`Error::State`].
    pub fn start(
        mut settings: Settings,
        views: Views,
        changed: watch::Receiver<()>,
        embedded: Option<Handle>,
    ) -> Result<Self, Error> {
        check(&settings)?;
        settings.code = Some(settings.code());
        let embedded = embedded.inspect(|handle| handle.set_routed(routed(&settings)));
        let ingress = match (&settings.ingress, embedded.clone()) {
            (Some(url), _) => Target::Url(url.clone()),
            (None, Some(handle)) => Target::Embedded(handle),
            (None, None) => return Err(Error::NoBroker),
        };
        let mut targets = vec![ingress.clone()];
        targets.extend(settings.egress.iter().cloned().map(Target::Url));
        if targets.len() == 1 {
            targets.push(ingress);
        }
        let brokers = targets.iter().map(|target| match target {
            Target::Url(url) => url.address(),
            Target::Embedded(_) => String::new(),
        });
        let brokers = brokers.collect();
        let metrics = Metrics::new();
        let routes = Routes::new(&settings, views, &metrics, None).map_err(|problem| Error::Invalid(vec![problem]))?;
        let journal = match &settings.state {
            None => Journal::default(),
            Some(folder) => Journal::open(folder, &settings.code())
                .map_err(|source| Error::State { path: folder.clone(), source })?,
        };
        let engine = Engine::new(&settings, routes, brokers, metrics, journal);
        let (commands, receiver) = mpsc::channel(16);
        let (driver, ready) = Driver::new(settings, targets, engine, receiver, changed);
        tokio::spawn(driver.run());
        Ok(Self { commands, embedded, ready })
    }

    /// Returns when all brokers are connected and all subscriptions confirmed; at once if they are.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub async fn ready(&self) -> Result<(), Error> {
        self.readiness().await
    }

    /// Subscribes as a member of its group (`$share/…`), which shares the messages of its broker, or alone. Returns when messages come by the
    /// new subscriptions alone; what comes by both meanwhile is passed on once (MQTT 5; with 3.1.1 it may come twice).
    ///
    /// A relay that is alone subscribes plainly because brokers forget less of that: mosquitto 2.0 loses shared subscriptions when it is
    /// restarted, and what is published until the relay is back is lost.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub async fn share(&self, shared: bool) -> Result<(), Error> {
        self.sharing().share(shared).await
    }

    /// [`Relay::share`] for a task of its own. Keeps no relay running.
    #[must_use]
    pub fn sharing(&self) -> Sharing {
        Sharing { commands: self.commands.downgrade() }
    }

    /// Takes what the brokers have kept for a relay that is gone: `settings` are that one's, with its code. Returns when it is passed on and
    /// the sessions are forgotten; at once where there are none. Where that relay comes back meanwhile, this leaves everything to it. Returns
    /// whether the ingress broker had kept a session.
    ///
    /// Cancelled, that goes on in the background.
    ///
    /// # Errors
    ///
    /// As [`Relay::start`].
    pub async fn inherit(settings: Settings, views: Views, changed: watch::Receiver<()>) -> Result<bool, Error> {
        let relay = Self::start(settings, views, changed, None)?;
        relay.ask(|answer| Command::Close(Leave::Inherited, answer)).await
    }

    /// [`Relay::ready`] for a task of its own.
    pub fn readiness(&self) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        self.wait_for(|ready| ready.all)
    }

    /// Returns when everything is subscribed to on the broker in this process, whatever other brokers do: from then on it is in time
    /// for that one to let senders in (see [`Handle::open`]).
    pub fn receiving(&self) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        self.wait_for(|ready| ready.embedded)
    }

    fn wait_for(&self, so: fn(&Ready) -> bool) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        let mut ready = self.ready.clone();
        async move { ready.wait_for(so).await.map(drop).map_err(|_| Error::Closed) }
    }

    /// Goes on with other routes, filters, limits and timeouts, without losing a message: what is under way ends under the
    /// rules it began with. Brokers, topics and code stay as they were at the start.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`]: everything stays as it was. [`Error::Closed`].
    pub async fn reload(&self, settings: Settings, views: Views) -> Result<(), Error> {
        check(&settings)?;
        let routed = routed(&settings);
        let answer = self.ask(|answer| Command::Reload(Box::new(settings), views, answer)).await?;
        answer.map_err(|problem| Error::Invalid(vec![problem]))?;
        self.embedded.iter().for_each(|handle| handle.set_routed(routed.clone()));
        Ok(())
    }

    /// What it has done so far.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub async fn figures(&self) -> Result<Figures, Error> {
        self.ask(Command::Figures).await
    }

    /// The same for machines, in Prometheus' text format.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub async fn metrics(&self) -> Result<String, Error> {
        self.ask(Command::Metrics).await
    }

    /// Takes nothing new, completes what is under way (no longer than the drain timeout), and disconnects. The brokers keep its sessions
    /// and subscriptions for the session expiry: what senders publish meanwhile waits there for the next relay with this code. If this
    /// is cancelled, it goes on in the background.
    pub async fn close(self) {
        // A relay that has ended already is closed.
        let _ = self.ask(|answer| Command::Close(Leave::ToNext, answer)).await;
    }

    /// As [`Relay::close`], but first unsubscribes, and takes what its broker has already sent to it; the brokers need not keep its
    /// sessions. What senders publish from then on is for the other relays of its group: without any it is lost.
    pub async fn leave_group(self) {
        // A relay that has ended already is closed.
        let _ = self.ask(|answer| Command::Close(Leave::ToGroup, answer)).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Error> {
        let (sender, answer) = oneshot::channel();
        self.commands.send(command(sender)).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)
    }
}

/// What senders may publish to the embedded broker.
fn routed(settings: &Settings) -> Routed {
    Routed { topics: settings.topics, filters: settings.subscriptions() }
}

/// Changes how a relay subscribes; see [`Relay::share`].
#[derive(Debug, Clone)]
pub struct Sharing {
    commands: mpsc::WeakSender<Command>,
}

impl Sharing {
    /// See [`Relay::share`].
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub async fn share(&self, shared: bool) -> Result<(), Error> {
        let (sender, answer) = oneshot::channel();
        let commands = self.commands.upgrade().ok_or(Error::Closed)?;
        commands.send(Command::Share(shared, sender)).await.map_err(|_| Error::Closed)?;
        drop(commands);
        answer.await.map_err(|_| Error::Closed)
    }
}

fn check(settings: &Settings) -> Result<(), Error> {
    let problems = settings.problems();
    if problems.is_empty() { Ok(()) } else { Err(Error::Invalid(problems)) }
}

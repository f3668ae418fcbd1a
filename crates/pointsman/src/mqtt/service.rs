//! A service behind a broker: it gets what is sent to its code, and answers.

mod handlers;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use pointsman_mqtt::client::{self, Inbox, Status};
use pointsman_mqtt::relay::Topics;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use self::handlers::{Counters, Handlers, boxed};
use self::worker::{Command, Serving, Worker};
use super::{BrokerUrl, Error, HandlerError, Reply, Request};
use crate::{Instance, Registration, Registry, Role};

const CONCURRENCY: u16 = 64;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const SESSION_EXPIRY: Duration = Duration::from_secs(3600);

/// A running service. It is registered, and its handlers run, until it is closed or dropped; through lost connections to the
/// broker and to the registry it comes back by itself.
///
/// ```no_run
/// use pointsman::mqtt::{Reply, Request, Service, Topics};
/// use pointsman::{Instance, Registry};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Registry::connect("zookeeper://127.0.0.1:2181/micro-service").await?;
/// let service = Service::builder(&registry, Instance::new("cfgs"))
///     .broker("mqtt://127.0.0.1:1883".parse()?)
///     .on("/login/user", |request: Request| async move { Ok(Reply::new(format!("hello {:?}", request.payload()))) })
///     .start()
///     .await?;
/// service.close().await?;
/// # Ok(())
/// # }
/// ```
///
/// A message of QoS 1 or 2 is acknowledged when its handler has finished and its answer is with the broker; so it comes again
/// if this process dies before: handlers run *at least* once. What is sent while the connection is lost is kept by the broker
/// (for 1 h, unless set otherwise).
///
/// A handler that fails or panics ends nothing: the requester gets an error, in MQTT 5 with the user properties
/// `pointsman-reason` (`handler`, or `no-handler` where no handler matches) and `pointsman-detail`, and in any version with a
/// payload of the type `application/problem+json`. The message counts as done.
///
/// Dropped, it leaves in the background as by [`Service::close`], as far as the runtime lives long enough.
#[derive(Debug)]
pub struct Service {
    code: Arc<str>,
    commands: mpsc::Sender<Command>,
    roles: crate::Roles,
    status: watch::Receiver<Status>,
    counters: Arc<Counters>,
}

/// What a service has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ServiceFigures {
    /// Messages that have come, the broker's repetitions included.
    pub received: u64,
    /// Messages whose handler has succeeded.
    pub handled: u64,
    /// Messages whose handler has failed or panicked.
    pub failed: u64,
    /// Messages that no handler matches.
    pub unmatched: u64,
    /// Answers and errors that the broker has taken.
    pub answered: u64,
}

/// Settings of a [`Service`] before it is started.
#[derive(Debug)]
#[must_use]
pub struct ServiceBuilder {
    registry: Registry,
    instance: Instance,
    broker: Option<BrokerUrl>,
    topics: Topics,
    concurrency: u16,
    drain_timeout: Duration,
    connect_timeout: Duration,
    session_expiry: Duration,
    max_packet: usize,
    handlers: Handlers,
}

impl Service {
    /// A service that registers as `instance`, with its code and without an address unless it has one, as soon as it is
    /// subscribed.
    pub fn builder(registry: &Registry, instance: Instance) -> ServiceBuilder {
        ServiceBuilder {
            registry: registry.clone(),
            instance,
            broker: None,
            topics: Topics::default(),
            concurrency: CONCURRENCY,
            drain_timeout: DRAIN_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            session_expiry: SESSION_EXPIRY,
            max_packet: 256 << 20,
            handlers: Handlers::default(),
        }
    }

    /// Its code.
    #[must_use]
    pub fn code(&self) -> &Arc<str> {
        &self.code
    }

    /// Its role at this moment; see [`Registration::role`].
    #[must_use]
    pub fn role(&self) -> Role {
        self.roles.role()
    }

    /// Its roles as they change; see [`Registration::roles`].
    #[must_use]
    pub fn roles(&self) -> crate::Roles {
        self.roles.clone()
    }

    /// Why it gets no messages now, as far as that is known here: no connection to the broker, or not registered.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let status = self.status.borrow();
        let broker = (!status.up).then(|| status.reason.clone().unwrap_or_else(|| "connecting".to_owned()));
        broker.or_else(|| self.roles.trouble().map(|trouble| trouble.to_string()))
    }

    /// What it has done so far.
    #[must_use]
    pub fn figures(&self) -> ServiceFigures {
        self.counters.figures()
    }

    /// Hands the mastership over, as [`Registration::resign`] does, and goes on serving. Returns once the mastership is given up.
    ///
    /// Cancelled, it is given up all the same.
    ///
    /// # Errors
    ///
    /// [`Error::Registry`] with [`NotMaster`](crate::Error::NotMaster) when the service is not master, with
    /// [`Unavailable`](crate::Error::Unavailable) when the registry has not answered within 2 s; [`Error::Closed`].
    pub async fn resign(&self) -> Result<(), Error> {
        let (done, outcome) = oneshot::channel();
        self.commands.send(Command::Resign(done)).await.map_err(|_| Error::Closed)?;
        Ok(outcome.await.map_err(|_| Error::Closed)??)
    }

    /// Leaves without losing a message, in this order: hands the mastership over, if it has it, tells the registry that it takes no
    /// more work (weight 0; where an operator has set the weight, that stays), lets handlers finish (no longer than the drain timeout; what is not finished by
    /// then is not acknowledged), unsubscribes, deregisters, disconnects.
    ///
    /// Cancelled, all that goes on in the background.
    ///
    /// # Errors
    ///
    /// [`Error::Registry`] when it could not be deregistered: the registration then ends with its session.
    pub async fn close(self) -> Result<(), Error> {
        let (done, outcome) = oneshot::channel();
        // One that has ended is closed.
        if self.commands.send(Command::Close(done)).await.is_err() {
            return Ok(());
        }
        Ok(outcome.await.unwrap_or(Ok(()))?)
    }
}

impl ServiceBuilder {
    /// The broker to subscribe at: one of those at which relays publish for services (`egress`). Required.
    pub fn broker(mut self, broker: BrokerUrl) -> Self {
        self.broker = Some(broker);
        self
    }

    /// The form of topics; the relays' has to be the same. Default: [`Topics::CodeLast`].
    pub fn topics(mut self, topics: Topics) -> Self {
        self.topics = topics;
        self
    }

    /// How many handlers run at a time; as many messages are taken from the broker, and no more (1 to 65,535). Default 64.
    pub fn concurrency(mut self, concurrency: u16) -> Self {
        self.concurrency = concurrency.max(1);
        self
    }

    /// How long [`Service::close`] waits for handlers. Default 10 s.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// How long [`ServiceBuilder::start`] waits for the broker. Default 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long the broker keeps messages while the service is away, in whole seconds (MQTT 5; brokers decide by themselves in
    /// 3.1.1, unless it is zero, which is for both: not at all). Default 1 h.
    pub fn session_expiry(mut self, expiry: Duration) -> Self {
        self.session_expiry = expiry;
        self
    }

    /// The largest packet that is taken, in bytes; a larger message is logged, acknowledged and thrown away. Default 256 MiB.
    pub fn max_packet(mut self, bytes: usize) -> Self {
        self.max_packet = bytes.max(1024);
        self
    }

    /// Handles what is sent to a topic, or to all topics that match a filter (`+` stands for one level, `#` at the end for any
    /// further ones; with [`Topics::GoEnvelope`] there is no `#`, because there the code comes last). A slash at the beginning
    /// makes no difference. The first handler that matches takes a message, in the order in which they are given.
    ///
    /// The handler's future is dropped at the end of the drain timeout.
    pub fn on<F, A, R>(mut self, filter: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Request) -> A + Send + Sync + 'static,
        A: Future<Output = Result<R, HandlerError>> + Send + 'static,
        R: Into<Reply>,
    {
        self.handlers.push(filter.into(), boxed(handler));
        self
    }

    /// Connects, subscribes, registers; returns when all that is done. The registered instance gets the tag `broker`
    /// (`host:port`), by which a relay with several brokers finds it.
    ///
    /// The client id is derived from the code. An instance whose code was given is registered first, with weight 0, so that a service
    /// that has the code already is not turned out of its session. Messages that wait for the code in the broker are handled from
    /// the first moment on, also before this returns; while they come the connect timeout begins anew.
    ///
    /// Cancelled, nothing stays behind but, in the broker, a session that expires.
    ///
    /// # Errors
    ///
    /// [`Error::Instance`], [`Error::Topic`] and [`Error::Unsupported`] before anything is connected; [`Error::Refused`] when the
    /// broker answers and refuses (user name, password, rights); [`Error::Unreachable`] when there is no connection within the
    /// connect timeout; [`Error::Registry`] when the instance cannot be registered, such as
    /// [`DuplicateCode`](crate::Error::DuplicateCode).
    pub async fn start(mut self) -> Result<Service, Error> {
        let broker = self.broker.take().ok_or(Error::Unsupported("a service needs a broker: .broker(URL)"))?;
        if !self.instance.tags.contains_key("broker") {
            self.instance = self.instance.tag("broker", broker.address());
        }
        self.instance.check()?;
        let filters = self.handlers.filters(self.topics, &self.instance.code)?;
        let claim = self.claim().await?;
        let code = self.instance.code.clone();
        let mut settings = client::Settings::new(broker.clone(), format!("pointsman-service-{code}"));
        settings.filters = filters.into_iter().map(Into::into).collect();
        settings.receive_maximum = self.concurrency;
        // As many as there are messages that are not acknowledged; those are bounded already.
        settings.max_outstanding = usize::from(u16::MAX);
        settings.session_expiry = self.session_expiry;
        settings.max_packet = self.max_packet;
        let forget = self.instance.has_generated_code();
        let (client, inbox) = client::Client::start(settings);
        let status = client.status();
        let counters = Arc::<Counters>::default();
        let topics = (self.topics, code.clone());
        let mut serving = Serving::new((client, inbox), self.handlers, topics, self.concurrency, counters.clone());
        let ready = match serving.until_connected(&broker, self.connect_timeout).await {
            Ok(()) => open(&self.registry, claim, self.instance).await.map_err(Error::from),
            Err(error) => Err(error),
        };
        let registration = match ready {
            Ok(registration) => registration,
            Err(error) => {
                // Messages that wait for a code of the service's own stay for its next start.
                serving.abandon(forget).await;
                return Err(error);
            }
        };
        let (commands, received) = mpsc::channel(1);
        let roles = registration.roles();
        let worker = Worker { serving, registration, drain_timeout: self.drain_timeout, commands: received };
        tokio::spawn(worker.run());
        Ok(Service { code, commands, roles, status, counters })
    }

    /// Registers the instance, without work for it yet, where another may have its code: two sessions of one client id would turn each
    /// other out, and take each other's messages.
    async fn claim(&self) -> Result<Option<Registration>, crate::Error> {
        if self.instance.has_generated_code() {
            return Ok(None);
        }
        let mut claim = self.instance.clone();
        claim.weight = 0;
        self.registry.register(claim).await.map(Some)
    }
}

/// Registers an instance that is ready for work.
async fn open(
    registry: &Registry,
    claim: Option<Registration>,
    instance: Instance,
) -> Result<Registration, crate::Error> {
    let Some(registration) = claim else { return registry.register(instance).await };
    let weight = instance.weight;
    registration.update(move |claimed| claimed.weight = weight).await?;
    Ok(registration)
}

/// Starts a client, and waits until it is connected and subscribed.
pub(super) async fn connect(settings: client::Settings, within: Duration) -> Result<(client::Client, Inbox), Error> {
    let broker = settings.broker.to_string();
    let (client, inbox) = client::Client::start(settings);
    connected(&client, &broker, within).await?;
    Ok((client, inbox))
}

/// Waits until a client is connected and subscribed.
pub(super) async fn connected(client: &client::Client, broker: &str, within: Duration) -> Result<(), Error> {
    let broker = broker.to_owned();
    let reason = |status: &Status| status.reason.clone().unwrap_or_else(|| "no answer".to_owned());
    match timeout(within, client.ready()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(status)) => Err(Error::Refused { broker, reason: reason(&status) }),
        Err(_) => {
            let reason = reason(&client.status().borrow());
            Err(Error::Unreachable { broker, waited: within, reason })
        }
    }
}

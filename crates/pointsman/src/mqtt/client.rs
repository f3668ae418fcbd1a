//! A sender: finds a relay, publishes, makes requests.

mod builder;
mod keeper;
mod link;
mod waiting;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pointsman_mqtt::client::PublishError;
use pointsman_mqtt::envelope::{self, Action};
use pointsman_mqtt::packet::{Publish, Qos, Version};
use pointsman_mqtt::reason::Reason;
use pointsman_mqtt::relay::Topics;
use pointsman_mqtt::{problem, topic};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

pub use self::builder::ClientBuilder;
use self::link::{Current, Link};
use self::waiting::{Asked, Waiting};
use super::{Credentials, Error, Message, Reply};
use crate::Registry;

/// What nobody was there to take is sent again after this.
const NOBODY_THERE: Duration = Duration::from_millis(200);
/// How long the broker has to take what is still to be sent when the client is closed.
const FAREWELL: Duration = Duration::from_secs(5);

/// A sender that knows no service and no broker: it finds a relay in the registry, connects to the relay's broker, and goes on
/// with another relay when that one leaves or its broker is lost. Methods take `&self` and may overlap.
///
/// ```no_run
/// use std::time::Duration;
///
/// use pointsman::Registry;
/// use pointsman::mqtt::{Client, Qos};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Registry::connect("zookeeper://127.0.0.1:2181/micro-service").await?;
/// let client = Client::builder(&registry, "mqtt-balancer").name("cgws").start().await?;
/// let reply = client.request("/login/user", "who am I?", Duration::from_secs(5)).await?;
/// client.publish("/login/seen", reply.payload, Qos::AtLeastOnce).await?;
/// # Ok(())
/// # }
/// ```
///
/// **Publishing** is done when the relay's broker has taken the message over; the relay acknowledges it there only when it is
/// with the service's broker, or in a dead letter. What is not acknowledged when a broker is lost is sent again to the next one:
/// so a message of QoS 1 *or 2* arrives at least once when brokers change; on one broker QoS 2 is exactly once, through lost
/// connections too. Messages that are sent at the same time may overtake one another when that happens.
///
/// **Requests** need MQTT 5 or [`Topics::GoEnvelope`]. A request whose relay is gone is sent again only if its message says so
/// ([`Message::retry`]). An error of the relay or the service is [`Error::NotDelivered`]; over 3.1.1 such an error cannot be told
/// from an answer: its payload is `{"type":"about:blank","title":REASON,"detail":DETAIL}`.
///
/// Dropped, it sends what it has in the background, for no longer than 5 s.
#[derive(Debug)]
pub struct Client {
    plan: Arc<Plan>,
    current: watch::Receiver<Current>,
    waiting: Arc<Waiting>,
    /// Bounds the requests.
    slots: Semaphore,
    keeper: JoinSet<()>,
}

/// What has become of a message.
type Taken = Result<Reason, PublishError>;

/// What does not change in the life of a client.
#[derive(Debug)]
struct Plan {
    relays: Arc<str>,
    topics: Topics,
    name: String,
    version: String,
    client_id: String,
    protocol: Version,
    credentials: Option<Credentials>,
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    keep_alive: Option<Duration>,
    max_outstanding: usize,
    patience: Duration,
}

impl Plan {
    /// Where answers are awaited.
    fn inbox(&self) -> String {
        match self.topics {
            Topics::GoEnvelope => envelope::answer_filter(&self.version, &self.name),
            _ => format!("pointsman/inbox/{}", self.client_id),
        }
    }
}

impl Client {
    /// A client of the relays that are registered as `relays`.
    pub fn builder(registry: &Registry, relays: &str) -> ClientBuilder {
        ClientBuilder::new(registry, relays)
    }

    /// The client id, by which a route with `ip-hash` goes (MQTT 5).
    #[must_use]
    pub fn client_id(&self) -> &str {
        &self.plan.client_id
    }

    /// The code of the relay that messages go to now.
    #[must_use]
    pub fn relay(&self) -> Option<Arc<str>> {
        self.current.borrow().link.as_ref().map(|link| link.code.clone())
    }

    /// Publishes a message, and returns when the relay's broker has taken it over; with QoS 0, when it is on its way. As long as
    /// the broker is away and there is no other, it waits, without an end.
    ///
    /// Cancelled, the message may be sent all the same.
    ///
    /// # Errors
    ///
    /// As [`Client::send`].
    pub async fn publish(&self, topic: &str, payload: impl Into<Bytes> + Send, qos: Qos) -> Result<(), Error> {
        self.send(Message::new(topic, payload).qos(qos)).await
    }

    /// Publishes a message with properties; otherwise as [`Client::publish`].
    ///
    /// # Errors
    ///
    /// [`Error::Topic`] and [`Error::Unsupported`] at once; [`Error::NoRelay`] when there is none for as long as the
    /// [patience](ClientBuilder::patience) lasts; [`Error::NotDelivered`] (`no-subscriber`) when for so long no relay listens at
    /// its broker; [`Error::Publish`] when the broker refuses the message; [`Error::Closed`].
    pub async fn send(&self, message: Message) -> Result<(), Error> {
        self.check(&message)?;
        let action = message.action.unwrap_or(Action::Updated);
        if self.plan.topics == Topics::GoEnvelope && action.waits() {
            return Err(Error::Unsupported(
                "who publishes POST, PUT, GET or DELETE waits for an answer: use a request",
            ));
        }
        let start = Instant::now();
        loop {
            let link = timeout(self.plan.patience, self.link()).await;
            let link = link.map_err(|_| self.no_relay(self.plan.patience))??;
            let mut publish = message.to_publish(&self.plan.client_id);
            let id = self.waiting.next_id();
            publish.topic = self.topic(&message, action, id, &link.code).into();
            let Some(taken) = self.deliver(&link, publish).await? else { continue };
            match self.taken(&message, taken)? {
                true => return Ok(()),
                false if start.elapsed() < self.plan.patience => sleep(NOBODY_THERE).await,
                false => {
                    let detail = format!("nobody, relay {} neither, listens to the topic at its broker", link.code);
                    return Err(Error::NotDelivered { reason: "no-subscriber".to_owned(), detail });
                }
            }
        }
    }

    /// Publishes by that link; `None` when it is lost. On the same connection the session sees to it that the message arrives,
    /// whichever relay is there to take it.
    async fn deliver(&self, link: &Arc<Link>, publish: Publish) -> Result<Option<Taken>, Error> {
        let mut taken = std::pin::pin!(link.station.client.publish(publish));
        let mut watched = link.clone();
        loop {
            let successor = async {
                watched.lost().await;
                self.link().await
            };
            tokio::select! {
                biased;
                taken = &mut taken => return Ok(Some(taken)),
                next = successor => {
                    let next = next?;
                    if !Arc::ptr_eq(&next.station, &link.station) {
                        return Ok(None);
                    }
                    watched = next;
                }
            }
        }
    }

    /// Makes a request with QoS 1, and returns the answer.
    ///
    /// Cancelled, the request is given up, and needs no memory any more; it may be carried out all the same.
    ///
    /// # Errors
    ///
    /// As [`Client::call`].
    pub async fn request(
        &self,
        topic: &str,
        payload: impl Into<Bytes> + Send,
        timeout: Duration,
    ) -> Result<Reply, Error> {
        self.call(Message::new(topic, payload), timeout).await
    }

    /// Makes a request with properties; otherwise as [`Client::request`].
    ///
    /// # Errors
    ///
    /// [`Error::Topic`] and [`Error::Unsupported`] at once; [`Error::NoRelay`] when there is no relay for as long as the request
    /// may take; [`Error::NotDelivered`] when relay or service say that there will be no answer; [`Error::Timeout`];
    /// [`Error::RelayLost`]; [`Error::Publish`] when the broker refuses the message; [`Error::Closed`].
    pub async fn call(&self, message: Message, timeout: Duration) -> Result<Reply, Error> {
        self.check(&message)?;
        let action = message.action.unwrap_or(Action::Post);
        if self.plan.topics == Topics::GoEnvelope && !action.waits() {
            return Err(Error::Unsupported("UPDATED and DELETED are not answered: publish them"));
        }
        if self.plan.topics != Topics::GoEnvelope && self.plan.protocol != Version::V5 {
            return Err(Error::Unsupported("MQTT 3.1.1 has no requests; use MQTT 5, or the topics of go-envelope"));
        }
        let exchange = async {
            let _slot = self.slots.acquire().await.map_err(|_| Error::Closed)?;
            let mut asked = self.waiting.ask();
            self.exchange(&message, action, &mut asked).await
        };
        match timeout_at(Instant::now() + timeout, exchange).await {
            Ok(outcome) => outcome,
            Err(_) if self.current.borrow().link.is_none() => Err(self.no_relay(timeout)),
            Err(_) => Err(Error::Timeout { topic: message.topic, waited: timeout }),
        }
    }

    async fn exchange(&self, message: &Message, action: Action, asked: &mut Asked) -> Result<Reply, Error> {
        loop {
            let link = self.link().await?;
            let mut publish = message.to_publish(&self.plan.client_id);
            publish.topic = self.topic(message, action, asked.id, &link.code).into();
            if self.plan.topics != Topics::GoEnvelope {
                publish.properties.response_topic = Some(self.plan.inbox().into());
                publish.properties.correlation = Some(asked.correlation());
            }
            let mut taken = std::pin::pin!(link.station.client.publish(publish));
            let mut is_taken = false;
            let nobody_there = loop {
                tokio::select! {
                    biased;
                    answer = &mut asked.answer => return read(answer.map_err(|_| Error::Closed)?),
                    taken = &mut taken, if !is_taken => match self.taken(message, taken)? {
                        true => is_taken = true,
                        false => break true,
                    },
                    () = link.left(), if message.retry => break false,
                    () = link.lost() => return Err(Error::RelayLost { code: link.code.clone() }),
                }
            };
            if nobody_there {
                sleep(NOBODY_THERE).await;
            }
        }
    }

    /// Whether anybody was there to get the message.
    fn taken(&self, message: &Message, taken: Taken) -> Result<bool, Error> {
        match taken {
            Ok(reason) => Ok(reason != Reason::NO_MATCHING_SUBSCRIBERS),
            Err(PublishError::Closed) => Err(Error::Closed),
            Err(source) => Err(Error::Publish { topic: message.topic.clone(), source }),
        }
    }

    /// The link to a relay, as soon as there is one.
    async fn link(&self) -> Result<Arc<Link>, Error> {
        let mut current = self.current.clone();
        let current = current.wait_for(|current| current.link.is_some()).await.map_err(|_| Error::Closed)?;
        current.link.clone().ok_or(Error::Closed)
    }

    fn no_relay(&self, waited: Duration) -> Error {
        let reason = self.current.borrow().trouble.clone();
        Error::NoRelay { service: self.plan.relays.clone(), waited, reason }
    }

    fn check(&self, message: &Message) -> Result<(), Error> {
        let given = &message.topic;
        if given.trim_matches('/').is_empty() {
            return Err(Error::topic(given, "is empty; a topic is for example /login/user"));
        }
        if !topic::is_topic(given) {
            let reason = "cannot be published to: +, # and NUL are not allowed, and no more than 65,535 bytes";
            return Err(Error::topic(given, reason));
        }
        if given.starts_with('$') || given.starts_with("pointsman/") {
            return Err(Error::topic(given, "is not relayed: what begins with $ or pointsman/ has its own meaning"));
        }
        Ok(())
    }

    fn topic(&self, message: &Message, action: Action, (number, nonce): (u64, u64), relay: &str) -> String {
        let Plan { version, name, .. } = &*self.plan;
        match self.plan.topics {
            Topics::GoEnvelope => {
                let id = envelope::make_id(number, nonce);
                envelope::sending_topic(version, name, action, &id, relay, &message.topic)
            }
            _ => envelope::code_last(&message.topic, relay),
        }
    }

    /// Sends what it still has (for no longer than 5 s), and disconnects. Cancelled, that goes on in the background.
    pub async fn close(mut self) {
        self.keeper.shutdown().await;
        let link = self.current.borrow().link.clone();
        if let Some(link) = link {
            link.station.client.clone().close(FAREWELL, true).await;
        }
    }
}

/// What the answer to a request says.
fn read(answer: Publish) -> Result<Reply, Error> {
    match problem::read(&answer) {
        None => Ok(Reply::of(answer)),
        Some((reason, detail)) => Err(Error::NotDelivered { reason: reason.to_owned(), detail: detail.to_owned() }),
    }
}

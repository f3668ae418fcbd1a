//! A client of a broker, for services and senders: one task that drives a connection and a session, and a handle to it.
//!
//! It connects, and connects again, by itself; subscribes with each connection; sends again what a lost connection has left
//! unacknowledged. It knows no registry and no relay.

mod driver;
mod outlet;

use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use self::driver::{Command, Driver, Pending};
use crate::packet::{Publish, Qos};
use crate::reason::Reason;
use crate::session::Refusal;
use crate::url::BrokerUrl;

/// How a client connects, and how much it holds.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// The broker.
    pub broker: BrokerUrl,
    /// Unique among the broker's clients: a second one of the name turns the first one out.
    pub client_id: String,
    /// What is subscribed to, each with up to QoS 2.
    pub filters: Vec<ByteString>,
    /// How many messages are taken from the broker without an acknowledgement. Beyond that the broker (MQTT 5) or the socket
    /// (3.1.1, QoS 0) has to keep them. Default 64.
    pub receive_maximum: u16,
    /// How many messages may be published without being acknowledged; the next has to wait. Default 1000.
    pub max_outstanding: usize,
    /// The largest packet that is taken, in bytes; a larger message is logged, acknowledged and thrown away. Default 256 MiB.
    pub max_packet: usize,
    /// How long the broker keeps the session, with what comes for it, while the client is away. Zero: 3.1.1 begins a new session
    /// with each connection, MQTT 5 with each that is not a reconnection in time. Default 1 h.
    pub session_expiry: Duration,
}

impl Settings {
    /// The defaults.
    #[must_use]
    pub fn new(broker: BrokerUrl, client_id: impl Into<String>) -> Self {
        Self {
            broker,
            client_id: client_id.into(),
            filters: Vec::new(),
            receive_maximum: 64,
            max_outstanding: 1000,
            max_packet: 256 << 20,
            session_expiry: Duration::from_secs(3600),
        }
    }
}

/// What is known of a client's connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Connected, and all subscriptions confirmed.
    pub up: bool,
    /// Attempts to connect that have failed since the last connection; its loss is the first.
    pub failures: u32,
    /// Why it is not up, as far as something has happened.
    pub reason: Option<String>,
    /// The broker has answered, and does not want this client: trying again is unlikely to help.
    pub refused: bool,
}

/// A client of a broker. Cheap to clone. Dropped with its last clone, it sends what it still has (for no longer than 5 s, and
/// only if it is connected) and disconnects.
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::UnboundedSender<Command>,
    status: watch::Receiver<Status>,
    permits: Arc<Semaphore>,
}

/// Why a message was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// It cannot be sent to this broker.
    #[error(transparent)]
    Unsendable(#[from] Refusal),
    /// The broker refuses it.
    #[error("the broker refuses the message: {0}")]
    Refused(Reason),
    /// It was not sent before its time was over, or the broker takes no packets of its size.
    #[error("the message has expired, or is too large for the broker")]
    Expired,
    /// The client has ended.
    #[error("the client has ended")]
    Closed,
}

impl Client {
    /// Starts a client, which connects by itself. The second value is what comes by its subscriptions.
    ///
    /// Must be called within a tokio runtime.
    #[must_use]
    pub fn start(settings: Settings) -> (Self, Inbox) {
        let permits = Arc::new(Semaphore::new(settings.max_outstanding.clamp(1, Semaphore::MAX_PERMITS)));
        let (commands, receiver) = mpsc::unbounded_channel();
        let (sender, messages) = mpsc::channel(usize::from(settings.receive_maximum.max(1)));
        let (status_sender, status) = watch::channel(Status::default());
        let acknowledge = commands.downgrade();
        tokio::spawn(Driver::new(settings, receiver, acknowledge, sender, status_sender).run());
        (Self { commands, status, permits }, Inbox { messages })
    }

    /// What is known of the connection, as it changes. Ends with the client.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Returns when it is connected and all subscriptions are confirmed. Cancellation is harmless.
    ///
    /// # Errors
    ///
    /// The status of a client that the broker refuses: it goes on trying nevertheless.
    pub async fn ready(&self) -> Result<(), Status> {
        let mut status = self.status.clone();
        let settled = status.wait_for(|status| status.up || status.refused).await;
        match settled.map(|status| status.clone()) {
            Ok(status) if status.up => Ok(()),
            Ok(status) => Err(status),
            Err(_) => Err(Status { reason: Some("the client has ended".to_owned()), ..Status::default() }),
        }
    }

    /// Publishes a message, and returns when the broker has taken it over (QoS 1: PUBACK, QoS 2: PUBREC), or, with QoS 0, when
    /// it is on its way. Through lost connections it waits, without an end. The reason tells apart whether anybody was there
    /// to get it ([`Reason::NO_MATCHING_SUBSCRIBERS`]), where the broker says that.
    ///
    /// Cancelled before it has begun to wait for the acknowledgement, nothing is sent; later, the message is sent all the same.
    ///
    /// # Errors
    ///
    /// [`PublishError`].
    pub async fn publish(&self, publish: Publish) -> Result<Reason, PublishError> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| PublishError::Closed)?;
        let (done, outcome) = oneshot::channel();
        let pending = Pending { done, _permit: permit };
        let command = Command::Publish(Box::new(publish), pending);
        self.commands.send(command).map_err(|_| PublishError::Closed)?;
        outcome.await.map_err(|_| PublishError::Closed)?
    }

    /// Ends all subscriptions. Returns when the broker has confirmed it, so that nothing more comes, or when there is no connection.
    pub async fn unsubscribe(&self) {
        let (done, outcome) = oneshot::channel();
        if self.commands.send(Command::Unsubscribe(done)).is_ok() {
            // A client that has ended is subscribed to nothing.
            let _ = outcome.await;
        }
    }

    /// Sends what it still has, for no longer than `within`, and disconnects. `forget` tells the broker that the session is not
    /// needed any more. Cancelled, that goes on in the background.
    pub async fn close(self, within: Duration, forget: bool) {
        let (done, outcome) = oneshot::channel();
        if self.commands.send(Command::Close { within, forget, done }).is_ok() {
            // A client that has ended is closed.
            let _ = outcome.await;
        }
    }
}

/// What comes to a client by its subscriptions. While nobody takes it, no more is taken from the broker; when this is dropped,
/// what comes is acknowledged and thrown away.
#[derive(Debug)]
pub struct Inbox {
    messages: mpsc::Receiver<Incoming>,
}

impl Inbox {
    /// The next message; `None` when the client has ended. Cancellation loses nothing.
    pub async fn next(&mut self) -> Option<Incoming> {
        self.messages.recv().await
    }
}

/// A message that has come. As long as it is not acknowledged, the broker keeps it (QoS 1 and 2); dropped, it comes again in the
/// next connection of a session that goes on.
#[derive(Debug)]
pub struct Incoming {
    /// The message.
    pub publish: Publish,
    epoch: u32,
    commands: mpsc::WeakUnboundedSender<Command>,
}

impl Incoming {
    /// Tells the broker that this side has taken the message over.
    pub fn acknowledge(self) {
        let (id, epoch) = (self.publish.id, self.epoch);
        if self.publish.qos != Qos::AtMostOnce
            && let Some(commands) = self.commands.upgrade()
        {
            // A client that has ended cannot tell any more.
            let _ = commands.send(Command::Acknowledge { id, epoch });
        }
    }
}

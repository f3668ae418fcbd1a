//! Messages as services and senders see them.

use bytes::Bytes;
use pointsman_mqtt::envelope::{Action, Delivery};
use pointsman_mqtt::packet::{MessageProperties, Publish, Qos};
use pointsman_mqtt::relay::Topics;

/// The user property by which the client id of a sender is known.
pub(super) const CLIENT_ID: &str = "pointsman-client-id";

/// What a handler may fail with: any error, or a text (`"no such user".into()`). A requester is told the text.
pub type HandlerError = Box<dyn std::error::Error + Send + Sync>;

/// A message that has come to a service.
#[derive(Debug, Clone)]
pub struct Request {
    topic: String,
    action: Option<Action>,
    pub(super) reply_to: Option<String>,
    publish: Publish,
}

impl Request {
    /// `None`: its topic is not of this form, or not for this code.
    pub(super) fn read(publish: &Publish, topics: Topics, code: &str) -> Option<Self> {
        let publish = publish.clone();
        if topics == Topics::GoEnvelope {
            let delivery = Delivery::parse(&publish.topic, code)?;
            let reply_to = delivery.action.waits().then(|| delivery.response_topic.to_owned());
            return Some(Self { topic: delivery.topic.to_owned(), action: Some(delivery.action), reply_to, publish });
        }
        let topic = publish.topic.strip_prefix(code).filter(|topic| topic.starts_with('/'))?.to_owned();
        let reply_to = publish.properties.response_topic.as_ref().map(ToString::to_string);
        Some(Self { topic, action: None, reply_to, publish })
    }

    /// What it is about, without the code: `/login/user`; with [`Topics::GoEnvelope`] without slashes around it.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.publish.payload
    }

    /// What the sender wants; only with [`Topics::GoEnvelope`].
    #[must_use]
    pub fn action(&self) -> Option<Action> {
        self.action
    }

    /// Whether the sender waits for an answer.
    #[must_use]
    pub fn is_request(&self) -> bool {
        self.reply_to.is_some()
    }

    /// The quality of service by which it has come.
    #[must_use]
    pub fn qos(&self) -> Qos {
        self.publish.qos
    }

    /// Whether the broker has sent it before: its handler may have run already.
    #[must_use]
    pub fn is_repeated(&self) -> bool {
        self.publish.dup
    }

    /// The client id of the sender, where it is known.
    #[must_use]
    pub fn sender(&self) -> Option<&str> {
        self.user_property(CLIENT_ID)
    }

    /// What the payload is (MQTT 5).
    #[must_use]
    pub fn content_type(&self) -> Option<&str> {
        self.publish.properties.content_type.as_deref()
    }

    /// What the answer repeats (MQTT 5).
    #[must_use]
    pub fn correlation(&self) -> Option<&Bytes> {
        self.publish.properties.correlation.as_ref()
    }

    /// The first user property of that name (MQTT 5).
    #[must_use]
    pub fn user_property(&self, name: &str) -> Option<&str> {
        self.user_properties().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// All user properties, in their order (MQTT 5).
    pub fn user_properties(&self) -> impl Iterator<Item = (&str, &str)> {
        self.publish.properties.user.iter().map(|(name, value)| (&**name, &**value))
    }
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Reply {
    /// The payload.
    pub payload: Bytes,
    /// What the payload is (MQTT 5).
    pub content_type: Option<String>,
    /// Names and values (MQTT 5).
    pub user_properties: Vec<(String, String)>,
}

impl Reply {
    /// A payload without properties.
    #[must_use]
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self { payload: payload.into(), ..Self::default() }
    }

    /// Says what the payload is.
    #[must_use]
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// Adds a user property.
    #[must_use]
    pub fn user_property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.user_properties.push((name.into(), value.into()));
        self
    }

    pub(super) fn into_publish(self, topic: &str, correlation: Option<Bytes>, qos: Qos) -> Publish {
        let mut properties = properties(self.content_type, self.user_properties);
        properties.correlation = correlation;
        Publish { topic: topic.into(), payload: self.payload, qos, properties, ..Publish::default() }
    }

    pub(super) fn of(publish: Publish) -> Self {
        let MessageProperties { content_type, user, .. } = publish.properties;
        Self {
            payload: publish.payload,
            content_type: content_type.map(|text| text.to_string()),
            user_properties: user.into_iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        }
    }
}

/// An empty answer; for messages that nobody waits for the answer of.
impl From<()> for Reply {
    fn from((): ()) -> Self {
        Self::default()
    }
}

impl From<&'static str> for Reply {
    fn from(payload: &'static str) -> Self {
        Self::new(payload)
    }
}

impl From<String> for Reply {
    fn from(payload: String) -> Self {
        Self::new(payload)
    }
}

impl From<Bytes> for Reply {
    fn from(payload: Bytes) -> Self {
        Self::new(payload)
    }
}

impl From<Vec<u8>> for Reply {
    fn from(payload: Vec<u8>) -> Self {
        Self::new(payload)
    }
}

/// A message to be sent by a [`Client`](super::Client).
#[derive(Debug, Clone)]
pub struct Message {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) qos: Qos,
    pub(super) action: Option<Action>,
    pub(super) retry: bool,
    content_type: Option<String>,
    user_properties: Vec<(String, String)>,
}

impl Message {
    /// A message of QoS 1.
    #[must_use]
    pub fn new(topic: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self {
            topic: topic.into(),
            payload: payload.into(),
            qos: Qos::AtLeastOnce,
            action: None,
            retry: false,
            content_type: None,
            user_properties: Vec::new(),
        }
    }

    /// How often it arrives.
    #[must_use]
    pub fn qos(mut self, qos: Qos) -> Self {
        self.qos = qos;
        self
    }

    /// What is wanted, with [`Topics::GoEnvelope`]. Default: POST for requests, UPDATED for what nobody waits for the answer of.
    #[must_use]
    pub fn action(mut self, action: Action) -> Self {
        self.action = Some(action);
        self
    }

    /// Whether a request may be sent again, by another relay, when the relay that had it is gone: only if doing it twice does
    /// no harm. Default: no.
    #[must_use]
    pub fn retry(mut self, retry: bool) -> Self {
        self.retry = retry;
        self
    }

    /// Says what the payload is (MQTT 5).
    #[must_use]
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// Adds a user property (MQTT 5).
    #[must_use]
    pub fn user_property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.user_properties.push((name.into(), value.into()));
        self
    }

    /// The message as it is published, to a topic that is yet to be put in.
    pub(super) fn to_publish(&self, client_id: &str) -> Publish {
        let mut properties = properties(self.content_type.clone(), self.user_properties.clone());
        properties.user.push((CLIENT_ID.into(), client_id.into()));
        Publish { payload: self.payload.clone(), qos: self.qos, properties, ..Publish::default() }
    }
}

fn properties(content_type: Option<String>, user: Vec<(String, String)>) -> MessageProperties {
    MessageProperties {
        content_type: content_type.map(Into::into),
        user: user.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        ..MessageProperties::default()
    }
}

//! A message, as it is handed to Paho and as it comes from it.

use serde::{Deserialize, Serialize};

/// An MQTT message with everything that can be seen of it. What belongs to MQTT 5 is left out by a client of version 3.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PahoMessage {
    /// Where to.
    pub topic: String,
    /// Any bytes.
    #[serde(with = "bytes")]
    pub payload: Vec<u8>,
    /// 0, 1 or 2.
    pub qos: u8,
    /// Sent: the broker is to keep it. Received: it was kept.
    pub retain: bool,
    /// Received: the broker has tried before.
    pub dup: bool,
    /// Received: the packet identifier, 0 for QoS 0.
    pub mid: u16,
    /// MQTT 5.
    pub response_topic: Option<String>,
    /// MQTT 5.
    #[serde(with = "optional_bytes")]
    pub correlation_data: Option<Vec<u8>>,
    /// MQTT 5.
    pub content_type: Option<String>,
    /// MQTT 5: 1 says that the payload is UTF-8.
    pub payload_format: Option<u8>,
    /// MQTT 5, in seconds. Received: what is left of it.
    pub message_expiry: Option<u32>,
    /// MQTT 5, in order; a key may come twice.
    pub user_properties: Vec<(String, String)>,
    /// Received with MQTT 5: of the subscriptions that it fits.
    pub subscription_identifiers: Vec<u32>,
    /// MQTT 5.
    pub topic_alias: Option<u16>,
}

impl PahoMessage {
    /// A message of QoS 1 without properties.
    #[must_use]
    pub fn new(topic: &str, payload: impl Into<Vec<u8>>) -> PahoMessage {
        PahoMessage { topic: topic.to_owned(), payload: payload.into(), qos: 1, ..PahoMessage::default() }
    }

    /// 0, 1 or 2.
    #[must_use]
    pub fn qos(self, qos: u8) -> PahoMessage {
        PahoMessage { qos, ..self }
    }

    /// The broker is to keep it.
    #[must_use]
    pub fn retain(self) -> PahoMessage {
        PahoMessage { retain: true, ..self }
    }

    /// Where an answer is expected.
    #[must_use]
    pub fn response_topic(self, topic: &str) -> PahoMessage {
        PahoMessage { response_topic: Some(topic.to_owned()), ..self }
    }

    /// What an answer has to repeat.
    #[must_use]
    pub fn correlation_data(self, data: impl Into<Vec<u8>>) -> PahoMessage {
        PahoMessage { correlation_data: Some(data.into()), ..self }
    }

    /// What the payload is, such as a MIME type.
    #[must_use]
    pub fn content_type(self, content_type: &str) -> PahoMessage {
        PahoMessage { content_type: Some(content_type.to_owned()), ..self }
    }

    /// 1 says that the payload is UTF-8.
    #[must_use]
    pub fn payload_format(self, format: u8) -> PahoMessage {
        PahoMessage { payload_format: Some(format), ..self }
    }

    /// For how many seconds a broker may keep it.
    #[must_use]
    pub fn message_expiry(self, seconds: u32) -> PahoMessage {
        PahoMessage { message_expiry: Some(seconds), ..self }
    }

    /// One more user property.
    #[must_use]
    pub fn user_property(mut self, key: &str, value: &str) -> PahoMessage {
        self.user_properties.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The payload as text.
    ///
    /// # Panics
    /// When it is not UTF-8.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).expect("a payload in UTF-8")
    }
}

/// Bytes in JSON, as the code points 0 to 255.
mod bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let text: String = bytes.iter().copied().map(char::from).collect();
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = text.chars().map(u8::try_from).collect::<Result<_, _>>();
        bytes.map_err(serde::de::Error::custom)
    }
}

mod optional_bytes {
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => super::bytes::serialize(bytes, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Only what is there is deserialized: Paho's side leaves out what is not.
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        super::bytes::deserialize(deserializer).map(Some)
    }
}

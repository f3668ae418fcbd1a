//! The control packets of MQTT 3.1.1 and 5, and their codec. No I/O; every slice shares the memory it was read into.

mod decode;
mod encode;
mod properties;

use bytes::Bytes;
use bytestring::ByteString;

pub use decode::{Decoder, Malformed};
pub use encode::{Unencodable, encode, encode_publish};
pub(crate) use encode::{encode_publish_head, put_varint, varint_len};
pub use properties::{MessageProperties, Properties};

use crate::reason::Reason;

/// The longest packet that MQTT can express, in bytes, without its fixed header.
pub const MAX_REMAINING: usize = 268_435_455;

/// The longest packet that MQTT can express, in bytes, with its fixed header: a byte, and four for the length.
pub const LARGEST_PACKET: usize = MAX_REMAINING + 5;

/// The version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Version {
    /// MQTT 3.1.1.
    V311,
    /// MQTT 5.
    #[default]
    V5,
}

/// How often a message arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Qos {
    /// At most once.
    #[default]
    AtMostOnce,
    /// At least once.
    AtLeastOnce,
    /// Exactly once.
    ExactlyOnce,
}

impl Qos {
    /// 0, 1 or 2.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The quality of that number.
    #[must_use]
    pub const fn of(number: u8) -> Option<Qos> {
        match number {
            0 => Some(Qos::AtMostOnce),
            1 => Some(Qos::AtLeastOnce),
            2 => Some(Qos::ExactlyOnce),
            _ => None,
        }
    }
}

/// Any packet.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // The names are the specification's.
pub enum Packet {
    Connect(Box<Connect>),
    Connack(Box<Connack>),
    Publish(Publish),
    Ack(Ack),
    Subscribe(Box<Subscribe>),
    Suback(Box<Suback>),
    Unsubscribe(Box<Unsubscribe>),
    Unsuback(Box<Suback>),
    Pingreq,
    Pingresp,
    Disconnect(Box<Disconnect>),
    Auth(Box<Disconnect>),
}

/// The first packet of a client.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Connect {
    /// The version it speaks; all that follows on the connection is in it.
    pub version: Version,
    /// Whether an earlier session is to be forgotten.
    pub clean_start: bool,
    /// Seconds after which a silent client is taken for dead; 0 for never.
    pub keep_alive: u16,
    /// Empty: the broker is to assign one.
    pub client_id: ByteString,
    /// What is published for the client if it vanishes.
    pub will: Option<Will>,
    /// User name.
    pub user: Option<ByteString>,
    /// Password.
    pub password: Option<Bytes>,
    /// MQTT 5 only.
    pub properties: Properties,
}

/// What is published for a client that vanishes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Will {
    /// Where to.
    pub topic: ByteString,
    /// What.
    pub payload: Bytes,
    /// How often it arrives.
    pub qos: Qos,
    /// Whether it is kept for later subscribers.
    pub retain: bool,
    /// Seconds to wait before it is published (MQTT 5).
    pub delay: u32,
    /// MQTT 5 only.
    pub properties: MessageProperties,
}

/// The broker's answer to CONNECT.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Connack {
    /// Whether the broker has a session of this client.
    pub session_present: bool,
    /// Success, or why not.
    pub reason: Reason,
    /// MQTT 5 only.
    pub properties: Properties,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Publish {
    /// Whether it may have been sent before.
    pub dup: bool,
    /// How often it arrives.
    pub qos: Qos,
    /// Whether it is kept for later subscribers; towards a subscriber: whether it had been kept.
    pub retain: bool,
    /// Where to. Empty only with a topic alias.
    pub topic: ByteString,
    /// The packet identifier; 0 with QoS 0.
    pub id: u16,
    /// MQTT 5 only.
    pub properties: MessageProperties,
    /// What.
    pub payload: Bytes,
}

/// One of the four packets that acknowledge.
#[derive(Debug, Clone, PartialEq)]
pub struct Ack {
    /// Which.
    pub kind: AckKind,
    /// The packet identifier of what it acknowledges.
    pub id: u16,
    /// MQTT 5 only.
    pub reason: Reason,
    /// MQTT 5 only.
    pub reason_string: Option<ByteString>,
}

/// Which acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names are the specification's.
pub enum AckKind {
    Puback = 4,
    Pubrec = 5,
    Pubrel = 6,
    Pubcomp = 7,
}

/// A wish to be sent messages.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Subscribe {
    /// The packet identifier.
    pub id: u16,
    /// Filters with their options.
    pub filters: Vec<(ByteString, Options)>,
    /// MQTT 5 only.
    pub properties: Properties,
}

/// The options of one subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The highest quality to send with.
    pub qos: Qos,
    /// Do not send back what the client has published itself (MQTT 5).
    pub no_local: bool,
    /// Leave the retain flag as it was published (MQTT 5).
    pub retain_as_published: bool,
    /// 0: send retained messages; 1: only if the subscription is new; 2: send none (MQTT 5).
    pub retain_handling: u8,
}

impl Options {
    /// Everything of at most this quality.
    #[must_use]
    pub const fn up_to(qos: Qos) -> Self {
        Self { qos, no_local: false, retain_as_published: false, retain_handling: 0 }
    }
}

/// The answer to SUBSCRIBE and to UNSUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Suback {
    /// The packet identifier.
    pub id: u16,
    /// One for each filter. UNSUBACK of 3.1.1 has none.
    pub reasons: Vec<Reason>,
    /// MQTT 5 only.
    pub properties: Properties,
}

/// The end of subscriptions.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Unsubscribe {
    /// The packet identifier.
    pub id: u16,
    /// As subscribed.
    pub filters: Vec<ByteString>,
    /// MQTT 5 only.
    pub properties: Properties,
}

/// The end of a connection; and AUTH, which has the same form.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Disconnect {
    /// Why.
    pub reason: Reason,
    /// MQTT 5 only.
    pub properties: Properties,
}

#[cfg(test)]
mod tests;

//! How Paho connects, subscribes and answers.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::PahoMessage;
use crate::tls::TlsFiles;

/// How to connect: as MQTT 5, with a clean session that ends with the connection, under a random client id, and without
/// reconnecting by itself, unless said otherwise.
#[derive(Debug, Clone, Serialize)]
pub struct PahoOptions {
    host: String,
    port: u16,
    protocol: u8,
    client_id: String,
    clean: bool,
    session_expiry: Option<u64>,
    keepalive: u64,
    user: Option<(String, String)>,
    ca: Option<PathBuf>,
    receive_maximum: Option<u16>,
    max_inflight: Option<u16>,
    will: Option<PahoMessage>,
    reconnect: bool,
}

impl PahoOptions {
    /// `host:port`.
    ///
    /// # Panics
    /// When that is something else.
    #[must_use]
    pub fn new(address: &str) -> PahoOptions {
        let (host, port) = address.rsplit_once(':').expect("host:port");
        PahoOptions {
            host: host.to_owned(),
            port: port.parse().expect("a port"),
            protocol: 5,
            client_id: format!("paho-{:016x}", fastrand::u64(..)),
            clean: true,
            session_expiry: None,
            keepalive: 60,
            user: None,
            ca: None,
            receive_maximum: None,
            max_inflight: None,
            will: None,
            reconnect: false,
        }
    }

    /// MQTT 3.1.1.
    #[must_use]
    pub fn v3(self) -> PahoOptions {
        PahoOptions { protocol: 4, ..self }
    }

    /// Instead of a random one; an empty one lets the broker choose.
    #[must_use]
    pub fn client_id(self, client_id: &str) -> PahoOptions {
        PahoOptions { client_id: client_id.to_owned(), ..self }
    }

    /// Whether to begin a new session; reconnections of Paho's own never do in MQTT 5.
    #[must_use]
    pub fn clean(self, clean: bool) -> PahoOptions {
        PahoOptions { clean, ..self }
    }

    /// MQTT 5: how long the broker keeps the session after the connection's end, in whole seconds.
    #[must_use]
    pub fn session_expiry(self, expiry: Duration) -> PahoOptions {
        PahoOptions { session_expiry: Some(expiry.as_secs()), ..self }
    }

    /// In whole seconds; a minute unless set.
    #[must_use]
    pub fn keepalive(self, keepalive: Duration) -> PahoOptions {
        PahoOptions { keepalive: keepalive.as_secs(), ..self }
    }

    /// User and password.
    #[must_use]
    pub fn password(self, user: &str, password: &str) -> PahoOptions {
        PahoOptions { user: Some((user.to_owned(), password.to_owned())), ..self }
    }

    /// With TLS, trusting the files' authority alone.
    #[must_use]
    pub fn tls(self, files: &TlsFiles) -> PahoOptions {
        PahoOptions { ca: Some(files.ca.clone()), ..self }
    }

    /// MQTT 5: how many messages the broker may have in flight to this client.
    #[must_use]
    pub fn receive_maximum(self, count: u16) -> PahoOptions {
        PahoOptions { receive_maximum: Some(count), ..self }
    }

    /// How many messages this client has in flight; 20 unless set, 0 is without limit.
    #[must_use]
    pub fn max_inflight(self, count: u16) -> PahoOptions {
        PahoOptions { max_inflight: Some(count), ..self }
    }

    /// What the broker is to publish when the connection ends without a DISCONNECT.
    #[must_use]
    pub fn will(self, message: PahoMessage) -> PahoOptions {
        PahoOptions { will: Some(message), ..self }
    }

    /// Paho reconnects by itself when the connection is lost, at first after a tenth of a second, then each second.
    #[must_use]
    pub fn reconnect(self) -> PahoOptions {
        PahoOptions { reconnect: true, ..self }
    }
}

/// A subscription with options, which are all of MQTT 5.
#[derive(Debug, Clone, Serialize)]
pub struct PahoSubscription {
    filter: String,
    qos: u8,
    no_local: bool,
    retain_as_published: bool,
    retain_handling: u8,
    identifier: Option<u32>,
}

impl PahoSubscription {
    /// A subscription without options.
    #[must_use]
    pub fn new(filter: &str, qos: u8) -> PahoSubscription {
        let filter = filter.to_owned();
        PahoSubscription {
            filter,
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: 0,
            identifier: None,
        }
    }

    /// Without the client's own messages.
    #[must_use]
    pub fn no_local(self) -> PahoSubscription {
        PahoSubscription { no_local: true, ..self }
    }

    /// Messages say whether they were published to be retained.
    #[must_use]
    pub fn retain_as_published(self) -> PahoSubscription {
        PahoSubscription { retain_as_published: true, ..self }
    }

    /// Retained messages are sent: 0 always, 1 if the subscription is new, 2 never.
    #[must_use]
    pub fn retain_handling(self, handling: u8) -> PahoSubscription {
        PahoSubscription { retain_handling: handling, ..self }
    }

    /// What messages by this subscription carry.
    #[must_use]
    pub fn identifier(self, identifier: u32) -> PahoSubscription {
        PahoSubscription { identifier: Some(identifier), ..self }
    }
}

/// How a service answers a message that has a response topic: with its payload and correlation data, at once, with QoS 1,
/// unless said otherwise. A service that never answers is one that was not asked to [`echo`](super::Paho::echo).
#[derive(Debug, Clone, Serialize)]
pub struct Echo {
    prefix: String,
    qos: u8,
    /// In seconds.
    delay: f64,
}

impl Default for Echo {
    fn default() -> Echo {
        Echo { prefix: String::new(), qos: 1, delay: 0.0 }
    }
}

impl Echo {
    /// The payload of the answer begins with this, in ASCII.
    #[must_use]
    pub fn prefix(self, prefix: &str) -> Echo {
        Echo { prefix: prefix.to_owned(), ..self }
    }

    /// 0, 1 or 2.
    #[must_use]
    pub fn qos(self, qos: u8) -> Echo {
        Echo { qos, ..self }
    }

    /// Answers so much later. Answers that are due at the same time may change places.
    #[must_use]
    pub fn delay(self, delay: Duration) -> Echo {
        Echo { delay: delay.as_secs_f64(), ..self }
    }
}

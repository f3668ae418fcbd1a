//! The broker of a world.

use pointsman_testkit::Mosquitto;

use crate::support::served::free_port;

/// The relay that has the embedded broker, where there is one.
pub(super) const HOST: usize = 0;

/// One broker for senders and services.
pub(super) enum Broker {
    Mosquitto(Box<Mosquitto>),
    /// In the process of relay [`HOST`], at this port.
    Embedded(u16),
}

impl Broker {
    pub(super) async fn start(is_embedded: bool) -> Self {
        if is_embedded { Self::Embedded(free_port()) } else { Self::Mosquitto(Box::new(Mosquitto::start().await)) }
    }

    pub(super) fn is_embedded(&self) -> bool {
        matches!(self, Self::Embedded(_))
    }

    /// `host:port`.
    pub(super) fn address(&self) -> String {
        match self {
            Self::Mosquitto(mosquitto) => mosquitto.address(),
            Self::Embedded(port) => format!("127.0.0.1:{port}"),
        }
    }

    pub(super) fn url(&self) -> String {
        format!("mqtt://{}", self.address())
    }

    /// The line in the configuration of the relay with this number.
    pub(super) fn setting(&self, relay: usize) -> String {
        match self {
            Self::Embedded(_) if relay == HOST => format!("listen = '{}'", self.address()),
            _ => format!("ingress = '{}'", self.url()),
        }
    }
}

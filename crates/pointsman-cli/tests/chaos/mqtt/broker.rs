//! The broker of a world, and which processes there are around it.

use pointsman_testkit::Mosquitto;

use crate::support::served::free_port;

/// The relay that has the embedded broker, where there is one.
pub(super) const HOST: usize = 0;

/// Which processes a world has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) has_embedded_broker: bool,
    pub(super) relays: usize,
}

impl Setup {
    /// Mosquitto, and two relays.
    pub(crate) const MOSQUITTO: Self = Self { has_embedded_broker: false, relays: 2 };

    /// One relay, with the embedded broker.
    pub(crate) const EMBEDDED: Self = Self { has_embedded_broker: true, relays: 1 };

    /// By the seed of a run: Mosquitto where it is odd, the embedded broker where it is even, with a second relay where it cannot be divided by 4.
    pub(super) fn of(seed: u64) -> Self {
        match seed % 4 {
            0 => Self::EMBEDDED,
            2 => Self { relays: 2, ..Self::EMBEDDED },
            _ => Self::MOSQUITTO,
        }
    }

    /// The other broker, with as many relays as that has usually.
    pub(crate) fn other(self) -> Self {
        if self.has_embedded_broker { Self::MOSQUITTO } else { Self::EMBEDDED }
    }
}

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

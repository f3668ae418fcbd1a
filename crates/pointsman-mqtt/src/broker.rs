//! The embedded broker (stand-in until it lands).

use tokio::io::DuplexStream;

/// A way into the broker.
#[derive(Debug, Clone)]
pub struct Handle;

impl Handle {
    /// An in-process client.
    #[must_use]
    pub fn connect(&self) -> DuplexStream {
        tokio::io::duplex(1 << 16).0
    }
}

/// A running broker.
#[derive(Debug)]
pub struct Broker;

impl Broker {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    /// A way in.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle
    }
}

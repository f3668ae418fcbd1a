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

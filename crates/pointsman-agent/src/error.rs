//! Why an agent cannot be.

use std::net::SocketAddr;

use pointsman_net::tls::TlsError;

/// Why an agent cannot be started, or cannot take new settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting cannot be.
    #[error("agent.{setting} {reason}")]
    Setting {
        /// Its name in a configuration file.
        setting: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A file that a setting names cannot be used.
    #[error("agent.{setting}: {0}", setting = .0.file.setting())]
    Tls(#[from] TlsError),
    /// The address is taken, or is none of this machine's.
    #[error("agent: listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The registry says no.
    #[error(transparent)]
    Registry(#[from] pointsman_registry::Error),
}

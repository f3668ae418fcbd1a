//! Why a proxy cannot run.

use std::io;
use std::net::SocketAddr;

use pointsman_net::tls::TlsError;

use crate::settings::Invalid;

/// Why a proxy cannot run, or cannot run as it is told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The settings are wrong.
    #[error("the proxy's settings: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Invalid>),
    /// A file of certificates or a private key cannot be used.
    #[error("{key}: {source}")]
    Tls {
        /// The setting that names the file, as in a configuration file: `tls_cert`, `services.ress.tls.ca`.
        key: String,
        /// What is wrong with the file.
        source: TlsError,
    },
    /// The address cannot be listened on.
    #[error("listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What went wrong.
        source: io::Error,
    },
    /// A thread cannot be started.
    #[error("start a thread of the proxy: {0}")]
    Thread(#[source] io::Error),
}

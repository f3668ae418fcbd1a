//! Why a file cannot be used for TLS.

use std::io;
use std::path::PathBuf;

/// Error of a PEM file that cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[error("{}: {reason}", .path.display())]
pub struct TlsError {
    /// The file that has to be changed, by the setting that names it.
    pub file: TlsFile,
    /// Its path.
    pub path: PathBuf,
    /// What is wrong, and what would be right.
    pub reason: String,
    /// The error of the system, if the file could not be read.
    #[source]
    pub source: Option<io::Error>,
}

/// The setting that names a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFile {
    /// The own certificate.
    Cert,
    /// The private key of the own certificate.
    Key,
    /// The authorities of clients.
    ClientCa,
    /// The authorities of servers.
    Ca,
}

impl TlsFile {
    /// The name of the setting in a configuration file.
    #[must_use]
    pub fn setting(self) -> &'static str {
        match self {
            TlsFile::Cert => "tls_cert",
            TlsFile::Key => "tls_key",
            TlsFile::ClientCa => "client_ca",
            TlsFile::Ca => "ca",
        }
    }
}

//! TLS configurations from PEM files.

mod error;
mod handshake;
mod pem;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto};

pub use self::error::{TlsError, TlsFile};
pub use self::handshake::{describe, describe_io, find};

use self::pem::Pem;

/// HTTP/1.1, as ALPN names it (RFC 7301, 6).
pub const HTTP_1_1: &[u8] = b"http/1.1";
/// HTTP/2, as ALPN names it (RFC 9113, 3.1).
pub const HTTP_2: &[u8] = b"h2";

/// PEM files of a server that speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// The server's certificate, followed by those that lead to its authority.
    pub cert: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// Certificates of the authorities that sign the clients' certificates. If set, a client without such a certificate is
    /// refused.
    pub client_ca: Option<PathBuf>,
}

/// PEM files of a client that speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTls {
    /// Certificates of the authorities that sign the servers' certificates.
    pub ca: PathBuf,
    /// The client's own certificate, if servers require one.
    pub identity: Option<Identity>,
}

/// PEM files by which a client proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, followed by those that lead to its authority.
    pub cert: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
}

impl ServerTls {
    /// Reads the files. To be called again when they have changed. `alpn` are the protocols that are offered, the preferred one
    /// first.
    ///
    /// # Errors
    ///
    /// [`TlsError`] names the file that cannot be used.
    pub fn load(&self, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
        let cert = Pem::read(TlsFile::Cert, &self.cert)?;
        let key = Pem::read(TlsFile::Key, &self.key)?;
        let (chain, private) = pem::pair(&cert, &key)?;
        let builder = ServerConfig::builder_with_provider(Arc::new(crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| cert.unusable(&error))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let pem = Pem::read(TlsFile::ClientCa, path)?;
                let provider = builder.crypto_provider().clone();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&pem)?), provider);
                builder.with_client_cert_verifier(verifier.build().map_err(|error| pem.unusable(&error))?)
            }
        };
        let mut config =
            builder.with_single_cert(chain, private).map_err(|error| pem::refused_pair(&cert, &key, &error))?;
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }
}

impl ClientTls {
    /// Reads the files. To be called again when they have changed. `alpn` are the protocols that are offered, the preferred one
    /// first.
    ///
    /// # Errors
    ///
    /// [`TlsError`] names the file that cannot be used.
    pub fn load(&self, alpn: &[&[u8]]) -> Result<ClientConfig, TlsError> {
        let ca = Pem::read(TlsFile::Ca, &self.ca)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| ca.unusable(&error))?
            .with_root_certificates(roots(&ca)?);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let cert = Pem::read(TlsFile::Cert, &identity.cert)?;
                let key = Pem::read(TlsFile::Key, &identity.key)?;
                let (chain, private) = pem::pair(&cert, &key)?;
                builder.with_client_auth_cert(chain, private).map_err(|error| pem::refused_pair(&cert, &key, &error))?
            }
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(config)
    }
}

/// The authorities in a file.
fn roots(pem: &Pem<'_>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in pem.certificates()? {
        roots.add(certificate).map_err(|error| pem.unusable(&error))?;
    }
    Ok(roots)
}

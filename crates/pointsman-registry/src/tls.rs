//! TLS towards a registry: from the files of its URL, and in words where it fails.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, Error as TlsError, RootCertStore, crypto,
};

use crate::{Error, Result};

/// TLS towards a registry, as its URL has it.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(crate) ca: PathBuf,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

/// What connects as the files say.
pub(crate) struct Connector {
    inner: TlsConnector,
    files: Tls,
}

impl Connector {
    /// Reads the files.
    pub(crate) fn new(files: &Tls) -> Result<Self> {
        Ok(Self { inner: connector(files)?, files: files.clone() })
    }

    /// Makes a connection to `address`, a `host:port`, secure.
    pub(crate) async fn connect(&self, address: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = server_name(address).ok_or(io::ErrorKind::InvalidInput)?;
        self.inner.connect(name, stream).await
    }

    /// What is wrong, where TLS is the reason of an error: each mistake in words of its own, with what would be right.
    pub(crate) fn explain(&self, error: &(dyn StdError + 'static), address: &str) -> Option<String> {
        explain(error, address, &self.files)
    }
}

/// Whether a certificate can have the host of `host:port` for a name.
pub(crate) fn is_certifiable(address: &str) -> bool {
    server_name(address).is_some()
}

fn connector(tls: &Tls) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&tls.ca)? {
        roots.add(certificate).map_err(|error| Error::file(&tls.ca, error))?;
    }
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Refused {
            step: "set up tls".to_owned(),
            reason: error.to_string(),
            source: Some(Arc::new(error)),
        })?
        .with_root_certificates(roots);
    let config = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| Error::file(key, error))?;
            builder.with_client_auth_cert(certificates(cert)?, private).map_err(|error| Error::file(cert, error))?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    read.map_err(|error| Error::file(path, error))
}

/// The host of `host:port`, without brackets.
fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']'])
}

/// The name that the server's certificate must have. `None`: no certificate can have it.
fn server_name(address: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(host(address).to_owned()).ok()
}

fn explain(error: &(dyn StdError + 'static), address: &str, tls: &Tls) -> Option<String> {
    let host = host(address);
    Some(match tls_error(error)?.clone() {
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            let ca = tls.ca.display();
            format!(
                "the server's certificate is not signed by an authority in {ca}: ca must be the file of the one that signed it"
            )
        }
        TlsError::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) => {
            format!(
                "the server's certificate is not for {host}, but for {}: use one of its names",
                presented.join(", ")
            )
        }
        TlsError::InvalidCertificate(CertificateError::NotValidForName) => {
            format!("the server's certificate is not for {host}: use one of its names")
        }
        TlsError::InvalidCertificate(reason) => format!("the server's certificate is refused: {reason}"),
        TlsError::AlertReceived(alert) if is_about_our_certificate(alert) => match &tls.cert {
            None => format!("the server wants a client certificate, and none is given: set cert and key ({alert:?})"),
            Some(cert) => format!("the server refuses the client certificate {} ({alert:?})", cert.display()),
        },
        TlsError::InvalidMessage(_) => "the server does not speak TLS on this port".to_owned(),
        error => format!("TLS: {error}"),
    })
}

/// Servers say it in several ways: TLS 1.2 knows no word for a missing certificate, and Java does not use that of 1.3.
fn is_about_our_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::NoCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::HandshakeFailure
    )
}

/// The error of TLS among an error and its sources.
fn tls_error<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e TlsError> {
    let mut next = Some(error);
    while let Some(error) = next {
        // What an I/O error is made of is not its source.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let inner = inner.map(|inner| inner as &(dyn StdError + 'static));
        if let Some(found) = [Some(error), inner].into_iter().flatten().find_map(<dyn StdError>::downcast_ref) {
            return Some(found);
        }
        next = inner.or_else(|| error.source());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mistake_has_words_of_its_own() {
        let tls = Tls { ca: "/x/ca.pem".into(), cert: None, key: None };
        let with = Tls { cert: Some("/x/cert.pem".into()), ..tls.clone() };
        let says = |error: TlsError, tls: &Tls| {
            explain(&io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error)), "h:1", tls).unwrap()
        };
        let alert = || TlsError::AlertReceived(AlertDescription::BadCertificate);
        let all = [
            says(TlsError::InvalidCertificate(CertificateError::UnknownIssuer), &tls),
            says(TlsError::InvalidCertificate(CertificateError::NotValidForName), &tls),
            says(TlsError::InvalidCertificate(CertificateError::Expired), &tls),
            says(alert(), &tls),
            says(alert(), &with),
        ];
        let words = ["/x/ca.pem", "not for h", "is refused", "set cert and key", "/x/cert.pem"];
        for (index, text) in all.iter().enumerate() {
            let right: Vec<_> = words.iter().filter(|word| text.contains(**word)).collect();
            assert_eq!(right, [&words[index]], "{text}");
        }
        assert_eq!(explain(&io::Error::from(io::ErrorKind::ConnectionReset), "h:1", &tls), None);
    }
}

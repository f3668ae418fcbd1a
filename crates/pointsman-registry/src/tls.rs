//! TLS towards a registry: from the files of its URL, and in words where it fails.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use pointsman_net::tls::{self, ClientTls, Identity};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{AlertDescription, CertificateError, ClientConfig, Error as TlsError};

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
        Ok(Self { inner: Arc::new(load(files)?).into(), files: files.clone() })
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

/// Checks that the files can be used.
pub(crate) fn check(tls: &Tls) -> Result<()> {
    load(tls).map(drop)
}

/// Reads the files, and says which of them cannot be used.
pub(crate) fn load(tls: &Tls) -> Result<ClientConfig> {
    let identity = tls.cert.clone().zip(tls.key.clone()).map(|(cert, key)| Identity { cert, key });
    ClientTls { ca: tls.ca.clone(), identity }.load(&[]).map_err(|error| Error::File {
        path: error.path.clone(),
        reason: error.reason.clone(),
        source: Some(Arc::new(error)),
    })
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
    Some(match tls::find(error)? {
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
        TlsError::AlertReceived(alert) if is_about_our_certificate(*alert) => match &tls.cert {
            None => format!("the server wants a client certificate, and none is given: set cert and key ({alert:?})"),
            Some(cert) => format!("the server refuses the client certificate {} ({alert:?})", cert.display()),
        },
        error => tls::describe(error),
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
            says(
                TlsError::InvalidCertificate(CertificateError::NotValidForNameContext {
                    expected: ServerName::try_from("h").unwrap(),
                    presented: vec!["x".to_owned()],
                }),
                &tls,
            ),
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

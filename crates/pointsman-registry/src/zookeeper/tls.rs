//! TLS towards an ensemble.

use zookeeper_client::{TlsCa, TlsCerts, TlsIdentity, TlsOptions};

use crate::tls::Tls;
use crate::url::ZooKeeperUrl;
use crate::{Error, Result};

/// TLS as the client crate takes it.
pub(super) fn options(settings: &ZooKeeperUrl, tls: &Tls) -> Result<TlsOptions> {
    // The client crate does not say which of the files is at fault.
    crate::tls::load(tls)?;
    let read = |path: &std::path::PathBuf| std::fs::read_to_string(path).map_err(|error| Error::file(path, error));
    let unusable = |what: &str, error: zookeeper_client::Error| Error::Url {
        url: format!("{settings:?}"),
        reason: format!("{what}: {error}"),
    };
    let ca = TlsCa::from_pem(&read(&tls.ca)?).map_err(|error| unusable("ca", error))?;
    let mut certs = TlsCerts::builder().with_ca(ca);
    if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
        let identity =
            TlsIdentity::from_pem(&read(cert)?, &read(key)?).map_err(|error| unusable("cert, key", error))?;
        certs = certs.with_identity(identity);
    }
    Ok(TlsOptions::new().with_certs(certs.build().map_err(|error| unusable("tls", error))?))
}

//! Certificates made on the fly.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// PEM files for a server that speaks TLS and its clients, all signed by one authority that exists for them alone.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// A certificate for clients.
    pub client_certificate: PathBuf,
    /// Its key.
    pub client_key: PathBuf,
    /// The server's key and certificate in one file, for `localhost` and 127.0.0.1.
    pub server: PathBuf,
}

impl TlsFiles {
    /// Makes them in a folder.
    ///
    /// # Panics
    /// When the folder cannot be written to.
    #[must_use]
    pub fn create(folder: &Path) -> TlsFiles {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Pointsman test authority");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let sign = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            let mut params = CertificateParams::new(names.clone()).unwrap();
            params.distinguished_name.push(DnType::CommonName, names[0].clone());
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &ca).unwrap();
            (certificate.pem(), key.serialize_pem())
        };
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (certificate, key) = sign(&["localhost", "127.0.0.1"]);
        let server = write("server.pem", format!("{key}\n{certificate}"));
        let (certificate, key) = sign(&["client"]);
        TlsFiles {
            ca: write("ca.pem", ca.pem()),
            client_certificate: write("client.pem", certificate),
            client_key: write("client-key.pem", key),
            server,
        }
    }

    /// Makes a certificate for `localhost` and 127.0.0.1 that has signed itself, and is its own authority, as `openssl req -x509`
    /// makes it: with its key in one file, `self-signed.pem`, in a folder.
    ///
    /// # Panics
    /// When the folder cannot be written to.
    #[must_use]
    pub fn self_signed(folder: &Path) -> PathBuf {
        let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let path = folder.join("self-signed.pem");
        fs::write(&path, format!("{}\n{}", key.serialize_pem(), certificate.pem())).unwrap();
        path
    }
}

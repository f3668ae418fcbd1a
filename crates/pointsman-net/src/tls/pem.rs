//! One PEM file: what is in it, and in words what is not.

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::Path;

use rustls::Error;
use rustls_pki_types::pem::{self, PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{TlsError, TlsFile, handshake};

/// The certificates and the private keys of a file.
pub(super) struct Pem<'a> {
    file: TlsFile,
    path: &'a Path,
    certificates: Vec<CertificateDer<'static>>,
    keys: Vec<PrivateKeyDer<'static>>,
    /// Why nothing was found, where the content tells.
    hint: Option<&'static str>,
}

impl<'a> Pem<'a> {
    pub(super) fn read(file: TlsFile, path: &'a Path) -> Result<Self, TlsError> {
        let mut it = Self { file, path, certificates: Vec::new(), keys: Vec::new(), hint: None };
        let text = fs::read(path).map_err(|error| it.unreadable(error))?;
        // Sections of either format for encrypted keys: PKCS #8 (RFC 5958), and the older one of RFC 1421.
        if contains(&text, b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || contains(&text, b"Proc-Type: 4,ENCRYPTED") {
            it.hint = Some(
                "the private key in it is encrypted: decrypt it, for instance with `openssl pkey -in FILE -out NEW_FILE`",
            );
            if file == TlsFile::Key {
                return Err(it.error("is an encrypted private key; it must be one without a passphrase, for instance from `openssl pkey -in FILE -out NEW_FILE`"));
            }
        } else if text.first() == Some(&0x30) {
            it.hint = Some(
                "it looks like DER: convert it to PEM, for instance with `openssl x509 -inform der` or `openssl pkey -inform der`",
            );
        }
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(&text) {
            let (kind, der) = section.map_err(|error| it.damaged(&error))?;
            if kind == SectionKind::Certificate {
                it.certificates.push(der.into());
            } else if let Some(key) = PrivateKeyDer::from_pem(kind, der) {
                it.keys.push(key);
            }
        }
        Ok(it)
    }

    /// The certificates, of which there is at least one.
    pub(super) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        if self.certificates.is_empty() { Err(self.lacks("certificate")) } else { Ok(self.certificates.clone()) }
    }

    fn lacks(&self, what: &str) -> TlsError {
        let reason = match self.hint {
            Some(hint) => format!("has no {what} in it; {hint}"),
            None if !self.keys.is_empty() => {
                format!("has a private key in it and no {what}; a PEM file with a {what} is needed")
            }
            None if !self.certificates.is_empty() => {
                format!("has a certificate in it and no {what}; a PEM file with a {what} is needed")
            }
            None => format!(
                "has no {what} in it; it must be a PEM file with a line \"-----BEGIN {}-----\"",
                what.to_uppercase()
            ),
        };
        self.error(reason)
    }

    /// The error of a file with a certificate or a key that rustls refuses.
    pub(super) fn unusable(&self, error: &dyn Display) -> TlsError {
        let what = if self.file == TlsFile::Key { "private key" } else { "certificate" };
        self.error(format!("has a {what} in it that cannot be used, and must be made anew: {error}"))
    }

    fn damaged(&self, error: &pem::Error) -> TlsError {
        self.error(format!("is a damaged PEM file, and must be copied or made anew: {error}"))
    }

    fn unreadable(&self, error: io::Error) -> TlsError {
        let reason = match error.kind() {
            io::ErrorKind::NotFound => "does not exist".to_owned(),
            io::ErrorKind::IsADirectory => "is a folder; name a file in it".to_owned(),
            io::ErrorKind::PermissionDenied => format!("must be readable by the user of this process: {error}"),
            _ => format!("cannot be read: {error}"),
        };
        TlsError { source: Some(error), ..self.error(reason) }
    }

    fn error(&self, reason: impl Into<String>) -> TlsError {
        TlsError { file: self.file, path: self.path.to_owned(), reason: reason.into(), source: None }
    }
}

/// The certificate chain of one file with the key of the other.
pub(super) fn pair(
    cert: &Pem<'_>,
    key: &Pem<'_>,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let are_swapped = cert.certificates.is_empty() && !cert.keys.is_empty() && key.keys.is_empty();
    if are_swapped && !key.certificates.is_empty() {
        return Err(cert
            .error(format!("is the private key, and {} the certificate: exchange cert and key", key.path.display())));
    }
    let chain = cert.certificates()?;
    let private = key.keys.first().ok_or_else(|| key.lacks("private key"))?;
    Ok((chain, private.clone_key()))
}

/// Says which file is at fault where rustls takes a certificate with its key for unusable.
pub(super) fn refused_pair(cert: &Pem<'_>, key: &Pem<'_>, error: &Error) -> TlsError {
    match error {
        Error::InconsistentKeys(_) => key.error(format!(
            "is not the private key of the certificate in {}; name the two files that were made together",
            cert.path.display()
        )),
        Error::InvalidCertificate(reason) => cert.unusable(&handshake::certificate(reason)),
        error => key.unusable(error),
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

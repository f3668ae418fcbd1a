//! What sections say of TLS towards clients.

use std::path::PathBuf;

use super::paths::{Folder, NamedFile};
use super::section::Section;

/// Certificate and key, and whose certificates clients must have, if they must.
#[derive(Debug)]
pub(super) struct TlsFiles {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) client_ca: Option<PathBuf>,
}

/// A file that is followed. What cannot be read is replaced by what has no problem, so that the others are checked too.
pub(super) fn file(
    section: &mut Section<'_>,
    key: &'static str,
    folder: &Folder,
    files: &mut Vec<NamedFile>,
) -> Option<PathBuf> {
    let path = section.text(key, "a PEM file", |text| {
        files.push(NamedFile::new(folder.path(text)));
        folder.readable(text)
    });
    path.or_else(|| section.has(key).then(|| folder.path("unreadable")))
}

/// `tls_cert`, `tls_key` and `client_ca`.
pub(super) fn read(section: &mut Section<'_>, folder: &Folder, files: &mut Vec<NamedFile>) -> Option<TlsFiles> {
    let mut file = |key| file(section, key, folder, files);
    let (cert, key, client_ca) = (file("tls_cert"), file("tls_key"), file("client_ca"));
    for (one, others, are_there) in [
        ("tls_cert", "tls_key", key.is_some()),
        ("tls_key", "tls_cert", cert.is_some()),
        ("client_ca", "tls_cert and tls_key", cert.is_some() && key.is_some()),
    ] {
        if section.has(one) && !are_there {
            section.wrong(one, format!("goes together with {others}"));
        }
    }
    cert.zip(key).map(|(cert, key)| TlsFiles { cert, key, client_ca })
}

//! The settings of TLS towards clients.

use std::path::PathBuf;

use super::section::Section;
use super::setting::{Change, Setting};
use super::values::file;

/// Certificate and key, and whose certificates clients must have, if they must.
#[derive(Debug, Default)]
pub(super) struct TlsFiles {
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
}

/// `tls_cert`, `tls_key` and `client_ca`, of a section whose files are `at`.
pub(super) fn settings<S: 'static>(at: fn(&mut S) -> &mut TlsFiles) -> [Setting<S>; 3] {
    [
        file("tls_cert", "a PEM file")
            .example("\"server.pem\"")
            .changes(Change::RestartIfAdded)
            .help("Certificate for TLS with its chain, a PEM file. `tls_key` goes with it.")
            .to(move |into, path| at(into).cert = Some(path)),
        file("tls_key", "a PEM file")
            .example("\"server.key\"")
            .changes(Change::With("tls_cert"))
            .help("Private key of `tls_cert`, a PEM file.")
            .to(move |into, path| at(into).key = Some(path)),
        file("client_ca", "a PEM file")
            .example("\"clients.pem\"")
            .changes(Change::With("tls_cert"))
            .help("Certificate authorities of clients, a PEM file: only clients with a certificate of one of them are served.")
            .to(move |into, path| at(into).client_ca = Some(path)),
    ]
}

impl TlsFiles {
    /// Certificate, key, and the authorities of clients; `None` without TLS. Notes what is missing beside what is there.
    pub(super) fn checked(self, section: &mut Section<'_>) -> Option<(PathBuf, PathBuf, Option<PathBuf>)> {
        let Self { cert, key, client_ca } = self;
        for (one, others, are_there) in [
            ("tls_cert", "tls_key", key.is_some()),
            ("tls_key", "tls_cert", cert.is_some()),
            ("client_ca", "tls_cert and tls_key", cert.is_some() && key.is_some()),
        ] {
            if section.has(one) && !are_there {
                section.wrong(one, format!("goes together with {others}"));
            }
        }
        let (cert, key) = cert.zip(key)?;
        Some((cert, key, client_ca))
    }
}

//! The settings of TLS towards clients.

use std::path::PathBuf;

use pointsman::proxy::Tls as ServerTls;

use super::section::Section;
use super::setting::{Change, Setting};
use super::values::file;

/// Certificate and key, and whose certificates clients must have, if they must.
#[derive(Debug, Default)]
pub(super) struct TlsFiles {
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
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
    /// Returns the files of the server, or `None` without TLS. Notes missing keys and files that cannot be used.
    pub(super) fn checked(self, section: &mut Section<'_>) -> Option<ServerTls> {
        let Self { cert, key, client_ca } = self;
        for (one, others, are_there) in [
            ("tls_cert", "tls_key", section.has("tls_key")),
            ("tls_key", "tls_cert", section.has("tls_cert")),
            ("client_ca", "tls_cert and tls_key", section.has("tls_cert") && section.has("tls_key")),
        ] {
            if section.has(one) && !are_there {
                section.wrong(one, format!("goes together with {others}"));
            }
        }
        let tls = ServerTls { cert: cert?, key: key?, client_ca };
        let is_read = !["tls_cert", "tls_key", "client_ca"].into_iter().any(|key| section.is_wrong(key));
        if is_read && let Err(error) = tls.load(&[]) {
            section.wrong(error.file.setting(), format!("cannot be used: {error}"));
        }
        Some(tls)
    }
}

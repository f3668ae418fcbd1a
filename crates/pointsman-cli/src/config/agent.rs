//! The section `[agent]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use pointsman::agent::{Limits, Settings, Tls, Token};

use super::credentials::{READ_TOKEN, Tokens, WRITE_TOKEN};
use super::paths::{Folder, NamedFile};
use super::problem::Fault;
use super::registries::Urls;
use super::section::Section;
use super::tls::{self, TlsFiles};

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7480);
/// More than any machine has connections or memory for.
const MOST: usize = 10_000_000;

/// Reads the section, and the URL of the agent's registry, if it has one of its own. What is wrong with it goes to `faults`; then the settings are not fit for use. Tokens and certificates, which
/// are to be read again when they change, are added to `files`.
pub(super) fn read(
    mut section: Section<'_>,
    folder: &Folder,
    urls: &mut Urls<'_>,
    tokens: &Tokens,
    faults: &mut Vec<Fault>,
    files: &mut Vec<NamedFile>,
) -> (Settings, Option<String>) {
    let registry = urls.read(&mut section, "registry");
    let mut settings = Settings::new(section.address("listen", "127.0.0.1:7480").unwrap_or(LISTEN));
    let hosts = section.texts("hosts", "a name by which clients reach the agent", host).unwrap_or_default();
    settings.hosts = hosts.into_iter().flatten().collect();
    let mut token = |key, variable| token(&mut section, key, variable, folder, files);
    settings.read_token = token("read_token_file", (READ_TOKEN, tokens.read.as_deref()));
    settings.write_token = token("write_token_file", (WRITE_TOKEN, tokens.write.as_deref()));
    let tls = tls::read(&mut section, folder, files);
    settings.tls = tls.map(|TlsFiles { cert, key, client_ca }| Tls { cert, key, client_ca });
    settings.limits = limits(&mut section);
    settings.go_micro_service = section.flag("go_micro_service").unwrap_or_default();
    for (key, reason) in settings.problems() {
        section.wrong(key, reason);
    }
    if !settings.is_on_loopback() && settings.write_token.is_some() && settings.tls.is_none() {
        section
            .warn("listen", "is not on loopback: without tls_cert and tls_key tokens go over the network as they are");
    }
    faults.extend(section.finish());
    (settings, registry)
}

/// A name or an IP address.
fn host(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if is_name || text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return Ok(text.trim_matches(['[', ']']).to_owned());
    }
    Err(format!("{text:?} is no host; write for example \"agent.example\", without a scheme and without a port"))
}

/// Of the file that the key names, or else of the environment.
fn token(
    section: &mut Section<'_>,
    key: &'static str,
    (variable, value): (&str, Option<&str>),
    folder: &Folder,
    files: &mut Vec<NamedFile>,
) -> Option<Token> {
    let read = section.text(key, "a file with a token in it", |text| {
        files.push(NamedFile::new(folder.path(text)));
        let path = folder.readable(text)?;
        let fail = |error: String| format!("{} cannot be used: {error}", path.display());
        let token = std::fs::read_to_string(&path).map_err(|error| fail(error.to_string()))?;
        Token::new(&token).map_err(|error| fail(error.to_string()))
    });
    if section.has(key) {
        // What cannot be read is replaced by what has no problem, so that the others are checked too.
        return read.or_else(|| Token::new(&format!("{:032x}", fastrand::u128(..))).ok());
    }
    match Token::new(value?) {
        Ok(token) => Some(token),
        Err(reason) => {
            section.wrong(key, format!("is not named, and {variable} cannot be used instead: {reason}"));
            None
        }
    }
}

fn limits(section: &mut Section<'_>) -> Limits {
    let mut limits = Limits::default();
    let has_watchers = section.has("max_watchers");
    for (key, limit) in [
        ("max_connections", &mut limits.connections),
        ("max_watchers", &mut limits.watchers),
        ("max_registrations", &mut limits.registrations),
        ("max_claims", &mut limits.claims),
    ] {
        match section.count(key) {
            None => {}
            Some(0) => section.wrong(key, "is 0: then nobody is served"),
            Some(count) if count > MOST => section.wrong(key, format!("is more than {MOST}")),
            Some(count) => *limit = count,
        }
    }
    if !has_watchers {
        // Streams must leave connections for everything else.
        limits.watchers = limits.watchers.min((limits.connections / 4 * 3).max(1));
    } else if limits.watchers >= limits.connections {
        section.warn(
            "max_watchers",
            "lets streams take every connection that max_connections allows: then nobody else is answered",
        );
    }
    if let Some(time) = section.positive_duration("write_timeout", "3s") {
        limits.write_time = time;
    }
    limits
}

//! The configuration file: read, checked, and what came of it.
//!
//! | question | file |
//! |---|---|
//! | which sections there are | here |
//! | what `[agent]` may say | `config/agent.rs` |
//! | what `[http]` may say | `config/http.rs` |
//! | what `[mqtt]` may say | `config/mqtt.rs` |
//! | which registries are named, and for what | `config/registries.rs` |
//! | what sections say of TLS towards clients | `config/tls.rs` |
//! | how a table is read key by key | `config/section.rs` |
//! | where in the file something is | `config/document.rs` |
//! | how a problem is told | `config/problem.rs` |
//! | what a path is relative to | `config/paths.rs` |
//! | what the environment says beside the file | `config/credentials.rs` |

mod agent;
pub(crate) mod credentials;
mod document;
pub(crate) mod http;
mod mqtt;
mod paths;
pub(crate) mod problem;
mod registries;
mod section;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

pub(crate) use self::http::Http;
pub(crate) use self::mqtt::{Listen, Mqtt};
pub(crate) use self::paths::NamedFile;
pub(crate) use self::problem::Problem;
pub(crate) use self::registries::{SectionRegistries, leads_to, shown};

use self::credentials::Tokens;
use self::document::Document;
use self::paths::Folder;
use self::problem::Fault;
use self::registries::Urls;
use self::section::Section;

/// What a file says, once nothing is wrong with it.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// The URL of the registry of every section that has none of its own.
    pub(crate) registry: Option<String>,
    pub(crate) agent: Option<pointsman::agent::Settings>,
    /// The URL of the registry that the agent is of, where it is not the file's.
    pub(crate) agent_registry: Option<String>,
    pub(crate) http: Option<Http>,
    pub(crate) mqtt: Option<Mqtt>,
    /// Where metrics are served.
    pub(crate) metrics: Option<SocketAddr>,
}

/// What came of reading a file.
#[derive(Debug)]
pub(crate) struct Checked {
    /// `None` if one of the problems is an error.
    pub(crate) config: Option<Config>,
    /// In the order of the file.
    pub(crate) problems: Vec<Problem>,
    /// What else has been read, and is to be read again when it changes.
    pub(crate) files: Vec<NamedFile>,
}

impl Checked {
    /// Reads what the file at `path` holds; `tokens` are those of the environment. Finds everything that is wrong, except that
    /// what is no TOML ends the reading.
    pub(crate) fn read(path: &Path, bytes: &[u8], tokens: &Tokens) -> Self {
        let folder = Folder::of(path);
        let read = || {
            let text = std::str::from_utf8(bytes).map_err(|error| document::not_text(bytes, error))?;
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            Document::parse(text).map(|document| sections(&document, &folder, tokens))
        };
        match read() {
            Ok(checked) => checked,
            Err(problem) => Self { config: None, problems: vec![problem], files: Vec::new() },
        }
    }
}

fn sections(document: &Document<'_>, folder: &Folder, tokens: &Tokens) -> Checked {
    let mut file = Section::new("", document.root(), 0..0);
    let mut urls = Urls::new(folder);
    let registry = urls.read(&mut file, "registry");
    let (mut faults, mut files) = (Vec::new(), Vec::new());
    let agent = file
        .section("agent", "a table, [agent]")
        .map(|section| agent::read(section, folder, &mut urls, tokens, &mut faults, &mut files));
    let (agent, agent_registry) = agent.map_or((None, None), |(agent, registry)| (Some(agent), registry));
    let http = file
        .section("http", "a table, [http]")
        .map(|section| http::read(section, document, (folder, &mut urls), &mut faults, &mut files));
    let mqtt = file
        .section("mqtt", "a table, [mqtt]")
        .map(|section| mqtt::read(section, document, (folder, &mut urls), &mut faults));
    let metrics = file.section("metrics", "a table, [metrics]").and_then(|section| metrics(section, &mut faults));
    file.absorb(faults);
    if !["agent", "http"].into_iter().any(|key| file.has(key) || file.is_misspelt(key)) {
        file.require("mqtt", "[mqtt] with a [[mqtt.route]]; and no agent, such as [agent]");
    }
    let of_sections = [http.as_ref().map(|http| &http.registries), mqtt.as_ref().map(|mqtt| &mqtt.registries)];
    note_missing_registry(&mut file, &of_sections);
    file.absorb(urls.faults(document, agent.as_ref().map(|agent| agent.listen)));
    check_listeners(
        &mut file,
        &[
            ("agent", "the agent", agent.as_ref().map(|agent| agent.listen)),
            ("http", "the proxy", http.as_ref().map(|http| http.settings.listen)),
            ("mqtt", "the embedded broker", mqtt.as_ref().and_then(|mqtt| Some(mqtt.listen.as_ref()?.address))),
            ("metrics", "metrics", metrics),
        ],
    );
    let mut problems: Vec<_> = file.finish().into_iter().map(|fault| document.place(fault)).collect();
    problems.sort_by_key(|problem| (problem.line, problem.column));
    let sound = !problems.iter().any(Problem::is_error);
    Checked {
        config: sound.then_some(Config { registry, agent, agent_registry, http, mqtt, metrics }),
        problems,
        files,
    }
}

/// No two may listen at one place.
fn check_listeners(file: &mut Section<'_>, listeners: &[(&str, &str, Option<SocketAddr>)]) {
    let clash = |one: SocketAddr, other: SocketAddr| {
        let same = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
        one.port() == other.port() && one.port() != 0 && same
    };
    for (index, &(key, _, address)) in listeners.iter().enumerate() {
        let there = |&&(_, _, other): &&(_, _, Option<SocketAddr>)| {
            address.zip(other).is_some_and(|(address, other)| clash(address, other))
        };
        if let Some((_, what, _)) = listeners[..index].iter().find(there) {
            file.wrong(key, format!("listens where {what} does; choose another port"));
        }
    }
}

/// Notes that the file has no registry, where a section needs one.
fn note_missing_registry(file: &mut Section<'_>, sections: &[Option<&SectionRegistries>]) {
    // An agent may be the registry itself.
    let is_needed = sections.iter().flatten().any(|section| section.own.is_none());
    if is_needed && !file.has("agent") && !file.has("registry") {
        file.warn("registry", "is not named: it must then be by --registry or POINTSMAN_REGISTRY");
    }
}

fn metrics(mut section: Section<'_>, faults: &mut Vec<Fault>) -> Option<SocketAddr> {
    section.require("listen", "listen = \"127.0.0.1:7483\"");
    let address = section.address("listen", "127.0.0.1:7483");
    if address.is_some_and(|address| !is_loopback(address.ip())) {
        section.wrong("listen", "is not on loopback: metrics are served to everybody who asks; use 127.0.0.1 or ::1");
    }
    faults.extend(section.finish());
    address
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests;

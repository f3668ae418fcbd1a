//! The configuration file: read, checked, and what came of it.
//!
//! | question | file |
//! |---|---|
//! | which sections there are | here |
//! | what `[agent]` may say | `config/agent.rs` |
//! | what `[http]` may say | `config/http.rs` |
//! | what `[mqtt]` may say | `config/mqtt.rs` |
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
mod section;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use pointsman::Registry;

pub(crate) use self::http::Http;
pub(crate) use self::mqtt::{Listen, Mqtt};
pub(crate) use self::paths::NamedFile;
pub(crate) use self::problem::Problem;

use self::credentials::Tokens;
use self::document::Document;
use self::paths::Folder;
use self::problem::Fault;
use self::section::Section;

/// What a file says, once nothing is wrong with it.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// The registry's URL.
    pub(crate) registry: Option<String>,
    pub(crate) agent: Option<pointsman::agent::Settings>,
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

const REGISTRY: &str = "a registry's url, such as \"zookeeper://127.0.0.1:2181/micro-service\"";

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
    let registry = registry(&mut file, folder);
    let (mut faults, mut files) = (Vec::new(), Vec::new());
    let agent = file
        .section("agent", "a table, [agent]")
        .map(|section| agent::read(section, folder, tokens, &mut faults, &mut files));
    let http = file
        .section("http", "a table, [http]")
        .map(|section| http::read(section, document, folder, &mut faults, &mut files));
    let mqtt =
        file.section("mqtt", "a table, [mqtt]").map(|section| mqtt::read(section, document, folder, &mut faults));
    let metrics = file.section("metrics", "a table, [metrics]").and_then(|section| metrics(section, &mut faults));
    file.absorb(faults);
    if !["agent", "http"].into_iter().any(|key| file.has(key) || file.is_misspelt(key)) {
        file.require("mqtt", "[mqtt] with a [[mqtt.route]]; and no agent, such as [agent]");
    }
    if let (Some(url), Some(agent)) = (&registry, &agent)
        && leads_to(url, agent.listen)
    {
        file.wrong(
            "registry",
            "is this agent itself; leave it out for an agent that keeps what is registered in its memory",
        );
    }
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
    Checked { config: sound.then_some(Config { registry, agent, http, mqtt, metrics }), problems, files }
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

fn registry(file: &mut Section<'_>, folder: &Folder) -> Option<String> {
    let registry = file.text("registry", REGISTRY, |text| {
        let url = folder.url(text, &["auth_file", "ca", "cert", "key", "snapshots", "token_file"]);
        Registry::builder(&url).check().map_err(|error| error.to_string()).map(|()| url)
    });
    if file.has("agent") {
        // An agent may be the registry itself.
    } else if !file.has("registry") {
        file.warn("registry", "is not named: it must then be by --registry or POINTSMAN_REGISTRY");
    } else if registry.as_ref().is_some_and(|url| url.starts_with("memory:")) {
        file.warn("registry", "is within the process that serves: no service of another process can register there");
    }
    registry
}

/// The registry of an agent where none is named: the agent itself.
const OF_AGENT: &str = "memory://";

impl Config {
    /// The registry that is used: what a flag names comes first, then what the file names.
    pub(crate) fn registry(&self, flag: Option<&str>) -> Option<String> {
        let of_agent = || self.agent.as_ref().map(|_| OF_AGENT);
        flag.or(self.registry.as_deref()).or_else(of_agent).map(str::to_owned)
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

/// Whether a registry's URL leads to an agent that listens here.
pub(crate) fn leads_to(url: &str, listen: SocketAddr) -> bool {
    let Some((_, place)) = url.split_once("://").filter(|(scheme, _)| scheme.starts_with("http")) else { return false };
    let place = place.split(['/', '?']).next().unwrap_or_default();
    let leads_there = |host: &str| {
        let on_loopback = host.strip_prefix("localhost:").is_some_and(|port| port == listen.port().to_string());
        on_loopback || host.parse() == Ok(listen)
    };
    place.split(',').any(leads_there)
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests;

//! The configuration file: read, checked, and what came of it.
//!
//! | question | file |
//! |---|---|
//! | which sections there are | here |
//! | what `[agent]` may say | `config/agent.rs` |
//! | what `[http]` may say | `config/http.rs` |
//! | what `[mqtt]` may say | `config/mqtt.rs` |
//! | which registries are named, and for what | `config/registries.rs` |
//! | what the reading needs and gathers | `config/context.rs` |
//! | what sections say of TLS towards clients | `config/tls.rs` |
//! | how a setting is described, and which types of values there are | `config/setting.rs`, `config/values.rs` |
//! | what the command line says besides | `config/overrides.rs` |
//! | how the settings are told: `pointsman config`, documents | `config/reference.rs` |
//! | why a line is not TOML | `config/syntax.rs` |
//! | what of a new file takes a restart | `config/reload.rs` |
//! | how a table is read key by key | `config/section.rs` |
//! | where in the file something is | `config/document.rs` |
//! | how a problem is told | `config/problem.rs` |
//! | what a path is relative to | `config/paths.rs` |
//! | what `check` and `serve` read a file with | `config/surroundings.rs` |
//! | what the environment says beside the file | `config/credentials.rs` |

mod agent;
mod context;
pub(crate) mod credentials;
mod document;
pub(crate) mod http;
mod mqtt;
mod overrides;
mod paths;
pub(crate) mod problem;
pub(crate) mod reference;
mod registries;
mod reload;
mod section;
pub(crate) mod setting;
mod surroundings;
mod syntax;
mod tls;
mod values;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

pub(crate) use self::http::Http;
pub(crate) use self::mqtt::{Listen, Mqtt};
pub(crate) use self::paths::{NamedFile, check_socket};
pub(crate) use self::problem::Problem;
pub(crate) use self::registries::{SectionRegistries, leads_to, shown};
pub(crate) use self::reload::Plan;
pub(crate) use self::surroundings::Surroundings;

use self::context::Context;
use self::credentials::Tokens;
use self::document::{Document, Text};
use self::paths::Folder;
use self::problem::Fault;
use self::section::Section;
use self::setting::{About, Draft, Setting, abouts};
use self::values::{address, registry, section};

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
    source: Source,
}

/// Source of a configuration.
#[derive(Clone)]
pub(crate) struct Source {
    /// The file; `None` where everything is on the command line.
    path: Option<PathBuf>,
    /// Its content, with the settings of the command line.
    table: toml::Table,
}

/// Secrets may be in it.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("path", &self.path).finish_non_exhaustive()
    }
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
    /// Reads what the file at `path` holds, with the settings of the command line, `KEY=VALUE` each, which beat the file's; `tokens`
    /// are those of the environment. Without a file, paths are relative to the working directory. Finds everything that is wrong,
    /// except that what is not TOML ends the reading.
    pub(crate) fn read(path: Option<&Path>, bytes: &[u8], sets: &[String], tokens: &Tokens) -> Self {
        let read = || {
            let text = Text::new(bytes, sets)?;
            let document = Document::parse(&text)?;
            Ok(sections(&document, path, tokens))
        };
        read().unwrap_or_else(|problem: Box<Problem>| Self {
            config: None,
            problems: vec![*problem],
            files: Vec::new(),
        })
    }
}

/// The file, while it is read.
#[derive(Debug, Default)]
struct Reading {
    registry: Option<String>,
    agent: Option<pointsman::agent::Settings>,
    agent_registry: Option<String>,
    http: Option<Http>,
    mqtt: Option<Mqtt>,
    metrics: Option<SocketAddr>,
}

/// The settings of a file.
fn settings() -> Vec<Setting<Reading>> {
    vec![
        registry("registry")
            .default("that of `--registry`, or the agent's")
            .help("URL of the registry of every section that names none.")
            .to(|it: &mut Reading, url| it.registry = Some(url)),
        agent::section().to(|it: &mut Reading, (agent, registry)| {
            (it.agent, it.agent_registry) = (Some(agent), registry);
        }),
        http::section().to(|it: &mut Reading, http| it.http = Some(http)),
        mqtt::section().to(|it: &mut Reading, mqtt| it.mqtt = Some(mqtt)),
        metrics().to(|it: &mut Reading, address| it.metrics = address),
    ]
}

/// Returns the description of each setting of a file.
pub(crate) fn settings_of_file() -> Vec<About> {
    abouts(&settings())
}

fn sections(document: &Document<'_>, path: Option<&Path>, tokens: &Tokens) -> Checked {
    let folder = path.map_or_else(Folder::working, Folder::of);
    let mut file = Section::new("", document.root(), 0..0);
    let mut context = Context::new(document, &folder, tokens);
    let mut read = Reading::default();
    setting::read(&settings(), &mut file, &mut context, &mut read);
    let Reading { registry, agent, agent_registry, http, mqtt, metrics } = read;
    if !["agent", "http", "mqtt"].into_iter().any(|key| file.has(key) || file.is_misspelt(key)) {
        let message =
            "there is no section, so nothing would run; write for example [agent], or see `pointsman config sample`";
        file.absorb(vec![Fault::error("", 0..0, message.to_owned())]);
    }
    let of_sections = [http.as_ref().map(|http| &http.registries), mqtt.as_ref().map(|mqtt| &mqtt.registries)];
    note_missing_registry(&mut file, &of_sections);
    file.absorb(registries::faults(&context.urls, document, agent.as_ref().map(|agent| agent.listen)));
    check_listeners(
        &mut file,
        &[
            ("agent", "the agent", agent.as_ref().map(|agent| agent.listen)),
            ("http", "the proxy", http.as_ref().map(|http| http.settings.listen)),
            ("mqtt", "the embedded broker", mqtt.as_ref().and_then(|mqtt| Some(mqtt.listen.as_ref()?.address))),
            ("metrics", "metrics", metrics),
        ],
    );
    let table = document.table();
    if let (true, Err(fault)) = (file.is_sound(), &table) {
        file.absorb(vec![fault.clone()]);
    }
    let mut problems: Vec<_> = file.finish().into_iter().map(|fault| document.place(fault)).collect();
    problems.sort_by_key(|problem| (problem.set.is_some(), problem.line, problem.column));
    let table = table.ok().filter(|_| !problems.iter().any(Problem::is_error));
    let config = table.map(|table| {
        let source = Source { path: path.map(Path::to_owned), table };
        Config { registry, agent, agent_registry, http, mqtt, metrics, source }
    });
    Checked { config, problems, files: context.files }
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

/// The section `[metrics]`.
fn metrics() -> Draft<Option<SocketAddr>> {
    let settings = vec![
        address("listen")
            .example("\"127.0.0.1:7483\"")
            .required()
            .restart()
            .help("Loopback address and port at which metrics are served without an agent.")
            .to(|it: &mut Option<SocketAddr>, address| *it = Some(address)),
    ];
    section(
        "metrics",
        settings,
        || None,
        |section, address, _| {
            if address.is_some_and(|address| !is_loopback(address.ip())) {
                let reason = "is not on loopback: metrics are served to every client; use 127.0.0.1 or ::1";
                section.wrong("listen", reason);
            }
            address
        },
    )
    .example("[metrics]")
    .help("Where metrics are served without an agent.")
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests;

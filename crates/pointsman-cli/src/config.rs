//! The configuration file: read, checked, and what came of it.
//!
//! | question | file |
//! |---|---|
//! | which sections there are | here |
//! | what `[mqtt]` may say | `config/mqtt.rs` |
//! | how a table is read key by key | `config/section.rs` |
//! | where in the file something is | `config/document.rs` |
//! | how a problem is told | `config/problem.rs` |
//! | what a path is relative to | `config/paths.rs` |
//! | what the environment says beside the file | `config/credentials.rs` |

pub(crate) mod credentials;
mod document;
mod mqtt;
mod paths;
pub(crate) mod problem;
mod section;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use pointsman::Registry;

pub(crate) use self::mqtt::{Listen, Mqtt};
pub(crate) use self::problem::Problem;

use self::document::Document;
use self::paths::Folder;
use self::problem::Fault;
use self::section::Section;

/// What a file says, once nothing is wrong with it.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// The registry's URL.
    pub(crate) registry: Option<String>,
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
}

const REGISTRY: &str = "a registry's url, such as \"zookeeper://127.0.0.1:2181/micro-service\"";

impl Checked {
    /// Reads what the file at `path` holds. Finds everything that is wrong, except that what is no TOML ends the reading.
    pub(crate) fn read(path: &Path, bytes: &[u8]) -> Self {
        let folder = Folder::of(path);
        let read = || {
            let text = std::str::from_utf8(bytes).map_err(|error| document::not_text(bytes, error))?;
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            Document::parse(text).map(|document| sections(&document, &folder))
        };
        match read() {
            Ok(checked) => checked,
            Err(problem) => Self { config: None, problems: vec![problem] },
        }
    }
}

fn sections(document: &Document<'_>, folder: &Folder) -> Checked {
    let mut file = Section::new("", document.root(), 0..0);
    let registry = registry(&mut file, folder);
    let mut faults = Vec::new();
    let mqtt =
        file.section("mqtt", "a table, [mqtt]").map(|section| mqtt::read(section, document, folder, &mut faults));
    let metrics = file.section("metrics", "a table, [metrics]").and_then(|section| metrics(section, &mut faults));
    file.absorb(faults);
    let later = [("agent", "the agent is"), ("http", "the proxy is")];
    for (key, what) in later {
        if file.read(key, "a table", |_| Some(Ok(()))).is_some() {
            file.wrong(key, format!("cannot be served: {what} not in this version yet; leave the section out"));
        }
    }
    if !later.iter().any(|(key, _)| file.has(key)) {
        file.require("mqtt", "[mqtt] with a [[mqtt.route]]");
    }
    let broker = mqtt.as_ref().and_then(|mqtt| mqtt.listen.as_ref()).map(|listen| listen.address);
    if metrics.is_some() && metrics == broker {
        file.wrong("metrics", "listens where the embedded broker does; choose another port");
    }
    let mut problems: Vec<_> = file.finish().into_iter().map(|fault| document.place(fault)).collect();
    problems.sort_by_key(|problem| (problem.line, problem.column));
    let sound = !problems.iter().any(Problem::is_error);
    Checked { config: sound.then_some(Config { registry, mqtt, metrics }), problems }
}

fn registry(file: &mut Section<'_>, folder: &Folder) -> Option<String> {
    let registry = file.text("registry", REGISTRY, |text| {
        let url = folder.url(text, &["auth_file", "ca", "cert", "key", "snapshots"]);
        Registry::builder(&url).check().map_err(|error| error.to_string()).map(|()| url)
    });
    if !file.has("registry") {
        file.warn("registry", "is not named: it must then be by --registry or POINTSMAN_REGISTRY");
    } else if registry.as_ref().is_some_and(|url| url.starts_with("memory:")) {
        file.warn("registry", "is within the process that serves: no service of another process can register there");
    }
    registry
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

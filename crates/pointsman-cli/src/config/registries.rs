//! Which registries a file names, and for what.
//!
//! The file's `registry` is the default. A section may find its services in another (`registry`), each of its routes in a third, and it
//! may itself register elsewhere (`register_in`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use pointsman::Registry;

use super::document::Document;
use super::problem::Fault;
use super::section::Section;
use super::setting::{Change, Setting};
use super::values::registry;
use super::{Config, Http, Mqtt};

/// The registries of a section, by their URLs.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct SectionRegistries {
    /// Where its services are found; `None`: in the file's registry.
    pub(crate) own: Option<String>,
    /// Where it registers itself; `None`: in its own.
    pub(crate) register_in: Option<String>,
    /// Those of its routes, by the names under which the routes know them: the URLs without their secrets.
    pub(crate) named: BTreeMap<Arc<str>, String>,
}

/// URLs may have passwords in them.
impl fmt::Debug for SectionRegistries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = |url: &Option<String>| url.as_deref().map(shown);
        f.debug_struct("SectionRegistries")
            .field("own", &url(&self.own))
            .field("register_in", &url(&self.register_in))
            .field("named", &self.named.keys())
            .finish()
    }
}

/// `registry` and `register_in`, of a section whose registries are `at`.
pub(super) fn settings<S: 'static>(at: fn(&mut S) -> &mut SectionRegistries) -> [Setting<S>; 2] {
    [
        registry("registry")
            .default("the file's")
            .help(
                "URL of the registry in which the services of this section are found. \
                 [Several registries](http.md#several-registries).",
            )
            .to(move |into, url| at(into).own = Some(url)),
        registry("register_in")
            .default("`registry`")
            .changes(Change::RestartOfInherited)
            .help("URL of the registry in which the section registers itself.")
            .to(move |into, url| at(into).register_in = Some(url)),
    ]
}

/// Returns the problems that URLs have because of the other URLs, and of `agent`, in the same file.
pub(super) fn faults(urls: &[(String, String)], document: &Document<'_>, agent: Option<SocketAddr>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (index, (key, url)) in urls.iter().enumerate() {
        let fault = |reason: String| Fault::error(key.clone(), document.span(key), format!("{key} {reason}"));
        if agent.is_some_and(|listen| leads_to(url, listen)) {
            faults.push(fault(match key.as_str() {
                "registry" | "agent.registry" => {
                    "is this agent itself; leave it out for an agent that keeps what is registered in \
                                                      its memory"
                        .to_owned()
                }
                _ => "is the agent of this file; name the registry that the agent has, or leave it out".to_owned(),
            }));
        } else if agent.is_none() && url.starts_with("memory:") {
            let reason = "is within the process that serves: no service of another process can register there";
            faults.push(Fault::warning(key.clone(), document.span(key), format!("{key} {reason}")));
        }
        if let Some((other, _)) = urls[..index].iter().find(|(_, other)| are_alike(url, other)) {
            faults.push(fault(format!("{LIKE} {other}, but has another password or token; {ADVICE}")));
        }
    }
    faults
}

const LIKE: &str = "names the registry of";
const ADVICE: &str = "use the same in both, or give one by auth_file or token_file";

/// Returns whether two URLs differ only in their secrets, which are not shown: logs and metrics could not tell the two registries apart.
fn are_alike(url: &str, other: &str) -> bool {
    url != other && shown(url) == shown(other)
}

/// A URL without its secrets.
pub(crate) fn shown(url: &str) -> String {
    Registry::builder(url).shown_url()
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

/// The registry of an agent where none is named: the agent itself.
const OF_AGENT: &str = "memory://";

impl Config {
    /// The registry of whatever names none: that of the flag comes first, then that of the file, then the agent's.
    pub(crate) fn registry(&self, flag: Option<&str>) -> Option<String> {
        let of_agent = || self.agent.as_ref().map(|_| self.agent_registry.as_deref().unwrap_or(OF_AGENT));
        flag.or(self.registry.as_deref()).or_else(of_agent).map(str::to_owned)
    }

    /// Says of each section which registries it uses, where the file leaves that to the default, or to the flag.
    ///
    /// # Errors
    ///
    /// If the flag names what the file names as well, with another password.
    pub(crate) fn resolved(mut self, flag: Option<&str>) -> Result<Self, String> {
        let default = self.registry(flag);
        if self.agent.is_some() {
            self.agent_registry = self.agent_registry.or_else(|| default.clone());
        }
        if let Some(Http { settings, registries, register_as, .. }) = &mut self.http {
            registries.resolve(default.as_deref(), register_as.is_some());
            for route in &mut settings.routes {
                if let pointsman::proxy::Action::Pass(pass) = &mut route.action {
                    registries.name_no_own(&mut pass.registry);
                }
            }
        }
        if let Some(Mqtt { settings, registries, register_as, .. }) = &mut self.mqtt {
            registries.resolve(default.as_deref(), register_as.is_some());
            settings.routes.iter_mut().for_each(|route| registries.name_no_own(&mut route.registry));
        }
        self.registry = default;
        let urls = self.registries();
        if let Some(flag) = flag
            && urls.iter().any(|url| are_alike(url, flag))
        {
            return Err(format!("--registry {LIKE} the file, but has another password or token; {ADVICE}"));
        }
        Ok(self)
    }

    /// The URLs of all registries that the sections use, once they are [resolved](Config::resolved).
    pub(crate) fn registries(&self) -> BTreeSet<String> {
        let http = self.http.as_ref().map(|http| &http.registries);
        let mqtt = self.mqtt.as_ref().map(|mqtt| &mqtt.registries);
        let of_sections = http.into_iter().chain(mqtt).flat_map(SectionRegistries::urls);
        of_sections.chain(&self.agent_registry).cloned().collect()
    }

    /// Whether some section has no registry, once they are [resolved](Config::resolved).
    pub(crate) fn lacks_a_registry(&self) -> bool {
        let lacks = |registries: &SectionRegistries| registries.own.is_none();
        self.http.as_ref().is_some_and(|http| lacks(&http.registries))
            || self.mqtt.as_ref().is_some_and(|mqtt| lacks(&mqtt.registries))
    }
}

impl SectionRegistries {
    /// The name by which a route knows its registry.
    pub(super) fn name(&mut self, url: String) -> Arc<str> {
        let name = Arc::<str>::from(shown(&url));
        self.named.insert(name.clone(), url);
        name
    }

    /// Notes a registry that has no effect.
    pub(super) fn check(&self, section: &mut Section<'_>) {
        if section.has("register_in") && !section.has("register_as") {
            section.warn("register_in", "has no effect: without register_as nothing registers there");
        }
    }

    fn resolve(&mut self, default: Option<&str>, registers: bool) {
        let own = self.own.take().or_else(|| default.map(str::to_owned));
        self.register_in = self.register_in.take().or_else(|| own.clone()).filter(|_| registers);
        self.named.retain(|_, url| Some(&*url) != own.as_ref());
        self.own = own;
    }

    /// Takes the name of a registry from a route that is the section's own.
    fn name_no_own(&self, route: &mut Option<Arc<str>>) {
        if route.as_ref().is_some_and(|name| !self.named.contains_key(name)) {
            *route = None;
        }
    }

    fn urls(&self) -> impl Iterator<Item = &String> {
        self.own.iter().chain(&self.register_in).chain(self.named.values())
    }
}

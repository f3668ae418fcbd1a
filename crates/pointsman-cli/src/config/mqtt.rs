//! The section `[mqtt]`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pointsman::mqtt::broker::Users;
use pointsman::mqtt::{BrokerUrl, Route, Settings};
use pointsman::{Algorithm, check_name};

use super::document::Document;
use super::is_loopback;
use super::paths::Folder;
use super::problem::Fault;
use super::registries::{SectionRegistries, Urls};
use super::section::Section;

/// What the file says of MQTT.
#[derive(Debug, Clone)]
pub(crate) struct Mqtt {
    /// The relay's; its code is generated anew with each reading where the file has none.
    pub(crate) settings: Settings,
    /// Where its services are found, and where it registers.
    pub(crate) registries: SectionRegistries,
    /// The relay's own code, if the file has it.
    pub(crate) code: Option<Arc<str>>,
    /// The service that the relay itself registers as.
    pub(crate) register_as: Option<String>,
    /// The embedded broker, if there is to be one.
    pub(crate) listen: Option<Listen>,
}

/// The embedded broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) address: SocketAddr,
    pub(crate) users: Option<UsersFile>,
    /// Certificate and key.
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
}

/// Who may connect to the embedded broker, by the file that says so.
#[derive(Debug, Clone)]
pub(crate) struct UsersFile {
    path: PathBuf,
    pub(crate) users: Users,
}

/// Only by their files: what is in them is read again with the next start.
impl PartialEq for UsersFile {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for UsersFile {}

const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7482);
const BROKER: &str = "a broker's url, such as \"mqtt://127.0.0.1:1883\"";
const ROUTES: &str = "a list of tables, each [[mqtt.route]]";
/// What MQTT can count: four bytes of seven bits, and the header.
const LARGEST_PACKET: usize = 268_435_460;

/// Reads the section. What is wrong with it goes to `faults`; then what is returned is not fit for use.
pub(super) fn read(
    mut section: Section<'_>,
    document: &Document<'_>,
    (folder, urls): (&Folder, &mut Urls<'_>),
    faults: &mut Vec<Fault>,
) -> Mqtt {
    let listen = listen(&mut section, folder);
    let mut settings = Settings::new();
    settings.ingress = section.text("ingress", BROKER, |text| broker(text, folder));
    let egress = section.texts("egress", BROKER, |text| broker(text, folder)).unwrap_or_default();
    // What cannot be read is replaced by what has no problem, so that the others are checked too, and at their places.
    let stopgap = |(index, url): (usize, Option<BrokerUrl>)| url.or(format!("mqtt://{index}.invalid").parse().ok());
    settings.egress = egress.into_iter().enumerate().filter_map(stopgap).collect();
    if let Some(topics) = section.text("topics", "\"code-last\" or \"go-envelope\"", str::parse) {
        settings.topics = topics;
    }
    let code = section.text("code", "a name, such as a UUID", |text| Ok(Arc::<str>::from(text)));
    settings.code = code.clone().unwrap_or(settings.code);
    let register_as = section.text("register_as", "a service's name", |text| {
        check_name("service", text).map(|()| text.to_owned()).map_err(|error| error.to_string())
    });
    if let Some(group) = section.text("group", "a name", |text| Ok(text.to_owned())).or_else(|| register_as.clone()) {
        settings.group = group;
    }
    settings.advertise =
        section.text("advertise", "HOST:PORT, where senders reach the broker", |text| Ok(text.to_owned()));
    let filters = section.texts("filters", "a topic filter", |text| Ok(text.to_owned())).unwrap_or_default();
    let stopgap = |(index, filter): (usize, Option<String>)| filter.unwrap_or_else(|| format!("{index}/unreadable"));
    settings.filters = filters.into_iter().enumerate().map(stopgap).collect();
    limits(&mut section, &mut settings);
    settings.state = section.text("state", "a folder", |text| Ok(folder.path(text)));
    if settings.state.is_some() && !section.has("code") {
        section.warn(
            "state",
            "cannot be found again after a restart, since the relay's code is then another; give a code",
        );
    }
    let everywhere = listen.as_ref().is_some_and(|listen| listen.address.ip().is_unspecified());
    if everywhere && register_as.is_some() && settings.advertise.is_none() {
        section.warn(
            "register_as",
            "registers an address that nobody can call, since listen names none; say advertise = \"HOST:PORT\"",
        );
    }
    let mut registries = urls.of_section(&mut section);
    routes(&mut section, &mut settings, urls, &mut registries);
    check(&mut section, document, &settings);
    faults.extend(section.finish());
    Mqtt { settings, registries, code, register_as, listen }
}

fn broker(text: &str, folder: &Folder) -> Result<BrokerUrl, String> {
    let url = folder.url(text, &["auth_file", "ca", "cert", "key"]);
    url.parse().map_err(|error: pointsman::mqtt::InvalidUrl| error.to_string())
}

fn listen(section: &mut Section<'_>, folder: &Folder) -> Option<Listen> {
    let address = section.address("listen", "127.0.0.1:7482");
    let users = section.text("users_file", "a file of lines user:password", |text| users(&folder.readable(text)?));
    let mut file = |key, what| section.text(key, what, |text| folder.readable(text));
    let cert = file("tls_cert", "a PEM file");
    let key = file("tls_key", "a PEM file");
    if section.has("ingress") {
        for key in ["listen", "users_file", "tls_cert", "tls_key"] {
            if section.has(key) {
                section
                    .wrong(key, "is about the embedded broker, but ingress names a broker of your own; leave out one");
            }
        }
        return None;
    }
    for (one, other) in [("tls_cert", "tls_key"), ("tls_key", "tls_cert")] {
        if section.has(one) && !section.has(other) {
            section.wrong(one, format!("goes together with {other}"));
        }
    }
    if address.is_some_and(|address| !is_loopback(address.ip())) {
        if !section.has("users_file") {
            section.wrong(
                "listen",
                "is not on loopback, where everybody could publish; name a users_file, or use 127.0.0.1",
            );
        } else if !section.has("tls_cert") {
            section.warn(
                "listen",
                "is not on loopback: without tls_cert and tls_key passwords go over the network as they are",
            );
        }
    }
    Some(Listen { address: address.unwrap_or(LISTEN), users, tls: cert.zip(key) })
}

/// Who may connect to the embedded broker.
fn users(path: &Path) -> Result<UsersFile, String> {
    let fail = |error: &dyn std::fmt::Display| format!("{} cannot be used: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| fail(&error))?;
    let users = Users::parse(&text).map_err(|error| fail(&error))?;
    Ok(UsersFile { path: path.to_owned(), users })
}

fn limits(section: &mut Section<'_>, settings: &mut Settings) {
    if let Some(limit) = section.count("max_in_flight") {
        settings.max_in_flight = limit;
    }
    if let Some(limit) = section.size("max_packet", "1MiB") {
        settings.max_packet = limit;
        if limit > LARGEST_PACKET {
            section.wrong("max_packet", format!("is more than MQTT can carry, {LARGEST_PACKET} bytes"));
        }
    }
    if let Some(time) = section.positive_duration("response_timeout", "30s") {
        settings.response_timeout = time;
    }
    if let Some(time) = section.duration("queue_timeout", "1s") {
        settings.queue_timeout = time;
    }
    if let Some(time) = section.duration("drain_timeout", "10s") {
        settings.drain_timeout = time;
    }
    if let Some(time) = section.duration("session_expiry", "1h") {
        settings.session_expiry = time;
    }
}

fn routes(section: &mut Section<'_>, settings: &mut Settings, urls: &mut Urls<'_>, registries: &mut SectionRegistries) {
    for table in section.sections("route", ROUTES) {
        // As above: without a problem.
        let mut read = Route::new("^unreadable/", "unreadable");
        if let Some(mut route) = table {
            read.registry = urls.of_route(&mut route, &mut registries.named);
            self::route(&mut route, &mut read, &settings.routes);
            section.absorb(route.finish());
        }
        settings.routes.push(read);
    }
}

fn route(route: &mut Section<'_>, read: &mut Route, earlier: &[Route]) {
    route.require("match", "match = \"^/login(/|$)\"");
    route.require("service", "service = \"cfgs\"");
    if let Some(pattern) = route.text("match", "a regular expression over the topic", |text| Ok(text.to_owned())) {
        if let Some(index) = earlier.iter().position(|other| other.pattern == pattern) {
            route.warn(
                "match",
                format!("never matches: mqtt.route.{index} has the same expression, and the first wins"),
            );
        }
        read.pattern = pattern;
    }
    if let Some(service) = route.text("service", "a service's name", |text| Ok(Arc::<str>::from(text))) {
        read.service = service;
    }
    let algorithm = |text: &str| text.parse::<Algorithm>().map_err(|error| error.to_string());
    if let Some(algorithm) = route.text("algorithm", "the name of an algorithm, such as \"round-robin\"", algorithm) {
        read.algorithm = algorithm;
    }
    if let Some(role) = route.text("role", "\"normal\" or \"master\"", str::parse) {
        read.role = role;
    }
    read.redispatch = route.flag("redispatch").unwrap_or_default();
    read.sticky = route.flag("sticky").unwrap_or_default();
    read.key_level = route.count("key_level");
    if read.key_level.is_some() && read.algorithm != Algorithm::IpHash {
        route.warn("key_level", "has no effect: only ip-hash asks for it");
    }
    read.response_timeout = route.positive_duration("response_timeout", "30s");
}

/// What the relay has to say of its settings.
fn check(section: &mut Section<'_>, document: &Document<'_>, settings: &Settings) {
    let sound = section.is_sound();
    let mut faults = Vec::new();
    for problem in settings.problems() {
        let key = problem.key.as_str();
        // Whether the relay's messages come back to it cannot be told before everything has been read; and routes that are
        // misspelt are told as that.
        let unfounded = match key {
            "filters" => !sound,
            "route" => section.is_misspelt(key) || (section.has(key) && !sound),
            _ => false,
        };
        if !unfounded {
            let path = format!("mqtt.{key}");
            faults.push(Fault::error(&*path, document.span(&path), format!("{path}: {}", problem.reason)));
        }
    }
    section.absorb(faults);
}

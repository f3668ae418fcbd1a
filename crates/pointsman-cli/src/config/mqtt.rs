//! The section `[mqtt]`.

mod access;
mod broker;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use pointsman::mqtt::broker::{AccessRule, Options as BrokerOptions};
use pointsman::mqtt::{BrokerUrl, LARGEST_PACKET, Route as RelayRoute, Settings};
use pointsman::{Algorithm, check_name};

pub(crate) use self::access::Listen;
use self::access::UsersFile;
use super::document::Document;
use super::paths::Folder;
use super::problem::Fault;
use super::registries::{self, SectionRegistries};
use super::section::Section;
use super::setting::{Draft, Setting, Value};
use super::tls::TlsFiles;
use super::values::{
    self, MOST, algorithm, count, duration, duration_within, flag, list, located, parsed, positive_duration, registry,
    size, tables, text, word,
};

/// What the file says of MQTT.
#[derive(Debug, Clone)]
pub(crate) struct Mqtt {
    /// The relay's.
    pub(crate) settings: Settings,
    /// Where its services are found, and where it registers.
    pub(crate) registries: SectionRegistries,
    /// The relay's own code, if the file has it.
    pub(crate) code: Option<Arc<str>>,
    /// The service that the relay itself registers as.
    pub(crate) register_as: Option<String>,
    /// The embedded broker, if there is to be one.
    pub(crate) listen: Option<Listen>,
    /// The embedded broker's limits.
    broker: BrokerOptions,
}

/// Where the embedded broker listens.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7482);
/// Maximum of `queue_timeout` in nanoseconds: an hour.
const LONGEST_QUEUE_TIMEOUT: u128 = 3600 * 1_000_000_000;

/// The section, while it is read.
#[derive(Debug)]
struct Reading {
    mqtt: Mqtt,
    has_group: bool,
    address: Option<SocketAddr>,
    users: Option<UsersFile>,
    rules: Vec<AccessRule>,
    tls: TlsFiles,
    routes: Vec<Route>,
}

/// A route, while it is read, and the URL of its registry.
#[derive(Debug)]
struct Route(RelayRoute, Option<String>);

fn settings() -> Vec<Setting<Reading>> {
    let mut settings = Vec::from(brokers());
    settings.extend(access::settings());
    settings.extend(super::tls::settings(|it: &mut Reading| &mut it.tls));
    settings.push(access::rules());
    settings.extend(registries::settings(|it: &mut Reading| &mut it.mqtt.registries));
    settings.extend(identity());
    settings.extend(limits());
    settings.extend(broker::limits());
    settings.push(
        tables("route", route_settings(), Route::new, |_| Route::new(), check_route)
            .example("[[mqtt.route]]")
            .help("A rule: which messages go to which service. The first that matches decides. At least one.")
            .to(|it: &mut Reading, routes| it.routes = routes),
    );
    settings
}

/// Settings of the brokers and topics.
fn brokers() -> [Setting<Reading>; 5] {
    let url = "a broker's url";
    let example = "\"mqtt://127.0.0.1:1883\"";
    [
        located("ingress", Value::Text(url), broker_url)
            .default("the embedded broker")
            .example(example)
            .restart()
            .secret()
            .help("URL of the broker where senders publish.")
            .to(|it: &mut Reading, url| it.mqtt.settings.ingress = Some(url)),
        list("egress", url, broker_url)
            .default("the ingress broker")
            .example(example)
            .restart()
            .secret()
            .help("URLs of the brokers where services subscribe.")
            .to(|it: &mut Reading, urls| {
                // What cannot be read is replaced by what has no problem, so that the others are checked too, and at their places.
                let stopgap =
                    |(index, url): (usize, Option<BrokerUrl>)| url.or(format!("mqtt://{index}.invalid").parse().ok());
                it.mqtt.settings.egress = urls.into_iter().enumerate().filter_map(stopgap).collect();
            }),
        word("topics", &["code-last", "go-envelope"])
            .default("\"code-last\"")
            .restart()
            .help("Form of the topics: `TOPIC/CODE` comes in and `CODE/TOPIC` goes out, or go-micro-service's.")
            .to(|it: &mut Reading, topics| it.mqtt.settings.topics = topics),
        list("filters", "a topic filter", |_, text| Ok(text.to_owned()))
            .default("what the routes can match")
            .example("\"/login/#\"")
            .help("Topic filters that are subscribed to on the ingress broker.")
            .to(|it: &mut Reading, filters| {
                let stopgap =
                    |(index, filter): (usize, Option<String>)| filter.unwrap_or_else(|| format!("{index}/unreadable"));
                it.mqtt.settings.filters = filters.into_iter().enumerate().map(stopgap).collect();
            }),
        list("response_topics", "a topic filter", |_, text| Ok(text.to_owned()))
            .default("what is not reserved, not routed, and no instance's")
            .example("\"reply/#\"")
            .help("Topic filters of the response topics to which answers may go.")
            .to(|it: &mut Reading, filters| {
                let stopgap =
                    |(index, filter): (usize, Option<String>)| filter.unwrap_or_else(|| format!("{index}/unreadable"));
                it.mqtt.settings.response_topics = filters.into_iter().enumerate().map(stopgap).collect();
            }),
    ]
}

/// Settings of the relay's identity.
fn identity() -> [Setting<Reading>; 4] {
    let service = |text: &str| check_name("service", text).map(|()| text.to_owned()).map_err(|error| error.to_string());
    [
        parsed("register_as", "a service's name", service)
            .example("\"mqtt-balancer\"")
            .restart()
            .help("Service that the relay registers itself as.")
            .to(|it: &mut Reading, name| it.mqtt.register_as = Some(name)),
        text("code", "a name, such as a UUID")
            .default("the first one of the group that is free in the registry")
            .restart()
            .help("The relay's own code, by which the brokers keep its sessions over a restart.")
            .to(|it: &mut Reading, code| it.mqtt.code = Some(code.into())),
        text("group", "a name")
            .default("`register_as`, or `\"pointsman\"`")
            .help("Relays of one group share the messages of one broker.")
            .to(|it: &mut Reading, group| (it.mqtt.settings.group, it.has_group) = (group, true)),
        text("advertise", "HOST:PORT, where senders reach the broker")
            .default("as the relay reaches it")
            .restart()
            .help("Address of the ingress broker that the relay registers.")
            .to(|it: &mut Reading, address| it.mqtt.settings.advertise = Some(address)),
    ]
}

fn limits() -> [Setting<Reading>; 8] {
    [
        count("max_in_flight", 1, MOST)
            .default("10000")
            .help(
                "Maximum number of messages under way: not yet acknowledged by the service's broker, or not yet \
                 answered. Beyond it none is taken from the ingress broker.",
            )
            .to(|it: &mut Reading, limit| it.mqtt.settings.max_in_flight = limit),
        size("max_packet", 1 << 10, LARGEST_PACKET as u128)
            .default("\"256MiB\"")
            .restart()
            .help("Maximum size of a packet from a broker; of a larger message the payload is not read, and it becomes a dead letter without it.")
            .to(|it: &mut Reading, limit| it.mqtt.settings.max_packet = limit),
        positive_duration("response_timeout")
            .default("\"30s\"")
            .help("Timeout of a request, after which its sender is told.")
            .to(|it: &mut Reading, time| it.mqtt.settings.response_timeout = time),
        duration_within("queue_timeout", 0, LONGEST_QUEUE_TIMEOUT)
            .default("\"1s\"")
            .help("Time that a message for a master waits for the next one; 0 for not at all.")
            .to(|it: &mut Reading, time| it.mqtt.settings.queue_timeout = time),
        duration_within("away_timeout", 0, LONGEST_QUEUE_TIMEOUT)
            .default("\"5s\"")
            .help("Maximum wait of a message for an instance that is registered while nobody subscribes under its code.")
            .to(|it: &mut Reading, time| it.mqtt.settings.away_timeout = time),
        duration("drain_timeout")
            .default("\"10s\"")
            .help("Time that messages under way may take when the relay ends.")
            .to(|it: &mut Reading, time| it.mqtt.settings.drain_timeout = time),
        duration("session_expiry")
            .default("\"1h\"")
            .restart()
            .help("Time that the brokers keep the relay's sessions while it is away.")
            .to(|it: &mut Reading, time| it.mqtt.settings.session_expiry = time),
        located("state", Value::Path("a folder"), Folder::writable_folder)
            .example("\"state\"")
            .restart()
            .help("Folder of what must survive the process: messages of QoS 2, and requests under way. Give a `code` as well.")
            .to(|it: &mut Reading, path| it.mqtt.settings.state = Some(path)),
    ]
}

fn route_settings() -> Vec<Setting<Route>> {
    vec![
        text("match", "a regular expression over the topic")
            .example("\"^/login(/|$)\"")
            .required()
            .help("Regular expression over the topic.")
            .to(|route: &mut Route, pattern| route.0.pattern = pattern),
        text("service", "a service's name")
            .example("\"cfgs\"")
            .required()
            .help("Service that matching messages are for.")
            .to(|route: &mut Route, name| route.0.service = name.into()),
        registry("registry")
            .default("the section's")
            .help("URL of the registry in which the service is found.")
            .to(|route: &mut Route, url| route.1 = Some(url)),
        algorithm()
            .to(|route: &mut Route, algorithm| route.0.algorithm = algorithm),
        word("role", &["normal", "master"])
            .default("\"normal\"")
            .help("`\"normal\"`: the normal instances, and the master where none of them can serve; `\"master\"`: the master.")
            .to(|route: &mut Route, role| route.0.role = role),
        flag("redispatch")
            .default("false")
            .help("Whether a request whose instance is gone is sent to another one: only where carrying it out twice does no harm.")
            .to(|route: &mut Route, redispatch| route.0.redispatch = redispatch),
        flag("sticky")
            .default("false")
            .help("Whether the code at the end of a topic, if it is that of a living instance of the service, chooses that instance.")
            .to(|route: &mut Route, sticky| route.0.sticky = sticky),
        count("key_level", 0, u128::from(u16::MAX))
            .default("the whole topic")
            .example("1")
            .help("Level of the topic, from 0, that is the key of `ip-hash` where the sender's client id is not known.")
            .to(|route: &mut Route, level| route.0.key_level = Some(level)),
        positive_duration("response_timeout")
            .default("the section's")
            .example("\"30s\"")
            .help("Timeout of a request of this route.")
            .to(|route: &mut Route, time| route.0.response_timeout = Some(time)),
    ]
}

impl Route {
    /// A route without a problem, in the place of what cannot be read.
    fn new() -> Self {
        Self(RelayRoute::new("^unreadable/", "unreadable"), None)
    }
}

fn check_route(section: &mut Section<'_>, Route(route, _): &mut Route, earlier: &[Route]) {
    if section.has("match")
        && let Some(index) = earlier.iter().position(|Route(other, _)| other.pattern == route.pattern)
    {
        section.warn("match", format!("never matches: mqtt.route.{index} has the same expression, and the first wins"));
    }
    if route.key_level.is_some() && route.algorithm != Algorithm::IpHash {
        section.warn("key_level", "has no effect: only ip-hash asks for it");
    }
}

/// The section.
pub(super) fn section() -> Draft<Mqtt> {
    values::section("mqtt", settings(), Reading::new, |section, reading, context| {
        finish(section, reading, context.document)
    })
    .example("[mqtt]")
    .help("The MQTT relay, and the embedded broker.")
}

impl Reading {
    fn new() -> Self {
        let (settings, registries) = (Settings::new(), SectionRegistries::default());
        let mqtt = Mqtt {
            settings,
            registries,
            code: None,
            register_as: None,
            listen: None,
            broker: BrokerOptions::new(LISTEN),
        };
        Self {
            mqtt,
            has_group: false,
            address: None,
            users: None,
            rules: Vec::new(),
            tls: TlsFiles::default(),
            routes: Vec::new(),
        }
    }
}

fn finish(section: &mut Section<'_>, mut reading: Reading, document: &Document<'_>) -> Mqtt {
    let routes = std::mem::take(&mut reading.routes);
    let listen = access::listen(section, &mut reading);
    let Reading { mut mqtt, has_group, .. } = reading;
    mqtt.listen = listen;
    for Route(mut route, url) in routes {
        route.registry = url.map(|url| mqtt.registries.name(url));
        mqtt.settings.routes.push(route);
    }
    mqtt.settings.code = mqtt.code.clone();
    if let Some(name) = mqtt.register_as.clone().filter(|_| !has_group) {
        mqtt.settings.group = name;
    }
    note_what_is_hardly_meant(section, &mqtt);
    mqtt.registries.check(section);
    check(section, document, &mqtt);
    mqtt
}

fn note_what_is_hardly_meant(section: &mut Section<'_>, mqtt: &Mqtt) {
    let everywhere = mqtt.listen.as_ref().is_some_and(|listen| listen.address.ip().is_unspecified());
    if everywhere && mqtt.register_as.is_some() && mqtt.settings.advertise.is_none() {
        section.warn(
            "register_as",
            "registers an address that no client can call, since listen names none; say advertise = \"HOST:PORT\"",
        );
    }
}

fn broker_url(folder: &Folder, text: &str) -> Result<BrokerUrl, String> {
    let url = folder.url(text, &["auth_file", "ca", "cert", "key"]);
    let url: BrokerUrl = url.parse().map_err(|error: pointsman::mqtt::InvalidUrl| error.to_string())?;
    url.check_files().map(|()| url)
}

/// What the relay and the embedded broker have to say of their settings.
fn check(section: &mut Section<'_>, document: &Document<'_>, mqtt: &Mqtt) {
    let settings = &mqtt.settings;
    let sound = section.is_sound();
    let mut faults = Vec::new();
    let of_broker = mqtt.broker_options(LISTEN).problems();
    for problem in settings.problems().into_iter().chain(of_broker) {
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

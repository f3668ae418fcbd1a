//! The section `[http]`.
//!
//! | question | file |
//! |---|---|
//! | what it says of the whole | here |
//! | what a `[[http.route]]` may say | `config/http/route.rs` |
//! | what a `[http.services.NAME]` may say | `config/http/service.rs` |

mod route;
mod service;

use std::path::PathBuf;
use std::sync::Arc;

use pointsman::proxy::{AccessLog, Network, Settings};
use pointsman::{check_address, check_name};

use super::document::Document;
use super::paths::Folder;
use super::problem::Fault;
use super::registries::{self, SectionRegistries};
use super::section::Section;
use super::setting::{Draft, Setting, Value};
use super::tls::{self, TlsFiles};
use super::values::{
    self, MOST, address, count, duration, flag, list, located, named_tables, parsed, positive_duration, size, tables,
    word,
};

use self::route::Route;
pub(crate) use self::route::conditions;

/// What the file says of HTTP.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Http {
    pub(crate) settings: Settings,
    /// Where its services are found, and where it registers.
    pub(crate) registries: SectionRegistries,
    /// The code that the proxy registers with; `None`: one is generated with each start.
    pub(crate) code: Option<Arc<str>>,
    /// The service that the proxy itself registers as.
    pub(crate) register_as: Option<String>,
    /// `HOST:PORT` at which clients reach it, as it registers it; `None`: where it listens.
    pub(crate) advertise: Option<String>,
    /// Where the access log goes; `None`: to the standard output.
    pub(crate) access_log_file: Option<PathBuf>,
    /// The Unix socket by which the next process takes over the listeners.
    pub(crate) hand_over: Option<PathBuf>,
}

/// The section, while it is read.
#[derive(Debug)]
struct Reading {
    http: Http,
    tls: TlsFiles,
    routes: Vec<Route>,
}

fn settings() -> Vec<Setting<Reading>> {
    let mut settings = vec![
        address("listen")
            .default("\"127.0.0.1:7481\"")
            .restart()
            .help("Address and port to listen on. It is meant to be public.")
            .to(|it: &mut Reading, address| it.http.settings.listen = address),
    ];
    settings.extend(registries::settings(|it: &mut Reading| &mut it.http.registries));
    settings.extend(registration());
    settings.push(
        count("workers", 1, 1024)
            .default("the number of cores")
            .example("4")
            .restart()
            .help("Number of threads that serve, each with a listener and connections of its own.")
            .to(|it: &mut Reading, workers| it.http.settings.workers = workers),
    );
    settings.extend(tls::settings(|it: &mut Reading| &mut it.tls));
    settings.extend(forwarding());
    settings.extend(logging());
    settings.extend(limits());
    settings.extend([
        tables("route", route::settings(), Route::new, Route::stopgap, route::check)
            .example("[[http.route]]")
            .help("A rule: which requests go where. The first that matches decides. At least one.")
            .to(|it: &mut Reading, routes| it.routes = routes),
        named_tables("services", service::settings(), service::ServiceReading::default, service::check)
            .example("[http.services.ress]")
            .help("What holds for a service, whichever route leads to it, and in whichever registry it is found.")
            .to(|it: &mut Reading, services| {
                let services = services.into_iter().map(|(name, read)| (name.into(), read.service));
                it.http.settings.services = services.collect();
            }),
    ]);
    settings
}

/// Settings of the proxy's own registration.
fn registration() -> [Setting<Reading>; 3] {
    let name =
        |what| move |text: &str| check_name(what, text).map_err(|error| error.to_string()).map(|()| text.to_owned());
    [
        parsed("register_as", "a service's name", name("service"))
            .example("\"http-balancer\"")
            .restart()
            .help("Service that the proxy registers itself as. Without it clients must know where the proxy is.")
            .to(|it: &mut Reading, name| it.http.register_as = Some(name)),
        parsed("code", "a name, such as a UUID", name("code"))
            .default("generated")
            .restart()
            .help("The proxy's own code, if it registers.")
            .to(|it: &mut Reading, code| it.http.code = Some(code.into())),
        parsed("advertise", "HOST:PORT, where clients reach the proxy", |text| {
            check_address(text).map_err(|error| error.to_string()).map(|()| text.to_owned())
        })
        .default("`listen`")
        .restart()
        .help("Address that the proxy registers. Needed where `listen` is `0.0.0.0` or `[::]`.")
        .to(|it: &mut Reading, address| it.http.advertise = Some(address)),
    ]
}

/// Settings of forwarding headers and of addresses.
fn forwarding() -> [Setting<Reading>; 4] {
    [
        networks("trusted")
            .help("Networks of the hops before the proxy, whose forwarding headers are believed.")
            .to(|it: &mut Reading, networks| it.http.settings.trusted = networks),
        word("forwarded", &["x-forwarded", "rfc7239", "both", "off"])
            .default("\"x-forwarded\"")
            .help(
                "How instances are told where a request comes from: `X-Forwarded-…`, `Forwarded`, both, or not at all.",
            )
            .to(|it: &mut Reading, forwarded| it.http.settings.forwarded = forwarded),
        flag("reasons")
            .default("false")
            .help("Whether answers of the proxy's own say in a header `pointsman-reason` which problem it is.")
            .to(|it: &mut Reading, reasons| it.http.settings.reasons = reasons),
        networks("allow_addresses")
            .help("Networks of instances that would be refused otherwise; see [Refusals](http.md#refusals).")
            .to(|it: &mut Reading, networks| it.http.settings.allow_addresses = networks),
    ]
}

fn networks(key: &'static str) -> Draft<Vec<Network>> {
    let networks = list(key, "a network", |_, text| text.parse()).example("\"10.0.0.0/8\"");
    networks.map(|networks| networks.into_iter().flatten().collect())
}

fn logging() -> [Setting<Reading>; 3] {
    [
        word("access_log", &["off", "text", "json"])
            .default("\"off\"")
            .help("Form of the access log: `\"text\"` writes a line for people, `\"json\"` an object a line.")
            .to(|it: &mut Reading, form| it.http.settings.access_log = form),
        located("access_log_file", Value::Path("a file"), Folder::writable_file)
            .default("the standard output")
            .example("\"access.log\"")
            .restart()
            .help("File that the access log is appended to.")
            .to(|it: &mut Reading, path| it.http.access_log_file = Some(path)),
        located("hand_over", Value::Path("the path of a socket"), Folder::socket)
            .example("\"proxy.sock\"")
            .restart()
            .help("Unix socket by which the next process takes over the listeners.")
            .to(|it: &mut Reading, path| it.http.hand_over = Some(path)),
    ]
}

fn limits() -> [Setting<Reading>; 7] {
    [
        count("max_connections", 1, MOST)
            .default("50000")
            .restart()
            .help("Maximum number of connections of clients; further ones wait to be accepted.")
            .to(|it: &mut Reading, limit| it.http.settings.limits.connections = limit),
        size("max_head", 1 << 10, 64 << 10)
            .default("\"32KiB\"")
            .help("Maximum size of the head of a request or an answer.")
            .to(|it: &mut Reading, limit| it.http.settings.limits.head = limit),
        count("max_headers", 1, 256)
            .default("100")
            .help("Maximum number of fields in a head.")
            .to(|it: &mut Reading, limit| it.http.settings.limits.fields = limit),
        positive_duration("head_timeout")
            .default("\"10s\"")
            .help("Timeout of a request's head, and of a TLS handshake.")
            .to(|it: &mut Reading, time| it.http.settings.limits.head_time = time),
        positive_duration("keep_alive")
            .default("\"60s\"")
            .help("Time that a connection is kept without a request.")
            .to(|it: &mut Reading, time| it.http.settings.limits.keep_alive = time),
        count("max_streams", 1, 1_000_000)
            .default("128")
            .help("Maximum number of requests at a time on one connection of HTTP/2.")
            .to(|it: &mut Reading, limit| it.http.settings.limits.streams = limit),
        duration("drain_timeout")
            .default("\"30s\"")
            .help("Time that requests under way may take when the proxy ends.")
            .to(|it: &mut Reading, time| it.http.settings.drain_timeout = time),
    ]
}

/// The section.
pub(super) fn section() -> Draft<Http> {
    let new = || Reading { http: Http::new(), tls: TlsFiles::default(), routes: Vec::new() };
    values::section("http", settings(), new, |section, reading, context| finish(section, reading, context.document))
        .example("[http]")
        .help("The HTTP proxy.")
}

impl Http {
    fn new() -> Self {
        Self {
            settings: Settings::new(),
            registries: SectionRegistries::default(),
            code: None,
            register_as: None,
            advertise: None,
            access_log_file: None,
            hand_over: None,
        }
    }
}

fn finish(section: &mut Section<'_>, reading: Reading, document: &Document<'_>) -> Http {
    let Reading { mut http, tls, routes } = reading;
    http.settings.tls = tls.checked(section);
    http.settings.routes = routes.into_iter().map(|route| route.finish(&mut http.registries)).collect();
    note_what_has_no_effect(section, &http.settings);
    http.registries.check(section);
    check(section, document, &http.settings);
    http
}

fn note_what_has_no_effect(section: &mut Section<'_>, settings: &Settings) {
    if section.has("access_log_file") && settings.access_log == AccessLog::Off {
        section.warn("access_log_file", "has no effect: access_log is off; say \"text\" or \"json\"");
    }
    if !section.has("register_as") {
        for key in ["code", "advertise"] {
            if section.has(key) {
                section.warn(key, "has no effect: without register_as the proxy does not register");
            }
        }
    } else if settings.listen.ip().is_unspecified() && !section.has("advertise") {
        section.warn(
            "register_as",
            "registers an address that no client can call, since listen names none; say advertise = \"HOST:PORT\"",
        );
    }
}

/// What the proxy has to say of its settings.
fn check(section: &mut Section<'_>, document: &Document<'_>, settings: &Settings) {
    let sound = section.is_sound();
    let mut faults = Vec::new();
    if sound {
        // Where a route cannot be read, it cannot be told where it leads.
        faults.extend(service::unused(settings).map(|name| {
            let path = format!("http.services.{name}");
            let message = format!("{path} has no effect: no route leads to the service");
            Fault::warning(&*path, document.span(&path), message)
        }));
    }
    for problem in settings.problems() {
        let key = problem.key.as_str();
        // Routes that are misspelt, or of the wrong type, are told as that.
        let unfounded = key == "route" && (section.is_misspelt(key) || (section.has(key) && !sound));
        if !unfounded {
            let path = format!("http.{key}");
            faults.push(Fault::error(&*path, document.span(&path), format!("{path}: {}", problem.reason)));
        }
    }
    section.absorb(faults);
}

#[cfg(test)]
mod tests;

//! `[http.services.NAME]`: what holds for a service, whichever route leads to it.

use std::path::PathBuf;

use pointsman::Ejection;
use pointsman::proxy::{Action, Check, Service, ServiceTls, Settings};

use super::super::context::Context;
use super::super::section::Section;
use super::super::setting::{Change, Draft, Setting, Value};
use super::super::values::{
    MOST, count, duration, file, parsed, positive_duration, section, table, text, text_or_table, word,
};

/// The settings of a service, while they are read.
#[derive(Debug)]
pub(in crate::config) struct ServiceReading {
    pub(super) service: Service,
    /// Parameters of the check, if there is one.
    check: Check,
}

impl Default for ServiceReading {
    fn default() -> Self {
        Self { service: Service::default(), check: Check::new(None) }
    }
}

pub(super) fn settings() -> Vec<Setting<ServiceReading>> {
    let mut settings = vec![
        word("protocol", &["http1", "http2"])
            .default("\"http1\"")
            .help("What the instances speak; HTTP/2 with prior knowledge where there is no TLS.")
            .to(|it: &mut ServiceReading, protocol| it.service.protocol = protocol),
        tls()
            .example("{ ca = \"ca.pem\" }")
            .help("TLS towards the instances.")
            .to(|it: &mut ServiceReading, tls| it.service.tls = Some(tls)),
    ];
    settings.extend(checks());
    settings.extend([
        count("max_in_flight", 1, MOST)
            .example("100")
            .help("Maximum number of requests at a time at one instance.")
            .to(|it: &mut ServiceReading, limit| it.service.max_in_flight = Some(limit)),
        duration("slow_start")
            .default("\"0s\"")
            .example("\"30s\"")
            .help("Time until an instance that has joined gets its full share.")
            .to(|it: &mut ServiceReading, time| it.service.slow_start = time),
        ejection()
            .default("the table's defaults")
            .example("{ failures = 5, base_time = \"30s\" }")
            .help("Rule by which failing instances are ejected, or `\"off\"`.")
            .to(|it: &mut ServiceReading, ejection| it.service.ejection = ejection),
    ]);
    settings
}

fn tls() -> Draft<ServiceTls> {
    let settings = vec![
        file("ca", "a PEM file")
            .example("\"ca.pem\"")
            .required()
            .help("Certificate authorities of the instances, a PEM file.")
            .to(|tls: &mut ServiceTls, path| tls.ca = path),
        text("name", "the name that certificates have")
            .default("the host of the instance's address")
            .example("\"ress.internal\"")
            .help("Name that the certificates must have.")
            .to(|tls: &mut ServiceTls, name| tls.name = Some(name)),
    ];
    let new = || ServiceTls { ca: PathBuf::new(), name: None };
    let finish = |section: &mut Section<'_>, tls: ServiceTls, _: &Context<'_>| {
        if section.has("ca")
            && !section.is_wrong("ca")
            && let Err(error) = tls.check_files()
        {
            section.wrong("ca", format!("cannot be used: {error}"));
        }
        tls
    };
    section("tls", settings, new, finish).changes(Change::AtOnce)
}

fn checks() -> [Setting<ServiceReading>; 5] {
    let check = |text: &str| match text {
        "tcp" => Ok(None),
        path if path.starts_with('/') => Ok(Some(path.to_owned())),
        _ => Err(format!("{text:?} is not a check; write \"tcp\" or a path, such as \"/health\"")),
    };
    [
        parsed("check", "\"tcp\" or a path", check)
            .example("\"/health\"")
            .help("How the proxy checks each instance: `\"tcp\"` connects; a path is asked for with `GET`, and must be answered with 200 to 399.")
            .to(|it: &mut ServiceReading, path| it.check.path = path),
        positive_duration("check_interval")
            .default("\"2s\"")
            .help("Interval between two checks of an instance.")
            .to(|it: &mut ServiceReading, time| it.check.interval = time),
        positive_duration("check_timeout")
            .default("\"1s\"")
            .help("Timeout of a check.")
            .to(|it: &mut ServiceReading, time| it.check.timeout = time),
        count("check_rise", 1, 1000)
            .default("1")
            .help("Number of successes in a row that bring an instance back.")
            .to(|it: &mut ServiceReading, rise| it.check.rise = rise),
        count("check_fall", 1, 1000)
            .default("3")
            .help("Number of failures in a row that take an instance out.")
            .to(|it: &mut ServiceReading, fall| it.check.fall = fall),
    ]
}

fn ejection() -> Draft<Option<Ejection>> {
    let settings = vec![
        count("failures", 1, u128::from(u32::MAX))
            .default("5")
            .help("Number of failures in a row that eject an instance.")
            .to(|rule: &mut Ejection, failures| rule.consecutive_failures = failures),
        positive_duration("interval")
            .default("\"10s\"")
            .help("Time without an ejection after which one earlier ejection is forgiven.")
            .to(|rule: &mut Ejection, time| rule.interval = time),
        positive_duration("base_time")
            .default("\"30s\"")
            .help("Time that the first ejection lasts; each further one lasts longer by as much.")
            .to(|rule: &mut Ejection, time| rule.base_time = time),
        positive_duration("max_time")
            .default("\"5m\"")
            .help("Maximum time that an ejection lasts.")
            .to(|rule: &mut Ejection, time| rule.max_time = time),
        count("max_percent", 0, 100)
            .default("10")
            .help("Maximum share of the instances that is ejected at a time, in percent; one may always be.")
            .to(|rule: &mut Ejection, percent| rule.max_percent = percent),
        count("panic_percent", 0, 100)
            .default("50")
            .help("Ejections are disregarded while fewer than this share of the normal instances would remain, in percent; 0 turns that off.")
            .to(|rule: &mut Ejection, percent| rule.panic_percent = percent),
    ];
    let off = |text: &str| match text {
        "off" => Ok(None),
        _ => Err(format!("{text:?} is not a rule; write \"off\", or a table such as {{ failures = 5 }}")),
    };
    text_or_table(Value::Word(&["off"]), off, table("ejection", settings, Ejection::default).map(Some))
}

/// Looks at what is said of a service as a whole.
pub(super) fn check(section: &mut Section<'_>, it: &mut ServiceReading) {
    if section.has("check") {
        it.service.check = Some(it.check.clone());
        return;
    }
    for key in ["check_interval", "check_timeout", "check_rise", "check_fall"] {
        if section.has(key) {
            section.warn(key, "has no effect: there is not a check");
        }
    }
}

/// The services to which no route leads.
pub(super) fn unused(settings: &Settings) -> impl Iterator<Item = &str> {
    let is_led_to = |name: &str| {
        settings.routes.iter().any(|route| match &route.action {
            Action::Pass(pass) => pass.services().any(|service| *service.name == *name),
            _ => false,
        })
    };
    settings.services.keys().map(|name| &**name).filter(move |name| !is_led_to(name))
}

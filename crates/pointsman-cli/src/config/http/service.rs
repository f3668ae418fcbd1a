//! `[http.services.NAME]`: what holds for a service, whichever route leads to it.

use pointsman::Ejection;
use pointsman::proxy::{Action, Check, Service, ServiceTls, Settings};

use super::super::paths::{Folder, NamedFile};
use super::super::section::Section;
use super::set;
use crate::config::tls;

const CHECK: &str = "\"tcp\" or a path, such as \"/health\"";
const EJECTION: &str = "\"off\" or a table, such as { failures = 5, base_time = \"30s\" }";

/// Reads what is said of services.
pub(super) fn read(section: &mut Section<'_>, settings: &mut Settings, folder: &Folder, files: &mut Vec<NamedFile>) {
    let Some(mut services) = section.section("services", "a table, such as [http.services.ress]") else { return };
    // Where a route cannot be read, it cannot be told where it leads.
    let sound = section.is_sound();
    for (name, mut table) in services.named_sections() {
        settings.services.insert(name.into(), service(&mut table, folder, files));
        services.absorb(table.finish());
        if sound && !is_led_to(settings, name) {
            services.warn(name, "has no effect: no route leads to the service");
        }
    }
    section.absorb(services.finish());
}

fn is_led_to(settings: &Settings, name: &str) -> bool {
    settings.routes.iter().any(|route| match &route.action {
        Action::Pass(pass) => pass.services().any(|service| *service.name == *name),
        _ => false,
    })
}

fn service(table: &mut Section<'_>, folder: &Folder, files: &mut Vec<NamedFile>) -> Service {
    let mut service = Service::default();
    set(&mut service.protocol, table.text("protocol", "\"http1\" or \"http2\"", str::parse));
    service.tls = tls(table, folder, files);
    service.check = check(table);
    service.max_in_flight = table.count("max_in_flight");
    set(&mut service.slow_start, table.duration("slow_start", "30s"));
    service.ejection = ejection(table);
    service
}

fn tls(table: &mut Section<'_>, folder: &Folder, files: &mut Vec<NamedFile>) -> Option<ServiceTls> {
    let mut tls = table.section("tls", "a table, such as { ca = \"ca.pem\" }")?;
    tls.require("ca", "ca = \"ca.pem\"");
    let ca = tls::file(&mut tls, "ca", folder, files);
    let name = tls.text("name", "the name that certificates have", |text| Ok(text.to_owned()));
    table.absorb(tls.finish());
    ca.map(|ca| ServiceTls { ca, name })
}

fn check(table: &mut Section<'_>) -> Option<Check> {
    let path = table.text("check", CHECK, |text| match text {
        "tcp" => Ok(None),
        path if path.starts_with('/') => Ok(Some(path.to_owned())),
        _ => Err(format!("{text:?} is no check; write \"tcp\" or a path, such as \"/health\"")),
    });
    // Read in any case, so that its keys are known and its values are checked.
    let mut check = Check::new(path.flatten());
    set(&mut check.interval, table.duration("check_interval", "2s"));
    set(&mut check.timeout, table.duration("check_timeout", "1s"));
    set(&mut check.rise, table.number("check_rise"));
    set(&mut check.fall, table.number("check_fall"));
    if table.has("check") {
        return Some(check);
    }
    for key in ["check_interval", "check_timeout", "check_rise", "check_fall"] {
        if table.has(key) {
            table.warn(key, "has no effect: there is no check");
        }
    }
    None
}

fn ejection(table: &mut Section<'_>) -> Option<Ejection> {
    let default = Some(Ejection::default());
    if !table.has_table("ejection") {
        let off = |text: &str| match text {
            "off" => Ok(()),
            _ => Err(format!("{text:?} is no rule; write \"off\", or a table such as {{ failures = 5 }}")),
        };
        return if table.text("ejection", EJECTION, off).is_some() { None } else { default };
    }
    let Some(mut rule) = table.section("ejection", EJECTION) else { return default };
    let mut ejection = Ejection::default();
    set(&mut ejection.consecutive_failures, rule.number("failures"));
    set(&mut ejection.interval, rule.duration("interval", "10s"));
    set(&mut ejection.base_time, rule.duration("base_time", "30s"));
    set(&mut ejection.max_time, rule.duration("max_time", "5m"));
    set(&mut ejection.max_percent, rule.number("max_percent"));
    set(&mut ejection.panic_percent, rule.number("panic_percent"));
    table.absorb(rule.finish());
    Some(ejection)
}

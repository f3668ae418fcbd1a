//! Everything that is wrong with settings.

use std::sync::Arc;
use std::time::Duration;

use pointsman_balance::Ejection;
use pointsman_core::check_name;
use pointsman_net::percent;

use super::{Action, Answer, Check, Invalid, Key, Limits, Pass, Route, Service, Settings, Timeouts, When};
use crate::http1::parse::MOST_FIELDS;
use crate::matching::host::Host;
use crate::matching::{check_pattern, check_size};

/// The longest time that can be given: what is longer is a slip, and would not fit on every clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// More than any machine has connections or memory for.
const MOST: usize = 10_000_000;
/// More threads than any machine has cores.
const MOST_WORKERS: usize = 1024;
/// A request has at least a line, and some fields.
const SMALLEST_HEAD: usize = 1024;
/// What a connection reads into.
const LARGEST_HEAD: usize = crate::spare::BUFFER;
/// What a cookie, a field or a method is called at most.
const LONGEST_NAME: usize = 255;
/// Answers are for short texts: they are held in memory, and written in one go.
const LARGEST_ANSWER: usize = 1 << 20;

impl Settings {
    /// Everything that is wrong with them. Files are not looked at.
    #[must_use]
    pub fn problems(&self) -> Vec<Invalid> {
        let mut found = Found { under: String::new(), problems: Vec::new() };
        found.number("workers", self.workers, 1, MOST_WORKERS);
        limits(&mut found, &self.limits);
        found.time("drain_timeout", self.drain_timeout);
        if self.routes.is_empty() {
            found.wrong("route", "is missing: without a [[http.route]] there is nothing to do");
        }
        for (index, route) in self.routes.iter().enumerate() {
            found.under = format!("route.{index}.");
            self::route(&mut found, route, &self.routes[..index]);
        }
        for (name, service) in &self.services {
            found.under = format!("services.{name}");
            found.service("", name);
            found.under += ".";
            self::service(&mut found, service);
        }
        if found.problems.is_empty() {
            found.problems.extend(check_size(&self.routes).err());
        }
        found.problems
    }
}

/// What has been found so far.
#[derive(Debug)]
struct Found {
    /// What keys are put under: `route.0.`.
    under: String,
    problems: Vec<Invalid>,
}

impl Found {
    fn wrong(&mut self, key: &str, reason: impl Into<String>) {
        self.problems.push(Invalid { key: format!("{}{key}", self.under), reason: reason.into() });
    }

    /// Notes what went wrong, if something did.
    fn check<T>(&mut self, key: &str, checked: Result<T, String>) {
        if let Err(reason) = checked {
            self.wrong(key, reason);
        }
    }

    fn number(&mut self, key: &str, number: usize, least: usize, most: usize) {
        if number < least || number > most {
            self.wrong(key, format!("is {number}; it can be {least} to {most}"));
        }
    }

    fn percent(&mut self, key: &str, percent: u32) {
        if percent > 100 {
            self.wrong(key, format!("is {percent}; a share is 0 to 100 percent"));
        }
    }

    fn time(&mut self, key: &str, time: Duration) {
        if time > LONGEST {
            self.wrong(key, "is longer than 365 days");
        }
    }

    /// A time within which something has to happen.
    fn positive_time(&mut self, key: &str, time: Duration) {
        if time.is_zero() {
            self.wrong(key, "is 0: nothing is that fast; write for example \"10s\"");
        }
        self.time(key, time);
    }

    fn service(&mut self, key: &str, name: &str) {
        self.check(key, check_name("service", name).map_err(|error| error.to_string()));
    }
}

fn limits(found: &mut Found, limits: &Limits) {
    let Limits { connections, head, fields, head_time, keep_alive, streams } = *limits;
    found.number("max_connections", connections, 1, MOST);
    if !(SMALLEST_HEAD..=LARGEST_HEAD).contains(&head) {
        found.wrong("max_head", format!("is {head} bytes; it can be \"1KiB\" to \"64KiB\""));
    }
    found.number("max_headers", fields, 1, MOST_FIELDS);
    found.positive_time("head_timeout", head_time);
    found.positive_time("keep_alive", keep_alive);
    found.number("max_streams", as_usize(streams), 1, 1_000_000);
}

fn route(found: &mut Found, route: &Route, earlier: &[Route]) {
    let Route { name, when, action } = route;
    if name.chars().any(char::is_control) {
        found.wrong("name", "has a control character in it");
    }
    // In metrics they would be counted as one.
    if let Some(index) = earlier.iter().position(|other| other.name == *name) {
        found.wrong("name", format!("is that of route.{index} too, {name:?}; give each a name of its own"));
    }
    self::when(found, when);
    match action {
        Action::Pass(pass) => self::pass(found, pass, when),
        Action::Answer(answer) => self::answer(found, answer),
    }
}

fn when(found: &mut Found, when: &When) {
    let When { pattern, path_prefix, hosts, methods, headers } = when;
    if let Some(pattern) = pattern {
        found.check("match", check_pattern(pattern));
    }
    if let Some(prefix) = path_prefix {
        found.check("path_prefix", check_path(prefix));
    }
    for (index, host) in hosts.iter().enumerate() {
        found.check(&format!("host.{index}"), Host::parse(host));
    }
    for (index, method) in methods.iter().enumerate() {
        found.check(&format!("method.{index}"), check_method(method));
    }
    for (name, pattern) in headers {
        let key = format!("header.{name}");
        found.check(&key, check_field_name(name).and_then(|()| check_pattern(pattern)));
        if name == "host" {
            found.wrong(&key, "has a key of its own: host = \"a.example\"");
        }
    }
}

fn pass(found: &mut Found, pass: &Pass, when: &When) {
    found.service("service", &pass.service);
    shares(found, &pass.service, &pass.split);
    if let Some((service, percent)) = &pass.mirror {
        found.service("mirror.service", service);
        found.percent("mirror.percent", (*percent).into());
    }
    match &pass.key {
        Some(Key::Header(name)) => found.check("key", check_field_name(name)),
        Some(Key::Cookie(name)) => found.check("key", check_cookie_name(name)),
        Some(Key::ClientAddress | Key::Path) | None => {}
    }
    if let Some(sticky) = &pass.sticky {
        found.check("sticky.cookie", check_cookie_name(&sticky.cookie));
        if let Some(age) = sticky.max_age {
            if age < Duration::from_secs(1) {
                found.wrong("sticky.max_age", "is below a second; leave it out to keep it until the browser is closed");
            }
            found.time("sticky.max_age", age);
        }
    }
    if let Some(prefix) = &pass.rewrite_prefix {
        found.check("rewrite_prefix", check_path(prefix));
        if when.path_prefix.is_none() {
            found.wrong("rewrite_prefix", "takes the place of what path_prefix has matched; give a path_prefix");
        }
    }
    let Timeouts { connect, first_byte, idle, whole } = pass.timeouts;
    found.positive_time("connect_timeout", connect);
    found.positive_time("first_byte_timeout", first_byte);
    found.positive_time("idle_timeout", idle);
    if let Some(whole) = whole {
        found.positive_time("timeout", whole);
    }
    found.number("retries", as_usize(pass.retries), 0, 100);
    found.percent("retry_budget", pass.retry_budget);
    in_flight(found, pass.max_in_flight);
    found.number("queue", pass.queue, 0, MOST);
    found.time("queue_timeout", pass.queue_timeout);
}

fn shares(found: &mut Found, first: &str, split: &[(Arc<str>, u8)]) {
    let mut sum = 0;
    for (index, (service, percent)) in split.iter().enumerate() {
        let key = format!("split.{service}");
        found.service(&key, service);
        found.percent(&key, (*percent).into());
        if **service == *first {
            found.wrong(&key, "is the service that gets the rest");
        } else if split[..index].iter().any(|(other, _)| other == service) {
            found.wrong(&key, "has a share already");
        }
        sum += u32::from(*percent);
    }
    if sum > 100 && split.iter().all(|(_, percent)| *percent <= 100) {
        found.wrong("split", format!("gives {sum} percent away; there are 100, and what is left is {first}'s"));
    }
}

fn in_flight(found: &mut Found, limit: Option<usize>) {
    match limit {
        Some(0) => found.wrong("max_in_flight", "is 0: then nobody is served; leave it out for no limit"),
        Some(limit) => found.number("max_in_flight", limit, 1, MOST),
        None => {}
    }
}

/// Fields that belong to a connection, or say how a message is framed: only who sends it knows.
const FRAMING: [&str; 7] =
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

fn answer(found: &mut Found, answer: &Answer) {
    let Answer { status, headers, body } = answer;
    if !(200..=599).contains(status) {
        found.wrong("answer.status", format!("is {status}; it can be 200 to 599"));
    }
    if matches!(status, 204 | 205 | 304) && !body.is_empty() {
        found.wrong("answer.body", format!("cannot be sent: an answer with {status} has none"));
    }
    if body.len() > LARGEST_ANSWER {
        found.wrong("answer.body", format!("has {} bytes; it can have {LARGEST_ANSWER}", body.len()));
    }
    for (name, value) in headers {
        let key = format!("answer.headers.{name}");
        found.check(&key, check_field_name(name));
        if FRAMING.contains(&name.as_str()) {
            found.wrong(&key, "is set by the proxy itself");
        }
        if value.bytes().any(|byte| byte != b'\t' && byte.is_ascii_control()) {
            found.wrong(&key, "has a control character in it, such as a line's end");
        } else if value.trim_matches([' ', '\t']) != value {
            found.wrong(&key, "has a space at an end, which nobody would see");
        }
    }
}

fn service(found: &mut Found, service: &Service) {
    if let Some(name) = service.tls.as_ref().and_then(|tls| tls.name.as_ref())
        && rustls_pki_types::ServerName::try_from(name.as_str()).is_err()
    {
        found.wrong(
            "tls.name",
            format!("{name:?} cannot be the name of a certificate; write for example \"ress.internal\""),
        );
    }
    if let Some(check) = &service.check {
        self::check(found, check);
    }
    in_flight(found, service.max_in_flight);
    found.time("slow_start", service.slow_start);
    if let Some(ejection) = &service.ejection {
        self::ejection(found, ejection);
    }
}

fn check(found: &mut Found, check: &Check) {
    if let Some(path) = &check.path {
        let path = path.split_once('?').map_or(path.as_str(), |(path, _)| path);
        found.check("check", check_path(path).map_err(|reason| format!("{reason}; or write \"tcp\"")));
    }
    found.positive_time("check_interval", check.interval);
    found.positive_time("check_timeout", check.timeout);
    found.number("check_rise", as_usize(check.rise), 1, 1000);
    found.number("check_fall", as_usize(check.fall), 1, 1000);
}

fn ejection(found: &mut Found, ejection: &Ejection) {
    let Ejection { consecutive_failures, interval, base_time, max_time, max_percent, panic_percent, .. } = *ejection;
    if consecutive_failures == 0 {
        found.wrong("ejection.failures", "is 0: then nobody would be left; write ejection = \"off\" for none");
    }
    found.positive_time("ejection.interval", interval);
    found.positive_time("ejection.base_time", base_time);
    if max_time < base_time {
        found.wrong("ejection.max_time", "is shorter than base_time, which the first ejection lasts");
    }
    found.time("ejection.max_time", max_time);
    found.percent("ejection.max_percent", max_percent);
    found.percent("ejection.panic_percent", panic_percent);
}

/// A path, as it stands in a request.
fn check_path(path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err(format!("{path:?} does not begin with /, as paths do"));
    }
    let Some(bad) = path.chars().find(|&c| !c.is_ascii_graphic() || matches!(c, '?' | '#')) else { return Ok(()) };
    let mut buffer = [0; 4];
    let encoded = percent::utf8_percent_encode(bad.encode_utf8(&mut buffer), percent::SHOWN);
    Err(format!("{path:?} has {bad:?} in it, which clients send as {encoded}"))
}

fn check_method(method: &str) -> Result<(), String> {
    let fail = |why: &str| Err(format!("{method:?} {why}; write for example \"GET\""));
    if !is_token(method) {
        return fail("is not a method");
    }
    if method.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return fail("is not in capitals, as clients send it");
    }
    if matches!(method, "CONNECT" | "TRACE") {
        return fail("is refused, whatever routes say");
    }
    Ok(())
}

fn check_field_name(name: &str) -> Result<(), String> {
    if !is_token(name) {
        return Err(format!("{name:?} cannot be the name of a header; write for example x-canary"));
    }
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(format!("{name:?} has capitals in it; write {}", name.to_ascii_lowercase()));
    }
    Ok(())
}

fn check_cookie_name(name: &str) -> Result<(), String> {
    if is_token(name) {
        Ok(())
    } else {
        Err(format!("{name:?} cannot be the name of a cookie; write for example \"lb\""))
    }
}

/// What names of methods, fields and cookies are (RFC 9110, 5.6.2; RFC 6265, 4.1.1).
fn is_token(name: &str) -> bool {
    let is_right = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(is_right)
}

fn as_usize(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;

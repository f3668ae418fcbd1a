//! `[[http.route]]`: which requests go where.

use std::sync::Arc;

use pointsman::Algorithm;
use pointsman::proxy::{Action, Answer, Pass, Route, Settings, Sticky, When};
use toml::de::DeValue;

use super::super::registries::{SectionRegistries, Urls};
use super::super::section::{Section, fitting};
use super::set;

const ROUTES: &str = "a list of tables, each [[http.route]]";
const STICKY: &str = "the name of a cookie, or a table such as { cookie = \"lb\", max_age = \"1h\" }";
/// What is about requests that are passed on.
const PASSING: [&str; 17] = [
    "registry",
    "algorithm",
    "role",
    "key",
    "split",
    "mirror",
    "sticky",
    "rewrite_prefix",
    "connect_timeout",
    "first_byte_timeout",
    "idle_timeout",
    "timeout",
    "retries",
    "retry_budget",
    "max_in_flight",
    "queue",
    "queue_timeout",
];

/// Reads the routes.
pub(super) fn read(
    section: &mut Section<'_>,
    settings: &mut Settings,
    urls: &mut Urls<'_>,
    registries: &mut SectionRegistries,
) {
    for (index, table) in section.sections("route", ROUTES).into_iter().enumerate() {
        // What cannot be read is replaced by what has no problem, so that the others are checked too, and at their places.
        let mut read = Route::new("^/unreadable", "unreadable");
        read.name = format!("unreadable {index}");
        if let Some(mut route) = table {
            let registry = urls.of_route(&mut route, &mut registries.named);
            self::route(&mut route, &mut read, &settings.routes);
            if let Action::Pass(pass) = &mut read.action {
                pass.registry = registry;
            }
            section.absorb(route.finish());
        }
        settings.routes.push(read);
    }
}

fn route(route: &mut Section<'_>, read: &mut Route, earlier: &[Route]) {
    read.when = when(route);
    read.name = route.text("name", "a name", |text| Ok(text.to_owned())).unwrap_or_else(|| name(&read.when, earlier));
    let answer = answer(route);
    // Read in any case, so that its keys are known.
    let pass = pass(route);
    if !route.has("answer") {
        route.require("service", "service = \"ress\"; or an answer, such as answer = { status = 404 }");
    } else if route.has("service") {
        route.wrong("answer", "cannot go together with service; leave out one");
    } else {
        for key in PASSING {
            if route.has(key) {
                route.warn(key, "has no effect: the route answers by itself");
            }
        }
    }
    read.action = answer.map_or_else(|| Action::Pass(Box::new(pass)), Action::Answer);
    if let Some(index) = earlier.iter().position(|other| covers(&other.when, &read.when)) {
        let key = ["match", "path_prefix", "host", "method", "header"].into_iter().find(|key| route.has(key));
        route.warn(
            key.unwrap_or("name"),
            format!("never decides: http.route.{index} is for all that this route is for, and the first wins"),
        );
    }
}

fn when(route: &mut Section<'_>) -> When {
    let mut when = When::default();
    when.pattern = route.text("match", "a regular expression over the path", |text| Ok(text.to_owned()));
    when.path_prefix =
        route.text("path_prefix", "what paths begin with, such as \"/picture\"", |text| Ok(text.to_owned()));
    if route.has("path_prefix") {
        // Others ask whether there is one.
        when.path_prefix.get_or_insert_with(|| "/unreadable".to_owned());
    }
    let mut texts = |key, expected, stopgap: &str| {
        let texts = route.texts(key, expected, |text| Ok(text.to_owned())).unwrap_or_default();
        texts.into_iter().map(|text| text.unwrap_or_else(|| stopgap.to_owned())).collect()
    };
    when.hosts = texts("host", "a host, such as \"a.example\"", "unreadable.invalid");
    when.methods = texts("method", "a method, such as \"GET\"", "GET");
    if let Some(mut headers) = route.section("header", "a table, such as { x-canary = \"^1$\" }") {
        let read = headers.named("a regular expression", |value| value.as_str().map(Ok));
        when.headers = read.into_iter().map(|(name, pattern)| (name.to_lowercase(), pattern.to_owned())).collect();
        route.absorb(headers.finish());
    }
    when
}

/// A route's name where the file gives none: what it matches.
fn name(when: &When, earlier: &[Route]) -> String {
    let name = conditions(when).replace(char::is_control, " ");
    if earlier.iter().any(|other| other.name == name) { format!("{name} #{}", earlier.len()) } else { name }
}

/// What a route matches, in a line.
pub(crate) fn conditions(when: &When) -> String {
    let mut parts = Vec::new();
    parts.extend((!when.methods.is_empty()).then(|| when.methods.join(",")));
    parts.extend((!when.hosts.is_empty()).then(|| when.hosts.join(",")));
    parts.extend(when.path_prefix.clone());
    parts.extend(when.pattern.clone());
    parts.extend(when.headers.iter().map(|(name, pattern)| format!("{name}: {pattern}")));
    if parts.is_empty() { "*".to_owned() } else { parts.join(" ") }
}

/// Whether one is surely for everything that the other is for.
fn covers(one: &When, other: &When) -> bool {
    let all = |ones: &[String], others: &[String]| {
        ones.is_empty() || (!others.is_empty() && others.iter().all(|name| ones.contains(name)))
    };
    let under = |prefix: &String, other: &String| {
        other
            .strip_prefix(prefix.as_str())
            .is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'))
    };
    (one.pattern.is_none() || one.pattern == other.pattern)
        && one.path_prefix.as_ref().is_none_or(|one| other.path_prefix.as_ref().is_some_and(|other| under(one, other)))
        && all(&one.hosts, &other.hosts)
        && all(&one.methods, &other.methods)
        && one.headers.iter().all(|header| other.headers.contains(header))
}

fn answer(route: &mut Section<'_>) -> Option<Answer> {
    let mut table = route.section("answer", "a table, such as { status = 404 }")?;
    table.require("status", "status = 404");
    let status = table.number("status").unwrap_or(200);
    let body = table.text("body", "a text", |text| Ok(text.to_owned())).unwrap_or_default();
    let mut headers = Vec::new();
    if let Some(mut fields) = table.section("headers", "a table, such as { location = \"https://a.example/\" }") {
        let read = fields.named("a text", |value| value.as_str().map(Ok));
        headers = read.into_iter().map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        table.absorb(fields.finish());
    }
    route.absorb(table.finish());
    Some(Answer { status, headers, body })
}

fn pass(route: &mut Section<'_>) -> Pass {
    let service = route.text("service", "a service's name", |text| Ok(Arc::<str>::from(text)));
    let mut pass = Pass::new(service.unwrap_or_else(|| "unreadable".into()));
    let algorithm = |text: &str| text.parse::<Algorithm>().map_err(|error| error.to_string());
    set(&mut pass.algorithm, route.text("algorithm", "the name of an algorithm, such as \"round-robin\"", algorithm));
    set(&mut pass.role, route.text("role", "\"normal\" or \"master\"", str::parse));
    let key = "\"client-address\", \"path\", \"header:NAME\" or \"cookie:NAME\"";
    pass.key = route.text("key", key, str::parse);
    if pass.key.is_some() && !pass.algorithm.uses_key() {
        route.warn("key", "has no effect: only ip-hash and url-hash ask for it");
    }
    if let Some(mut split) = route.section("split", "a table, such as { ress-canary = 10 }") {
        let shares = split.named("a share in percent, such as 10", percent);
        pass.split = shares.into_iter().map(|(service, share)| (service.into(), share)).collect();
        route.absorb(split.finish());
    }
    if let Some(mut mirror) = route.section("mirror", "a table, such as { service = \"shadow\", percent = 5 }") {
        mirror.require("service", "service = \"shadow\"");
        let service = mirror.text("service", "a service's name", |text| Ok(Arc::<str>::from(text)));
        let share = mirror.read("percent", "a share in percent, such as 5", percent).unwrap_or(100);
        pass.mirror = service.map(|service| (service, share));
        route.absorb(mirror.finish());
    }
    pass.sticky = sticky(route);
    let path = "a path, such as \"/\"";
    pass.rewrite_prefix = route.text("rewrite_prefix", path, |text| Ok(text.to_owned()));
    budgets(route, &mut pass);
    pass
}

fn percent(value: &DeValue<'_>) -> Option<Result<u8, String>> {
    let number = value.as_integer()?;
    let share = fitting(number.as_str(), number.radix());
    Some(share.map_err(|reason| format!("{reason}; a share is 0 to 100 percent")))
}

fn sticky(route: &mut Section<'_>) -> Option<Sticky> {
    if !route.has_table("sticky") {
        return route.text("sticky", STICKY, |text| Ok(Sticky { cookie: text.to_owned(), max_age: None }));
    }
    let mut table = route.section("sticky", STICKY)?;
    table.require("cookie", "cookie = \"lb\"");
    let cookie = table.text("cookie", "the name of a cookie", |text| Ok(text.to_owned()));
    let max_age = table.duration("max_age", "1h");
    route.absorb(table.finish());
    cookie.map(|cookie| Sticky { cookie, max_age })
}

/// How long requests may take, how often they are tried, and how many there may be.
fn budgets(route: &mut Section<'_>, pass: &mut Pass) {
    let timeouts = &mut pass.timeouts;
    set(&mut timeouts.connect, route.duration("connect_timeout", "1s"));
    set(&mut timeouts.first_byte, route.duration("first_byte_timeout", "60s"));
    set(&mut timeouts.idle, route.duration("idle_timeout", "60s"));
    timeouts.whole = route.duration("timeout", "5m");
    set(&mut pass.retries, route.number("retries"));
    set(&mut pass.retry_budget, route.number("retry_budget"));
    if pass.retries == 0 && route.has("retry_budget") {
        route.warn("retry_budget", "has no effect: nothing is tried again, since retries is 0");
    }
    pass.max_in_flight = route.count("max_in_flight");
    set(&mut pass.queue, route.count("queue"));
    set(&mut pass.queue_timeout, route.duration("queue_timeout", "1s"));
    if pass.queue == 0 && route.has("queue_timeout") {
        route.warn("queue_timeout", "has no effect: nobody waits, since queue is 0");
    }
}

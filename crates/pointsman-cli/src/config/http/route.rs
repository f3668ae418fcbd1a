//! `[[http.route]]`: which requests go where.

use pointsman::proxy::{self, Action, Answer, Key, Pass, Sticky, When};

use super::super::registries::SectionRegistries;
use super::super::section::Section;
use super::super::setting::{Draft, Setting, Value};
use super::super::values::{
    LONGEST, MOST, algorithm, count, duration, duration_within, list, parsed, percent, positive_duration, registry,
    shares, table, text, text_or_table, texts_by_name, word,
};

/// A route, while it is read.
#[derive(Debug)]
pub(in crate::config) struct Route {
    name: Option<String>,
    when: When,
    answer: Option<Answer>,
    pass: Pass,
    /// The URL of its registry.
    registry: Option<String>,
}

pub(super) fn settings() -> Vec<Setting<Route>> {
    let mut settings = Vec::from(matching());
    settings.extend([
        table("answer", answer(), || Answer { status: 200, headers: Vec::new(), body: String::new() })
            .example("{ status = 404 }")
            .help("The proxy answers itself, with `status` (200 to 599), `headers` and `body`.")
            .to(|route: &mut Route, answer| route.answer = Some(answer)),
        text("service", "a service's name")
            .example("\"ress\"")
            .help("Service that requests are for. A route has a `service` or an `answer`.")
            .to(|route: &mut Route, name| route.pass.service = name.into()),
    ]);
    settings.extend(passing());
    settings
}

/// Which requests a route is for.
fn matching() -> [Setting<Route>; 6] {
    let hosts = list("host", "a host", |_, text| Ok(text.to_owned())).example("\"a.example\"");
    let methods = list("method", "a method", |_, text| Ok(text.to_owned())).example("\"GET\"");
    let or = |stopgap: &'static str| {
        move |texts: Vec<Option<String>>| {
            texts.into_iter().map(|text| text.unwrap_or_else(|| stopgap.to_owned())).collect::<Vec<_>>()
        }
    };
    [
        text("name", "a name")
            .default("what the route matches")
            .help("Name of the route in metrics and logs, which no other route has.")
            .to(|route: &mut Route, name| route.name = Some(name)),
        text("match", "a regular expression over the path")
            .example("\"^/picture\"")
            .help("Regular expression over the path. See [Matching](http.md#matching).")
            .to(|route: &mut Route, pattern| route.when.pattern = Some(pattern)),
        text("path_prefix", "what paths begin with")
            .example("\"/picture\"")
            .help("What the path begins with, by whole segments.")
            .to(|route: &mut Route, prefix| route.when.path_prefix = Some(prefix)),
        hosts
            .map(or("unreadable.invalid"))
            .help("Hosts without a port; `*.example.org` stands for every name below one.")
            .to(|route: &mut Route, hosts| route.when.hosts = hosts),
        methods.map(or("GET")).help("Methods.").to(|route: &mut Route, methods| route.when.methods = methods),
        texts_by_name("header", "a regular expression")
            .example("{ x-canary = \"^1$\" }")
            .help("Regular expressions, by the names of the headers that must match them.")
            .to(|route: &mut Route, headers| {
                route.when.headers = headers.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect();
            }),
    ]
}

fn answer() -> Vec<Setting<Answer>> {
    vec![
        count("status", 200, 599)
            .example("404")
            .required()
            .help("Status of the answer.")
            .to(|answer: &mut Answer, status| answer.status = status),
        text("body", "a text").help("Body of the answer.").to(|answer: &mut Answer, body| answer.body = body),
        texts_by_name("headers", "a text")
            .example("{ location = \"https://a.example/\" }")
            .help("Headers of the answer.")
            .to(|answer: &mut Answer, headers| {
                answer.headers = headers.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect();
            }),
    ]
}

/// Settings of requests that are passed on.
fn passing() -> Vec<Setting<Route>> {
    let mut settings = vec![
        registry("registry")
            .default("the section's")
            .help(
                "URL of the registry in which `service`, and the services of `split` and `mirror`, are found. \
                 [Several registries](http.md#several-registries).",
            )
            .to(|route: &mut Route, url| route.registry = Some(url)),
    ];
    settings.extend(choosing());
    settings.extend(sharing());
    settings.extend(timeouts());
    settings.extend(budgets());
    settings
}

fn choosing() -> [Setting<Route>; 4] {
    [
        algorithm()
            .to(|route: &mut Route, algorithm| route.pass.algorithm = algorithm),
        word("role", &["normal", "master"])
            .default("\"normal\"")
            .help(
                "`\"normal\"`: the normal instances, and the master where none of them can serve; `\"master\"`: the \
                 master. See [choosing.md](choosing.md).",
            )
            .to(|route: &mut Route, role| route.pass.role = role),
        parsed("key", "\"client-address\", \"path\", \"header:NAME\" or \"cookie:NAME\"", str::parse::<Key>)
            .default("`\"client-address\"` of `ip-hash`, `\"path\"` of `url-hash`")
            .example("\"cookie:user\"")
            .help("What the hashes go by: the client's address, path and query, a header, or a cookie.")
            .to(|route: &mut Route, key| route.pass.key = Some(key)),
        sticky()
            .help(
                "Name of a cookie by which a client stays with its instance as long as that one can serve, whatever its \
                 role. Without `max_age` the cookie lasts until the browser is closed.",
            )
            .to(|route: &mut Route, sticky| route.pass.sticky = Some(sticky)),
    ]
}

fn sticky() -> Draft<Sticky> {
    let settings = vec![
        text("cookie", "the name of a cookie")
            .example("\"lb\"")
            .required()
            .help("Name of the cookie.")
            .to(|sticky: &mut Sticky, name| sticky.cookie = name),
        duration_within("max_age", 1_000_000_000, LONGEST)
            .default("until the browser is closed")
            .example("\"1h\"")
            .help("Time that browsers keep the cookie.")
            .to(|sticky: &mut Sticky, age| sticky.max_age = Some(age)),
    ];
    text_or_table(
        Value::Text("the name of a cookie"),
        |text| Ok(Sticky { cookie: text.to_owned(), max_age: None }),
        table("sticky", settings, || Sticky { cookie: "unreadable".to_owned(), max_age: None }),
    )
    .example("{ cookie = \"lb\", max_age = \"1h\" }")
}

fn sharing() -> [Setting<Route>; 3] {
    let mirror = vec![
        text("service", "a service's name")
            .example("\"shadow\"")
            .required()
            .help("Service that gets the copies.")
            .to(|mirror: &mut (String, u8), name| mirror.0 = name),
        percent("percent")
            .default("100")
            .help("Share of the requests that is copied, in percent.")
            .to(|mirror: &mut (String, u8), share| mirror.1 = share),
    ];
    [
        shares("split")
            .example("{ ress-canary = 10 }")
            .help(
                "Shares of other services, in percent. The rest is `service`'s, and so are the requests of a share that no \
                 instance there can serve; these are counted (`split_home_total`), and the log says when that begins and ends.",
            )
            .to(|route: &mut Route, shares| {
                route.pass.split = shares.into_iter().map(|(name, share)| (name.into(), share)).collect();
            }),
        table("mirror", mirror, || ("unreadable".to_owned(), 100))
            .example("{ service = \"shadow\", percent = 5 }")
            .help("A copy of a share of the requests goes to another service. What that one answers is thrown away.")
            .to(|route: &mut Route, (name, share)| route.pass.mirror = Some((name.into(), share))),
        text("rewrite_prefix", "a path")
            .example("\"/\"")
            .help(
                "Takes the place of what `path_prefix` has matched: with `path_prefix = \"/api\"` and `\"/\"`, `/api/x` \
                 becomes `/x`.",
            )
            .to(|route: &mut Route, prefix| route.pass.rewrite_prefix = Some(prefix)),
    ]
}

fn timeouts() -> [Setting<Route>; 4] {
    [
        positive_duration("connect_timeout")
            .default("\"3s\"")
            .help("Timeout of a connection to an instance.")
            .to(|route: &mut Route, time| route.pass.timeouts.connect = time),
        positive_duration("first_byte_timeout")
            .default("\"60s\"")
            .help("Timeout from the last byte of the request to the first of the answer.")
            .to(|route: &mut Route, time| route.pass.timeouts.first_byte = time),
        positive_duration("idle_timeout")
            .default("\"60s\"")
            .help("Timeout without a byte in either direction.")
            .to(|route: &mut Route, time| route.pass.timeouts.idle = time),
        positive_duration("timeout")
            .example("\"5m\"")
            .help("Timeout from the head of the request to the end of the answer, retries included; not for upgraded connections.")
            .to(|route: &mut Route, time| route.pass.timeouts.whole = Some(time)),
    ]
}

/// Settings of retries, of requests in flight and of the queue.
fn budgets() -> [Setting<Route>; 5] {
    [
        count("retries", 0, 100)
            .default("2")
            .help(
                "Maximum number of times that a request that may have reached an instance, or that one did not accept in time, \
                 is sent to another one. Where instances refuse the connection each is asked once, unless this is 0.",
            )
            .to(|route: &mut Route, retries| route.pass.retries = retries),
        count("retry_budget", 0, 100)
            .default("20")
            .help(
                "Maximum share of the requests sent to an instance that is sent to another one, in percent; a few a \
                 second are always allowed.",
            )
            .to(|route: &mut Route, percent| route.pass.retry_budget = percent),
        count("max_in_flight", 1, MOST)
            .example("1000")
            .help("Maximum number of requests at a time by this route.")
            .to(|route: &mut Route, limit| route.pass.max_in_flight = Some(limit)),
        count("queue", 0, MOST)
            .default("100")
            .help("Maximum number of requests that wait: for a place where there are too many, or for a master.")
            .to(|route: &mut Route, limit| route.pass.queue = limit),
        duration("queue_timeout")
            .default("\"1s\"")
            .help("Time that a request waits at most.")
            .to(|route: &mut Route, time| route.pass.queue_timeout = time),
    ]
}

impl Route {
    pub(super) fn new() -> Self {
        Self { name: None, when: When::default(), answer: None, pass: Pass::new("unreadable"), registry: None }
    }

    /// A route without a problem, in the place of one that is not a table.
    pub(super) fn stopgap(index: usize) -> Self {
        let mut stopgap = Self { name: Some(format!("unreadable {index}")), ..Self::new() };
        stopgap.when.pattern = Some("^/unreadable".to_owned());
        stopgap
    }

    /// As the proxy takes it; its registry is named in `registries`.
    pub(super) fn finish(self, registries: &mut SectionRegistries) -> proxy::Route {
        let Self { name, when, answer, mut pass, registry } = self;
        pass.registry = registry.map(|url| registries.name(url));
        let mut route = proxy::Route::new("", "unreadable");
        (route.name, route.when) = (name.unwrap_or_default(), when);
        route.action = answer.map_or_else(|| Action::Pass(Box::new(pass)), Action::Answer);
        route
    }
}

/// Looks at a route as a whole.
pub(super) fn check(section: &mut Section<'_>, route: &mut Route, earlier: &[Route]) {
    if section.has("path_prefix") {
        // Others ask whether there is one.
        route.when.path_prefix.get_or_insert_with(|| "/unreadable".to_owned());
    }
    let when = &route.when;
    if !section.has("name") {
        route.name = Some(name(when, earlier));
    }
    if !section.has("answer") {
        section.require("service", "service = \"ress\"; or an answer, such as answer = { status = 404 }");
        note_what_has_no_effect(section, &route.pass);
    } else if section.has("service") {
        section.wrong("answer", "cannot go together with service; leave out one");
    } else {
        for Setting { about, .. } in passing() {
            if section.has(about.key) {
                section.warn(about.key, "has no effect: the route answers by itself");
            }
        }
    }
    if let Some(index) = earlier.iter().position(|other| covers(&other.when, when)) {
        let key = ["match", "path_prefix", "host", "method", "header"].into_iter().find(|key| section.has(key));
        section.warn(
            key.unwrap_or("name"),
            format!("never decides: http.route.{index} is for all that this route is for, and the first wins"),
        );
    }
}

fn note_what_has_no_effect(section: &mut Section<'_>, pass: &Pass) {
    if pass.key.is_some() && !pass.algorithm.uses_key() {
        section.warn("key", "has no effect: only ip-hash and url-hash ask for it");
    }
    if pass.retries == 0 && section.has("retry_budget") {
        section.warn("retry_budget", "has no effect: requests are not sent again, since retries is 0");
    }
    if pass.queue == 0 && section.has("queue_timeout") {
        section.warn("queue_timeout", "has no effect: requests do not wait, since queue is 0");
    }
}

/// A route's name where the file gives none: what it matches.
fn name(when: &When, earlier: &[Route]) -> String {
    let name = conditions(when).replace(char::is_control, " ");
    if earlier.iter().any(|other| other.name.as_deref() == Some(&*name)) {
        format!("{name} #{}", earlier.len())
    } else {
        name
    }
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

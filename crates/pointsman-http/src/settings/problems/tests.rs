use std::path::PathBuf;

use super::*;
use crate::settings::{ServiceTls, Sticky};

fn settings(patterns: &[&str]) -> Settings {
    let routes = patterns.iter().map(|pattern| Route::new(*pattern, "s")).collect();
    Settings { routes, ..Settings::new() }
}

/// The only problem, as it is told.
fn problem(settings: &Settings) -> String {
    match settings.problems().as_slice() {
        [problem] => problem.to_string(),
        problems => panic!("{problems:#?}"),
    }
}

fn of_settings(change: impl FnOnce(&mut Settings)) -> String {
    let mut settings = settings(&["^/a"]);
    change(&mut settings);
    problem(&settings)
}

fn of_when(change: impl FnOnce(&mut When)) -> String {
    of_settings(|settings| change(&mut settings.routes[0].when))
}

fn of_pass(change: impl FnOnce(&mut Pass)) -> String {
    of_settings(|settings| {
        let mut pass = Pass::new("s");
        change(&mut pass);
        settings.routes[0].action = Action::Pass(Box::new(pass));
    })
}

fn of_answer(status: u16, header: Option<(&str, &str)>, body: &str) -> String {
    let headers = header.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    let answer = Answer { status, headers, body: body.to_owned() };
    of_settings(|settings| settings.routes[0].action = Action::Answer(answer))
}

fn of_service(change: impl FnOnce(&mut Service)) -> String {
    of_settings(|settings| {
        let mut service = Service { check: Some(Check::new(None)), ..Service::default() };
        change(&mut service);
        settings.services.insert("s".into(), service);
    })
}

fn of_check(change: impl FnOnce(&mut Check)) -> String {
    of_service(|service| change(service.check.as_mut().unwrap()))
}

fn of_ejection(change: impl FnOnce(&mut Ejection)) -> String {
    of_service(|service| change(service.ejection.as_mut().unwrap()))
}

fn told(problems: impl IntoIterator<Item = (String, &'static str, &'static str)>) {
    for (problem, key, expected) in problems {
        assert!(problem.starts_with(&format!("{key} ")) && problem.contains(expected), "{key} {expected}: {problem}");
    }
}

const TOO_LONG: Duration = Duration::from_secs(400 * 24 * 3600);

#[test]
fn good_settings_have_no_problems() {
    let mut good = settings(&["^/a", "b$", r"(?-u)\xff"]);
    good.routes[0].when = When {
        pattern: Some("^/a".into()),
        path_prefix: Some("/a".into()),
        hosts: vec!["a.example".into(), "*.example.org".into(), "[::1]".into()],
        methods: vec!["GET".into(), "M-SEARCH".into()],
        headers: vec![("x-canary".into(), "^1$".into())],
    };
    let mut pass = Pass::new("s");
    pass.split = vec![("t".into(), 60), ("u".into(), 40)];
    pass.mirror = Some(("s".into(), 100));
    pass.key = Some(Key::Header("x-user".into()));
    pass.sticky = Some(Sticky { cookie: "__Host-lb".into(), max_age: Some(Duration::from_secs(1)) });
    pass.rewrite_prefix = Some("/".into());
    (pass.queue, pass.queue_timeout, pass.retries, pass.retry_budget) = (0, Duration::ZERO, 0, 0);
    good.routes[0].action = Action::Pass(Box::new(pass));
    let headers = vec![("location".to_owned(), "https://a.example/".to_owned())];
    good.routes[1].action = Action::Answer(Answer { status: 308, headers, body: "gone on".into() });
    good.drain_timeout = Duration::ZERO;
    let tls = ServiceTls { ca: PathBuf::from("not/there"), name: Some("ress.internal".into()) };
    let check = Check::new(Some("/health?full=1".into()));
    let service = Service { tls: Some(tls), check: Some(check), ejection: None, ..Service::default() };
    good.services.insert("a.b".into(), service);
    assert_eq!(good.problems(), []);
}

#[test]
fn what_is_wrong_with_the_whole() {
    told([
        (problem(&settings(&[])), "route", "[[http.route]]"),
        (of_settings(|s| s.workers = 0), "workers", "1 to 1024"),
        (of_settings(|s| s.limits.connections = 0), "max_connections", "1 to "),
        (of_settings(|s| s.limits.head = 100), "max_head", "\"1KiB\" to \"64KiB\""),
        (of_settings(|s| s.limits.head = 1 << 30), "max_head", "\"1KiB\" to \"64KiB\""),
        (of_settings(|s| s.limits.fields = 0), "max_headers", "1 to "),
        (of_settings(|s| s.limits.head_time = Duration::ZERO), "head_timeout", "is 0"),
        (of_settings(|s| s.limits.keep_alive = TOO_LONG), "keep_alive", "365 days"),
        (of_settings(|s| s.limits.streams = 0), "max_streams", "1 to "),
        (of_settings(|s| s.drain_timeout = TOO_LONG), "drain_timeout", "365 days"),
    ]);
    let large: Vec<String> = (0..60).map(|n| format!(r"^/{n}/\w{{20}}")).collect();
    let large: Vec<&str> = large.iter().map(String::as_str).collect();
    told([(problem(&settings(&large)), "route", "together take more than")]);
}

#[test]
fn what_is_wrong_with_the_conditions_of_a_route() {
    told([
        (problem(&settings(&["^/a", "^/a"])), "route.1.name", "route.0 too"),
        (of_settings(|s| s.routes[0].name = "a\nb".into()), "route.0.name", "control character"),
        (problem(&settings(&["^/a", "^/("])), "route.1.match", "regular expression"),
        (of_when(|w| w.path_prefix = Some("a".into())), "route.0.path_prefix", "begin with /"),
        (of_when(|w| w.path_prefix = Some("/a?b".into())), "route.0.path_prefix", "%3F"),
        (of_when(|w| w.path_prefix = Some("/ä".into())), "route.0.path_prefix", "%C3%A4"),
        (of_when(|w| w.path_prefix = Some("/a b".into())), "route.0.path_prefix", "%20"),
        (of_when(|w| w.hosts = vec!["a".into(), "a:80".into()]), "route.0.host.1", "has a port"),
        (of_when(|w| w.methods = vec!["GET".into(), "put".into()]), "route.0.method.1", "in capitals"),
        (of_when(|w| w.methods = vec!["A B".into()]), "route.0.method.0", "is not a method"),
        (of_when(|w| w.methods = vec!["CONNECT".into()]), "route.0.method.0", "is refused"),
        (of_when(|w| w.headers = vec![("X-A".into(), "1".into())]), "route.0.header.X-A", "write x-a"),
        (of_when(|w| w.headers = vec![("a b".into(), "1".into())]), "route.0.header.a b", "x-canary"),
        (of_when(|w| w.headers = vec![("x-a".into(), "(".into())]), "route.0.header.x-a", "regular expression"),
        (of_when(|w| w.headers = vec![("host".into(), "a".into())]), "route.0.header.host", "host = "),
    ]);
}

#[test]
fn what_is_wrong_with_how_requests_are_passed_on() {
    told([
        (of_pass(|p| p.service = "a/b".into()), "route.0.service", "1 to 255 bytes"),
        (of_pass(|p| p.split = vec![("a/b".into(), 1)]), "route.0.split.a/b", "1 to 255 bytes"),
        (of_pass(|p| p.split = vec![("t".into(), 101)]), "route.0.split.t", "0 to 100"),
        (of_pass(|p| p.split = vec![("s".into(), 1)]), "route.0.split.s", "gets the rest"),
        (of_pass(|p| p.split = vec![("t".into(), 1), ("t".into(), 2)]), "route.0.split.t", "already"),
        (of_pass(|p| p.split = vec![("t".into(), 60), ("u".into(), 41)]), "route.0.split", "101 percent"),
        (of_pass(|p| p.mirror = Some(("".into(), 1))), "route.0.mirror.service", "is empty"),
        (of_pass(|p| p.mirror = Some(("t".into(), 101))), "route.0.mirror.percent", "0 to 100"),
        (of_pass(|p| p.key = Some(Key::Header("a:b".into()))), "route.0.key", "x-canary"),
        (of_pass(|p| p.key = Some(Key::Cookie("a=b".into()))), "route.0.key", "name of a cookie"),
        (of_pass(|p| p.rewrite_prefix = Some("/".into())), "route.0.rewrite_prefix", "give a path_prefix"),
        (of_pass(|p| p.timeouts.connect = Duration::ZERO), "route.0.connect_timeout", "is 0"),
        (of_pass(|p| p.timeouts.first_byte = Duration::ZERO), "route.0.first_byte_timeout", "is 0"),
        (of_pass(|p| p.timeouts.idle = Duration::ZERO), "route.0.idle_timeout", "is 0"),
        (of_pass(|p| p.timeouts.whole = Some(Duration::ZERO)), "route.0.timeout", "is 0"),
        (of_pass(|p| p.retries = 101), "route.0.retries", "0 to 100"),
        (of_pass(|p| p.retry_budget = 101), "route.0.retry_budget", "0 to 100"),
        (of_pass(|p| p.max_in_flight = Some(0)), "route.0.max_in_flight", "is 0"),
        (of_pass(|p| p.queue = usize::MAX), "route.0.queue", "0 to "),
        (of_pass(|p| p.queue_timeout = TOO_LONG), "route.0.queue_timeout", "365 days"),
    ]);
    let sticky = |cookie: &str, max_age| Some(Sticky { cookie: cookie.into(), max_age });
    told([
        (of_pass(|p| p.sticky = sticky("a;b", None)), "route.0.sticky.cookie", "name of a cookie"),
        (of_pass(|p| p.sticky = sticky("a", Some(Duration::ZERO))), "route.0.sticky.max_age", "leave it out"),
    ]);
    let rewrite = of_settings(|settings| {
        settings.routes[0].when.path_prefix = Some("/a".into());
        let pass = Pass { rewrite_prefix: Some("x".into()), ..Pass::new("s") };
        settings.routes[0].action = Action::Pass(Box::new(pass));
    });
    told([(rewrite, "route.0.rewrite_prefix", "begin with /")]);
}

#[test]
fn what_is_wrong_with_an_answer() {
    told([
        (of_answer(100, None, ""), "route.0.answer.status", "200 to 599"),
        (of_answer(204, None, "x"), "route.0.answer.body", "204 has none"),
        (of_answer(200, None, &"x".repeat(2 << 20)), "route.0.answer.body", "it can have 1048576"),
        (of_answer(200, Some(("a b", "")), ""), "route.0.answer.headers.a b", "x-canary"),
        (of_answer(200, Some(("content-length", "1")), ""), "route.0.answer.headers.content-length", "proxy itself"),
        (of_answer(200, Some(("x-a", "a\r\nb")), ""), "route.0.answer.headers.x-a", "control character"),
        (of_answer(200, Some(("x-a", " a")), ""), "route.0.answer.headers.x-a", "a space"),
    ]);
}

#[test]
fn what_is_wrong_with_a_service() {
    let tls = ServiceTls { ca: PathBuf::new(), name: Some("a b".to_owned()) };
    let named = of_settings(|settings| drop(settings.services.insert("a/b".into(), Service::default())));
    told([
        (named, "services.a/b", "1 to 255 bytes"),
        (of_service(|s| s.tls = Some(tls)), "services.s.tls.name", "ress.internal"),
        (of_service(|s| s.max_in_flight = Some(0)), "services.s.max_in_flight", "is 0"),
        (of_service(|s| s.slow_start = TOO_LONG), "services.s.slow_start", "365 days"),
        (of_check(|c| c.path = Some("health".into())), "services.s.check", "or write \"tcp\""),
        (of_check(|c| c.interval = Duration::ZERO), "services.s.check_interval", "is 0"),
        (of_check(|c| c.timeout = Duration::ZERO), "services.s.check_timeout", "is 0"),
        (of_check(|c| c.rise = 0), "services.s.check_rise", "1 to "),
        (of_check(|c| c.fall = 0), "services.s.check_fall", "1 to "),
        (of_ejection(|e| e.consecutive_failures = 0), "services.s.ejection.failures", "\"off\""),
        (of_ejection(|e| e.interval = Duration::ZERO), "services.s.ejection.interval", "is 0"),
        (of_ejection(|e| e.base_time = Duration::ZERO), "services.s.ejection.base_time", "is 0"),
        (of_ejection(|e| e.max_time = Duration::ZERO), "services.s.ejection.max_time", "shorter than base_time"),
        (of_ejection(|e| e.max_percent = 101), "services.s.ejection.max_percent", "0 to 100"),
        (of_ejection(|e| e.panic_percent = 101), "services.s.ejection.panic_percent", "0 to 100"),
    ]);
}

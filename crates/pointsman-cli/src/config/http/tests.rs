use std::path::Path;
use std::time::Duration;

use pointsman::Algorithm;
use pointsman::proxy::{AccessLog, Action, Forwarded, Key, Pass, Protocol, Route, RouteRole, Sticky};
use pointsman_testkit::TlsFiles;

use super::super::credentials::Tokens;
use super::super::{Checked, Problem};
use super::*;

/// Whatever else is tested, this is in order.
const ROUTE: &str = "[[http.route]]\nmatch = '^/picture'\nservice = 'ress'\n";

/// With the section from line 2, its keys from line 3, and then the route.
fn with(lines: &str) -> String {
    format!("registry = 'zookeeper://h/p'\n[http]\n{lines}\n{ROUTE}")
}

/// With a route from line 3.
fn with_route(lines: &str) -> String {
    format!("registry = 'zookeeper://h/p'\n[http]\n[[http.route]]\n{lines}\n")
}

/// With what is said of the service from line 7.
fn with_service(lines: &str) -> String {
    format!("{}[http.services.ress]\n{lines}\n", with("workers = 2"))
}

fn read(text: &str) -> Checked {
    Checked::read(Some(Path::new("/tmp/p.toml")), text.as_bytes(), &[], &Tokens::default())
}

fn good(text: &str) -> Http {
    let Checked { config, problems, .. } = read(text);
    config.unwrap_or_else(|| panic!("{text}: {problems:#?}")).http.unwrap()
}

fn pass(route: &Route) -> &Pass {
    match &route.action {
        Action::Pass(pass) => pass,
        other => panic!("{other:?}"),
    }
}

/// The only problem, which is an error or is none.
fn problem(text: &str, is_error: bool) -> Problem {
    match <[Problem; 1]>::try_from(read(text).problems) {
        Ok([problem]) if problem.is_error() == is_error => problem,
        Ok([problem]) => panic!("{text}: {problem:#?}"),
        Err(problems) => panic!("{text}: {problems:#?}"),
    }
}

/// Each has one problem, at `line:column key`, with these words.
fn told(is_error: bool, cases: impl IntoIterator<Item = (String, &'static str, &'static str)>) {
    for (text, place, expected) in cases {
        let problem = problem(&text, is_error);
        assert_eq!(format!("{}:{} {}", problem.line, problem.column, problem.key), place, "{text}: {problem:?}");
        assert!(problem.message.contains(expected), "{text}: {}", problem.message);
    }
}

#[test]
fn the_designs_sample_is_in_order() {
    let text = r#"
registry = "zookeeper://127.0.0.1:2181/micro-service?session_timeout=10s"

[http]
listen = "127.0.0.1:7481"
register_as = "http-balancer"          # the balancer is itself a service that clients find
[[http.route]]
match = "^/picture"                    # first match wins; no match: 404, as problem+json
service = "ress"
algorithm = "round-robin"
role = "normal"                        # or "master"
"#;
    assert_eq!(read(text).problems, []);
    let http = good(text);
    assert_eq!((http.register_as.as_deref(), http.code, http.advertise), (Some("http-balancer"), None, None));
    let mut settings = Settings::new();
    settings.routes = vec![Route::new("^/picture", "ress")];
    assert_eq!(http.settings, settings);
}

/// Everything that can be said.
const EVERYTHING: &str = r#"
registry = "zookeeper://h/p"
[http]
listen = "0.0.0.0:80"
register_as = "http-balancer"
code = "proxy-1"
advertise = "proxy.example:80"
workers = 3
tls_cert = "cert"
tls_key = "key"
client_ca = "clients"
trusted = ["10.0.0.0/8", "::1"]
forwarded = "rfc7239"
reasons = true
access_log = "json"
access_log_file = "log"
allow_addresses = "169.254.0.0/16"
hand_over = "proxy.sock"
max_connections = 1_000
max_head = "64KiB"
max_headers = 50
head_timeout = "5s"
keep_alive = "30s"
max_streams = 16
drain_timeout = "0s"
[[http.route]]
name = "pictures"
match = "\\.png$"
path_prefix = "/picture"
host = ["a.example", "*.example.org"]
method = "GET"
header = { X-Canary = "^1$" }
service = "ress"
algorithm = "iphash"
role = "master"
key = "cookie:user"
split = { ress-canary = 10, "ress.old" = 0 }
mirror = { service = "shadow", percent = 5 }
sticky = { cookie = "lb", max_age = "1h" }
rewrite_prefix = "/"
connect_timeout = "100ms"
first_byte_timeout = "2s"
idle_timeout = "3s"
timeout = "5s"
retries = 1
retry_budget = 10
max_in_flight = 100
queue = 7
queue_timeout = "50ms"
[[http.route]]
answer = { status = 308, body = "moved", headers = { Location = "https://a.example/" } }
[http.services.ress]
protocol = "http2"
tls = { ca = "ca", name = "ress.internal" }
check = "/health"
check_interval = "5s"
check_timeout = "2s"
check_rise = 2
check_fall = 4
max_in_flight = 10
slow_start = "30s"
ejection = { failures = 3, interval = "1s", base_time = "2s", max_time = "3s", max_percent = 20, panic_percent = 0 }
[http.services."ress.old"]
check = "tcp"
ejection = "off"
"#;

/// What comes of it, in a folder with the files that it names.
fn everything() -> (tempfile::TempDir, Http) {
    let folder = tempfile::tempdir().unwrap();
    let tls = TlsFiles::create(folder.path());
    for (name, file) in
        [("cert", &tls.client_certificate), ("key", &tls.client_key), ("clients", &tls.ca), ("ca", &tls.ca)]
    {
        std::fs::copy(file, folder.path().join(name)).unwrap();
    }
    let path = folder.path().join("p.toml");
    let Checked { config, problems, files } =
        Checked::read(Some(&path), EVERYTHING.as_bytes(), &[], &Tokens::default());
    assert_eq!(problems, []);
    let names: Vec<_> = files.iter().map(|file| file.path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["cert", "key", "clients", "ca"]);
    (folder, config.unwrap().http.unwrap())
}

#[test]
fn everything_that_can_be_said_of_the_whole() {
    let (folder, http) = everything();
    assert_eq!((http.code.as_deref(), http.advertise.as_deref()), (Some("proxy-1"), Some("proxy.example:80")));
    let at = |name: &str| Some(folder.path().join(name));
    assert_eq!((http.access_log_file, http.hand_over), (at("log"), at("proxy.sock")));
    let settings = http.settings;
    assert_eq!((settings.listen.to_string(), settings.workers, settings.reasons), ("0.0.0.0:80".to_owned(), 3, true));
    assert_eq!(
        settings.tls.map(|tls| (Some(tls.cert), Some(tls.key), tls.client_ca)),
        Some((at("cert"), at("key"), at("clients")))
    );
    assert_eq!(settings.trusted, ["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()]);
    assert_eq!((settings.forwarded, settings.access_log), (Forwarded::Rfc7239, AccessLog::Json));
    assert_eq!(settings.allow_addresses, ["169.254.0.0/16".parse().unwrap()]);
    let limits = settings.limits;
    assert_eq!((limits.connections, limits.head, limits.fields, limits.streams), (1000, 64 << 10, 50, 16));
    assert_eq!((limits.head_time.as_secs(), limits.keep_alive.as_secs(), settings.drain_timeout.as_secs()), (5, 30, 0));
}

#[test]
fn everything_that_can_be_said_of_a_route() {
    let routes = everything().1.settings.routes;
    let [route, answer] = routes.as_slice() else { panic!("{routes:?}") };
    let when = &route.when;
    assert_eq!(
        (&*route.name, when.pattern.as_deref(), when.path_prefix.as_deref()),
        ("pictures", Some(r"\.png$"), Some("/picture"))
    );
    assert_eq!(
        (when.hosts.join(" "), when.methods.join(" ")),
        ("a.example *.example.org".to_owned(), "GET".to_owned())
    );
    assert_eq!(when.headers, [("x-canary".to_owned(), "^1$".to_owned())]);
    let pass = pass(route);
    assert_eq!((&*pass.service, pass.algorithm, pass.role), ("ress", Algorithm::IpHash, RouteRole::Master));
    assert_eq!(pass.key, Some(Key::Cookie("user".to_owned())));
    assert_eq!(pass.split, [("ress-canary".into(), 10), ("ress.old".into(), 0)]);
    assert_eq!(pass.mirror, Some(("shadow".into(), 5)));
    assert_eq!(pass.sticky, Some(Sticky { cookie: "lb".to_owned(), max_age: Some(Duration::from_secs(3600)) }));
    assert_eq!((pass.rewrite_prefix.as_deref(), pass.timeouts.connect), (Some("/"), Duration::from_millis(100)));
    let timeouts = pass.timeouts;
    assert_eq!(
        (timeouts.first_byte.as_secs(), timeouts.idle.as_secs(), timeouts.whole),
        (2, 3, Some(Duration::from_secs(5)))
    );
    assert_eq!((pass.retries, pass.retry_budget, pass.max_in_flight), (1, 10, Some(100)));
    assert_eq!((pass.queue, pass.queue_timeout), (7, Duration::from_millis(50)));
    let Action::Answer(told) = &answer.action else { panic!("{answer:?}") };
    assert_eq!((&*answer.name, told.status, &*told.body), ("*", 308, "moved"));
    assert_eq!(told.headers, [("location".to_owned(), "https://a.example/".to_owned())]);
}

#[test]
fn everything_that_can_be_said_of_a_service() {
    let (folder, Http { settings, .. }) = everything();
    let service = &settings.services["ress"];
    assert_eq!(
        (service.protocol, service.max_in_flight, service.slow_start.as_secs()),
        (Protocol::Http2, Some(10), 30)
    );
    assert_eq!(
        service.tls.as_ref().map(|tls| (tls.name.as_deref(), Some(tls.ca.clone()))),
        Some((Some("ress.internal"), Some(folder.path().join("ca"))))
    );
    let check = service.check.as_ref().unwrap();
    assert_eq!((check.path.as_deref(), check.interval.as_secs(), check.timeout.as_secs()), (Some("/health"), 5, 2));
    assert_eq!((check.rise, check.fall), (2, 4));
    let rule = service.ejection.unwrap();
    assert_eq!((rule.consecutive_failures, rule.max_percent, rule.panic_percent), (3, 20, 0));
    assert_eq!([rule.interval, rule.base_time, rule.max_time].map(|time| time.as_secs()), [1, 2, 3]);
    let old = &settings.services["ress.old"];
    assert_eq!((old.check.as_ref().map(|check| check.path.is_none()), old.ejection), (Some(true), None));
}

#[test]
fn what_is_wrong_with_the_whole_is_told_with_what_would_be_right() {
    let cases = [
        ("listen = 7481", "3:10 http.listen", "an IP address with a port"),
        ("listen = 'localhost:80'", "3:10 http.listen", "127.0.0.1:7481"),
        ("lisen = '127.0.0.1:80'", "3:1 http.lisen", "did you mean listen?"),
        ("register_as = 'a/b'", "3:15 http.register_as", "1 to 255 bytes"),
        ("register_as = 'x'\ncode = ''", "4:8 http.code", "1 to 255 bytes"),
        ("register_as = 'x'\nadvertise = 'h'", "4:13 http.advertise", "host:port"),
        ("workers = 0", "3:11 http.workers", "1 to 1024"),
        ("workers = 'all'", "3:11 http.workers", "a whole number"),
        ("tls_cert = '/dev/null'", "3:12 http.tls_cert", "tls_key"),
        ("tls_key = '/dev/null'", "3:11 http.tls_key", "tls_cert"),
        ("tls_key = '/dev/null'\ntls_cert = 'not/there'", "4:12 http.tls_cert", "/tmp/not/there cannot be read"),
        ("client_ca = '/dev/null'", "3:13 http.client_ca", "tls_cert and tls_key"),
        ("trusted = ['10.0.0.0/8', '10.0.0.0/33']", "3:26 http.trusted.1", "\"10.0.0.0/8\""),
        ("trusted = 10", "3:11 http.trusted", "or a list of such"),
        ("forwarded = 'x'", "3:13 http.forwarded", "x-forwarded, rfc7239, both and off"),
        ("forwarded = true", "3:13 http.forwarded", "\"rfc7239\""),
        ("reasons = 'yes'", "3:11 http.reasons", "true or false"),
        ("access_log = 'xml'", "3:14 http.access_log", "off, text and json"),
        ("access_log = 'text'\naccess_log_file = 'not/there'", "4:19 http.access_log_file", "its folder is not there"),
        ("access_log = 'text'\naccess_log_file = '/tmp'", "4:19 http.access_log_file", "is a folder"),
        ("allow_addresses = ['x']", "3:20 http.allow_addresses.0", "\"10.0.0.0/8\""),
        ("hand_over = 'not/there.sock'", "3:13 http.hand_over", "its folder is not there"),
        ("max_connections = 0", "3:19 http.max_connections", "1 to 10000000"),
        ("max_head = '1KB'", "3:12 http.max_head", "1MiB"),
        ("max_head = 100", "3:12 http.max_head", "\"1KiB\" to \"64KiB\""),
        ("max_headers = 0", "3:15 http.max_headers", "1 to "),
        ("head_timeout = 10", "3:16 http.head_timeout", "\"10s\""),
        ("keep_alive = '0s'", "3:14 http.keep_alive", "is 0"),
        ("max_streams = 99999999999", "3:15 http.max_streams", "is too much"),
        ("max_streams = 0", "3:15 http.max_streams", "1 to "),
        ("drain_timeout = '10000h'", "3:17 http.drain_timeout", "365 days"),
        ("services = 1", "3:12 http.services", "[http.services.ress]"),
        ("services.ress = 1", "3:17 http.services.ress", "a table"),
    ];
    told(true, cases.map(|(lines, place, expected)| (with(lines), place, expected)));
    let long = format!("hand_over = '/tmp/{}'", "x".repeat(110));
    told(true, [(with(&long), "3:13 http.hand_over", "less than 108")]);
    let registry = "registry = 'zookeeper://h/p'";
    told(
        true,
        [
            (format!("{registry}\n[http]"), "2:1 http.route", "[[http.route]]"),
            (format!("{registry}\n[http]\nroute = 1"), "3:9 http.route", "each [[http.route]]"),
            (format!("{registry}\n[http]\n[[http.routes]]"), "3:8 http.routes", "did you mean route?"),
            (format!("{registry}\n[htp]\n"), "2:2 htp", "did you mean http?"),
            (format!("{}[metrics]\nlisten = '127.0.0.1:7481'", with("")), "7:1 metrics", "where the proxy does"),
            (
                format!("[agent]\n{}", with("listen = '0.0.0.0:7480'").split_once('\n').unwrap().1),
                "2:1 http",
                "where the agent does",
            ),
        ],
    );
}

#[test]
fn what_is_wrong_with_a_route_is_told_with_what_would_be_right() {
    let service = "service = 's'\n";
    let cases = [
        ("match = '^/('", "5:9 http.route.0.match", "regular expression"),
        ("match = 1", "5:9 http.route.0.match", "a regular expression over the path"),
        ("macth = '^/a'", "5:1 http.route.0.macth", "did you mean match?"),
        ("name = 1", "5:8 http.route.0.name", "a name"),
        ("path_prefix = 'a'", "5:15 http.route.0.path_prefix", "does not begin with /"),
        ("path_prefix = 1\nrewrite_prefix = '/'", "5:15 http.route.0.path_prefix", "\"/picture\""),
        ("host = 'a:80'", "5:8 http.route.0.host.0", "has a port"),
        ("host = ['a', 1]", "5:14 http.route.0.host.1", "\"a.example\""),
        ("method = ['GET', 'get']", "5:18 http.route.0.method.1", "in capitals"),
        ("method = 'CONNECT'", "5:10 http.route.0.method.0", "is refused"),
        ("header = 'x'", "5:10 http.route.0.header", "x-canary"),
        ("header.x-a = '('", "5:14 http.route.0.header.x-a", "regular expression"),
        ("header.x-a = 1", "5:14 http.route.0.header.x-a", "a regular expression"),
        ("header.Host = 'a'", "5:15 http.route.0.header.host", "a key of its own"),
        ("answer = { status = 404 }", "5:10 http.route.0.answer", "leave out one"),
        ("algorithm = 'best'", "5:13 http.route.0.algorithm", "peak-ewma"),
        ("role = 'slave'", "5:8 http.route.0.role", "normal and master"),
        ("algorithm = 'url-hash'\nkey = 'ip'", "6:7 http.route.0.key", "cookie:NAME"),
        ("algorithm = 'url-hash'\nkey = 'header:a b'", "6:7 http.route.0.key", "cannot be the name of a header"),
        ("split = { t = 101 }", "5:15 http.route.0.split.t", "0 to 100"),
        ("split = { t = 300 }", "5:15 http.route.0.split.t", "is too much; a share is 0 to 100 percent"),
        ("split = { t = '1%' }", "5:15 http.route.0.split.t", "a share in percent"),
        ("split = { t = 60, u = 60 }", "5:9 http.route.0.split", "120 percent"),
        ("split = { 'a/b' = 1 }", "5:19 http.route.0.split.a/b", "1 to 255 bytes"),
        ("mirror = 'shadow'", "5:10 http.route.0.mirror", "percent = 5"),
        ("mirror = { percent = 5 }", "5:10 http.route.0.mirror.service", "has no service"),
        ("mirror = { service = 't', percent = 101 }", "5:37 http.route.0.mirror.percent", "0 to 100"),
        ("mirror = { servce = 't' }", "5:12 http.route.0.mirror.servce", "did you mean service?"),
        ("sticky = true", "5:10 http.route.0.sticky", "the name of a cookie, or a table"),
        ("sticky = 'a;b'", "5:10 http.route.0.sticky.cookie", "name of a cookie"),
        ("sticky = { max_age = '1h' }", "5:10 http.route.0.sticky.cookie", "has no cookie"),
        ("sticky = { cookie = 'lb', max_age = '0s' }", "5:37 http.route.0.sticky.max_age", "leave it out"),
        ("rewrite_prefix = '/'", "5:18 http.route.0.rewrite_prefix", "give a path_prefix"),
        ("path_prefix = '/a'\nrewrite_prefix = 'x'", "6:18 http.route.0.rewrite_prefix", "does not begin with /"),
        ("connect_timeout = 1", "5:19 http.route.0.connect_timeout", "\"3s\""),
        ("first_byte_timeout = '0s'", "5:22 http.route.0.first_byte_timeout", "is 0"),
        ("idle_timeout = '0s'", "5:16 http.route.0.idle_timeout", "is 0"),
        ("timeout = '0s'", "5:11 http.route.0.timeout", "is 0"),
        ("retries = 101", "5:11 http.route.0.retries", "0 to 100"),
        ("retries = -1", "5:11 http.route.0.retries", "below zero"),
        ("retry_budget = 101", "5:16 http.route.0.retry_budget", "0 to 100"),
        ("max_in_flight = 0", "5:17 http.route.0.max_in_flight", "leave it out for no limit"),
        ("queue = -1", "5:9 http.route.0.queue", "below zero"),
        ("queue_timeout = 1", "5:17 http.route.0.queue_timeout", "\"1s\""),
    ];
    told(true, cases.map(|(lines, place, expected)| (with_route(&format!("{service}{lines}")), place, expected)));
    let cases = [
        ("match = '^/a'", "3:1 http.route.0.service", "has no service"),
        ("service = 1", "4:11 http.route.0.service", "a service's name"),
        ("service = 'a/b'", "4:11 http.route.0.service", "1 to 255 bytes"),
        ("answer = 404", "4:10 http.route.0.answer", "{ status = 404 }"),
        ("answer = {}", "4:10 http.route.0.answer.status", "has no status"),
        ("answer.status = 100", "4:17 http.route.0.answer.status", "200 to 599"),
        ("answer.status = 99999", "4:17 http.route.0.answer.status", "is too much"),
        ("answer = { status = 204, body = 'x' }", "4:33 http.route.0.answer.body", "204 has none"),
        ("answer = { status = 200, body = 1 }", "4:33 http.route.0.answer.body", "a text"),
        ("answer = { status = 200, headers.Te = 'x' }", "4:39 http.route.0.answer.headers.te", "proxy itself"),
        ("answer = { status = 200, headers.x = 1 }", "4:38 http.route.0.answer.headers.x", "a text"),
    ];
    told(true, cases.map(|(lines, place, expected)| (with_route(lines), place, expected)));
    let twice = format!(
        "{}{ROUTE}name = 'a'\n[[http.route]]\nname = 'a'\nservice = 'x'",
        with_route("name = 'b'\nservice = 's'\nhost = 'a'")
    );
    told(true, [(twice, "12:8 http.route.2.name", "route.1 too")]);
}

#[test]
fn what_is_wrong_with_a_service_is_told_with_what_would_be_right() {
    let cases = [
        ("protocol = 'http3'", "8:12 http.services.ress.protocol", "http1 and http2"),
        ("protocl = 'http2'", "8:1 http.services.ress.protocl", "did you mean protocol?"),
        ("tls = true", "8:7 http.services.ress.tls", "ca.pem"),
        ("tls = {}", "8:7 http.services.ress.tls.ca", "has no ca"),
        ("tls = { ca = 'not/there' }", "8:14 http.services.ress.tls.ca", "/tmp/not/there cannot be read"),
        ("tls = { ca = '/dev/null' }", "8:14 http.services.ress.tls.ca", "no certificate"),
        ("check = 'health'", "8:9 http.services.ress.check", "\"tcp\" or a path"),
        ("check = '/a b'", "8:9 http.services.ress.check", "%20"),
        ("check = 1", "8:9 http.services.ress.check", "\"/health\""),
        ("check = 'tcp'\ncheck_interval = '0s'", "9:18 http.services.ress.check_interval", "is 0"),
        ("check = 'tcp'\ncheck_timeout = 1", "9:17 http.services.ress.check_timeout", "\"1s\""),
        ("check = 'tcp'\ncheck_rise = 0", "9:14 http.services.ress.check_rise", "1 to "),
        ("check = 'tcp'\ncheck_fall = 0", "9:14 http.services.ress.check_fall", "1 to "),
        ("max_in_flight = 0", "8:17 http.services.ress.max_in_flight", "leave it out for no limit"),
        ("slow_start = 30", "8:14 http.services.ress.slow_start", "\"30s\""),
        ("ejection = 'on'", "8:12 http.services.ress.ejection", "\"off\""),
        ("ejection = false", "8:12 http.services.ress.ejection", "\"off\", or a table"),
        ("ejection = { failures = 0 }", "8:25 http.services.ress.ejection.failures", "\"off\""),
        ("ejection = { interval = '0s' }", "8:25 http.services.ress.ejection.interval", "is 0"),
        ("ejection = { base_time = '10m' }", "8:12 http.services.ress.ejection.max_time", "shorter than base_time"),
        ("ejection = { max_percent = 101 }", "8:28 http.services.ress.ejection.max_percent", "0 to 100"),
        ("ejection = { panic_percent = 101 }", "8:30 http.services.ress.ejection.panic_percent", "0 to 100"),
        ("ejection = { failure = 1 }", "8:14 http.services.ress.ejection.failure", "did you mean failures?"),
    ];
    told(true, cases.map(|(lines, place, expected)| (with_service(lines), place, expected)));
}

#[test]
fn what_has_no_effect_is_a_warning() {
    let route = |lines: &str| with_route(&format!("service = 's'\n{lines}"));
    let answer = |lines: &str| with_route(&format!("answer.status = 404\n{lines}"));
    told(
        false,
        [
            (with("advertise = 'h:1'"), "3:13 http.advertise", "without register_as"),
            (with("code = 'c'"), "3:8 http.code", "without register_as"),
            (with("listen = '0.0.0.0:80'\nregister_as = 'x'"), "4:15 http.register_as", "advertise = "),
            (with("access_log_file = 'log'"), "3:19 http.access_log_file", "access_log is off"),
            (route("key = 'path'"), "5:7 http.route.0.key", "only ip-hash and url-hash"),
            (route("retries = 0\nretry_budget = 10"), "6:16 http.route.0.retry_budget", "retries is 0"),
            (route("queue = 0\nqueue_timeout = '1s'"), "6:17 http.route.0.queue_timeout", "queue is 0"),
            (answer("algorithm = 'random'"), "5:13 http.route.0.algorithm", "answers by itself"),
            (answer("max_in_flight = 1"), "5:17 http.route.0.max_in_flight", "answers by itself"),
            (with_service("check_fall = 2"), "8:14 http.services.ress.check_fall", "there is not a check"),
            (format!("{}[http.services.rss]", with("")), "7:1 http.services.rss", "no route leads to"),
        ],
    );
    assert_eq!(read(&with("listen = '0.0.0.0:80'")).problems, [], "it is meant to be public");
    let both = with("listen = '0.0.0.0:80'\nregister_as = 'x'\nadvertise = 'h:1'");
    assert_eq!(read(&both).problems, []);
}

#[test]
fn a_route_that_never_decides_is_a_warning() {
    let second = |one: &str, other: &str| {
        let route = |lines: &str| format!("[[http.route]]\nservice = 's'\n{lines}\n");
        read(&format!("registry = 'zookeeper://h/p'\n[http]\n{}{}", route(one), route(other))).problems
    };
    for (one, other) in [
        ("", "match = '^/a'"),
        ("", ""),
        ("match = '^/a'", "match = '^/a'\nmethod = 'GET'"),
        ("path_prefix = '/a'", "path_prefix = '/a/b'"),
        ("path_prefix = '/'", "path_prefix = '/b'"),
        ("host = ['a', 'b']", "host = 'b'"),
        ("method = ['GET', 'PUT']", "method = 'PUT'\nmatch = 'x'"),
        ("header.x-a = '1'", "header = { x-a = '1', x-b = '2' }"),
    ] {
        let problems = second(one, other);
        let [problem] = problems.as_slice() else { panic!("{one} {other}: {problems:#?}") };
        assert!(!problem.is_error() && problem.message.contains("never decides: http.route.0"), "{problem:?}");
    }
    for (one, other) in [
        ("match = '^/a'", ""),
        ("path_prefix = '/a'", "path_prefix = '/ab'"),
        ("host = 'a'", "host = ['a', 'b']"),
        ("method = 'GET'", "match = '^/a'"),
        ("header.x-a = '1'", "header.x-a = '2'"),
    ] {
        assert_eq!(second(one, other), [], "{one} {other}");
    }
}

#[test]
fn routes_without_a_name_are_called_by_what_they_match() {
    let text = format!(
        "{}{}{}{}",
        with("workers = 1"),
        "[[http.route]]\nservice = 's'\nmethod = ['GET', 'PUT']\nhost = 'a'\npath_prefix = '/b'\nmatch = 'c'\nheader.x-d = 'e'\n",
        "[[http.route]]\nservice = 's'\n",
        "[[http.route]]\nanswer.status = 404\n",
    );
    let names: Vec<_> = good(&text).settings.routes.into_iter().map(|route| route.name).collect();
    assert_eq!(names, ["^/picture", "GET,PUT a /b c x-d: e", "*", "* #3"]);
}

#[test]
fn all_problems_are_found_in_one_go() {
    let text = "[http]\nlisten = 1\nmax_head = 1\n[[http.route]]\nmatch = '('\nhost = 3\nkey = 'x'\n[[http.route]]\n\
                service = ''\nanswer = { status = 1 }\nx = 1\n[http.services.'a.b']\ncheck = 'x'\nprotocol = 'y'\n";
    let problems = read(text).problems.into_iter().filter(Problem::is_error);
    let places: Vec<_> =
        problems.map(|problem| format!("{}:{} {}", problem.line, problem.column, problem.key)).collect();
    assert_eq!(
        places,
        [
            "2:10 http.listen",
            "3:12 http.max_head",
            "4:1 http.route.0.service",
            "5:9 http.route.0.match",
            "6:8 http.route.0.host",
            "7:7 http.route.0.key",
            "10:10 http.route.1.answer",
            "10:21 http.route.1.answer.status",
            "11:1 http.route.1.x",
            "13:9 http.services.a.b.check",
            "14:12 http.services.a.b.protocol",
        ]
    );
}

use std::time::Duration;

use pointsman::Algorithm;
use pointsman::mqtt::{Credentials, RouteRole, Settings, Topics};
use pointsman_testkit::TlsFiles;

use super::*;

/// Whatever else is tested, this is in order.
const ROUTE: &str = "[[mqtt.route]]\nmatch = '^/login(/|$)'\nservice = 'cfgs'\n";

fn read(text: &str) -> Checked {
    read_with(text, &Tokens::default())
}

fn read_with(text: &str, tokens: &Tokens) -> Checked {
    Checked::read(Some(Path::new("/tmp/p.toml")), text.as_bytes(), &[], tokens)
}

fn good(text: &str) -> Config {
    let Checked { config, problems, .. } = read(text);
    config.unwrap_or_else(|| panic!("{text}: {problems:#?}"))
}

/// `line:column key` of each problem that is an error.
fn errors(text: &str) -> Vec<String> {
    let problems = read(text).problems.into_iter().filter(Problem::is_error);
    problems.map(|problem| format!("{}:{} {}", problem.line, problem.column, problem.key)).collect()
}

/// The only error.
fn error(text: &str) -> Problem {
    let problems: Vec<_> = read(text).problems.into_iter().filter(Problem::is_error).collect();
    match <[Problem; 1]>::try_from(problems) {
        Ok([problem]) => problem,
        Err(problems) => panic!("{text}: {problems:#?}"),
    }
}

fn warnings(text: &str) -> Vec<String> {
    let Checked { config, problems, .. } = read(text);
    assert!(config.is_some(), "{text}: {problems:#?}");
    problems.into_iter().map(|problem| format!("{}:{} {}", problem.line, problem.column, problem.key)).collect()
}

fn with_mqtt(lines: &str) -> String {
    format!("registry = 'zookeeper://h/p'\n[mqtt]\n{lines}\n{ROUTE}")
}

#[test]
fn the_designs_sample_is_in_order() {
    let config = good(
        r#"
registry = "zookeeper://127.0.0.1:2181/micro-service?session_timeout=10s"

[mqtt]
listen = "127.0.0.1:7482"              # the embedded broker; leave out to use brokers of your own:
# ingress = "mqtt://127.0.0.1:51885"   # where senders publish
# egress  = ["mqtt://127.0.0.1:51883"] # where services subscribe; default: the ingress broker
topics = "code-last"                   # or "go-envelope"
register_as = "mqtt-balancer"
# code = "fcae5124-…"                  # the relay's own code; generated when left out
[[mqtt.route]]
match = "^/login(/|$)"
service = "cfgs"
algorithm = "round-robin"
"#,
    );
    let mqtt = config.mqtt.unwrap();
    assert_eq!(mqtt.listen.unwrap().address.to_string(), "127.0.0.1:7482");
    assert_eq!((mqtt.register_as.as_deref(), &*mqtt.settings.group), (Some("mqtt-balancer"), "mqtt-balancer"));
    assert_eq!((mqtt.code, mqtt.settings.topics), (None, Topics::CodeLast));
    assert_eq!(mqtt.settings.subscriptions(), ["/login/#"]);
}

#[test]
fn everything_that_can_be_said() {
    let config = good(
        r#"
registry = "zookeeper://h/p?snapshots=kept"
[metrics]
listen = "[::1]:7483"
[mqtt]
ingress = "mqtt://h:1"
egress = "mqtt://u:p@h:2"
code = "relay-1"
group = "g"
advertise = "broker.example:1883"
filters = ["/login/#", "/x/#"]
max_in_flight = 1_000
max_packet = "256KiB"
response_timeout = "5s"
queue_timeout = "250ms"
drain_timeout = "0s"
session_expiry = "10m"
state = "state"
[[mqtt.route]]
match = "^/login(/|$)"
service = "cfgs"
algorithm = "iphash"
role = "master"
redispatch = true
sticky = true
key_level = 1
response_timeout = "100ms"
"#,
    );
    assert_eq!(config.registry.as_deref(), Some("zookeeper://h/p?snapshots=/tmp/kept"));
    assert_eq!(config.metrics.unwrap().to_string(), "[::1]:7483");
    let Mqtt { settings, code, register_as, listen, .. } = config.mqtt.unwrap();
    assert_eq!((settings.ingress.unwrap().address(), listen, register_as), ("h:1".to_owned(), None, None));
    assert_eq!(
        (settings.egress.len(), settings.code.as_deref(), code.as_deref()),
        (1, Some("relay-1"), Some("relay-1"))
    );
    assert_eq!((&*settings.group, settings.filters.len()), ("g", 2));
    assert_eq!((settings.max_in_flight, settings.max_packet), (1000, 256 << 10));
    assert_eq!((settings.response_timeout, settings.drain_timeout), (Duration::from_secs(5), Duration::ZERO));
    assert_eq!((settings.queue_timeout.as_millis(), settings.session_expiry.as_secs()), (250, 600));
    assert_eq!(settings.state.as_deref(), Some(Path::new("/tmp/state")));
    let route = &settings.routes[0];
    assert_eq!((route.algorithm, route.role), (Algorithm::IpHash, RouteRole::Master));
    assert_eq!((route.redispatch, route.sticky, route.key_level), (true, true, Some(1)));
    assert_eq!(route.response_timeout, Some(Duration::from_millis(100)));
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = good(&with_mqtt(""));
    let mqtt = config.mqtt.unwrap();
    assert_eq!(mqtt.listen.unwrap().address, "127.0.0.1:7482".parse().unwrap());
    assert_eq!((&*mqtt.settings.group, mqtt.register_as), ("pointsman", None));
    assert_eq!((mqtt.settings.max_in_flight, config.metrics), (10_000, None));
}

#[test]
fn a_value_of_a_wrong_type_is_told_with_what_is_expected() {
    for (line, column, expected) in [
        ("listen = 7482", 10, "an IP address with a port"),
        ("ingress = true", 11, "mqtt://127.0.0.1:1883"),
        ("egress = 3", 10, "or a list of such"),
        ("topics = 1", 10, "\"code-last\" or \"go-envelope\""),
        ("register_as = []", 15, "a service's name"),
        ("code = 1.5", 8, "it is a number with a fraction"),
        ("advertise = 1", 13, "HOST:PORT"),
        ("group = 2026-01-01", 9, "it is a date"),
        ("filters = {}", 11, "it is a table"),
        ("max_in_flight = '10'", 17, "must be a whole number"),
        ("max_packet = true", 14, "\"256MiB\""),
        ("response_timeout = 30", 20, "\"30s\""),
        ("queue_timeout = 10", 17, "\"1s\""),
        ("drain_timeout = 10", 17, "\"10s\""),
        ("session_expiry = 1", 18, "\"1h\""),
        ("state = 1", 9, "a folder"),
        ("users_file = 1", 14, "USER:HASH"),
        ("tls_cert = 1\ntls_key = '/dev/null'", 12, "a PEM file"),
        ("tls_key = 1\ntls_cert = '/dev/null'", 11, "a PEM file"),
    ] {
        let problem = error(&with_mqtt(line));
        let key = line.split(' ').next().unwrap();
        assert_eq!((problem.line, problem.column, &*problem.key), (3, column, &*format!("mqtt.{key}")), "{problem:?}");
        assert!(problem.message.contains(" must be ") && problem.message.contains(expected), "{}", problem.message);
    }
    for (line, column, expected) in [
        ("match = 1", 9, "a regular expression"),
        ("service = ['x']", 11, "it is a list"),
        ("algorithm = 1", 13, "round-robin"),
        ("role = 1", 8, "\"normal\" or \"master\""),
        ("redispatch = 'yes'", 14, "true or false"),
        ("sticky = 1", 10, "true or false"),
        ("key_level = '1'", 13, "a whole number"),
        ("response_timeout = 1", 20, "\"30s\""),
    ] {
        let key = line.split(' ').next().unwrap();
        let others: String = ["match = '^/a/'", "service = 's'"]
            .iter()
            .filter(|other| !other.starts_with(key))
            .map(|x| format!("{x}\n"))
            .collect();
        let problem = error(&format!("{}[[mqtt.route]]\n{others}{line}", with_mqtt("")));
        assert_eq!((problem.column, &*problem.key), (column, &*format!("mqtt.route.1.{key}")), "{problem:?}");
        assert!(problem.message.contains(expected), "{}", problem.message);
    }
    for (text, key) in [
        ("registry = 1", "registry"),
        ("mqtt = 1", "mqtt"),
        ("agent = 1", "agent"),
        ("metrics = 1", "metrics"),
        ("mqtt.route = 1", "mqtt.route"),
        ("mqtt.route = [1]", "mqtt.route.0"),
        ("metrics.listen = 1", "metrics.listen"),
    ] {
        let all = errors(text);
        assert!(all.iter().any(|error| error.ends_with(&format!(" {key}"))), "{text}: {all:?}");
    }
}

#[test]
fn a_value_that_cannot_be_is_told_with_what_would_be_right() {
    for (line, column, expected) in [
        ("listen = 'localhost:7482'", 10, "127.0.0.1:7482"),
        ("listen = '0.0.0.0:7482'", 10, "users_file"),
        ("ingress = 'tcp://h'", 11, "mqtt and mqtts"),
        ("egress = ['mqtt://h:1', 'h']", 25, "mqtt://127.0.0.1:1883"),
        ("egress = ['mqtt://h:1', 'mqtt://h:1']", 25, "a second time"),
        ("topics = 'code-frist'", 10, "code-last"),
        ("register_as = 'a/b'", 15, "1 to 255 bytes"),
        ("code = 'a+'", 8, "1 to 255 bytes"),
        ("group = ''", 9, "1 to 255 bytes"),
        ("filters = ['/login/#', 'a#']", 24, "a#"),
        ("filters = ['/login/#', '/login/x']", 24, "overlaps"),
        ("max_in_flight = 0", 17, "is 0"),
        ("max_in_flight = -1", 17, "below zero"),
        ("max_packet = '1MB'", 14, "1MiB"),
        ("max_packet = 1000", 14, "1024"),
        ("max_packet = '1GiB'", 14, "268435460"),
        ("max_queued = 0", 14, "1 to 10000000"),
        ("max_memory = '1KiB'", 14, "1048576"),
        ("response_timeout = '30'", 20, "10s"),
        ("response_timeout = '0s'", 20, "is 0"),
        ("drain_timeout = '-1s'", 17, "10s"),
        ("session_expiry = 'never'", 18, "10s"),
        ("users_file = 'not/there'", 14, "/tmp/not/there cannot be read"),
        ("users_file = '/tmp'", 14, "is a folder"),
        ("users_file = '/dev/null'", 14, "there is no user"),
        ("advertise = 'h'", 13, "host:port"),
        ("tls_cert = '/dev/null'", 12, "tls_key"),
        ("ingress = 'mqtt://h'\nlisten = '127.0.0.1:1'", 10, "leave out one"),
        ("ingress = 'mqtt://h'\nmax_memory = '1GiB'", 14, "leave out one"),
    ] {
        let problem = error(&with_mqtt(line));
        assert_eq!(problem.column, column, "{line}: {problem:?}");
        assert!(problem.message.contains(expected), "{line}: {}", problem.message);
    }
    for (route, key, expected) in [
        ("match = '^/('\nservice = 's'", "match", "regular expression"),
        ("match = 'login'\nservice = 's'", "", "would come back"),
        ("match = '^/a/'\nservice = 'a/b'", "service", "1 to 255 bytes"),
        ("match = '^/a/'", "service", "has no service"),
        ("service = 's'", "match", "has no match"),
        ("macth = '^/a/'\nservice = 's'", "macth", "did you mean match?"),
        ("match = '^/a/'\nservice = 's'\nalgorithm = 'best'", "algorithm", "peak-ewma"),
        ("match = '^/a/'\nservice = 's'\nrole = 'slave'", "role", "normal and master"),
        ("match = '^/a/'\nservice = 's'\nkey_level = -1", "key_level", "below zero"),
        ("match = '^/a/'\nservice = 's'\nweight = 1", "weight", "known are algorithm, key_level, match"),
    ] {
        let problem = error(&format!("[mqtt]\n[[mqtt.route]]\n{route}"));
        let expected_key = if key.is_empty() { "mqtt.filters".to_owned() } else { format!("mqtt.route.0.{key}") };
        assert_eq!(problem.key, expected_key, "{problem:?}");
        assert!(problem.message.contains(expected), "{route}: {}", problem.message);
    }
}

#[test]
fn what_is_no_section_is_told() {
    for (text, place, expected) in [
        ("[mqt]\nx = 1", "1:2 mqt", "did you mean mqtt?"),
        ("[agnet]\nx = 1", "1:2 agnet", "did you mean agent?"),
        ("", "1:1 ", "there is no section"),
        ("[mqtt]", "1:1 mqtt.route", "is missing"),
        ("[mqtt]\n[[mqtt.routes]]\nmatch = 'x'", "2:8 mqtt.routes", "did you mean route?"),
        ("mqtt.lisen = 3\nmqtt.route = [{match='^/a/', service='s'}]", "1:6 mqtt.lisen", "did you mean listen?"),
        ("registry = 'consul://h'\n[mqtt]\nroute = [{match='^/a/', service='s'}]", "1:12 registry", "zookeeper"),
        ("[mqtt\n", "1:6 ", "not TOML"),
    ] {
        let problem = error(text);
        assert_eq!(format!("{}:{} {}", problem.line, problem.column, problem.key), place, "{problem:?}");
        assert!(problem.message.contains(expected), "{}", problem.message);
    }
    let text = format!("{}[metrics]\n", with_mqtt(""));
    assert!(error(&text).message.contains("[metrics] has no listen"));
    assert!(error(&format!("{text}listen = '0.0.0.0:1'")).message.contains("loopback"));
    assert!(error(&format!("{text}listen = '127.0.0.1:7482'")).message.contains("another port"));
}

#[test]
fn all_problems_are_found_in_one_go_and_in_the_order_of_the_file() {
    let text = "\u{feff}registry = 'x'\r\n\
                [http]\r\n\
                [mqtt]\r\n\
                listen = 3 # one\r\n\
                filters = [ 'a#',\r\n\
                \t3 ]\r\n\
                'größe' = 1\r\n\
                [[mqtt.route]]\r\n\
                match = '''^/(\r\n'''\r\n\
                [[mqtt.route]]\r\n\
                match = '^/a/'\r\n\
                algorithm = 'x'\r\n\
                [mqtt.route.more]\r\n";
    assert_eq!(
        errors(text),
        [
            "1:12 registry",
            "2:1 http.route",
            "4:10 mqtt.listen",
            "5:13 mqtt.filters.0",
            "6:2 mqtt.filters.1",
            "7:1 mqtt.größe",
            "8:1 mqtt.route.0.service",
            "9:9 mqtt.route.0.match",
            "11:1 mqtt.route.1.service",
            "13:13 mqtt.route.1.algorithm",
            "14:13 mqtt.route.1.more",
        ]
    );
    // Inline tables, and characters of several bytes before the column.
    assert_eq!(
        errors("mqtt = { code = 'é', route = [{ match = '^/名', service = '' }, { role = 1 }] }"),
        ["1:58 mqtt.route.0.service", "1:64 mqtt.route.1.match", "1:64 mqtt.route.1.service", "1:73 mqtt.route.1.role"]
    );
}

/// A folder with two tokens, and what names a file in it.
fn tokens() -> (tempfile::TempDir, impl Fn(&str, &str) -> String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    (folder, move |name: &str, text: &str| {
        std::fs::write(path.join(name), text).unwrap();
        format!("'{}'", path.join(name).display())
    })
}

#[test]
fn an_agent_needs_nothing_but_its_section() {
    let config = good("[agent]");
    let settings = config.agent.as_ref().unwrap();
    assert_eq!(*settings, pointsman::agent::Settings::new("127.0.0.1:7480".parse().unwrap()));
    assert_eq!((config.registry(None).as_deref(), config.mqtt.is_none()), (Some("memory://"), true));
    assert_eq!(config.registry(Some("zookeeper://h/p")).as_deref(), Some("zookeeper://h/p"));
    assert_eq!(warnings("[agent]"), [""; 0]);
    assert_eq!(warnings("registry = 'memory://x'\n[agent]"), [""; 0]);
    assert_eq!(good(&with_mqtt("")).registry(None).as_deref(), Some("zookeeper://h/p"));
}

#[test]
fn everything_that_can_be_said_of_the_agent() {
    let (folder, file) = tokens();
    let tls = TlsFiles::create(folder.path());
    let (read, write) = (file("r", " 0123456789abcdef\n"), file("w", "fedcba9876543210"));
    let text = format!(
        "[agent]\nlisten = '0.0.0.0:1'\nhosts = ['agent.example', '10.0.0.1', '[::2]']\nread_token_file = {read}\n\
         write_token_file = {write}\ntls_cert = '{}'\ntls_key = '{}'\nclient_ca = '{}'\nmax_connections = 100\n\
         max_registrations = 8\nmax_claims = 9\ngo_micro_service = true",
        tls.client_certificate.display(),
        tls.client_key.display(),
        tls.ca.display(),
    );
    let Checked { config, problems, files } = read_with(&text, &Tokens::default());
    let settings = config.unwrap_or_else(|| panic!("{problems:#?}")).agent.unwrap();
    assert_eq!(problems, []);
    assert_eq!(
        (settings.listen.to_string(), settings.hosts.join(" ")),
        ("0.0.0.0:1".into(), "agent.example 10.0.0.1 ::2".into())
    );
    assert_eq!(settings.read_token, pointsman::agent::Token::new("0123456789abcdef").ok());
    assert_eq!(settings.write_token, pointsman::agent::Token::new("fedcba9876543210").ok());
    let tls = settings.tls.unwrap();
    assert_eq!(
        (tls.cert.file_name(), tls.key.file_name()),
        (Some("client.pem".as_ref()), Some("client-key.pem".as_ref()))
    );
    assert!(tls.client_ca.is_some() && settings.go_micro_service);
    let limits = settings.limits;
    // Streams leave connections for everything else.
    assert_eq!((limits.connections, limits.watchers, limits.registrations, limits.claims), (100, 75, 8, 9));
    let names: Vec<_> = files.iter().map(|file| file.path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["r", "w", "client.pem", "client-key.pem", "ca.pem"]);
}

#[test]
fn what_is_wrong_with_an_agent_is_told_with_what_would_be_right() {
    let (_folder, file) = tokens();
    let (token, short) = (file("t", "0123456789abcdef"), file("s", "kurz"));
    for (lines, place, expected) in [
        ("listen = 7480".to_owned(), "2:10 agent.listen", "an IP address with a port"),
        ("listen = '10.0.0.1:7480'".to_owned(), "2:10 agent.listen", "a write_token_file"),
        ("hosts = 3".to_owned(), "2:9 agent.hosts", "or a list of such"),
        ("hosts = ['a', 'http://a:1']".to_owned(), "2:15 agent.hosts.1", "agent.example"),
        (
            format!("read_token_file = 'not/there'\nwrite_token_file = {token}"),
            "2:19 agent.read_token_file",
            "the file that it names, not the token itself, cannot be read",
        ),
        (format!("read_token_file = {token}"), "2:19 agent.read_token_file", "write_token_file: nobody could write"),
        (format!("read_token_file = {token}\nwrite_token_file = {token}"), "2:19 agent.read_token_file", "same token"),
        (format!("write_token_file = {short}"), "2:20 agent.write_token_file", "16 to 1024"),
        ("write_token_file = '/tmp'".to_owned(), "2:20 agent.write_token_file", "cannot be read: Is a directory"),
        ("tls_cert = '/dev/null'".to_owned(), "2:12 agent.tls_cert", "tls_key"),
        ("tls_key = '/dev/null'".to_owned(), "2:11 agent.tls_key", "tls_cert"),
        ("tls_key = '/dev/null'\ntls_cert = 'x/y'".to_owned(), "3:12 agent.tls_cert", "cannot be read"),
        ("client_ca = '/dev/null'".to_owned(), "2:13 agent.client_ca", "tls_cert and tls_key"),
        ("max_connections = 0".to_owned(), "2:19 agent.max_connections", "is 0"),
        ("max_watchers = -1".to_owned(), "2:16 agent.max_watchers", "below zero"),
        ("max_registrations = 99999999".to_owned(), "2:21 agent.max_registrations", "1 to 10000000"),
        ("max_claims = '1'".to_owned(), "2:14 agent.max_claims", "a whole number"),
        ("go_micro_service = 1".to_owned(), "2:20 agent.go_micro_service", "true or false"),
        ("lisen = '127.0.0.1:7480'".to_owned(), "2:1 agent.lisen", "did you mean listen?"),
        ("write_token = 'geheim'".to_owned(), "2:1 agent.write_token", "[agent] has no key \"write_token\"; "),
    ] {
        let problem = error(&format!("[agent]\n{lines}"));
        assert_eq!(format!("{}:{} {}", problem.line, problem.column, problem.key), place, "{problem:?}");
        assert!(problem.message.contains(expected), "{lines}: {}", problem.message);
        let told = problem.text(Path::new("p"));
        assert!(!told.contains("geheim") && !told.contains("kurz"), "{told}");
    }
    for other in [
        "[metrics]\nlisten = '127.0.0.1:7480'",
        "[mqtt]\nlisten = '127.0.0.1:7480'\n[[mqtt.route]]\nmatch = '^/a/'\nservice = 's'",
    ] {
        assert!(error(&format!("[agent]\n{other}")).message.contains("listens where the agent does"));
    }
}

#[test]
fn tokens_of_the_environment_count_where_the_file_names_none() {
    let (_folder, file) = tokens();
    let of_environment = Tokens { read: Some("0123456789abcdef".into()), write: Some("fedcba9876543210".into()) };
    let everywhere = "[agent]\nlisten = '0.0.0.0:1'";
    let Checked { config, problems, .. } = read_with(everywhere, &of_environment);
    // Without TLS: a warning.
    assert_eq!(problems.iter().map(|problem| (problem.line, &*problem.key)).collect::<Vec<_>>(), [(2, "agent.listen")]);
    let settings = config.unwrap().agent.unwrap();
    assert_eq!(settings.read_token, pointsman::agent::Token::new("0123456789abcdef").ok());
    assert_eq!(settings.write_token, pointsman::agent::Token::new("fedcba9876543210").ok());
    let text = format!("[agent]\nwrite_token_file = {}", file("w", "token-of-the-file"));
    let settings = read_with(&text, &of_environment).config.unwrap().agent.unwrap();
    assert_eq!(settings.write_token, pointsman::agent::Token::new("token-of-the-file").ok());
    let problems = read_with("[agent]", &Tokens { read: None, write: Some("geheim".into()) }).problems;
    let [problem] = problems.as_slice() else { panic!("{problems:#?}") };
    assert!(problem.is_error() && problem.message.contains("POINTSMAN_AGENT_WRITE_TOKEN"), "{problem:?}");
    assert!(!problem.text(Path::new("p")).contains("geheim"), "{problem:?}");
}

#[test]
fn what_is_hardly_meant_is_a_warning() {
    let route = "[[mqtt.route]]\nmatch = '^/login(/|$)'\nservice = 'other'\nkey_level = 1\n";
    assert_eq!(
        warnings(&format!("{}{route}", with_mqtt(""))),
        ["8:9 mqtt.route.1.match", "10:13 mqtt.route.1.key_level"]
    );
    assert_eq!(warnings(&format!("[mqtt]\n{ROUTE}")), ["1:1 registry"]);
    assert_eq!(warnings(&format!("registry = 'memory://x'\n[mqtt]\n{ROUTE}")), ["1:12 registry"]);
    assert_eq!(warnings("[agent]\nmax_watchers = 20000"), ["2:16 agent.max_watchers"]);
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users");
    std::fs::write(&users, format!("u:{}\n", pointsman::mqtt::broker::Users::hash(b"p").unwrap())).unwrap();
    let open = format!("listen = '0.0.0.0:1'\nusers_file = '{}'\nregister_as = 'x'", users.display());
    assert_eq!(warnings(&with_mqtt(&open)), ["3:10 mqtt.listen", "5:15 mqtt.register_as"]);
    assert_eq!(warnings(&with_mqtt(&format!("{open}\nadvertise = 'h:1'"))), ["3:10 mqtt.listen"]);
}

#[test]
fn sections_and_routes_have_registries_of_their_own() {
    let text = format!(
        "[agent]\nregistry = 'zookeeper://h/a'\n[http]\nregistry = 'zookeeper://h/b?snapshots=kept'\n\
         register_in = 'zookeeper://h/c'\nregister_as = 'x'\n[[http.route]]\nmatch = '^/'\nservice = 's'\n\
         registry = 'zookeeper://h/d?auth=digest:u:geheim'\n{}",
        "[mqtt]\nregister_as = 'y'\n[[mqtt.route]]\nmatch = '^/a/'\nservice = 's'\nregistry = 'zookeeper://h/a'\n"
    );
    assert_eq!(warnings(&text), [""; 0]);
    let config = good(&text).resolved(None).unwrap();
    let (http, mqtt) = (config.http.as_ref().unwrap(), config.mqtt.as_ref().unwrap());
    assert_eq!(http.registries.own.as_deref(), Some("zookeeper://h/b?snapshots=/tmp/kept"));
    assert_eq!(http.registries.register_in.as_deref(), Some("zookeeper://h/c"));
    let named: Vec<_> = http.registries.named.iter().map(|(name, url)| (&**name, url.as_str())).collect();
    assert_eq!(named, [("zookeeper://h/d?auth=***", "zookeeper://h/d?auth=digest:u:geheim")]);
    assert!(!format!("{http:?}").contains("geheim"), "{http:?}");
    // Sections without a registry use the agent's. A route that names its section's registry counts as naming none.
    assert_eq!((mqtt.registries.own.as_deref(), &mqtt.settings.routes[0].registry), (Some("zookeeper://h/a"), &None));
    assert_eq!(mqtt.registries.register_in, mqtt.registries.own);
    let flag = good(&text).resolved(Some("zookeeper://h/f")).unwrap();
    assert_eq!(flag.mqtt.unwrap().registries.own.as_deref(), Some("zookeeper://h/f"));
    assert_eq!(flag.agent_registry.as_deref(), Some("zookeeper://h/a"));
    let alike = good(&text).resolved(Some("zookeeper://h/d?auth=digest:u:anders")).unwrap_err();
    assert!(alike.contains("another password") && !alike.contains("anders"), "{alike}");
}

#[test]
fn registries_of_sections_are_checked_as_the_files_is() {
    let own = format!("[mqtt]\nregistry = 'zookeeper://h/p'\n{ROUTE}");
    assert_eq!(warnings(&own), [""; 0], "nothing needs the file's");
    assert_eq!(warnings(&own.replace("zookeeper://h/p", "memory://x")), ["2:12 mqtt.registry"]);
    assert_eq!(warnings(&with_mqtt("register_in = 'zookeeper://h/q'")), ["3:15 mqtt.register_in"]);
    for (text, place, word) in [
        (with_mqtt("registry = 'consul://h'"), "3:12 mqtt.registry", "zookeeper"),
        (format!("{}registry = 1\n", with_mqtt("")), "7:12 mqtt.route.0.registry", "a registry's url"),
        (
            format!("[agent]\n{own}").replace("zookeeper://h/p", "http://localhost:7480"),
            "3:12 mqtt.registry",
            "agent of this file",
        ),
        (
            format!(
                "{}registry = 'zookeeper://h/p?auth=digest:u:q'\n",
                with_mqtt("registry = 'zookeeper://h/p?auth=digest:u:p'")
            ),
            "7:12 mqtt.route.0.registry",
            "another password",
        ),
    ] {
        let problem = error(&text);
        assert_eq!(format!("{}:{} {}", problem.line, problem.column, problem.key), place, "{text}");
        assert!(problem.message.contains(word), "{}", problem.message);
    }
}

#[test]
fn secrets_are_not_told() {
    for text in [
        "registry = 'zookeeper://u:geheim@h/p'",
        "registry = 'zookeeper://h/p?auth=digest:u:geheim&x=1'",
        "[mqtt]\ningress = 'mqtt://u:geheim@h:x'",
        "[mqtt]\negress = ['mqtt://u:geheim@h?version=7', 'mqtt://u:geheim@h', 'mqtt://v:geheim@h']",
        "[mqtt]\ningress = 'mqtt://u:geheim@h",
        "[mqtt]\ningres = 'mqtt://u:geheim@h'",
    ] {
        let Checked { config, problems, .. } = read(text);
        assert!(config.is_none(), "{text}");
        for problem in problems {
            let told = problem.text(Path::new("p"));
            assert!(!told.contains("geheim"), "{told}");
        }
    }
}

#[test]
fn credentials_are_for_brokers_that_have_none() {
    let config = good(&with_mqtt("ingress = 'mqtt://h:1'\negress = ['mqtt://a:b@h:2', 'mqtt://h:3']"));
    let before = config.clone().mqtt.unwrap().settings;
    let after = config.with_credentials(Some(&Credentials::new("u", "p"))).mqtt.unwrap().settings;
    assert_ne!(after.ingress, before.ingress);
    assert_eq!((after.egress[0] == before.egress[0], after.egress[1] == before.egress[1]), (true, false));
}

#[test]
fn an_agent_is_not_its_own_registry() {
    let listen = "127.0.0.1:7480".parse().unwrap();
    for own in ["http://127.0.0.1:7480", "http://localhost:7480/", "https://h:1,127.0.0.1:7480?x=y"] {
        assert!(leads_to(own, listen), "{own}");
    }
    for other in ["http://127.0.0.1:7481", "http://h:7480", "memory://127.0.0.1:7480", "zookeeper://localhost:7480/p"] {
        assert!(!leads_to(other, listen), "{other}");
    }
    let problem = error("registry = 'http://localhost:7480'\n[agent]");
    assert_eq!((problem.line, problem.column, &*problem.key), (1, 12, "registry"));
    good("registry = 'http://localhost:7480'\n[agent]\nlisten = '127.0.0.1:1'");
}

/// Reads a file with these settings of the command line.
fn set(file: &str, sets: &[&str]) -> Checked {
    let sets: Vec<_> = sets.iter().map(|set| (*set).to_owned()).collect();
    Checked::read(None, file.as_bytes(), &sets, &Tokens::default())
}

#[test]
fn settings_of_the_command_line_beat_the_files() {
    let Checked { config, problems, .. } = set(
        &with_mqtt("listen = '127.0.0.1:1'"),
        &[
            "mqtt.listen=127.0.0.1:2",
            "mqtt.max_packet=2048",
            "mqtt.filters=['/a/#', '/b/#']",
            "mqtt.route.0.service=other",
            "mqtt.route.1.match=^/a/",
            "mqtt.route.1.service = \"b-c\"",
            "http.route.0.path_prefix=/",
            "http.route.0.service=web",
            "http.services.web.ejection=off",
        ],
    );
    let config = config.unwrap_or_else(|| panic!("{problems:#?}"));
    let (mqtt, http) = (config.mqtt.unwrap(), config.http.unwrap());
    assert_eq!(mqtt.listen.unwrap().address, "127.0.0.1:2".parse().unwrap());
    let Settings { max_packet, filters, routes, .. } = mqtt.settings;
    assert_eq!((max_packet, filters), (2048, vec!["/a/#".to_owned(), "/b/#".to_owned()]));
    let services: Vec<_> = routes.iter().map(|route| (&*route.pattern, &*route.service)).collect();
    assert_eq!(services, [("^/login(/|$)", "other"), ("^/a/", "b-c")]);
    assert_eq!((http.settings.routes.len(), http.settings.services["web"].ejection), (1, None));
}

#[test]
fn what_is_wrong_on_the_command_line_is_told_with_its_key() {
    for (sets, place, expected) in [
        (&["http.listen=80"][..], "--set http.listen:13: ", "must be an IP address with a port"),
        (&["http.lisen=127.0.0.1:80"], "--set http.lisen:1: ", "did you mean listen?"),
        (&["agent"], "--set agent:1: ", "it is not KEY=VALUE"),
        (&["=x"], "--set :1: ", "it is not KEY=VALUE"),
        (&["http.route.1.service=x"], "--set http.route.1.service:1: ", "is not in the list, which has 0 items"),
        (&["registry=memory://", "registry.x=1"], "--set registry.x:1: ", "registry is not a table"),
        (&["http.listen=127.0.0.1:80"], "--set http.listen:1: ", "route: is missing"),
    ] {
        let problems = set("", sets).problems;
        let told: Vec<_> = problems.iter().map(|problem| problem.text(Path::new("p"))).collect();
        assert!(told.iter().any(|told| told.starts_with(place) && told.contains(expected)), "{sets:?}: {told:#?}");
    }
    // What is wrong with the file is told with the file's lines.
    let problems = set("[http]\nlisten = 1", &["http.workers=0"]).problems;
    assert_eq!(problems.iter().find(|problem| problem.key == "http.listen").map(|problem| problem.line), Some(2));
}

#[test]
fn secrets_of_the_command_line_are_not_told() {
    for sets in [
        &["registry zookeeper://u:geheim@h/p"][..],
        &["registry=zookeeper://u:geheim@h/p"],
        &["mqtt.ingress=mqtt://u:geheim@h:x", "mqtt.route.0.match=^/a/"],
        &["registry=zookeeper://h/p?auth=digest:u:geheim&x=1"],
        &["registry.0=zookeeper://u:geheim@h/p"],
    ] {
        let problems = set("", sets).problems;
        assert!(problems.iter().any(Problem::is_error), "{sets:?}");
        for problem in problems {
            let told = format!("{}{}", problem.text(Path::new("p")), serde_json::to_string(&problem).unwrap());
            assert!(!told.contains("geheim"), "{told}");
        }
    }
}

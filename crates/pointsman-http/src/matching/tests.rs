use proptest::prelude::*;

use super::*;

/// A request as a test writes it.
#[derive(Debug, Clone, Default)]
struct Request {
    method: String,
    host: String,
    path: String,
    headers: Vec<(String, String)>,
}

impl Asked for Request {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }

    fn host(&self) -> &[u8] {
        self.host.as_bytes()
    }

    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }

    fn any_header(&self, name: &str, is: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.headers.iter().any(|(other, value)| other == name && is(value.as_bytes()))
    }
}

fn get(host: &str, path: &str) -> Request {
    Request { method: "GET".into(), host: host.into(), path: path.into(), headers: Vec::new() }
}

fn route(when: When) -> Route {
    Route { when, ..Route::new("", "s") }
}

fn pattern(pattern: &str) -> When {
    When { pattern: Some(pattern.into()), ..When::default() }
}

fn prefix(prefix: &str) -> When {
    When { path_prefix: Some(prefix.into()), ..When::default() }
}

fn hosts(hosts: &[&str]) -> When {
    When { hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), ..When::default() }
}

fn matcher(whens: impl IntoIterator<Item = When>) -> Matcher {
    Matcher::new(&whens.into_iter().map(route).collect::<Vec<_>>()).unwrap()
}

#[test]
fn the_first_that_matches_wins() {
    let matcher = matcher([pattern("^/picture/special"), pattern("/x$"), pattern("^/picture"), When::default()]);
    for (path, expected) in [
        ("/picture/special", 0),
        ("/picture/special/x", 0),
        ("/picture/x", 1),
        ("/picture/y", 2),
        ("/pictures", 2),
        ("/", 3),
        ("*", 3),
        ("", 3),
    ] {
        assert_eq!(matcher.find(&get("h", path)), Some(expected), "{path}");
    }
    assert_eq!(Matcher::new(&[]).unwrap().find(&get("h", "/")), None);
}

#[test]
fn a_prefix_ends_where_a_segment_does() {
    for (given, inside, outside) in [
        ("/a", &["/a", "/a/", "/a/b", "/a//"][..], &["/ab", "/", "/A", "/a%2f", "a"][..]),
        ("/a/", &["/a/", "/a/b"], &["/a", "/ab/"]),
        ("/", &["/", "/a", "//"], &["*", ""]),
    ] {
        let matcher = matcher([prefix(given)]);
        for path in inside {
            assert_eq!(matcher.find(&get("", path)), Some(0), "{given} {path}");
        }
        for path in outside {
            assert_eq!(matcher.find(&get("", path)), None, "{given} {path}");
        }
    }
}

#[test]
fn hosts_are_compared_as_names() {
    let matcher = matcher([
        hosts(&["a.example", "*.example.org"]),
        hosts(&["*.deep.example.org"]),
        hosts(&["example.org", "[::1]"]),
    ]);
    for (host, expected) in [
        ("a.example", Some(0)),
        ("A.EXAMPLE.:8080", Some(0)),
        ("b.a.example", None),
        ("x.example.org", Some(0)),
        ("x.deep.example.org", Some(0)),
        ("example.org", Some(2)),
        (".example.org", None),
        ("xexample.org", None),
        ("[0::1]:80", Some(2)),
        ("[::2]", None),
        ("", None),
    ] {
        assert_eq!(matcher.find(&get(host, "/")), expected, "{host}");
    }
}

#[test]
fn everything_that_is_given_has_to_match() {
    let when = When {
        pattern: Some("[0-9]$".into()),
        path_prefix: Some("/a".into()),
        hosts: vec!["h".into()],
        methods: vec!["GET".into(), "PUT".into()],
        headers: vec![("x-canary".into(), "^1$".into()), ("x-zone".into(), "^eu-".into())],
    };
    let matcher = matcher([when]);
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let good = Request {
        headers: vec![header("x-zone", "us-1"), header("x-canary", "1"), header("x-zone", "eu-1")],
        ..get("h:1", "/a/1")
    };
    assert_eq!(matcher.find(&good), Some(0));
    for bad in [
        Request { method: "POST".into(), ..good.clone() },
        Request { method: "get".into(), ..good.clone() },
        Request { host: "i".into(), ..good.clone() },
        Request { path: "/a/x".into(), ..good.clone() },
        Request { path: "/b/1".into(), ..good.clone() },
        Request { headers: vec![header("x-canary", "1")], ..good.clone() },
        Request { headers: vec![header("x-canary", "11"), header("x-zone", "eu-1")], ..good.clone() },
    ] {
        assert_eq!(matcher.find(&bad), None, "{bad:?}");
    }
}

#[test]
fn of_many_routes_few_are_tried() {
    let whens =
        (0..1000).map(|n| When { hosts: vec![format!("h{}", n % 10)], ..pattern(&format!("^/route-{n:04}(/|$)")) });
    let matcher = matcher(whens);
    let mut candidates = Candidates::new();
    matcher.exact[&b"h7"[..]].each(b"/route-0777/x", |routes| candidates.add(routes));
    assert_eq!((candidates.next(), candidates.next()), (Some(777), None));
    assert_eq!(matcher.find(&get("h7", "/route-0777/x")), Some(777));
    assert_eq!(matcher.find(&get("h8", "/route-0777/x")), None);
}

#[test]
fn there_may_be_more_candidates_than_there_is_room_for_in_line() {
    // Each is the beginning of the next; only the last has what is asked for.
    let mut whens: Vec<_> = (0..40).map(|n| pattern(&format!("^/{}(!|$)", "a".repeat(n)))).collect();
    whens.reverse();
    let matcher = matcher(whens);
    assert_eq!(matcher.find(&get("", &format!("/{}", "a".repeat(39)))), Some(0));
    assert_eq!(matcher.find(&get("", "/a!")), Some(38));
    assert_eq!(matcher.find(&get("", &format!("/{}", "a".repeat(50)))), None);
}

#[test]
fn what_cannot_be_compiled_is_named() {
    let error = |when| Matcher::new(&[Route::new("^/a", "s"), route(when)]).unwrap_err().key;
    assert_eq!(error(pattern("^/(")), "route.1.match");
    assert_eq!(error(hosts(&["a:80"])), "route.1.host");
    let when = When { headers: vec![("x-a".into(), "(".into())], ..When::default() };
    assert_eq!(error(when), "route.1.header.x-a");
}

/// The rule of the documentation, one route after the other.
fn naive(routes: &[Route], expressions: &HashMap<&str, regex::Regex>, request: &Request) -> Option<usize> {
    let name = request.host.to_lowercase();
    let name = name.split(':').next().unwrap().trim_end_matches('.');
    let host = |host: &String| match host.to_lowercase().strip_prefix('*') {
        Some(suffix) => name.ends_with(suffix) && name.len() > suffix.len(),
        None => name == host.to_lowercase(),
    };
    let regex = |text: &str, value: &str| expressions[text].is_match(value);
    routes.iter().position(|Route { when, .. }| {
        when.pattern.as_ref().is_none_or(|pattern| regex(pattern, &request.path))
            && when.path_prefix.as_ref().is_none_or(|prefix| {
                let border = format!("{}/", prefix.trim_end_matches('/'));
                request.path.starts_with(&border) || (request.path == *prefix)
            })
            && (when.hosts.is_empty() || when.hosts.iter().any(host))
            && (when.methods.is_empty() || when.methods.contains(&request.method))
            && when.headers.iter().all(|(name, pattern)| {
                request.headers.iter().any(|(other, value)| other == name && regex(pattern, value))
            })
    })
}

fn some_route() -> impl Strategy<Value = Route> {
    (
        prop::option::weighted(0.6, r"\^?(/[ab]|/\(a\|b\)|/\[ab\]\+|\.\*|/a\*|\(\?i:/ab\)|\|/b){1,4}(\(/\|\$\)|\$|/)?"),
        prop::option::weighted(0.4, "(/[ab]{1,2}){1,3}/?|/"),
        prop::collection::vec(r"(\*\.)?([abA]\.){0,2}ex", 0..3),
        prop::collection::vec("GET|PUT", 0..2),
        prop::collection::vec(("x-[ab]", r"\^?[01]\$?"), 0..2),
    )
        .prop_map(|(pattern, path_prefix, hosts, methods, headers)| {
            route(When { pattern, path_prefix, hosts, methods, headers })
        })
}

fn some_request() -> impl Strategy<Value = Request> {
    let headers = prop::collection::vec(("x-[ab]", "[01]{1,2}"), 0..3);
    ("GET|PUT", r"([aAb]\.){0,3}ex\.?(:80)?", "(/[abA]{0,2}){0,4}|\\*", headers)
        .prop_map(|(method, host, path, headers)| Request { method, host, path, headers })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn the_index_finds_what_trying_all_would(
        routes in prop::collection::vec(some_route(), 0..10),
        requests in prop::collection::vec(some_request(), 1..40),
    ) {
        let matcher = Matcher::new(&routes).unwrap();
        let texts = routes.iter().flat_map(|Route { when, .. }| {
            when.pattern.iter().chain(when.headers.iter().map(|(_, text)| text)).map(String::as_str)
        });
        let expressions = texts.map(|text| (text, regex::Regex::new(text).unwrap())).collect();
        for request in &requests {
            prop_assert_eq!(matcher.find(request), naive(&routes, &expressions, request), "{:?}", request);
        }
    }
}

//! Bad input: each is refused, with a word that helps, and nothing is left of it.

use serde_json::json;

use crate::support::client::request;
use crate::support::{Client, Server};

const A: &str = "/v1/services/s/instances/a";

/// What is asked, and what the answer has to say: status, type, a part of the detail.
type Case<'a> = (&'a str, &'a str, &'a str, (u16, &'a str), &'a str);

async fn refused(client: &mut Client, cases: &[Case<'_>]) {
    for (method, path, body, (status, problem), part) in cases {
        let answer = client.ask(method, path, body).await;
        assert_eq!(answer.status, *status, "{method} {path} {body}: {}", answer.text());
        let detail = answer.is_problem(*status, problem);
        assert!(detail.contains(part), "{method} {path} {body}: {detail}");
    }
}

const BAD: (u16, &str) = (400, "bad-request");

#[tokio::test]
async fn parameters_of_the_query() {
    let server = Server::start().await;
    let long = format!("/v1/services/s/pick?key={}", "k".repeat(8193));
    let many: String = (0..1001).map(|number| format!("&service={number}")).collect();
    let many = format!("/v1/watch?load=1s{many}");
    let (pick, watch) = ("/v1/services/s/pick", "/v1/services/s/watch");
    let changes = "/v1/services/s/changes";
    let at = |path: &str, query: &str| format!("{path}?{query}");
    let cases: Vec<(String, &str)> = vec![
        (at("/v1/services", "all"), "all\" is not known here; known: none"),
        (at("/v1/services/s/instances", "al"), "known: all"),
        (at("/v1/services/s/instances", "all=yes"), "true or false"),
        (at("/v1/services/s/instances", "all=1"), "true or false"),
        (at("/v1/services/s/instances", "all&all"), "all is given twice"),
        (at("/v1/services/s/instances", "all=%ff"), "not UTF-8"),
        (at("/v1/services/s/instances", "%zz"), "two hexadecimal digits"),
        (at("/v1/services/s/instances", "all=%2"), "two hexadecimal digits"),
        (at(pick, "algorithm=best"), "round-robin"),
        (at(pick, "algorithm="), "round-robin"),
        (at(pick, "algorithm=Round-Robin"), "round-robin"),
        (at(pick, "ttl=99ms"), "from 100ms to 3600s"),
        (at(pick, "ttl=3601s"), "from 100ms to 3600s"),
        (at(pick, "ttl=2h"), "from 100ms to 3600s"),
        (at(pick, "ttl=10"), "500ms, 10s or 2m"),
        (at(pick, "ttl=-1s"), "500ms, 10s or 2m"),
        (at(pick, "ttl=1.5s"), "500ms, 10s or 2m"),
        (at(pick, "ttl=99999999999999999999h"), "500ms, 10s or 2m"),
        (at(pick, "ttl=18446744073709551615h"), "500ms, 10s or 2m"),
        (at(pick, "ttl="), "500ms, 10s or 2m"),
        (at(pick, "key=a&key=b"), "key is given twice"),
        (long, "key has more than 8192 bytes"),
        (at(watch, "after=x"), "whole number"),
        (at(watch, "after=-1"), "whole number"),
        (at(watch, "after=1.0"), "whole number"),
        (at(watch, "after=18446744073709551616"), "whole number"),
        (at(watch, "after=0&wait=301s"), "from 0ns to 300s"),
        (at(watch, "wait=1d"), "500ms, 10s or 2m"),
        (at(changes, "after=-1"), "whole number"),
        (at(changes, "wait=301s"), "from 0ns to 300s"),
        (at(changes, "service=s"), "is not known here"),
        (at("/v1/watch", "load=99ms"), "from 100ms"),
        (at("/v1/watch", "load="), "500ms, 10s or 2m"),
        (at("/v1/watch", "service="), "is empty"),
        (at("/v1/watch", "service=a%2Fb"), "has '/' in it"),
        (at("/v1/watch", "service=a&services=b"), "is not known here"),
        (many, "at most 1000 services"),
        (at("/v1/events", "since=1"), "is not known here"),
        (at("/livez", "x"), "is not known here"),
        (at("/metrics", "x=%F0%9F%98%80"), "is not known here"),
        (at("/openapi.json", "x"), "is not known here"),
    ];
    let mut client = server.client().await;
    for (path, part) in &cases {
        refused(&mut client, &[("GET", path, "", BAD, part)]).await;
    }
    let release = format!("/v1/claims/{}?outcome=maybe", "0".repeat(32));
    refused(&mut client, &[("DELETE", &release, "", BAD, "success or failure")]).await;
    for claim in
        ["x", "0", &"0".repeat(33), &"g".repeat(32), "+0000000000000000000000000000000", "%F0%9F%98%80", "a%2Fb"]
    {
        refused(&mut client, &[("DELETE", &format!("/v1/claims/{claim}"), "", (404, "no-claim"), "released")]).await;
    }
    assert_eq!(server.metric("pointsman_agent_watchers"), 0);
}

#[tokio::test]
async fn the_longest_key_can_be_sent_escaped() {
    let server = Server::start().await;
    server.put("s", "a").await;
    server.until_codes("s", &["a"]).await;
    let key = "%2F".repeat(8192);
    assert_eq!(server.get(&format!("/v1/services/s/pick?algorithm=url-hash&key={key}")).await.status, 200);
}

#[tokio::test]
async fn names_in_the_path() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let long = "x".repeat(256);
    for (name, part) in [
        ("a%2Fb", "has '/' in it"),
        ("%2e%2e", "relative path"),
        (".", "relative path"),
        ("a%20b", "has ' ' in it"),
        ("a%00b", "has '\\0' in it"),
        ("a%0d%0ab", "has '\\r' in it"),
        ("a%2Bb", "has '+' in it"),
        ("a+b", "has '+' in it"),
        ("%23", "has '#' in it"),
        ("$SYS", "has '$' in it"),
        ("%F0%9F%98%80", "emoji"),
        ("%EE%80%80", "private-use"),
        ("%ff%fe", "path"),
        (&long, "has 256 bytes"),
    ] {
        for (method, path) in [
            ("GET", format!("/v1/services/{name}/instances")),
            ("GET", format!("/v1/services/{name}/master")),
            ("GET", format!("/v1/services/{name}/watch")),
            ("GET", format!("/v1/services/{name}/pick")),
            ("POST", format!("/v1/services/{name}/check-term")),
            ("PUT", format!("/v1/services/s/instances/{name}")),
            ("PUT", format!("/v1/services/{name}/instances/a")),
            ("DELETE", format!("/v1/services/s/instances/{name}")),
            ("POST", format!("/v1/services/s/instances/{name}/hold")),
            ("POST", format!("/v1/services/s/instances/{name}/drain")),
        ] {
            refused(
                &mut client,
                &[(method, &path, "{\"term\":1}".get(..if method == "GET" { 0 } else { 10 }).unwrap(), BAD, part)],
            )
            .await;
        }
    }
    // What looks odd and is allowed, is there under its name.
    for (path, code) in
        [("%E7%94%A8%E6%88%B7", "用户"), ("a.b", "a.b"), ("...", "..."), ("10.0.0.1:80", "10.0.0.1:80"), ("%25", "%")]
    {
        assert_eq!(client.ask("PUT", &format!("/v1/services/s/instances/{path}"), "{}").await.status, 201, "{path}");
        let mut list = server.codes("s").await;
        list.retain(|there| there == code);
        crate::support::until(code, async || server.codes("s").await.contains(&code.to_owned()).then_some(())).await;
        assert_eq!(client.ask("DELETE", &format!("/v1/services/s/instances/{path}"), "").await.status, 204);
    }
}

#[tokio::test]
async fn bodies_of_a_registration() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let long = format!(r#"{{"holder":"{}"}}"#, "h".repeat(129));
    for (body, part) in [
        ("x", "not a JSON object"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("\"{}\"", "not a JSON object"),
        (" ", "not a JSON object"),
        ("{", "EOF"),
        ("{}{}", "trailing"),
        (r#"{"weight":1,"weight":2}"#, "duplicate field `weight`"),
        (r#"{"tags":{"a":"b","a":"c"}}"#, "given twice"),
        (r#"{"adress":"h:1"}"#, "unknown field `adress`"),
        (r#"{"weight":-1}"#, "u32"),
        (r#"{"weight":1.5}"#, "u32"),
        (r#"{"weight":"3"}"#, "u32"),
        (r#"{"weight":15e-1}"#, "u32"),
        (r#"{"weight":4294967296}"#, "u32"),
        (r#"{"weight":1000001}"#, "too high"),
        (r#"{"address":"h"}"#, "has no port"),
        (r#"{"address":"h:0"}"#, "1 to 65535"),
        (r#"{"address":"h:65536"}"#, "1 to 65535"),
        (r#"{"address":":80"}"#, "no proper host"),
        (r#"{"address":"http://h:80"}"#, "no proper host"),
        (r#"{"address":"::1:80"}"#, "no proper host"),
        (r#"{"address":7}"#, "string"),
        (r#"{"tags":[]}"#, "object whose values are strings"),
        (r#"{"tags":{"a":1}}"#, "string"),
        (r#"{"tags":{"":"x"}}"#, "empty name"),
        (r#"{"ttl":"999ms"}"#, "from 1s to 3600s"),
        (r#"{"ttl":"61m"}"#, "from 1s to 3600s"),
        (r#"{"ttl":10}"#, "string"),
        (r#"{"ttl":"soon"}"#, "500ms, 10s or 2m"),
        (r#"{"holder":""}"#, "1 to 128 bytes"),
        (r#"{"holder":"a\nb"}"#, "control"),
        (&long, "1 to 128 bytes"),
        (r#"{"check":{}}"#, "missing field `probe`"),
        (r#"{"check":"tcp"}"#, "struct"),
        (r#"{"check":{"probe":"tcp"}}"#, "needs an address"),
        (r#"{"check":{"probe":"https://h:1/"}}"#, "is not a check"),
        (r#"{"check":{"probe":"http://h:1/ x"}}"#, "is not a path"),
        (r#"{"check":{"probe":"tcp://h:99999"}}"#, "1 to 65535"),
        (r#"{"check":{"probe":"tcp://h:1","interval":"1ms"}}"#, "check.interval"),
        (r#"{"check":{"probe":"tcp://h:1","timeout":"2h"}}"#, "check.timeout"),
        (r#"{"check":{"probe":"tcp://h:1","rise":0}}"#, "1 or more"),
        (r#"{"check":{"probe":"tcp://h:1","fall":-1}}"#, "u32"),
        (r#"{"check":{"probe":"tcp://h:1","often":1}}"#, "unknown field `often`"),
    ] {
        for (method, path) in [("PUT", A.to_owned()), ("POST", format!("{A}/hold"))] {
            refused(&mut client, &[(method, &path, body, BAD, part)]).await;
        }
    }
    assert_eq!(server.metric("pointsman_registrations"), 0);
}

#[tokio::test]
async fn bodies_of_operators() {
    let server = Server::start().await;
    server.put("s", "a").await;
    server.until_codes("s", &["a"]).await;
    let mut client = server.client().await;
    let (weight, term) = (format!("{A}/weight"), "/v1/services/s/check-term");
    refused(
        &mut client,
        &[
            ("PUT", &weight, "", BAD, "the body is empty"),
            ("PUT", &weight, "{}", BAD, "missing field `weight`"),
            ("PUT", &weight, r#"{"weight":-1}"#, BAD, "u32"),
            ("PUT", &weight, r#"{"weight":1000001}"#, BAD, "too high"),
            ("PUT", &weight, r#"{"weight":1,"for":"ever"}"#, BAD, "unknown field `for`"),
            ("POST", term, "", BAD, "the body is empty"),
            ("PUT", "/v1/term-base", "{}", BAD, "missing field `above`"),
            ("PUT", "/v1/term-base", r#"{"above":-1}"#, BAD, "u64"),
            ("PUT", "/v1/term-base", r#"{"above":4503599627370497}"#, (422, "refused"), "at most 4503599627370496"),
            ("POST", term, r#"{"term":-1}"#, BAD, "u64"),
            ("POST", term, r#"{"term":18446744073709551616}"#, BAD, "u64"),
            ("POST", term, r#"{"term":null}"#, BAD, "u64"),
            ("POST", term, r#"{"term":1,"term":2}"#, BAD, "duplicate field"),
        ],
    )
    .await;
    assert_eq!(server.json("/v1/audit").await, json!([]), "what was refused was not done");
    for whole in ["3", "3.0", "3e0", "30e-1"] {
        assert_eq!(client.ask("PUT", &weight, &format!(r#"{{"weight":{whole}}}"#)).await.status, 204, "{whole}");
    }
    for other in ["3.5", "-3.0", "1e300", "\"3\"", "[3]"] {
        let answer = client.ask("PUT", &weight, &format!(r#"{{"weight":{other}}}"#)).await;
        assert!(answer.is_problem(400, "bad-request").contains("u32"), "{other}");
    }
}

#[tokio::test]
async fn a_body_has_a_type_and_an_end_and_a_size() {
    let server = Server::start_with(|settings| settings.limits.body = 1000).await;
    for kind in ["text/plain", "application/xml", "multipart/form-data", "application/jsonx", "", "json"] {
        let mut client = server.client().await;
        let answer = client.ask_with("PUT", A, &[("content-type", kind)], "{}").await;
        let detail = answer.is_problem(415, "unsupported-media-type");
        assert!(detail.contains("application/json"), "{detail}");
    }
    for kind in ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"] {
        let answer = server.client().await.ask_with("PUT", A, &[("content-type", kind)], "{}").await;
        assert!(answer.status < 300, "{kind}: {answer:?}");
    }
    let large = format!(r#"{{"tags":{{"a":"{}"}}}}"#, "x".repeat(1000));
    let detail = server.ask("PUT", A, &large).await.is_problem(413, "too-large");
    assert!(detail.contains("1000 bytes"), "{detail}");
    // In chunks, of which nobody has said how many there will be.
    let mut client = server.client().await;
    client
        .send(b"PUT /v1/services/s/instances/a HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    client.send(format!("400\r\n{}\r\n", "x".repeat(0x400)).as_bytes()).await;
    client.answer("PUT").await.is_problem(413, "too-large");
    // A body that is cut off changes nothing.
    assert_eq!(server.ask("DELETE", A, "").await.status, 204);
    let mut client = server.client().await;
    client
        .send(b"PUT /v1/services/s/instances/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{\"weight\":1}")
        .await;
    client.finish().await;
    client.rest().await;
    server.until_metric("pointsman_agent_connections", 0).await;
    assert_eq!(server.metric("pointsman_registrations"), 0);
}

#[tokio::test]
async fn heads_that_are_no_http_or_too_much() {
    let server = Server::start().await;
    let head = |line: &str, headers: &str| format!("{line}\r\nhost: localhost\r\n{headers}\r\n").into_bytes();
    let many: String = (0..200).map(|number| format!("x-{number}: 1\r\n")).collect();
    for (bytes, status) in [
        (head("GET /livez HTTP/1.1", &format!("x: {}\r\n", "y".repeat(100 << 10))), 431),
        (head("GET /livez HTTP/1.1", &many), 431),
        (head("GET /livez HTTP/2.7", ""), 400),
        (head("GET  HTTP/1.1", ""), 400),
        (head("\u{1}\u{2}", ""), 400),
        (head("GET /livez HTTP/1.1", "content-length: 1\r\ncontent-length: 2\r\n"), 400),
        (head("GET /livez HTTP/1.1", "content-length: -1\r\n"), 400),
        (head("GET /livez HTTP/1.1", "x y: 1\r\n"), 400),
        (head("PUT /livez HTTP/1.1", "content-length: 4\r\ntransfer-encoding: identity\r\n"), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), 400),
    ] {
        let mut client = server.client().await;
        client.send(&bytes).await;
        let rest = client.rest().await;
        let line = String::from_utf8_lossy(&rest).lines().next().unwrap_or_default().to_owned();
        assert!(
            line.contains(&format!(" {status} ")),
            "{}: {line}",
            String::from_utf8_lossy(&bytes[..40.min(bytes.len())])
        );
    }
    // Others are served all the same.
    assert_eq!(server.get("/livez").await.status, 200);
}

#[tokio::test]
async fn requests_one_after_the_other_without_waiting() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let all: Vec<u8> = (0..100).flat_map(|_| request("GET", "/v1/services/s/instances", &[], b"")).collect();
    client.send(&all).await;
    for _ in 0..100 {
        assert_eq!(client.answer("GET").await.text(), "[]");
    }
}

/// As Python's `http.client` does: head and body apart. The answer is an error that needs no body.
#[tokio::test]
async fn a_body_that_comes_after_the_head_finds_the_connection_open() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let token = pointsman_agent::Token::new("0123456789abcdef").unwrap();
    let server = Server::start_with(|settings| {
        settings.limits.body = 1000;
        settings.write_token = Some(token);
    })
    .await;
    for (length, keeps) in [(900, true), (2000, false)] {
        for path in ["/v1/services/s/instances/a", "/v1/none"] {
            let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
            let head = format!("PUT {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&vec![b' '; length.min(999)]).await.unwrap();
            if !keeps {
                stream.write_all(&vec![b' '; length - 999]).await.unwrap();
            }
            let mut answer = Vec::new();
            while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
                assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
            }
            let answer = String::from_utf8(answer).unwrap().to_lowercase();
            assert!(answer.starts_with("http/1.1 401"), "{answer}");
            assert_eq!(answer.contains("connection: close"), !keeps, "{answer}");
        }
    }
}

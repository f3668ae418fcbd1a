//! Who may do what, and what nobody is to see.

use pointsman_agent::{Agent, Error, Token};

use crate::support::{Answer, Server, registry, settings};

const READ: &str = "geheim-read-0123456789";
const WRITE: &str = "geheim-write-0123456789";

async fn locked() -> Server {
    Server::start_with(|settings| {
        settings.read_token = Some(Token::new(READ).unwrap());
        settings.write_token = Some(Token::new(WRITE).unwrap());
    })
    .await
}

async fn with(server: &Server, token: &str, method: &str, path: &str, body: &str) -> Answer {
    let header = format!("Bearer {token}");
    let headers = [("authorization", &*header)];
    let headers = if token.is_empty() { &[][..] } else { &headers };
    server.client().await.ask_with(method, path, headers, body).await
}

#[tokio::test]
async fn the_read_token_reads_and_the_write_token_does_both() {
    let server = locked().await;
    let a = "/v1/services/s/instances/a";
    assert_eq!(with(&server, WRITE, "PUT", a, "{}").await.status, 201);
    for token in [READ, WRITE] {
        for path in ["/v1/services", "/v1/services/s/instances", "/v1/events", "/v1/audit", "/metrics"] {
            assert_eq!(with(&server, token, "GET", path, "").await.status, 200, "{path}");
        }
        // Who may pick may give back.
        let picked = with(&server, token, "GET", "/v1/services/s/pick", "").await.json();
        let claim = format!("/v1/claims/{}", picked["claim"].as_str().unwrap());
        assert_eq!(with(&server, token, "DELETE", &claim, "").await.status, 204);
    }
    for (method, path, body) in [
        ("PUT", a, ""),
        ("DELETE", a, ""),
        ("POST", "/v1/services/s/instances/b/hold", ""),
        ("POST", "/v1/services/s/instances/a/drain", ""),
        ("POST", "/v1/services/s/instances/a/resign", ""),
        ("PUT", "/v1/services/s/instances/a/weight", r#"{"weight":0}"#),
        ("POST", "/v1/services/s/check-term", r#"{"term":9}"#),
        ("PUT", "/v1/term-base", r#"{"above":9}"#),
    ] {
        with(&server, READ, method, path, body).await.is_problem(403, "forbidden");
        with(&server, "", method, path, body).await.is_problem(401, "unauthorized");
    }
    assert_eq!(with(&server, WRITE, "DELETE", a, "").await.status, 204);
    for path in ["/livez", "/readyz", "/openapi.json"] {
        assert_eq!(with(&server, "", "GET", path, "").await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn who_has_no_token_learns_nothing() {
    let server = locked().await;
    assert_eq!(with(&server, WRITE, "PUT", "/v1/services/s/instances/a", "{}").await.status, 201);
    for (token, kind) in [("", "missing"), ("geheim-read-012345678", "wrong"), ("geheim-read-01234567890", "wrong")] {
        let mut answers = Vec::new();
        for path in
            ["/v1/services", "/v1/services/s/master", "/v1/services/nobody/master", "/v1/nothing", "/v1/claims/x"]
        {
            let mut answer = with(&server, token, "GET", path, "").await;
            answer.is_problem(401, "unauthorized");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"pointsman\""));
            answer.headers.retain(|(name, _)| name != "date");
            answers.push((answer.headers, answer.body));
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{kind}: {answers:?}");
    }
    for header in ["Basic Z2VoZWlt", "Bearer", "Bearer  ", &format!("Token {READ}"), READ, "Bearer \u{e9}"] {
        let answer = server.client().await.ask_with("GET", "/metrics", &[("authorization", header)], "").await;
        answer.is_problem(401, "unauthorized");
    }
    // In the query it is no token.
    with(&server, "", "GET", &format!("/v1/services?access_token={WRITE}"), "").await.is_problem(401, "unauthorized");
    // Nobody waits for the body of who may not send one.
    let mut client = server.client().await;
    client.send(b"PUT /v1/services/s/instances/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n\r\n{").await;
    client.answer("PUT").await.is_problem(401, "unauthorized");
    assert!(server.metric("pointsman_agent_refused_total{reason=\"unauthorized\"}") > 20);
}

#[tokio::test]
async fn new_tokens_count_from_the_next_request_on() {
    let mut server = locked().await;
    let mut client = server.client().await;
    let old = format!("Bearer {READ}");
    let headers = [("authorization", &*old)];
    assert_eq!(client.ask_with("GET", "/v1/services", &headers, "").await.status, 200);
    let mut stream = server.client().await;
    stream.open("GET", "/v1/watch", &headers, "").await;
    stream.event_named("reset").await;
    let mut changed = settings();
    changed.write_token = Some(Token::new("another-write-token").unwrap());
    changed.limits.watchers = 1;
    let mut bad = changed.clone();
    bad.read_token = bad.write_token.clone();
    let error = server.agent.reload(bad).unwrap_err();
    assert!(matches!(&error, Error::Setting { setting: "read_token_file", .. }), "{error}");
    assert_eq!(client.ask_with("GET", "/v1/services", &headers, "").await.status, 200, "all is as it was");
    assert_eq!(server.agent.reload(changed).unwrap(), ["limits"]);
    client.ask_with("GET", "/v1/services", &headers, "").await.is_problem(401, "unauthorized");
    assert_eq!(with(&server, "another-write-token", "PUT", "/v1/services/s/instances/a", "{}").await.status, 201);
    // What is open stays open.
    assert_eq!(stream.until_event("put").await.data["service"], "s");
}

#[tokio::test]
async fn off_loopback_there_is_a_lock_or_no_agent() {
    let mut open = settings();
    open.listen = ([0, 0, 0, 0], 0).into();
    let error = Agent::start(&registry().await, open).await.unwrap_err();
    assert!(matches!(&error, Error::Setting { setting: "listen", .. }), "{error}");
    assert!(error.to_string().contains("write_token_file"), "{error}");
    let taken = Server::start().await;
    let mut second = settings();
    second.listen = taken.address;
    let error = Agent::start(&registry().await, second).await.unwrap_err();
    assert!(error.to_string().contains(&taken.address.to_string()), "{error}");
}

#[tokio::test]
async fn a_page_of_a_stranger_cannot_use_the_agent() {
    let server = Server::start_with(|settings| settings.hosts = vec!["agent.test".to_owned()]).await;
    let own = server.address.to_string();
    let ask = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        server.client().await.ask_with(method, path, headers, "").await
    };
    for host in ["evil.test", "evil.test:7480", "127.0.0.1.evil.test", "agent.test.evil.test", "10.0.0.1", "", "a b"] {
        ask("GET", "/v1/services", &[("host", host)]).await.is_problem(421, "misdirected");
        ask("PUT", "/v1/services/s/instances/a", &[("host", host)]).await.is_problem(421, "misdirected");
        ask("GET", "/livez", &[("host", host)]).await.is_problem(421, "misdirected");
    }
    let two = ask("GET", "/v1/services", &[("host", "127.0.0.1"), ("host", "evil.test")]).await;
    two.is_problem(421, "misdirected");
    ask("GET", "http://evil.test/v1/services", &[]).await.is_problem(421, "misdirected");
    let mut none = server.client().await;
    none.send(b"GET /v1/services HTTP/1.1\r\n\r\n").await;
    none.answer("GET").await.is_problem(421, "misdirected");
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:80", &own, "agent.test", "AGENT.test:80"] {
        assert_eq!(ask("GET", "/v1/services", &[("host", host)]).await.status, 200, "{host}");
    }
    for headers in [
        &[("origin", "http://evil.test")][..],
        &[("origin", "null")],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")],
    ] {
        ask("PUT", "/v1/services/s/instances/a", headers).await.is_problem(403, "forbidden");
        ask("GET", "/v1/services", headers).await.is_problem(403, "forbidden");
    }
    let of_own = format!("http://{own}");
    let own = [("host", &*own), ("origin", &*of_own), ("sec-fetch-site", "same-origin")];
    let answer = ask("GET", "/v1/services", &own).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), None);
    assert_eq!(server.codes("s").await, [""; 0]);
}

/// What is in force decides: it goes on listening where it did.
#[tokio::test]
async fn an_agent_off_loopback_cannot_lose_its_token_by_a_reload() {
    let registry = pointsman_registry::Registry::connect("memory://reload-off-loopback").await.unwrap();
    let mut settings = pointsman_agent::Settings::new(([0, 0, 0, 0], 0).into());
    settings.write_token = Some(Token::new("write-write-write").unwrap());
    let mut agent = Agent::start(&registry, settings).await.unwrap();
    let open = pointsman_agent::Settings::new(([127, 0, 0, 1], 0).into());
    assert!(matches!(agent.reload(open), Err(Error::Setting { setting: "listen", .. })));
}

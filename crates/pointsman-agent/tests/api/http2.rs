//! HTTP/2, where there is TLS: what holds for HTTP/1.1 holds for each stream, and for all of them together.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use hyper::{Request, Response, StatusCode};
use pointsman_agent::{Settings, Tls};
use pointsman_testkit::TlsFiles;
use pointsman_testkit::http::curl;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::support::{Client, Server, soon};
use crate::tls::handshake;

/// An agent with TLS, and what its clients need for it.
struct Secure {
    server: Server,
    files: TlsFiles,
    _folder: TempDir,
}

impl Secure {
    async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = TlsFiles::create(folder.path());
        let server = Server::start_with(|settings| {
            settings.tls = Some(Tls { cert: files.server.clone(), key: files.server.clone(), client_ca: None });
            change(settings);
        });
        Self { server: server.await, files, _folder: folder }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.server.address)
    }

    async fn curl(&self, arguments: &[&str], path: &str) -> String {
        let (ca, url) = (self.files.ca.display().to_string(), self.url(path));
        let output = curl(&[&["--cacert", &ca], arguments, &[&url]].concat()).await;
        assert_eq!(output.code, Some(0), "{}", output.err);
        output.out
    }

    async fn connect(&self) -> Connection {
        self.connect_with(&h2::client::Builder::new()).await
    }

    async fn connect_with(&self, builder: &h2::client::Builder) -> Connection {
        let stream = handshake(&self.server, &self.files, false, &[b"h2"]).await.unwrap();
        let (sender, mut connection) = soon("http/2", builder.handshake(stream)).await.unwrap();
        let pings = connection.ping_pong().unwrap();
        let running = tokio::spawn(async move { connection.await.map_err(|error| error.to_string()) });
        Connection { sender, pings, running, address: self.server.address }
    }

    /// Waits until exactly these are listed.
    async fn until_codes(&self, connection: &Connection, wanted: &[&str]) {
        let asking = async {
            loop {
                let (_, list) = connection.ask("GET", "/v1/services/s/instances?all", None).await;
                let mut codes: Vec<_> = list.as_array().unwrap().iter().map(|one| one["code"].clone()).collect();
                codes.sort_by_key(Value::to_string);
                if codes == wanted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(&format!("{wanted:?}"), asking).await;
    }
}

struct Connection {
    sender: SendRequest<Bytes>,
    pings: PingPong,
    running: JoinHandle<Result<(), String>>,
    address: SocketAddr,
}

impl Connection {
    async fn ping(&mut self) {
        soon("a pong", self.pings.ping(Ping::opaque())).await.unwrap();
    }

    async fn send(&self, request: Request<()>, ends: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let mut sender = soon("a stream", self.sender.clone().ready()).await.unwrap();
        sender.send_request(request, ends).unwrap()
    }

    fn request(&self, method: &str, path: &str) -> Request<()> {
        let url = format!("https://{}{path}", self.address);
        Request::builder().method(method).uri(url).header("content-type", "application/json").body(()).unwrap()
    }

    async fn open(&self, method: &str, path: &str, body: Option<&str>) -> (Response<RecvStream>, SendStream<Bytes>) {
        let (answer, mut sending) = self.send(self.request(method, path), body.is_none()).await;
        if let Some(body) = body {
            sending.send_data(Bytes::copy_from_slice(body.as_bytes()), true).unwrap();
        }
        (soon("an answer", answer).await.unwrap(), sending)
    }

    async fn ask(&self, method: &str, path: &str, body: Option<&str>) -> (StatusCode, Value) {
        let (answer, _) = self.open(method, path, body).await;
        whole(answer).await
    }
}

async fn whole(answer: Response<RecvStream>) -> (StatusCode, Value) {
    let (status, mut body) = (answer.status(), answer.into_body());
    let mut text = Vec::new();
    while let Some(data) = soon("a body", body.data()).await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        text.extend(data);
    }
    (status, serde_json::from_slice(&text).unwrap_or_default())
}

/// Reads until the stream has said this.
async fn until_said(body: &mut RecvStream, words: &str) {
    let mut text = String::new();
    while !text.contains(words) {
        let data = soon(words, body.data()).await.unwrap_or_else(|| panic!("ended without {words}: {text}"));
        let data = data.unwrap_or_else(|error| panic!("{error}: no {words} in {text}"));
        body.flow_control().release_capacity(data.len()).unwrap();
        text.push_str(std::str::from_utf8(&data).unwrap());
    }
}

#[tokio::test]
async fn a_client_has_the_version_that_it_asks_for() {
    let secure = Secure::start(|_| {}).await;
    let say = "%{http_version} %{http_code}";
    let path = "/v1/services/s/instances/a";
    let body = r#"{"address":"10.0.0.1:80","ttl":"1h"}"#;
    for (version, number, status) in [("--http2", "2", 201), ("--http1.1", "1.1", 200), ("--no-alpn", "1.1", 200)] {
        let put = [version, "-o", "/dev/null", "-w", say, "-X", "PUT", "--json", body];
        assert_eq!(secure.curl(&put, path).await, format!("{number} {status}"));
        let problem = secure.curl(&[version, "-i"], "/v1/services/none/master").await;
        assert!(problem.starts_with(&format!("HTTP/{number} 404")), "{problem}");
        assert!(problem.contains("application/problem+json") && problem.contains("no-master"), "{problem}");
    }
    // Where there is no TLS, everything is as it was.
    let plain = Server::start().await;
    let url = format!("http://{}/livez", plain.address);
    let output = curl(&["--http2", "-o", "/dev/null", "-w", say, &url]).await;
    assert_eq!(output.out, "1.1 200");
}

#[tokio::test]
async fn a_hold_ends_with_its_stream_or_its_connection() {
    let secure = Secure::start(|_| {}).await;
    let (connection, other) = (secure.connect().await, secure.connect().await);
    let (mut watch, _watching) = connection.open("GET", "/v1/services/s/watch", None).await;
    until_said(watch.body_mut(), "event: freshness").await;
    let hold = |code: &str| format!("/v1/services/s/instances/{code}/hold");
    let (mut a, mut a_sending) = connection.open("POST", &hold("a"), Some("{}")).await;
    until_said(a.body_mut(), "event: role").await;
    let (mut role, _roles) = connection.open("GET", "/v1/services/s/instances/a/role", None).await;
    until_said(role.body_mut(), "event: role").await;
    let (mut b, _b_sending) = other.open("POST", &hold("b"), Some("{}")).await;
    until_said(b.body_mut(), "event: role").await;
    let mut process = Command::new("curl")
        .args(["-q", "--noproxy", "*", "-sSN", "--http2", "--json", "{}", "--cacert"])
        .arg(&secure.files.ca)
        .arg(secure.url(&hold("c")))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    secure.until_codes(&connection, &["a", "b", "c"]).await;
    process.kill().await.unwrap();
    secure.until_codes(&connection, &["a", "b"]).await;
    other.running.abort();
    secure.until_codes(&connection, &["a"]).await;
    a_sending.send_reset(Reason::CANCEL);
    until_said(role.body_mut(), "event: end").await;
    secure.until_codes(&connection, &[]).await;
    // The other streams of the connection go on.
    until_said(watch.body_mut(), "event: master\ndata: {\"service\":\"s\"").await;
    assert_eq!(connection.ask("PUT", "/v1/services/s/instances/d", Some("{}")).await.0, StatusCode::CREATED);
    until_said(watch.body_mut(), "\"code\":\"d\"").await;
    secure.server.until_metric("pointsman_agent_watchers", 1).await;
}

#[tokio::test]
async fn one_who_gives_up_waiting_costs_nothing() {
    let secure = Secure::start(|_| {}).await;
    let connection = secure.connect().await;
    let request = connection.request("GET", "/v1/services/s/changes?after=0&wait=5m");
    let (_answer, mut sending) = connection.send(request, true).await;
    secure.server.until_metric("pointsman_agent_watchers", 1).await;
    sending.send_reset(Reason::CANCEL);
    secure.server.until_metric("pointsman_agent_watchers", 0).await;
    assert_eq!(connection.ask("GET", "/readyz", None).await.1["ready"], true);
}

#[tokio::test]
async fn requests_have_the_limits_of_http1() {
    let secure = Secure::start(|settings| {
        settings.limits.body = 100_000;
        settings.limits.body_time = Duration::from_millis(300);
    });
    let secure = secure.await;
    let connection = secure.connect().await;
    assert_eq!(connection.ask("GET", "/readyz", None).await.0, StatusCode::OK);
    assert_eq!(connection.sender.current_max_send_streams(), 100);
    let path = "/v1/services/s/instances/a";
    let (late, _sending) = connection.send(connection.request("PUT", path), false).await;
    let (status, problem) = whole(soon("an answer", late).await.unwrap()).await;
    assert_eq!((status.as_u16(), &problem["type"]), (408, &json!("urn:pointsman:problem:request-timeout")));
    let (large, mut sending) = connection.send(connection.request("PUT", path), false).await;
    sending.send_data(vec![b' '; 100_001].into(), false).unwrap();
    let (status, problem) = whole(soon("an answer", large).await.unwrap()).await;
    assert_eq!((status.as_u16(), &problem["type"]), (413, &json!("urn:pointsman:problem:too-large")));
    let mut many = connection.request("GET", "/readyz");
    for number in 0..64 {
        many.headers_mut().append("x-many", number.into());
    }
    let mut long = connection.request("GET", "/readyz");
    long.headers_mut().insert("x-long", "x".repeat(40_000).parse().unwrap());
    for request in [many, long] {
        let (answer, _) = connection.send(request, true).await;
        assert_eq!(soon("an answer", answer).await.unwrap().status(), 431);
    }
    // Each of them concerns its own stream alone.
    assert_eq!(connection.ask("GET", "/readyz", None).await.0, StatusCode::OK);
    assert_eq!(connection.ask("CONNECT", "", None).await.0.as_u16() / 100, 4);
    secure.server.until_metric("pointsman_agent_connections", 1).await;
}

#[tokio::test]
async fn more_requests_than_the_limit_wait() {
    let secure = Secure::start(|settings| settings.limits.connections = 8).await;
    let (mut greedy, patient) = (Vec::new(), secure.connect().await);
    let mut unfinished = Vec::new();
    for number in 0..4 {
        let connection = secure.connect().await;
        assert_eq!(connection.ask("GET", "/readyz", None).await.0, StatusCode::OK);
        assert_eq!(connection.sender.current_max_send_streams(), 2, "none has more than a quarter");
        for code in [2 * number, 2 * number + 1] {
            let request = connection.request("PUT", &format!("/v1/services/s/instances/{code}"));
            unfinished.push(connection.send(request, false).await);
        }
        greedy.push(connection);
    }
    // The agent takes in what a connection sends in its order: when it answers a ping, it knows of the requests before.
    for connection in &mut greedy {
        connection.ping().await;
    }
    let (mut waiting, _) = patient.send(patient.request("GET", "/readyz"), true).await;
    tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.unwrap_err();
    for (answer, mut sending) in unfinished {
        sending.send_data(Bytes::from_static(b"{}"), true).unwrap();
        assert_eq!(soon("an answer", answer).await.unwrap().status(), StatusCode::CREATED);
    }
    assert_eq!(soon("an answer", waiting).await.unwrap().status(), StatusCode::OK);
}

/// An answer that nobody takes is kept, which is what the limit is for.
#[tokio::test]
async fn answers_that_are_not_taken_count_as_requests_and_streams_of_events_do_not() {
    let secure = Secure::start(|settings| settings.limits.connections = 8).await;
    let (patient, mut greedy) = (secure.connect().await, Vec::new());
    for path in ["/v1/watch", "/openapi.json"] {
        assert_eq!(patient.ask("GET", "/readyz", None).await.0, StatusCode::OK);
        for _ in 0..4 {
            let connection = secure.connect_with(h2::client::Builder::new().initial_window_size(0)).await;
            let answers = [connection.open("GET", path, None).await, connection.open("GET", path, None).await];
            greedy.push((connection, answers));
        }
        if path == "/v1/watch" {
            // Closed, or there would be too many connections.
            assert_eq!(patient.ask("GET", "/readyz", None).await.0, StatusCode::OK);
            greedy.drain(..).for_each(|(connection, _)| connection.running.abort());
            secure.server.until_metric("pointsman_agent_connections", 1).await;
        }
    }
    let (mut waiting, _) = patient.send(patient.request("GET", "/readyz"), true).await;
    tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.unwrap_err();
    greedy.iter().for_each(|(connection, _)| connection.running.abort());
    assert_eq!(soon("an answer", waiting).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn connections_on_which_nothing_is_asked_are_closed() {
    let secure = Secure::start(|settings| settings.limits.head_time = Duration::from_millis(300)).await;
    // Without as much as a preface.
    let silent = handshake(&secure.server, &secure.files, false, &[b"h2"]).await.unwrap();
    let idle = secure.connect().await;
    assert_eq!(idle.ask("GET", "/readyz", None).await.0, StatusCode::OK);
    let holding = secure.connect().await;
    let (mut held, _sending) = holding.open("POST", "/v1/services/s/instances/a/hold", Some("{}")).await;
    until_said(held.body_mut(), "event: role").await;
    Client::over(silent).rest().await;
    assert_eq!(soon("the end", idle.running).await.unwrap(), Ok(()));
    secure.server.until_metric("pointsman_agent_connections", 1).await;
    // A stream is not idle, however long it has nothing to say.
    tokio::time::timeout(Duration::from_millis(900), held.body_mut().data()).await.unwrap_err();
    assert_eq!(holding.ask("GET", "/v1/services/s/instances", None).await.1[0]["code"], "a");
}

#[tokio::test]
async fn an_agent_that_ends_says_so_on_each_stream() {
    let secure = Secure::start(|_| {}).await;
    let connection = secure.connect().await;
    let (mut watch, _watching) = connection.open("GET", "/v1/watch", None).await;
    until_said(watch.body_mut(), "event: reset").await;
    let (mut held, _sending) = connection.open("POST", "/v1/services/s/instances/a/hold", Some("{}")).await;
    until_said(held.body_mut(), "event: role").await;
    soon("the agent ends", secure.server.agent.close()).await;
    until_said(held.body_mut(), "\"reason\":\"closing\"").await;
    while soon("the end", watch.body_mut().data()).await.is_some_and(|data| data.is_ok()) {}
    assert_eq!(soon("the end", connection.running).await.unwrap(), Ok(()));
}

//! The access log, as whoever reads it sees it.
#![allow(clippy::unwrap_used, reason = "a test")]

mod tiny;

use std::io::{self, Write};
use std::time::Duration;

use pointsman_http::{AccessLog, Options, Proxy, Settings};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use self::tiny::{Fleet, Origin, Play, SOON, exchange, get, metric, ok, settings, status, until};

/// Lines, as they are written.
struct Lines(mpsc::UnboundedReceiver<String>);

struct Pipe(mpsc::UnboundedSender<String>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in std::str::from_utf8(bytes).unwrap().split_terminator('\n') {
            let _ = self.0.send(line.to_owned());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    async fn next(&mut self) -> String {
        timeout(SOON, self.0.recv()).await.expect("a line comes soon").unwrap()
    }

    async fn object(&mut self) -> Value {
        serde_json::from_str(&self.next().await).unwrap()
    }
}

fn logged(form: AccessLog) -> Settings {
    let mut settings = settings(|_| {});
    settings.access_log = form;
    settings
}

fn proxy(fleet: &Fleet, settings: Settings) -> (Proxy, Lines) {
    let (pipe, lines) = mpsc::unbounded_channel();
    let mut options = Options::default();
    options.access_log = Some(Box::new(Pipe(pipe)));
    (fleet.proxy(settings, options), Lines(lines))
}

#[tokio::test]
async fn a_request_is_one_line_of_text() {
    let origin = Origin::start(|_| ok("hello")).await;
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("a", origin.address)]);
    let (proxy, mut lines) = proxy(&fleet, logged(AccessLog::Text));
    let request = "POST /p?q=%22\" HTTP/1.1\r\nHost: h.example\r\nX-Request-Id: r-1\r\nUser-Agent: evil\" \u{e4}\r\n\
                   Authorization: Bearer SECRET\r\nCookie: s=SECRET\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
    assert!(exchange(proxy.address(), request).await.ends_with("hello"));
    let line = lines.next().await;
    assert!(line.starts_with("127.0.0.1 - - [20"), "{line}");
    let first =
        "Z] \"POST /p?q=%22\\\" HTTP/1.1\" 200 5 \"-\" \"evil\\\" \\xC3\\xA4\" host=\"h.example\" received=3 ms=";
    assert!(line.contains(first), "{line}");
    let last = format!(
        " route=\"^/\" service=\"ress\" code=\"a\" address=\"{}\" retries=0 id=\"r-1\" problem=-",
        origin.address
    );
    assert!(line.ends_with(&last), "{line}");
    assert!(!line.contains("SECRET"), "{line}");
}

#[tokio::test]
async fn an_object_tells_of_retries_problems_and_trusted_hops() {
    let down = Origin::start(|_| Play::Drop).await;
    let up = Origin::start(|_| ok("")).await;
    let fleet = Fleet::new(&["ress"]);
    let mut settings = logged(AccessLog::Json);
    settings.trusted = vec!["127.0.0.0/8".parse().unwrap()];
    let (proxy, mut lines) = proxy(&fleet, settings);

    assert_eq!(get(proxy.address(), "/nobody").await.0, 503);
    let object = lines.object().await;
    assert_eq!(object["problem"], "no-instance");
    assert_eq!([&object["status"], &object["code"]], [&Value::from(503), &Value::Null]);
    assert_eq!([&object["service"], &object["route"]], ["ress", "^/"]);

    fleet.set("ress", &[("a", down.address), ("b", up.address)]);
    let request = "PUT / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 203.0.113.7\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody";
    let (mut codes, mut retries) = (Vec::new(), 0);
    for _ in 0..2 {
        exchange(proxy.address(), request).await;
        let object = lines.object().await;
        assert_eq!([&object["status"], &object["client"]], [&Value::from(200), &Value::from("203.0.113.7")]);
        assert_eq!(object["received"], 4, "however often it is sent");
        codes.push(object["code"].as_str().unwrap().to_owned());
        retries += object["retries"].as_u64().unwrap();
    }
    // One of the two came to who is down first.
    assert_eq!((codes, retries), (vec!["b".to_owned(), "b".to_owned()], 1));

    assert!(exchange(proxy.address(), "nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    let object = lines.object().await;
    assert_eq!(
        [&object["problem"], &object["method"], &object["route"]],
        [&Value::from("bad-request"), &Value::Null, &Value::Null]
    );
}

#[tokio::test]
async fn who_has_gone_has_no_status_and_what_breaks_off_is_told() {
    let origin = Origin::start(|seen| match seen.line() {
        "GET /cut HTTP/1.1" => Play::Cut("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc".into()),
        _ => Play::Held(String::new()),
    });
    let mut origin = origin.await;
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("a", origin.address)]);
    let (proxy, mut lines) = proxy(&fleet, logged(AccessLog::Json));
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    client.write_all(b"GET /held HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    origin.next().await;
    drop(client);
    let object = lines.object().await;
    assert_eq!([&object["status"], &object["code"]], [&Value::Null, &Value::from("a")]);

    exchange(proxy.address(), "GET /cut HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let object = lines.object().await;
    assert_eq!([&object["status"], &object["problem"]], [&Value::from(200), &Value::from("cut-off")]);
    assert_eq!([&object["sent"], &object["target"]], [&Value::from(3), &Value::from("/cut")]);
}

#[tokio::test]
async fn a_reload_turns_it_on_and_off() {
    let origin = Origin::start(|_| status(204, "")).await;
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("a", origin.address)]);
    let (proxy, mut lines) = proxy(&fleet, logged(AccessLog::Off));
    get(proxy.address(), "/1").await;
    proxy.reload(logged(AccessLog::Json), &fleet.views()).unwrap();
    get(proxy.address(), "/2").await;
    assert_eq!(lines.object().await["target"], "/2");
    proxy.reload(logged(AccessLog::Text), &fleet.views()).unwrap();
    get(proxy.address(), "/3").await;
    assert!(lines.next().await.contains("\"GET /3 HTTP/1.1\" 204"));
    proxy.reload(logged(AccessLog::Off), &fleet.views()).unwrap();
    get(proxy.address(), "/4").await;
    proxy.close().await;
    assert_eq!(lines.0.recv().await, None);

    let silent = fleet.proxy(logged(AccessLog::Json), Options::default());
    assert_eq!(get(silent.address(), "/").await.0, 204);
}

/// Whose reader does not read.
struct Stuck(std::sync::mpsc::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_no_request_up() {
    let origin = Origin::start(|_| ok("")).await;
    let fleet = Fleet::new(&["ress"]);
    fleet.set("ress", &[("a", origin.address)]);
    let (_go, stuck) = std::sync::mpsc::channel();
    let mut options = Options::default();
    options.access_log = Some(Box::new(Stuck(stuck)));
    let proxy = fleet.proxy(logged(AccessLog::Text), options);
    let long = "x".repeat(30_000);
    for _ in 0..50 {
        assert_eq!(get(proxy.address(), &format!("/{long}")).await.0, 200);
    }
    until("lines dropped", || metric(&proxy, "pointsman_http_access_log_dropped_total") > 0).await;
    timeout(Duration::from_secs(10), proxy.close()).await.expect("the log does not hold up the end either");
}

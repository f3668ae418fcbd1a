//! That tokens are nowhere to be seen, in a process of its own: one subscriber gets all that is logged here, and no other test's
//! thread can have found a place in the code to be of no interest to anybody.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::io::Write;
use std::sync::{Arc, Mutex};

use pointsman_agent::Token;
use tracing_subscriber::fmt::MakeWriter;

use crate::support::Server;

const READ: &str = "geheim-read-0123456789";
const WRITE: &str = "geheim-write-0123456789";

/// Everything that is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Log;

    fn make_writer(&self) -> Log {
        self.clone()
    }
}

#[tokio::test]
async fn secrets_are_nowhere_to_be_seen() {
    let log = Log::default();
    tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).init();
    let server = Server::start_with(|settings| {
        settings.read_token = Some(Token::new(READ).unwrap());
        settings.write_token = Some(Token::new(WRITE).unwrap());
    })
    .await;
    let mut seen = format!("{:?}", server.agent);
    for token in [READ, WRITE, "geheim-but-wrong-0123456789"] {
        let a = "/v1/services/s/instances/a";
        for (method, path, body) in [
            ("PUT", a, "{}"),
            ("POST", "/v1/services/s/instances/a/drain", ""),
            ("GET", "/v1/services", ""),
            ("GET", "/v1/audit", ""),
            ("GET", "/metrics", ""),
            ("GET", "/nothing", ""),
            ("GET", "/v1/watch?service=", ""),
            ("PUT", a, "{"),
        ] {
            let header = format!("Bearer {token}");
            let answer = server.client().await.ask_with(method, path, &[("authorization", &header)], body).await;
            seen.push_str(&format!("{:?} {}", answer.headers, answer.text()));
        }
        let mut twice = server.client().await;
        let header = format!("bearer {token}x");
        let answer = twice.ask_with("GET", "/v1/services", &[("authorization", &header)], "").await;
        seen.push_str(answer.text());
    }
    seen.push_str(&server.agent.metrics());
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("audit") && log.contains("agent listens"), "{log}");
    assert!(!log.contains("geheim"), "{log}");
    assert!(!seen.contains("geheim"), "{seen}");
}

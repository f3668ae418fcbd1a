//! The agent, as a program of its own holds one.

#![allow(clippy::unwrap_used, reason = "tests")]

use pointsman::agent::{Agent, Settings};
use pointsman::{Instance, Registry};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test]
async fn what_the_program_registers_is_found_over_http() {
    let registry = Registry::connect("memory://of-a-program").await.unwrap();
    let registration = registry.register(Instance::new("ress").code("a").address("127.0.0.1:1")).await.unwrap();
    let agent = Agent::start(&registry, Settings::new(([127, 0, 0, 1], 0).into())).await.unwrap();
    let mut stream = TcpStream::connect(agent.address()).await.unwrap();
    let request = "GET /v1/services/ress/master HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200 ") && response.contains("\"code\":\"a\""), "{response}");
    assert!(agent.metrics().contains("\npointsman_instances 1\n"), "{}", agent.metrics());
    agent.close().await;
    registration.close().await.unwrap();
}

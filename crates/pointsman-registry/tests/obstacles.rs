//! Obstacles to a connection: reported at once where waiting cannot help, and during the wait otherwise.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::net::SocketAddr;

use pointsman_agent::{Agent, Settings, Token};
use pointsman_registry::{Error, Registry};
use pointsman_testkit::{Ensemble, ZooKeeper};
use support::soon;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// A registry's URL at an address, with a timeout that no test waits for.
type Url = fn(SocketAddr) -> String;

const ZOOKEEPER: Url = |address| format!("zookeeper://{address}/p?connect_timeout=1h");
const AGENT: Url = |address| format!("http://{address}?connect_timeout=1h");

async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn error(url: &str) -> Error {
    soon("an end", Registry::builder(url).fail_fast(true).connect()).await.map(|_| ()).unwrap_err()
}

/// A server that says something to whoever connects: at once, or once it has been asked.
async fn other_server(says: &'static str, is_asked: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut asked = Vec::new();
                while is_asked && !asked.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut asked).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let _ = stream.write_all(says.as_bytes()).await;
                let _ = stream.read_to_end(&mut asked).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_closed_port_of_this_machine_is_told_at_once() {
    let address = closed_port().await;
    for url in [ZOOKEEPER, AGENT] {
        let error = error(&url(address)).await;
        assert!(matches!(error, Error::Unreachable { .. }) && error.is_retryable(), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&format!("{address}: Connection refused")) && !text.contains("no answer"), "{text}");
    }
}

/// A service may start a moment before the agent beside it.
#[tokio::test]
async fn a_closed_port_of_this_machine_is_tried_again_by_default() {
    let address = closed_port().await;
    let (sender, mut reasons) = mpsc::unbounded_channel();
    let builder =
        Registry::builder(&AGENT(address)).on_failed_attempt(move |reason| drop(sender.send(reason.to_owned())));
    let connecting = tokio::spawn(builder.connect());
    soon("an attempt", reasons.recv()).await.unwrap();
    let memory = Registry::connect("memory://").await.unwrap();
    let _agent = Agent::start(&memory, Settings::new(address)).await.unwrap();
    soon("an answer", connecting).await.unwrap().unwrap();
}

/// An agent that is about to end, or that has no descriptors left, closes what it has accepted.
#[tokio::test]
async fn a_connection_that_is_closed_at_once_is_not_another_kind_of_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
        }
    });
    let (sender, mut reasons) = mpsc::unbounded_channel();
    let builder = Registry::builder(&AGENT(address)).fail_fast(true);
    let builder = builder.on_failed_attempt(move |reason| drop(sender.send(reason.to_owned())));
    let connecting = tokio::spawn(builder.connect());
    for _ in 0..5 {
        let reason = soon("another attempt", reasons.recv()).await.unwrap();
        assert!(!reason.contains("another kind of server"), "{reason}");
    }
    assert!(!connecting.is_finished());
    connecting.abort();
}

#[tokio::test]
async fn each_closed_port_of_several_is_told() {
    let [one, other] = [closed_port().await, closed_port().await];
    let text = error(&format!("zookeeper://{one},{other}/p?connect_timeout=1h")).await.to_string();
    assert!([one, other].iter().all(|address| text.contains(&format!("{address}: Connection refused"))), "{text}");
}

#[tokio::test]
async fn a_closed_port_is_waited_for_with_a_word_about_each_attempt() {
    for url in [ZOOKEEPER, AGENT] {
        let address = closed_port().await;
        let (sender, mut reasons) = mpsc::unbounded_channel();
        let builder = Registry::builder(&url(address)).wait(true);
        let builder = builder.on_failed_attempt(move |reason| drop(sender.send(reason.to_owned())));
        let waiting = tokio::spawn(builder.connect());
        for _ in 0..3 {
            let reason = soon("another attempt", reasons.recv()).await.unwrap();
            assert!(reason.starts_with(&format!("{address}: Connection refused")), "{reason}");
        }
        assert!(!waiting.is_finished());
        waiting.abort();
    }
}

#[tokio::test]
async fn another_kind_of_server_is_told_at_once() {
    let html = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>";
    let ssh = "SSH-2.0-OpenSSH_9.2p1\r\n";
    for (url, says, is_asked, words) in [
        (ZOOKEEPER, html, true, "it answers \"HTTP/1.1 200 OK\""),
        (ZOOKEEPER, ssh, false, "it answers \"SSH-2.0-OpenSSH_9.2p1\""),
        (AGENT, html, true, "it does not answer as an agent"),
        (AGENT, ssh, true, "it does not speak HTTP"),
    ] {
        let error = error(&url(other_server(says, is_asked).await)).await;
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("another kind of server is there") && text.contains(words), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_quorum_is_not_taken_for_another_kind() {
    let mut ensemble = Ensemble::start().await;
    ensemble.kill(0);
    ensemble.kill(1);
    let (sender, mut reasons) = mpsc::unbounded_channel();
    let builder = Registry::builder(&ZOOKEEPER(ensemble.servers()[2].socket_address())).wait(true);
    let waiting = tokio::spawn(builder.on_failed_attempt(move |reason| drop(sender.send(reason.to_owned()))).connect());
    // It notices after a while that it has lost the others.
    let told = async { while !reasons.recv().await.unwrap().contains("has it a quorum?") {} };
    soon("why there is no session", told).await;
    assert!(!waiting.is_finished());
    waiting.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn zookeepers_refusal_is_told_at_once() {
    let server = ZooKeeper::options()
        .property("zookeeper.enforce.auth.enabled", "true")
        .property("zookeeper.enforce.auth.schemes", "digest")
        .start()
        .await;
    let error = error(&ZOOKEEPER(server.socket_address())).await;
    assert!(matches!(&error, Error::Refused { reason, .. } if reason.contains("set auth=digest:")), "{error:?}");
}

#[tokio::test]
async fn a_wrong_token_ends_the_wait() {
    let below = Registry::connect("memory://obstacles").await.unwrap();
    let mut settings = Settings::new(([127, 0, 0, 1], 0).into());
    [settings.read_token, settings.write_token] =
        ["right-right-right", "other-other-other"].map(|token| Some(Token::new(token).unwrap()));
    let agent = Agent::start(&below, settings).await.unwrap();
    for token in ["", "&token=wrong-wrong-wrong"] {
        for wait in [false, true] {
            let url = format!("{}{token}", AGENT(agent.address()));
            let connecting = Registry::builder(&url).wait(wait).connect();
            let error = soon("an end", connecting).await.map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        }
    }
}

//! The access log.

use std::fs;

use pointsman_testkit::http::HyperOrigin;
use rustix::process::Signal;
use serde_json::Value;

use crate::setup::{Proxy, Registry, text, until};
use crate::support::served::free_port;

#[tokio::test]
async fn lines_go_to_a_file_which_may_be_moved_away() {
    let (registry, origin, port) = (Registry::start().await, HyperOrigin::start("a").await, free_port());
    registry.put("ress", "a", origin.address()).await;
    let with =
        |form: &str| text(&registry.url(), port, &format!("access_log = '{form}'\naccess_log_file = 'access.log'"));
    let mut proxy = Proxy::start(port, &with("text")).await;
    let (log, moved) = (proxy.file.path.with_file_name("access.log"), proxy.file.path.with_file_name("access.log.1"));
    let lines = async |count: usize| {
        let read = async || fs::read_to_string(&log).unwrap();
        until(read, |text| text.ends_with('\n') && text.lines().count() == count).await
    };
    proxy.get("/bytes/7?a=1").await;
    let told = lines(1).await;
    for words in ["127.0.0.1 - - [", "] \"GET /bytes/7?a=1 HTTP/1.1\" 200 7 ", "service=\"ress\"", "code=\"a\""] {
        assert!(told.contains(words), "{words}: {told}");
    }
    proxy.reloaded(&with("json")).await;
    proxy.get("/status/404").await;
    let told = lines(2).await;
    let line: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    assert_eq!((&line["target"], &line["status"], &line["code"]), (&"/status/404".into(), &404.into(), &"a".into()));

    fs::rename(&log, &moved).unwrap();
    // Looked for now and then, when there is something to write.
    let begun = async || {
        proxy.get("/bytes/1").await;
        log.exists()
    };
    until(begun, |begun| *begun).await;
    let before = fs::read_to_string(&moved).unwrap();
    assert!(before.starts_with(&told) && before.ends_with('\n'), "{before}");
    until(async || fs::read_to_string(&log).unwrap(), |text| text.ends_with("}\n")).await;
    proxy.reloaded(&with("off")).await;
    let before = fs::read_to_string(&log).unwrap();
    proxy.get("/bytes/2").await;
    let Proxy { file: _file, running, .. } = proxy;
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
    assert_eq!(fs::read_to_string(&log).unwrap(), before);
}

#[tokio::test]
async fn lines_go_to_standard_output_the_last_one_too() {
    let (registry, origin) = (Registry::start().await, HyperOrigin::start("a").await);
    registry.put("ress", "a", origin.address()).await;
    let mut proxy = Proxy::over(&registry, "access_log = 'json'").await;
    proxy.get("/bytes/1").await;
    let line = proxy.running.json().await;
    assert_eq!((&line["target"], &line["sent"]), (&"/bytes/1".into(), &1.into()), "{line}");
    proxy.get("/bytes/2").await;
    proxy.running.signal(Signal::TERM);
    assert_eq!(proxy.running.json().await["target"], "/bytes/2");
    assert_eq!(proxy.running.ended().await.code(), Some(0));
}

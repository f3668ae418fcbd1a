//! A registry that comes late, and one that goes.

use pointsman_testkit::http::HyperOrigin;
use pointsman_testkit::{ZooKeeper, unique_prefix};
use rustix::process::Signal;

use crate::setup::{Proxy, Registry, text, until};
use crate::support::served::{File, Stream, free_port, logged, serve};
use crate::support::{Running, command};

#[tokio::test]
async fn it_serves_when_the_registry_comes_and_can_be_ended_before() {
    let (agent, port, origin) = (free_port(), free_port(), HyperOrigin::start("a").await);
    let file = File::new(&text(&format!("http://127.0.0.1:{agent}"), port, ""));
    let mut running = serve(&file.path);
    logged(&mut running, "waiting for the registry").await;
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
    let mut running = serve(&file.path);
    logged(&mut running, "waiting for the registry").await;
    let registry = Registry::start_at(agent).await;
    logged(&mut running, " ready").await;
    let proxy = Proxy { file, port, running };
    registry.put("ress", "a", origin.address()).await;
    proxy.until_served_by(&["a"]).await;
    registry.until_balancers(1).await;
    proxy.ends().await;
}

#[tokio::test]
async fn an_agent_that_goes_takes_nothing_along() {
    let (registry, origin) = (Registry::start().await, HyperOrigin::start("a").await);
    registry.put("ress", "a", origin.address()).await;
    let mut proxy = Proxy::over(&registry, "").await;
    proxy.until_served_by(&["a"]).await;
    registry.until_balancers(1).await;
    let agent = registry.kill().await;
    for _ in 0..20 {
        assert_eq!(proxy.get("/").await.header("x-origin"), Some("a"));
    }
    // A reload that asks for nothing new works without it.
    let again = std::fs::read_to_string(&proxy.file.path).unwrap() + "name = 'again'\n";
    proxy.reloaded(&again).await;
    assert_eq!(proxy.get("/").await.header("x-origin"), Some("a"));
    let registry = Registry::start_at(agent).await;
    registry.until_balancers(1).await;
    proxy.ends().await;
    registry.until_balancers(0).await;
}

#[tokio::test]
async fn zookeeper_goes_in_the_middle_and_comes_back() {
    let mut server = ZooKeeper::start().await;
    let (watched, port, origin) = (free_port(), free_port(), HyperOrigin::start("a").await);
    let registry = format!("zookeeper://{}{}?session_timeout=4s", server.address(), unique_prefix());
    let address = origin.address().to_string();
    let args = ["register", "ress", "--code", "a", "--address", &address, "-o", "json", "--registry", &registry];
    let mut instance = Running::start(command(args));
    instance.json_where(|line| line["role"] == "master").await;
    let file = format!("agent.listen = '127.0.0.1:{watched}'\n{}", text(&registry, port, ""));
    let proxy = Proxy::start(port, &file).await;
    proxy.until_served_by(&["a"]).await;
    let mut watching = Stream::open(watched, "GET", "/v1/services/http-balancer/watch").await;
    watching.until("\"service\":\"http-balancer\"").await;
    server.kill();
    instance.json_where(|line| line["role"] == "detached").await;
    watching.until("\"state\":\"stale\"").await;
    for _ in 0..20 {
        assert_eq!(proxy.get("/").await.header("x-origin"), Some("a"));
    }
    server.restart().await;
    instance.json_where(|line| line["role"] == "master").await;
    until(async || proxy.get("/").await.status, |status| *status == 200).await;
    proxy.ends().await;
    instance.signal(Signal::TERM);
    assert_eq!(instance.ended().await.code(), Some(0));
}

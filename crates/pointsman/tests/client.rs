//! The adapters to tower: a layer over a client, and the instances for tower's own balancers.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::future::{pending, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use pointsman::client::{BalanceLayer, NoAddress, discover};
use pointsman::{Algorithm, Instance, ObservedInstance, PickError, Registry, Service};
use pointsman_testkit::http::EchoOrigin;
use tokio::time::timeout;
use tower::discover::Change;
use tower::{Layer as _, ServiceExt as _, service_fn};

const PATIENCE: Duration = Duration::from_secs(20);

async fn service(registry: &Registry, instances: usize) -> Service {
    let service = registry.discover("ress").await.unwrap();
    let mut changes = service.changes();
    while service.snapshot().instances().len() != instances {
        timeout(PATIENCE, changes.next()).await.unwrap().unwrap();
    }
    service
}

fn instance(code: &str, address: SocketAddr) -> Instance {
    Instance::new("ress").code(code).address(address.to_string())
}

fn nowhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

fn get(uri: &str) -> Request<Empty<bytes::Bytes>> {
    Request::get(uri).body(Empty::new()).unwrap()
}

#[tokio::test]
async fn requests_of_a_client_go_to_the_instances_in_turn() {
    let registry = Registry::connect("memory://tower-layer").await.unwrap();
    let (a, b) = (EchoOrigin::start("a").await, EchoOrigin::start("b").await);
    let _master = registry.register(instance("m", nowhere())).await.unwrap();
    let _a = registry.register(instance("a", a.address())).await.unwrap();
    let _b = registry.register(instance("b", b.address())).await.unwrap();
    let balancer = service(&registry, 3).await.balancer(Algorithm::RoundRobin);
    let client = Client::builder(TokioExecutor::new()).build_http();
    let client = BalanceLayer::new(balancer.clone()).layer(client);
    let mut served = BTreeMap::new();
    for number in 0..10 {
        let response =
            timeout(PATIENCE, client.clone().oneshot(get(&format!("/bytes/5/{number}")))).await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        let code = response.extensions().get::<Arc<ObservedInstance>>().unwrap().code.to_string();
        *served.entry(code.clone()).or_insert(0) += 1;
        assert_eq!(balancer.endpoints().in_flight(&code), 1, "until the body has ended");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), 5);
        assert_eq!(balancer.endpoints().in_flight(&code), 0);
    }
    assert_eq!(served, BTreeMap::from([("a".to_owned(), 5), ("b".to_owned(), 5)]));
}

#[tokio::test(start_paused = true)]
async fn what_fails_answers_500_or_hangs_is_ejected() {
    let registry = Registry::connect("memory://tower-outcomes").await.unwrap();
    let _master = registry.register(instance("m", nowhere())).await.unwrap();
    let _good = registry.register(instance("good", nowhere())).await.unwrap();
    let _bad = registry.register(instance("bad", nowhere())).await.unwrap();
    let service = service(&registry, 3).await;
    for how in ["fails", "503", "hangs"] {
        let inner = service_fn(async |request: Request<Empty<bytes::Bytes>>| {
            assert_eq!(request.uri(), "http://127.0.0.1:1/a?b");
            let code = request.extensions().get::<Arc<ObservedInstance>>().unwrap().code.clone();
            let mut response = Response::new(Empty::<bytes::Bytes>::new());
            match how {
                _ if &*code == "good" => {}
                "fails" => return Err(io::Error::from(io::ErrorKind::ConnectionReset)),
                "503" => *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
                _ => pending().await,
            }
            Ok(response)
        });
        let client = BalanceLayer::new(service.balancer(Algorithm::RoundRobin)).layer(inner);
        let mut bad = 0;
        for _ in 0..40 {
            let called = timeout(Duration::from_secs(1), client.clone().oneshot(get("/a?b"))).await;
            bad += usize::from(!matches!(called, Ok(Ok(response)) if response.status() == 200));
        }
        assert_eq!(bad, 5, "{how}");
    }
}

#[tokio::test]
async fn whom_no_request_can_reach_is_an_error_of_its_own() {
    let registry = Registry::connect("memory://tower-refusals").await.unwrap();
    let of = async |registered: usize| {
        let balancer = service(&registry, registered).await.balancer(Algorithm::RoundRobin);
        let inner = service_fn(|_: Request<Empty<bytes::Bytes>>| ready(io::Result::Ok(Response::new(String::new()))));
        BalanceLayer::new(balancer).layer(inner).oneshot(get("/")).await.unwrap_err()
    };
    assert!(matches!(of(0).await.downcast_ref(), Some(PickError::NoInstance { .. })));
    let _behind_a_broker = registry.register(Instance::new("ress").code("a")).await.unwrap();
    let refused = of(1).await;
    assert_eq!(refused.to_string(), "call a of ress: it has no address that can be called over HTTP");
    assert!(refused.is::<NoAddress>());
}

#[tokio::test]
async fn towers_balancers_get_the_master_only_where_a_pick_would() {
    let registry = Registry::connect("memory://tower-master").await.unwrap();
    let service = registry.discover("ress").await.unwrap();
    let mut changes = discover(&service, |instance| instance.code.clone());
    let mut inserted = BTreeSet::new();
    let mut until = async |wanted: &[&str]| {
        let wanted: BTreeSet<String> = wanted.iter().map(|code| (*code).to_owned()).collect();
        let seen = async {
            while inserted != wanted {
                match changes.next().await.unwrap().unwrap() {
                    Change::Insert(code, _) => inserted.insert(code.to_string()),
                    Change::Remove(code) => inserted.remove(&*code),
                };
            }
        };
        timeout(PATIENCE, seen).await.unwrap();
        let balancer = service.balancer(Algorithm::RoundRobin);
        let picked: BTreeSet<String> = (0..10).map(|_| balancer.pick("").unwrap().code().to_string()).collect();
        assert_eq!(picked, wanted, "as a balancer");
        assert!(changes.next().now_or_never().is_none());
    };
    let _master = registry.register(instance("m", nowhere())).await.unwrap();
    until(&["m"]).await;
    let a = registry.register(instance("a", nowhere())).await.unwrap();
    let b = registry.register(instance("b", nowhere())).await.unwrap();
    until(&["a", "b"]).await;
    registry.drain("ress", "a").await.unwrap();
    until(&["b"]).await;
    b.close().await.unwrap();
    until(&["m"]).await;
    drop(a);
}

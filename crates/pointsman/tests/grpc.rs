//! A tonic client over the instances of a service, against real servers of tonic.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pointsman::grpc::{Channel, channel};
use pointsman::{Algorithm, Instance, Registration, Registry, Service};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{self, Runtime};
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;

const PATIENCE: Duration = Duration::from_secs(20);

/// A server of the health protocol that counts its calls, and answers all with `fails` if there is one.
struct Peer {
    address: SocketAddr,
    calls: Arc<AtomicUsize>,
    /// Its own, so that its connections end with it.
    runtime: Option<Runtime>,
}

impl Peer {
    async fn start(fails: Option<Code>) -> Self {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.spawn(TcpListener::bind("127.0.0.1:0")).await.unwrap().unwrap();
        let (address, calls) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
        let counted = calls.clone();
        let (reporter, _) = tonic_health::server::health_reporter();
        let health = HealthService::from_health_reporter(reporter);
        let health = HealthServer::with_interceptor(health, move |request: Request<()>| {
            counted.fetch_add(1, Ordering::SeqCst);
            fails.map_or(Ok(request), |code| Err(Status::new(code, "as it was told to")))
        });
        let served = Server::builder().add_service(health).serve_with_incoming(TcpIncoming::from(listener));
        runtime.spawn(async { served.await.unwrap() });
        Self { address, calls, runtime: Some(runtime) }
    }

    async fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
        let is_gone = async {
            while TcpStream::connect(self.address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, is_gone).await.unwrap();
    }

    fn calls(&self) -> usize {
        self.calls.swap(0, Ordering::SeqCst)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A service behind a master that nobody calls.
struct Fleet {
    registry: Registry,
    _master: Registration,
}

impl Fleet {
    async fn start(name: &str) -> Self {
        let registry = Registry::connect(&format!("memory://{name}")).await.unwrap();
        let _master = registry.register(Instance::new("ress").address("127.0.0.1:1")).await.unwrap();
        Self { registry, _master }
    }

    async fn join(&self, code: &str, address: SocketAddr) -> Registration {
        self.registry.register(Instance::new("ress").code(code).address(address.to_string())).await.unwrap()
    }

    async fn service(&self, instances: usize) -> Service {
        let service = self.registry.discover("ress").await.unwrap();
        until(&service, instances).await;
        service
    }
}

async fn until(service: &Service, instances: usize) {
    let mut changes = service.changes();
    while service.snapshot().instances().len() != instances {
        timeout(PATIENCE, changes.next()).await.unwrap().unwrap();
    }
}

async fn check(channel: &Channel) -> Result<(), Status> {
    let request = HealthCheckRequest { service: String::new() };
    timeout(PATIENCE, HealthClient::new(channel.clone()).check(request)).await.unwrap().map(|_| ())
}

#[tokio::test]
async fn calls_go_to_the_instances_in_turn_as_they_come_and_go() {
    let (fleet, a, b) = (Fleet::start("tonic-turns").await, Peer::start(None).await, Peer::start(None).await);
    let (first, second) = (fleet.join("a", a.address).await, fleet.join("b", b.address).await);
    let service = fleet.service(3).await;
    let channel = channel(&service);
    for _ in 0..10 {
        check(&channel).await.unwrap();
    }
    assert_eq!((a.calls(), b.calls()), (5, 5));
    second.close().await.unwrap();
    until(&service, 2).await;
    for _ in 0..4 {
        check(&channel).await.unwrap();
    }
    assert_eq!((a.calls(), b.calls()), (4, 0));
    first.close().await.unwrap();
    until(&service, 1).await;
    let refused = check(&channel).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "the master is there, and nobody listens: {refused}");
    assert!(refused.message().starts_with("connect to "), "{refused}");
}

#[tokio::test]
async fn one_that_has_died_fails_no_call_but_those_on_their_way() {
    let (fleet, lives, dies) = (Fleet::start("tonic-dead").await, Peer::start(None).await, Peer::start(None).await);
    let mut dies = dies;
    let _registered = (fleet.join("a", lives.address).await, fleet.join("b", dies.address).await);
    let channel = channel(&fleet.service(3).await);
    for _ in 0..4 {
        check(&channel).await.unwrap();
    }
    dies.kill().await;
    let mut failed = Vec::new();
    for _ in 0..40 {
        failed.extend(check(&channel).await.err());
    }
    // What is sent before the connection's end is noticed.
    assert!(failed.len() <= 1 && failed.iter().all(|status| status.code() == Code::Unavailable), "{failed:?}");
    assert_eq!(lives.calls() + failed.len(), 2 + 40);
}

#[tokio::test]
async fn an_instance_whose_statuses_are_its_fault_is_ejected_and_one_whose_callers_err_is_not() {
    for (code, is_ejected) in [(Code::Internal, true), (Code::Unavailable, true), (Code::InvalidArgument, false)] {
        let fleet = Fleet::start(&format!("tonic-{code:?}")).await;
        let (good, bad) = (Peer::start(None).await, Peer::start(Some(code)).await);
        let _registered = (fleet.join("a", good.address).await, fleet.join("b", bad.address).await);
        let channel = channel(&fleet.service(3).await);
        let mut failed = 0;
        for _ in 0..40 {
            failed += usize::from(check(&channel).await.is_err_and(|status| status.code() == code));
        }
        assert_eq!(failed, if is_ejected { 5 } else { 20 }, "{code:?}");
        assert_eq!(good.calls(), 40 - failed);
    }
}

#[tokio::test]
async fn one_that_hangs_is_ejected_by_calls_that_are_given_up() {
    let (fleet, good) = (Fleet::start("tonic-hangs").await, Peer::start(None).await);
    let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _registered = (fleet.join("a", good.address).await, fleet.join("b", hangs.local_addr().unwrap()).await);
    let channel = channel(&fleet.service(3).await);
    let mut cut = 0;
    for _ in 0..40 {
        let mut client = HealthClient::new(channel.clone());
        let call = client.check(HealthCheckRequest { service: String::new() });
        cut += usize::from(timeout(Duration::from_millis(300), call).await.is_err());
    }
    assert!((5..8).contains(&cut), "{cut} of 40 were cut");
}

#[tokio::test]
async fn a_stream_is_in_flight_until_it_ends() {
    let (fleet, peer) = (Fleet::start("tonic-stream").await, Peer::start(None).await);
    let _registered = fleet.join("a", peer.address).await;
    let channel = Channel::new(fleet.service(2).await.balancer(Algorithm::LeastConnections));
    let in_flight = || channel.balancer().endpoints().in_flight("a");
    let mut client = HealthClient::new(channel.clone());
    let request = HealthCheckRequest { service: String::new() };
    let mut stream = timeout(PATIENCE, client.watch(request)).await.unwrap().unwrap().into_inner();
    timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(in_flight(), 1);
    drop(stream);
    assert_eq!(in_flight(), 0);
}

#[tokio::test]
async fn whoever_leaves_a_stream_after_its_first_answer_speaks_against_nobody() {
    let (fleet, peer) = (Fleet::start("tonic-leaves").await, Peer::start(None).await);
    let _registered = fleet.join("a", peer.address).await;
    let channel = channel(&fleet.service(2).await);
    for round in 0..10 {
        let mut client = HealthClient::new(channel.clone());
        let request = HealthCheckRequest { service: String::new() };
        let watched = timeout(PATIENCE, client.watch(request)).await.unwrap();
        assert!(watched.is_ok(), "{round}: {watched:?}");
        // Ejected, it would not be the one: the master would stand in.
        assert_eq!(&**channel.balancer().pick("").unwrap().code(), "a", "{round}");
    }
}

#[tokio::test]
async fn a_timeout_of_the_connections_settings_is_told_as_one() {
    let (fleet, hangs) = (Fleet::start("tonic-timeout").await, TcpListener::bind("127.0.0.1:0").await.unwrap());
    let _registered = fleet.join("a", hangs.local_addr().unwrap()).await;
    let channel = channel(&fleet.service(2).await).endpoint(|endpoint| endpoint.timeout(Duration::from_millis(50)));
    assert_eq!(check(&channel).await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let registry = Registry::connect("memory://tonic-nobody").await.unwrap();
    let channel = channel(&registry.discover("ress").await.unwrap());
    let refused = check(&channel).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unavailable, "pick an instance of ress: none is registered")
    );
}

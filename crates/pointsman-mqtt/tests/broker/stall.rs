//! How long a client waits for the answer to a PING while others ask much of the broker. Measurements, to be run by hand and with
//! `--release`.

use std::time::{Duration, Instant};

use pointsman_mqtt::broker::Broker;
use pointsman_mqtt::packet::{Connect, Options as Subscription, Packet, Properties, Publish, Subscribe, Will};
use tokio::task::JoinHandle;

use super::client::{Client, hello, message, until};
use super::{QOS0, options};

const RETAINED: usize = 100_000;
const FILTERS: usize = 6_000;

async fn broker() -> Broker {
    let mut options = options();
    options.max_retained = RETAINED;
    Broker::start(options).await.unwrap()
}

async fn keep(broker: &Broker, count: usize) {
    let mut from = Client::new(broker.address(), "keeper").await;
    for number in 0..count {
        from.send(&Packet::Publish(Publish { retain: true, ..message(&format!("{number}/x"), "x", QOS0, 0) })).await;
    }
    from.settle().await;
}

/// Pings until it is stopped; the longest time that an answer has taken, and how often it has asked.
async fn pings(broker: &Broker) -> (JoinHandle<(Duration, usize)>, tokio::sync::oneshot::Sender<()>) {
    let mut client = Client::new(broker.address(), "pings").await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        let (mut longest, mut count) = (Duration::ZERO, 0);
        while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
            let began = Instant::now();
            client.settle().await;
            longest = longest.max(began.elapsed());
            count += 1;
        }
        (longest, count)
    });
    (task, stop)
}

#[allow(clippy::print_stdout)] // It is what is wanted of it.
async fn subscribing(what: &str, filters: Vec<String>) {
    let broker = broker().await;
    keep(&broker, RETAINED).await;
    let (pings, stop) = pings(&broker).await;
    let mut a = Client::new(broker.address(), "a").await;
    let filters = filters.into_iter().map(|filter| (filter.into(), Subscription::up_to(QOS0))).collect();
    let began = Instant::now();
    a.send(&Packet::Subscribe(Box::new(Subscribe { id: 1, filters, properties: Properties::default() }))).await;
    assert!(matches!(a.packet().await, Packet::Suback(_)));
    tokio::time::sleep(Duration::from_secs(10)).await;
    stop.send(()).unwrap();
    let (longest, count) = pings.await.unwrap();
    println!("{what}: longest stall {longest:?} of {count} pings in {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn one_subscribe_with_the_same_filter_thousands_of_times() {
    subscribing("6,000 x +/zzz", vec!["+/zzz".to_owned(); FILTERS]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn one_subscribe_with_thousands_of_filters() {
    subscribing("6,000 different filters", (0..FILTERS).map(|number| format!("+/{number}")).collect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
#[allow(clippy::print_stdout)] // It is what is wanted of it.
async fn new_retained_topics_where_the_table_is_full() {
    let broker = broker().await;
    keep(&broker, RETAINED).await;
    let (pings, stop) = pings(&broker).await;
    let mut from = Client::new(broker.address(), "from").await;
    let began = Instant::now();
    for number in 0..RETAINED {
        from.send(&Packet::Publish(Publish { retain: true, ..message(&format!("new/{number}"), "x", QOS0, 0) })).await;
    }
    from.settle().await;
    let took = began.elapsed();
    stop.send(()).unwrap();
    let (longest, count) = pings.await.unwrap();
    println!("{RETAINED} more topics: {took:?}; longest stall {longest:?} of {count} pings");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
#[allow(clippy::print_stdout)] // It is what is wanted of it.
async fn many_clients_that_vanish_at_once() {
    let broker = broker().await;
    let mut watcher = Client::new(broker.address(), "watcher").await;
    watcher.subscribe("will", QOS0).await;
    let mut clients = Vec::new();
    for number in 0..2_000 {
        let will = Will { topic: "will".into(), payload: "x".into(), ..Will::default() };
        let connect = Connect { will: Some(will), ..hello(&format!("a{number}")) };
        clients.push(Client::connect(broker.address(), connect).await.0);
    }
    let (pings, stop) = pings(&broker).await;
    drop(clients);
    until(|| broker.handle().figures().connections == 2).await;
    stop.send(()).unwrap();
    let (longest, count) = pings.await.unwrap();
    println!("2,000 clients vanish: longest stall {longest:?} of {count} pings");
}

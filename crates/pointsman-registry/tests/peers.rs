//! Processes that share a registry ask each other.

#![cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pointsman_registry::{Answer, Peers, Registry, Unanswered};
use pointsman_testkit::{CuttingProxy, ZooKeeper, unique_prefix};
use support::soon;

/// Answers what begins with its name; what is to take long, never.
struct Named {
    name: &'static str,
    asked: AtomicUsize,
}

#[async_trait]
impl Answer for Named {
    async fn answer(&self, question: &str) -> Option<String> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let rest = question.strip_prefix(self.name)?;
        if rest == " is silent" {
            std::future::pending::<()>().await;
        }
        Some(format!("{} says{rest}", self.name))
    }
}

fn join(registry: &Registry, name: &'static str) -> (Peers, Arc<Named>) {
    let named = Arc::new(Named { name, asked: AtomicUsize::new(0) });
    (registry.join_peers(named.clone()).unwrap(), named)
}

/// Asks until there is an answer: those who have just joined are known some milliseconds later.
async fn until_answered(by: &Peers, question: &str) -> String {
    let asking = async {
        loop {
            if let Ok(Some(answer)) = by.ask(question.to_owned()).await {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    soon(question, asking).await
}

async fn connect(address: &str, prefix: &str) -> Registry {
    Registry::connect(&format!("zookeeper://{address}{prefix}?session_timeout=4s")).await.unwrap()
}

/// What holds for every backend.
async fn contract(registries: [Registry; 3]) {
    let [(a, of_a), (b, _), (c, of_c)] =
        [join(&registries[0], "a"), join(&registries[1], "b"), join(&registries[2], "c")];
    assert_eq!(until_answered(&a, "b yes").await, "b says yes");
    assert_eq!(until_answered(&b, "a yes").await, "a says yes");
    assert_eq!(until_answered(&c, "a yes").await, "a says yes");
    until_answered(&a, "c yes").await;
    // Nobody asks itself, and nobody waits when all have said that they do not know: the least of some, where others take the processor.
    let asked = of_a.asked.load(Ordering::Relaxed);
    let mut least = Duration::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        assert_eq!(a.ask("a yes".to_owned()).await, Ok(None));
        least = least.min(started.elapsed());
    }
    assert!(least < Duration::from_millis(900), "{least:?}");
    assert_eq!(of_a.asked.load(Ordering::Relaxed), asked);
    // One of them.
    assert_eq!(a.ask_one(b.id(), "b yes".to_owned()).await, Ok(Some("b says yes".to_owned())));
    let asked = of_c.asked.load(Ordering::Relaxed);
    assert_eq!(a.ask_one(b.id(), "c yes".to_owned()).await, Ok(None));
    assert_eq!(a.ask_one("nobody", "b yes".to_owned()).await, Ok(None));
    assert_eq!(of_c.asked.load(Ordering::Relaxed), asked);
    // Many at once, and one who says nothing costs nobody else anything.
    let many = (0..500).map(|number| b.ask(format!("a {number}")));
    let (silent, many) =
        soon("all", async { tokio::join!(b.ask("a is silent".to_owned()), futures_util::future::join_all(many)) })
            .await;
    assert_eq!(silent, Err(Unanswered), "that is not the same as that it has nothing to say");
    for (number, answer) in many.into_iter().enumerate() {
        assert_eq!(answer, Ok(Some(format!("a says {number}"))));
    }
    // Who has left is not asked.
    drop(b);
    let gone = async {
        while a.ask("b yes".to_owned()).await != Ok(None) {
            tokio::task::yield_now().await;
        }
    };
    soon("b is gone", gone).await;
    assert_eq!(until_answered(&a, "c yes").await, "c says yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_memory() {
    let connect = || Registry::connect("memory://peers");
    contract([connect().await.unwrap(), connect().await.unwrap(), connect().await.unwrap()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_zookeeper() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let address = server.address();
    let connect = || connect(&address, &prefix);
    contract([connect().await, connect().await, connect().await]).await;
    let client = server.client().await;
    let left = async {
        for folder in ["questions", "answers"] {
            while !client.list_children(&format!("/pointsman{prefix}/peers/{folder}")).await.unwrap().is_empty() {}
        }
    };
    soon("nothing is left behind", left).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_cut_off_takes_part_again_and_who_is_cut_off_is_not_waited_for_longer_than_a_second() {
    let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let proxy = CuttingProxy::start(server.socket_address());
    let (near, far) = (connect(&server.address(), &prefix).await, connect(&proxy.address(), &prefix).await);
    let ((a, _), (b, _)) = (join(&near, "a"), join(&far, "b"));
    until_answered(&a, "b yes").await;
    for cut in [CuttingProxy::cut, CuttingProxy::blackhole] {
        cut(&proxy);
        let started = Instant::now();
        assert_eq!(a.ask("b yes".to_owned()).await, Err(Unanswered));
        assert_eq!(b.ask("a yes".to_owned()).await, Err(Unanswered));
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
        proxy.mend();
        assert_eq!(until_answered(&a, "b yes").await, "b says yes");
        assert_eq!(until_answered(&b, "a yes").await, "a says yes");
    }
}

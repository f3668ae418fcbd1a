//! What is kept, counted.

use pointsman_core::{Instance, ObservedInstance, Role, Term};
use pointsman_registry::Registry;

use super::topics::IDLE;
use super::*;

async fn feed(name: &str, limit: usize) -> Feed {
    let registry = Registry::connect(&format!("memory://{name}")).await.unwrap();
    let (mut feed, _) = Feed::new(registry.discover_all().await.unwrap());
    feed.budget = Mutex::new(Budget::new(limit));
    feed
}

/// A service of one instance, at a revision.
fn one(service: &str, revision: u64) -> Arc<Snapshot> {
    let mut instance = ObservedInstance::from(
        Instance::new(service).code("a").tag("round", revision.to_string()).tag("pad", "x".repeat(1024)),
    );
    instance.role = Role::Master(Term(1));
    Arc::new(Snapshot::new(service, revision, vec![Arc::new(instance)]))
}

fn none(service: &str, revision: u64) -> Arc<Snapshot> {
    Arc::new(Snapshot::empty(service).at_revision(revision))
}

/// What is in the rings of all services must be what the budget says.
fn bytes(feed: &Feed) -> usize {
    let topics = feed.topics.read().unwrap();
    let bytes = topics.all().map(|topic| topic.kept().bytes).sum();
    drop(topics);
    assert_eq!(feed.budget().bytes(), bytes);
    bytes
}

#[tokio::test]
async fn what_happened_is_remembered_within_one_budget() {
    const LIMIT: usize = 256 << 10;
    let feed = feed("budget", LIMIT).await;
    let mut revision = 1;
    for _ in 0..50 {
        for service in 0..20 {
            revision += 1;
            feed.take(one(&format!("s-{service}"), revision));
            assert!(bytes(&feed) <= LIMIT);
        }
    }
    assert!(bytes(&feed) > LIMIT / 2, "and no less than there is room for");
    let (quiet, newest) = (feed.find("s-0").unwrap(), feed.find("s-19").unwrap());
    assert_eq!(newest.after(revision - 20).unwrap().len(), 1);
    assert!(quiet.after(2).is_none() && quiet.after(revision - 19).unwrap().is_empty());
}

#[tokio::test]
async fn what_has_vanished_is_dropped_and_whoever_comes_back_starts_over() {
    let feed = feed("vanished", 64 << 20).await;
    let watched = feed.topic("watched");
    let mut revision = 1;
    let mut pass = |service: &str| {
        revision += 2;
        feed.take(one(service, revision));
        feed.take(none(service, revision + 1));
        revision + 1
    };
    let (dropped, kept) = (pass("dropped"), pass("watched"));
    for number in 0..5 * IDLE {
        let last = pass(&format!("s-{number}"));
        let topic = feed.find(&format!("s-{number}")).unwrap();
        assert_eq!(topic.after(last - 1).unwrap().len(), 1, "whoever watched a moment ago misses nothing");
        assert!(feed.topics.read().unwrap().len() <= IDLE + 3);
        if number % 100 == 0 {
            bytes(&feed);
        }
    }
    assert!(feed.find("dropped").is_none() && feed.revision_of_unknown() >= dropped);
    let again = feed.topic("dropped");
    assert!(again.after(dropped).is_none() && again.whole().revision >= dropped);
    assert_eq!(watched.after(kept).unwrap().len(), 0, "it is watched");
    let back = pass("watched");
    assert_eq!(watched.after(kept).unwrap().last().unwrap().0, back);
    // All gone, and asked for by many who hold nothing.
    for number in 0..3 * IDLE {
        feed.topic(&format!("never-{number}"));
    }
    assert!(feed.topics.read().unwrap().len() <= IDLE + 2);
    assert!(bytes(&feed) < 64 << 10, "of the watched one alone: {}", bytes(&feed));
}

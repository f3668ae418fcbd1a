//! A year in a minute: ever-new names, codes, picks, drains and questions go through an agent, and what it keeps of them is counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pointsman_balance::{Algorithm, Candidates};
use pointsman_core::Instance;
use pointsman_registry::Registry;

use crate::claims::PickRequest;
use crate::feed::Feed;
use crate::{Agent, Settings};

/// Days, each with names and codes of its own: more than anything is remembered for a while.
const DAYS: usize = 2500;

/// Waits until the agent shows this many instances of a service.
async fn shows(feed: &Feed, service: &str, instances: usize) {
    let topic = feed.topic(service);
    let mut revision = topic.revision();
    revision.wait_for(|_| topic.snapshot().instances().len() == instances).await.unwrap();
}

async fn register(registry: &Registry, service: &str, code: &str) -> pointsman_registry::Registration {
    let instance = Instance::new(service).code(code).address("127.0.0.1:80").tag("note", "x".repeat(256));
    registry.register(instance).await.unwrap()
}

fn pick(agent: &Agent, service: &str) -> bool {
    let request = PickRequest {
        service,
        algorithm: Algorithm::RoundRobin,
        candidates: Candidates::All,
        key: None,
        ttl: Duration::from_secs(60),
        explain: false,
    };
    let claims = &agent.state.claims;
    claims.pick(&agent.state.feed, &request).map(|picked| claims.release(&picked.claim, None).unwrap()).is_ok()
}

#[tokio::test]
async fn after_a_year_an_agent_keeps_no_more_than_after_a_month() {
    let registry = Registry::connect("memory://year").await.unwrap();
    let settings = Settings::new(SocketAddr::from(([127, 0, 0, 1], 0)));
    let agent = Agent::start(&registry, settings).await.unwrap();
    let feed = &agent.state.feed;
    let _lives = register(&registry, "web", "a").await;
    let watched = feed.topic("watched");
    let mut month = None;
    for day in 0..DAYS {
        let (job, code) = (format!("job-{day}"), format!("code-{day}"));
        let (one, other) = (register(&registry, &job, &code).await, register(&registry, "web", &code).await);
        shows(feed, &job, 1).await;
        shows(feed, "web", 2).await;
        assert!(pick(&agent, &job) && pick(&agent, "web") && !pick(&agent, &format!("never-{day}")));
        feed.topic(&format!("never-{day}"));
        registry.drain("web", "a").await.unwrap();
        registry.undrain("web", "a").await.unwrap();
        one.close().await.unwrap();
        other.close().await.unwrap();
        shows(feed, &job, 0).await;
        shows(feed, "web", 1).await;
        if day == DAYS / 2 {
            month = Some((feed.kept(), agent.state.claims.services()));
        }
    }
    let ((topics, bytes), (kept_topics, kept_bytes)) = (feed.kept(), month.unwrap().0);
    assert!(topics <= kept_topics && topics < 1100, "{kept_topics} services, then {topics}");
    assert!(bytes <= kept_bytes + kept_bytes / 10, "{kept_bytes} bytes, then {bytes}");
    assert!(agent.state.claims.services() <= 257, "{} services with balancers", agent.state.claims.services());
    assert_eq!(agent.state.claims.count(), (0, 0));
    assert!(feed.topics().iter().map(|topic| topic.service().clone()).eq([Arc::from("web")]));
    // Whoever has been there all the time goes on.
    let before = *watched.revision().borrow();
    let _back = register(&registry, "watched", "a").await;
    shows(feed, "watched", 1).await;
    assert_eq!(watched.after(before).unwrap().len(), 1);
}

//! Which handler a message is for.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pointsman_mqtt::envelope::{self, Action};
use pointsman_mqtt::relay::Topics;
use pointsman_mqtt::topic;

use super::ServiceFigures;
use crate::mqtt::{Error, HandlerError, Reply, Request};

type Outcome = Pin<Box<dyn Future<Output = Result<Reply, HandlerError>> + Send>>;
pub(super) type Handler = Arc<dyn Fn(Request) -> Outcome + Send + Sync>;

/// Handlers and their filters, in the order in which they are tried.
#[derive(Clone, Default)]
pub(super) struct Handlers(Vec<(String, Handler)>);

pub(super) fn boxed<F, A, R>(handler: F) -> Handler
where
    F: Fn(Request) -> A + Send + Sync + 'static,
    A: Future<Output = Result<R, HandlerError>> + Send + 'static,
    R: Into<Reply>,
{
    Arc::new(move |request| {
        let outcome = handler(request);
        Box::pin(async move { outcome.await.map(Into::into) })
    })
}

impl Handlers {
    pub(super) fn push(&mut self, filter: String, handler: Handler) {
        self.0.push((filter, handler));
    }

    /// The handler for a topic as [`Request::topic`] gives it.
    pub(super) fn find(&self, topic: &str) -> Option<&Handler> {
        let topic = topic.trim_start_matches('/');
        let matches = |(filter, _): &&(String, Handler)| topic::matches(filter.trim_start_matches('/'), topic);
        self.0.iter().find(matches).map(|(_, handler)| handler)
    }

    /// What is to be subscribed to, each thing once: a message by two subscriptions may come twice.
    pub(super) fn filters(&mut self, topics: Topics, code: &str) -> Result<Vec<String>, Error> {
        if self.0.is_empty() {
            return Err(Error::Unsupported("a service needs a handler: .on(TOPIC, HANDLER)"));
        }
        for (filter, _) in &mut self.0 {
            check(filter, topics)?;
            if topics == Topics::GoEnvelope {
                *filter = filter.trim_matches('/').to_owned();
            }
        }
        let given: Vec<&str> = self.0.iter().map(|(filter, _)| filter.trim_start_matches('/')).collect();
        let mut kept: Vec<&str> = Vec::new();
        for filter in given {
            if kept.iter().any(|other| topic::covers(other, filter)) {
                continue;
            }
            kept.retain(|other| !topic::covers(filter, other));
            kept.push(filter);
        }
        for (index, filter) in kept.iter().enumerate() {
            if let Some(other) = kept[..index].iter().find(|other| topic::intersect(other, filter)) {
                let reason = format!("overlaps with {other:?}: what matches both would come twice");
                return Err(Error::topic(filter, reason));
            }
        }
        let subscription = |filter: &&str| match topics {
            Topics::GoEnvelope => Action::ALL.map(|action| envelope::delivery_filter(filter, action, code)).to_vec(),
            _ => vec![envelope::code_first(code, filter)],
        };
        Ok(kept.iter().flat_map(subscription).collect())
    }
}

fn check(filter: &str, topics: Topics) -> Result<(), Error> {
    topic::check_filter(filter).map_err(|reason| Error::topic(filter, reason))?;
    if filter.trim_matches('/').is_empty() {
        return Err(Error::topic(filter, "has nothing but slashes"));
    }
    if filter.starts_with('$') {
        return Err(Error::topic(
            filter,
            "begins with $: the code comes before it, nothing is shared or the broker's own",
        ));
    }
    if topics == Topics::GoEnvelope && filter.ends_with('#') {
        return Err(Error::topic(filter, "has a #, after which go-envelope has the code; only + can be used there"));
    }
    Ok(())
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(filter, _)| filter)).finish()
    }
}

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) received: AtomicU64,
    pub(super) handled: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) unmatched: AtomicU64,
    pub(super) answered: AtomicU64,
    /// Whether it has been said that messages come for which there is no handler.
    pub(super) unmatched_told: AtomicBool,
}

impl Counters {
    pub(super) fn figures(&self) -> ServiceFigures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ServiceFigures {
            received: read(&self.received),
            handled: read(&self.handled),
            failed: read(&self.failed),
            unmatched: read(&self.unmatched),
            answered: read(&self.answered),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handlers(filters: &[&str]) -> Handlers {
        let mut handlers = Handlers::default();
        for filter in filters {
            let own = (*filter).to_owned();
            handlers.push(own.clone(), boxed(move |_| std::future::ready(Ok(own.clone()))));
        }
        handlers
    }

    async fn found(handlers: &Handlers, topic: &str) -> Option<Bytes> {
        let publish = pointsman_mqtt::packet::Publish { topic: format!("c{topic}").into(), ..Default::default() };
        let request = Request::read(&publish, Topics::CodeLast, "c").unwrap();
        match handlers.find(topic) {
            Some(handler) => Some(handler(request).await.unwrap().payload),
            None => None,
        }
    }

    use bytes::Bytes;

    #[tokio::test]
    async fn the_first_that_matches_takes_it_and_each_thing_is_subscribed_to_once() {
        let mut handlers = handlers(&["/login/user", "/login/#", "pay/+", "/pay/1"]);
        assert_eq!(handlers.filters(Topics::CodeLast, "c").unwrap(), ["c/login/#", "c/pay/+"]);
        assert_eq!(found(&handlers, "/login/user").await.unwrap(), "/login/user");
        assert_eq!(found(&handlers, "/login/x/y").await.unwrap(), "/login/#");
        assert_eq!(found(&handlers, "/pay/1").await.unwrap(), "pay/+");
        assert_eq!(found(&handlers, "/other").await, None);
    }

    #[test]
    fn an_envelope_is_subscribed_to_by_action() {
        let filters = handlers(&["/configs/serverinfo/"]).filters(Topics::GoEnvelope, "svc").unwrap();
        assert_eq!(filters.len(), 6);
        assert_eq!(filters[0], "/+/+/POST/+/configs/serverinfo/svc/");
    }

    #[test]
    fn what_cannot_be_subscribed_to_is_refused() {
        for (topics, filters) in [
            (Topics::CodeLast, &[][..]),
            (Topics::CodeLast, &["/"]),
            (Topics::CodeLast, &[""]),
            (Topics::CodeLast, &["/a#"]),
            (Topics::CodeLast, &["$share/g/a"]),
            (Topics::CodeLast, &["/a/+", "/+/b"]),
            (Topics::GoEnvelope, &["/a/#"]),
        ] {
            assert!(handlers(filters).filters(topics, "c").is_err(), "{filters:?}");
        }
    }
}

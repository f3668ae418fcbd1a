//! One watch for all services, whose events each go to those who follow their service.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures_channel::mpsc::{UnboundedSender, unbounded};
use futures_util::future::try_join_all;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use zookeeper_client::{AddWatchMode, Client, Error as ZkError, WatchedEvent};

use super::super::layout::Layout;
use super::{Watched, events_of};

/// The watch and its subscribers.
pub(super) struct SharedWatch {
    layout: Layout,
    events: Watched,
    subscribers: HashMap<Arc<str>, Vec<UnboundedSender<WatchedEvent>>>,
    /// The number of services at which those that nobody follows any more are forgotten.
    forget_at: usize,
}

/// Minimum number of services at which those that nobody follows any more are looked for.
const FORGET_AT: usize = 128;

impl SharedWatch {
    /// Sets the watch: its events, once it is set.
    pub(super) fn set<'c>(
        client: &'c Client,
        layout: &Layout,
    ) -> impl Future<Output = Result<Watched, ZkError>> + Send + 'c {
        let watchers = layout.roots().map(|path| client.watch(path, AddWatchMode::PersistentRecursive));
        let watching = try_join_all(watchers);
        async move { Ok(watching.await?.into_iter().map(|watcher| events_of(watcher).boxed()).collect()) }
    }

    pub(super) fn new(layout: &Layout) -> Self {
        let (events, subscribers) = (Watched::new(), HashMap::new());
        Self { layout: layout.clone(), events, subscribers, forget_at: FORGET_AT }
    }

    /// Takes in that the watch is set.
    pub(super) fn begin(&mut self, events: Watched) {
        self.events = events;
    }

    /// The events of these services that have not been forwarded yet.
    ///
    /// The channel is not one of tokio's: those say now and then that there is nothing in them although there is, and whoever has an answer
    /// must find the events before it.
    pub(super) fn subscribe(&mut self, services: &BTreeSet<Arc<str>>) -> BoxStream<'static, WatchedEvent> {
        if self.subscribers.len() >= self.forget_at {
            self.forget();
        }
        let (sender, events) = unbounded();
        for service in services {
            let subscribers = self.subscribers.entry(service.clone()).or_default();
            subscribers.retain(|subscriber| !subscriber.is_closed());
            subscribers.push(sender.clone());
        }
        events.boxed()
    }

    fn forget(&mut self) {
        self.subscribers.retain(|_, subscribers| {
            subscribers.retain(|subscriber| !subscriber.is_closed());
            !subscribers.is_empty()
        });
        self.forget_at = (self.subscribers.len() * 2).max(FORGET_AT);
    }

    /// Forwards the next events. Returns never while there is no watch.
    pub(super) async fn forward(shared: &mut Option<Self>) {
        match shared {
            None => std::future::pending().await,
            Some(watch) => match watch.events.next().await {
                Some(event) => {
                    watch.dispatch(&event);
                    Self::forward_all(shared);
                }
                // With it, its subscribers' streams end.
                None => *shared = None,
            },
        }
    }

    /// Forwards the events that are there.
    pub(super) fn forward_all(shared: &mut Option<Self>) {
        let Some(watch) = shared else { return };
        while let Some(Some(event)) = watch.events.next().now_or_never() {
            watch.dispatch(&event);
        }
    }

    fn dispatch(&mut self, event: &WatchedEvent) {
        for root in self.layout.roots() {
            let below = event.path.strip_prefix(root).and_then(|path| path.strip_prefix('/'));
            let Some((service, _)) = below.and_then(|path| path.split_once('/')) else { continue };
            for subscriber in self.subscribers.get(service).into_iter().flatten() {
                // One that follows no longer is forgotten later on.
                let _ = subscriber.unbounded_send(event.clone());
            }
        }
    }
}

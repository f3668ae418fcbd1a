//! What has happened, encoded once for all who watch.
//!
//! One task takes in what the directory says and leaves it, as text, in rings of what happened last: one a service, one for
//! all. Who watches holds nothing but a number, its place; who comes too late for its place starts over with everything.
//! So a watcher costs no memory for what it has not read yet, and a slow one holds up nobody.

mod budget;
mod group;
mod ring;
mod topic;
mod topics;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use pointsman_core::Snapshot;
use pointsman_registry::{Directory, Freshness, Updates};
use tokio::sync::watch;

use self::budget::{Budget, Kept};
pub(crate) use self::group::{Group, event, event_around};
pub(crate) use self::ring::Ring;
pub(crate) use self::topic::{Shot, Topic};
use self::topics::Topics;

/// Everything that is watched. One writer: [`Feed::run`].
#[derive(Debug)]
pub(crate) struct Feed {
    directory: Directory,
    topics: RwLock<Topics>,
    /// Of what is remembered of each service. Never taken while `topics` is held.
    budget: Mutex<Budget>,
    /// What happened in all services, and what operators did.
    all: RwLock<Ring>,
    /// The number of the last group of `all`.
    last: watch::Sender<u64>,
    /// What those who watch all services were shown first, the last time, and the number at which it was.
    reset: Mutex<Option<(u64, String, Bytes)>>,
    /// Since when the registry is away.
    stale: watch::Sender<bool>,
    /// Tells this agent's groups from those of another, or of this one before it was started again.
    run: String,
}

/// So many groups are kept of all services together.
const KEPT: usize = 8192;
/// Maximum number of bytes in all rings together, that of all services included. What is in that and in a service's own counts twice.
const BYTES: usize = 64 << 20;

impl Feed {
    /// A feed of all that the directory has now; and what is to be run.
    pub(crate) fn new(directory: Directory) -> (Self, Updates) {
        // Before anything is read, so that nothing is missed.
        let updates = directory.updates();
        let feed = Self {
            directory,
            topics: RwLock::default(),
            budget: Mutex::new(Budget::new(BYTES - ring::BYTES)),
            all: RwLock::new(Ring::new(KEPT)),
            last: watch::Sender::new(0),
            reset: Mutex::default(),
            stale: watch::Sender::new(false),
            run: format!("{:08x}", fastrand::u32(..)),
        };
        for snapshot in feed.directory.snapshots() {
            feed.topic(snapshot.service()).start(snapshot, now_ms());
        }
        feed.stale.send_replace(feed.is_stale());
        (feed, updates)
    }

    /// Takes in what happens, until the registry is closed.
    pub(crate) async fn run(&self, mut updates: Updates) {
        loop {
            let is_stale = *self.stale.borrow();
            let link = async {
                if !is_stale {
                    self.directory.stale().await;
                } else if self.directory.fresh().await.is_err() {
                    // It stays stale. The end comes with the updates.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                told = updates.next() => {
                    let Some(snapshots) = told else {
                        self.stale.send_replace(true);
                        return;
                    };
                    for snapshot in snapshots {
                        self.take(snapshot);
                    }
                }
                () = link => {
                    self.stale.send_replace(!is_stale);
                }
            }
        }
    }

    fn take(&self, snapshot: Arc<Snapshot>) {
        let at = now_ms();
        let (service, is_empty) = (snapshot.service().clone(), snapshot.is_empty());
        let has_left = |code: &str| self.directory.has_left(&service, code);
        let topic = self.topic(&service);
        let (before, stamp) = (topic.kept(), self.budget().stamp());
        let group = topic.advance(snapshot, has_left, at, stamp);
        self.budget().note(&service, before, topic.kept());
        self.keep_within_budget();
        drop(topic);
        if let Some(group) = group {
            self.publish(group);
        }
        if is_empty {
            self.retire(&service);
        }
    }

    /// Forgets what happened the longest ago, of whichever service, until there is not too much.
    fn keep_within_budget(&self) {
        loop {
            let oldest = self.budget().beyond();
            // It may be being dropped just now.
            let Some(topic) = oldest.and_then(|service| self.find(&service)) else { return };
            let before = topic.kept();
            topic.forget_oldest();
            self.budget().note(topic.service(), before, topic.kept());
        }
    }

    /// Drops services that have been empty for long and that nobody watches.
    fn retire(&self, service: &Arc<str>) {
        let dropped = self.topics.write().unwrap_or_else(PoisonError::into_inner).retire(service);
        for topic in dropped {
            self.budget().note(topic.service(), topic.kept(), Kept::default());
        }
    }

    fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a group to what all see.
    fn publish(&self, group: Arc<Group>) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        // All under the lock: numbers are given out in order.
        let number = *self.last.borrow() + 1;
        all.push(number, number, group);
        self.last.send_replace(number);
    }

    /// Lets those who watch all services know of something that is not in any of them.
    pub(crate) fn tell(&self, name: &'static str, data: &[u8]) {
        self.publish(Arc::new(Group::alone(name, data)));
    }

    /// What there is of a service, whether it exists or not.
    pub(crate) fn topic(&self, service: &str) -> Arc<Topic> {
        if let Some(topic) = self.find(service) {
            return topic;
        }
        let topic = self.topics.write().unwrap_or_else(PoisonError::into_inner).add(service);
        // Nobody may ever register under it.
        self.retire(topic.service());
        topic
    }

    /// What there is of a service that exists, or has existed a moment ago.
    pub(crate) fn find(&self, service: &str) -> Option<Arc<Topic>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).find(service).cloned()
    }

    /// The revision of a service that does not exist.
    pub(crate) fn revision_of_unknown(&self) -> u64 {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).floor()
    }

    /// All services that hold anything, by name.
    pub(crate) fn topics(&self) -> Vec<Arc<Topic>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        let mut topics: Vec<_> = topics.present().cloned().collect();
        topics.sort_by(|a, b| a.service().cmp(b.service()));
        topics
    }

    /// How many services it remembers, and how many bytes of what happened to them.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> (usize, usize) {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner).len();
        (topics, self.budget().bytes())
    }

    /// The number of the last group, now and as it rises.
    pub(crate) fn last(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// The groups after `after`; `None` if they are not all known any more.
    pub(crate) fn after(&self, after: u64) -> Option<Vec<(u64, Arc<Group>)>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).after(after)
    }

    /// The last groups, the oldest first.
    pub(crate) fn latest(&self, count: usize) -> Vec<Arc<Group>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).latest(count)
    }

    /// The id of a group of all services.
    pub(crate) fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.run)
    }

    /// The number of a group by its id, if this agent has given it.
    pub(crate) fn number(&self, id: &str) -> Option<u64> {
        let (run, number) = id.split_once('-')?;
        (run == self.run).then(|| number.parse().ok()).flatten()
    }

    /// Whether the registry is away, now and as it changes.
    pub(crate) fn stale(&self) -> watch::Receiver<bool> {
        self.stale.subscribe()
    }

    fn is_stale(&self) -> bool {
        matches!(self.directory.freshness(), Freshness::Stale { .. })
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// How far the directory can be trusted, as an event.
    pub(crate) fn freshness_event(&self) -> Bytes {
        let mut text = BytesMut::new();
        let (state, age) = match self.directory.freshness() {
            Freshness::Stale { age } => ("stale", age.as_millis()),
            _ => ("fresh", 0),
        };
        event(&mut text, "freshness", format!("{{\"state\":\"{state}\",\"age_ms\":{age}}}").as_bytes(), None);
        text.freeze()
    }

    /// Everything, as the first event for who watches all services, or those that are named; in parts.
    pub(crate) fn reset_event(&self, services: &BTreeSet<Arc<str>>, about: &str, number: u64) -> Vec<Bytes> {
        if !services.is_empty() {
            let topics: Vec<_> = services.iter().map(|name| self.topic(name)).collect();
            return self.reset_of(&topics, about, number);
        }
        // Those who come one after the other are shown the same, which is in memory once.
        let mut last = self.reset.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((there, is, text)) if *there == number && is == about => vec![text.clone()],
            _ => {
                let text = Bytes::from(self.reset_of(&self.topics(), about, number).concat());
                *last = Some((number, about.to_owned(), text.clone()));
                vec![text]
            }
        }
    }

    fn reset_of(&self, topics: &[Arc<Topic>], about: &str, number: u64) -> Vec<Bytes> {
        let mut parts = vec![Bytes::from_static(b"event: reset\ndata: {\"services\":[")];
        for (index, topic) in topics.iter().enumerate() {
            if index > 0 {
                parts.push(Bytes::from_static(b","));
            }
            parts.push(topic.whole().body);
        }
        parts.push(format!("],{about}}}\nid: {}\n\n", self.id(number)).into());
        parts
    }
}

/// Milliseconds since 1970, for people: nothing is decided by them.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}

#[cfg(test)]
mod tests;

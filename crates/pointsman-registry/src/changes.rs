//! Changes as they happen.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use futures_util::Stream;
use pointsman_core::{Change, Snapshot};
use tokio::sync::watch;

use crate::directory::{Directory, Service};
use crate::store::Since;

/// The newest snapshots of the services that change, as they do.
#[derive(Debug)]
pub struct Updates {
    directory: Directory,
    changed: watch::Receiver<u64>,
    /// The version of the directory up to which all has been told; `None` if nothing has.
    told: Option<u64>,
    /// The services that held something when they were told last: of those that have vanished too long ago nothing else is known.
    alive: HashSet<Arc<str>>,
}

impl Updates {
    pub(crate) fn new(directory: Directory) -> Self {
        let changed = directory.shared().version.subscribe();
        let now = directory.shared().since(None);
        let alive = now.snapshots.iter().filter(|snapshot| !snapshot.is_empty());
        let alive = alive.map(|snapshot| snapshot.service().clone()).collect();
        Self { directory, changed, told: Some(now.version), alive }
    }

    /// Waits until services have changed, and returns the newest snapshot of each: of one that has vanished an empty one.
    /// What has changed several times is there once. They are in the order of their revisions, and no later one is lower than any of
    /// these. Never ends. Cancellation loses nothing.
    pub async fn next(&mut self) -> Vec<Arc<Snapshot>> {
        loop {
            if self.changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let since = self.directory.shared().since(self.told);
            self.told = Some(since.version);
            let snapshots = self.with_vanished(since);
            if !snapshots.is_empty() {
                return snapshots;
            }
        }
    }

    /// Adds empty snapshots of those that have vanished since, where nothing is known of them any more.
    fn with_vanished(&mut self, since: Since) -> Vec<Arc<Snapshot>> {
        let mut snapshots = since.snapshots;
        if since.is_all {
            let known: HashSet<&Arc<str>> = snapshots.iter().map(|snapshot| snapshot.service()).collect();
            let vanished = self.alive.iter().filter(|service| !known.contains(service));
            let vanished: Vec<_> = vanished.map(|service| Snapshot::empty(service.clone())).collect();
            snapshots.extend(vanished.into_iter().map(|snapshot| Arc::new(snapshot.at_revision(since.floor))));
            snapshots.sort_by_key(|snapshot| snapshot.revision());
        }
        for snapshot in &snapshots {
            if snapshot.is_empty() {
                self.alive.remove(snapshot.service());
            } else if !self.alive.contains(snapshot.service()) {
                self.alive.insert(snapshot.service().clone());
            }
        }
        snapshots
    }

    fn start_over(&mut self) {
        self.told = None;
        self.changed.mark_changed();
    }
}

/// The changes of one service, or of all services of a directory, one after the other.
///
/// Changes are found by comparing snapshots, when they are asked for: a reader that is slow gets fewer changes (of an
/// instance that came and went in between it never hears), costs no memory for them, and holds up nobody.
#[derive(Debug)]
pub struct Changes {
    source: Source,
    told: HashMap<Arc<str>, Arc<Snapshot>>,
    ready: VecDeque<Change>,
}

#[derive(Debug)]
enum Source {
    One(Service, watch::Receiver<u64>),
    All(Updates),
}

impl Changes {
    pub(crate) fn of_one(service: &Service) -> Self {
        // Before the snapshot is read, so that nothing is missed.
        let changed = service.subscribe();
        Self::new(Source::One(service.clone(), changed), vec![service.snapshot()])
    }

    pub(crate) fn of_all(directory: &Directory) -> Self {
        let updates = Updates::new(directory.clone());
        Self::new(Source::All(updates), directory.snapshots())
    }

    fn new(source: Source, told: Vec<Arc<Snapshot>>) -> Self {
        let told = told.into_iter().map(|snapshot| (snapshot.service().clone(), snapshot)).collect();
        Self { source, told, ready: VecDeque::new() }
    }

    /// Starts over: what is there now counts as not told yet, so that the next changes are of everything appearing.
    #[must_use]
    pub fn from_nothing(mut self) -> Self {
        self.told.clear();
        match &mut self.source {
            Source::One(_, changed) => changed.mark_changed(),
            Source::All(updates) => updates.start_over(),
        }
        self
    }

    /// Waits for the next change. Never ends: whoever asks holds the directory. Cancellation loses nothing.
    pub async fn next(&mut self) -> Change {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return change;
            }
            let snapshots = match &mut self.source {
                Source::One(service, changed) => {
                    if changed.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                    vec![service.snapshot()]
                }
                Source::All(updates) => updates.next().await,
            };
            snapshots.into_iter().for_each(|snapshot| self.compare(snapshot));
        }
    }

    /// The same as a stream, pinned, for `StreamExt` and the like.
    pub fn into_stream(self) -> impl Stream<Item = Change> + Send + Unpin {
        let next = |mut changes: Self| async move { Some((changes.next().await, changes)) };
        Box::pin(futures_util::stream::unfold(self, next))
    }

    fn compare(&mut self, snapshot: Arc<Snapshot>) {
        let service = snapshot.service().clone();
        let before = self.told.remove(&service).unwrap_or_else(|| Arc::new(Snapshot::empty(service.clone())));
        self.ready.extend(Change::between(&before, &snapshot));
        if !snapshot.is_empty() {
            self.told.insert(service, snapshot);
        }
    }
}

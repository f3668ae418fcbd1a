//! Changes as they happen.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use futures_util::Stream;
use pointsman_core::{Change, Snapshot};
use tokio::sync::watch;

use crate::directory::{Directory, Service};

/// The changes of one service, or of all services of a directory, one after the other.
///
/// Changes are found by comparing snapshots, when they are asked for: a reader that is slow gets fewer changes (of an
/// instance that came and went in between it never hears), costs no memory for them, and holds up nobody.
#[derive(Debug)]
pub struct Changes {
    source: Source,
    told: HashMap<Arc<str>, Arc<Snapshot>>,
    changed: watch::Receiver<u64>,
    ready: VecDeque<Change>,
}

#[derive(Debug)]
enum Source {
    One(Service),
    All(Directory),
}

impl Changes {
    pub(crate) fn of_one(service: &Service) -> Self {
        let changed = service.subscribe();
        Self::new(Source::One(service.clone()), changed)
    }

    pub(crate) fn of_all(directory: Directory) -> Self {
        let changed = directory.shared().version.subscribe();
        Self::new(Source::All(directory), changed)
    }

    fn new(source: Source, changed: watch::Receiver<u64>) -> Self {
        let told = source.snapshots().into_iter().map(|snapshot| (snapshot.service().clone(), snapshot)).collect();
        Self { source, told, changed, ready: VecDeque::new() }
    }

    /// Starts over: what is there now counts as not told yet, so that the next changes are of everything appearing.
    #[must_use]
    pub fn from_nothing(mut self) -> Self {
        self.told.clear();
        self.changed.mark_changed();
        self
    }

    /// Waits for the next change. Never ends: whoever asks holds the directory. Cancellation loses nothing.
    pub async fn next(&mut self) -> Change {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return change;
            }
            if self.changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            self.compare();
        }
    }

    /// The same as a stream, pinned, for `StreamExt` and the like.
    pub fn into_stream(self) -> impl Stream<Item = Change> + Send + Unpin {
        let next = |mut changes: Self| async move { Some((changes.next().await, changes)) };
        Box::pin(futures_util::stream::unfold(self, next))
    }

    fn compare(&mut self) {
        let now = self.source.snapshots();
        for snapshot in &now {
            let service = snapshot.service();
            let before = match self.told.get(service) {
                Some(before) if Arc::ptr_eq(before, snapshot) => continue,
                Some(before) => before.clone(),
                None => Arc::new(Snapshot::empty(service.clone())),
            };
            self.ready.extend(Change::between(&before, snapshot));
            self.told.insert(service.clone(), snapshot.clone());
        }
        if self.told.len() > now.len() {
            let present: std::collections::HashSet<_> = now.iter().map(|snapshot| snapshot.service().clone()).collect();
            let ready = &mut self.ready;
            self.told.retain(|service, before| {
                let stays = present.contains(service);
                if !stays {
                    ready.extend(Change::between(before, &Snapshot::empty(service.clone())));
                }
                stays
            });
        }
    }
}

impl Source {
    fn snapshots(&self) -> Vec<Arc<Snapshot>> {
        match self {
            Source::One(service) => vec![service.snapshot()],
            Source::All(directory) => directory.snapshots(),
        }
    }
}

//! Changes as they happen.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use pointsman_core::{Change, Snapshot};
use tokio::sync::watch;

use crate::directory::{Directory, Service};
use crate::store::{Link, Since};

/// Says that there is something new, or that there will be nothing new any more.
struct News {
    changed: watch::Receiver<u64>,
    link: watch::Receiver<Link>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl News {
    fn new(changed: watch::Receiver<u64>, directory: &Directory) -> Self {
        Self { changed, link: directory.shared().link.subscribe(), waiting: None }
    }

    /// Whether there is something new; `false` once the directory has ended.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        loop {
            // Before what has changed: what is published before the end is still told.
            let has_ended = self.link.borrow().has_ended;
            match self.changed.has_changed() {
                Ok(true) => {
                    self.changed.mark_unchanged();
                    return Poll::Ready(true);
                }
                Ok(false) if !has_ended => {}
                _ => return Poll::Ready(false),
            }
            let waiting = self.waiting.get_or_insert_with(|| {
                let (mut changed, mut link) = (self.changed.clone(), self.link.clone());
                Box::pin(async move {
                    tokio::select! {
                        _ = changed.changed() => {}
                        _ = link.wait_for(|link| link.has_ended) => {}
                    }
                })
            });
            ready!(waiting.as_mut().poll(context));
            self.waiting = None;
        }
    }
}

impl fmt::Debug for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("News").field("changed", &self.changed).finish_non_exhaustive()
    }
}

/// The newest snapshots of the services that change, as they do. Also a stream.
///
/// # Examples
///
/// ```
/// # use pointsman_core::Instance;
/// # use pointsman_registry::Registry;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use futures_util::StreamExt as _;
/// # let registry = Registry::connect("memory://updates-stream").await?;
///
/// let services = registry.discover_all().await?.updates().flat_map(futures_util::stream::iter);
/// let registration = registry.register(Instance::new("ress")).await?;
/// let snapshots: Vec<_> = services.take(1).collect().await;
/// assert_eq!(&**snapshots[0].service(), "ress");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Updates {
    directory: Directory,
    news: News,
    /// The version of the directory up to which all has been told; `None` if nothing has.
    told: Option<u64>,
    /// The services that held something when they were told last: of those that have vanished too long ago nothing else is known.
    alive: HashSet<Arc<str>>,
}

impl Updates {
    pub(crate) fn new(directory: Directory) -> Self {
        let news = News::new(directory.shared().version.subscribe(), &directory);
        let now = directory.shared().since(None);
        let alive = now.snapshots.iter().filter(|snapshot| !snapshot.is_empty());
        let alive = alive.map(|snapshot| snapshot.service().clone()).collect();
        Self { directory, news, told: Some(now.version), alive }
    }

    /// Waits until services have changed, and returns the newest snapshot of each: of one that has vanished an empty one.
    /// What has changed several times is there once. They are in the order of their revisions, and no later one is lower than any of
    /// these. `None` once the registry has been closed, or the runtime has ended in which the directory was begun. Cancellation loses nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://updates-next").await?;
    /// let mut updates = registry.discover_all().await?.updates();
    /// let registration = registry.register(Instance::new("ress").code("a")).await?;
    /// registration.update(|instance| instance.weight = 5).await?;
    /// while let Some(snapshots) = updates.next().await {
    ///     // If a service changes several times, only its newest snapshot may be reported.
    ///     if snapshots.iter().any(|snapshot| snapshot.find("a").is_some_and(|a| a.weight == 5)) {
    ///         break;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn next(&mut self) -> Option<Vec<Arc<Snapshot>>> {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Vec<Arc<Snapshot>>>> {
        loop {
            if !ready!(self.news.poll(context)) {
                return Poll::Ready(None);
            }
            let since = self.directory.shared().since(self.told);
            self.told = Some(since.version);
            let snapshots = self.with_vanished(since);
            if !snapshots.is_empty() {
                return Poll::Ready(Some(snapshots));
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
        self.news.changed.mark_changed();
    }
}

impl Stream for Updates {
    type Item = Vec<Arc<Snapshot>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(context)
    }
}

/// The changes of one service, or of all services of a directory, one after the other. Also a stream.
///
/// Changes are found by comparing snapshots, when they are asked for: a reader that is slow gets fewer changes (of an
/// instance that came and went in between it never hears), costs no memory for them, and holds up nobody.
///
/// # Examples
///
/// ```
/// # use pointsman_core::{Change, Instance};
/// # use pointsman_registry::Registry;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use futures_util::StreamExt as _;
/// # let registry = Registry::connect("memory://changes-stream").await?;
///
/// let registration = registry.register(Instance::new("ress")).await?;
/// let changes = registry.discover("ress").await?.changes();
/// registration.close().await?;
/// let changes: Vec<_> = changes.take(3).collect().await;
/// assert!(matches!(changes[..], [Change::Left(_), Change::MasterChanged { .. }, Change::ServiceDisappeared(_)]));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Changes {
    source: Source,
    told: HashMap<Arc<str>, Arc<Snapshot>>,
    ready: VecDeque<Change>,
}

#[derive(Debug)]
enum Source {
    One(Service, News),
    All(Updates),
}

impl Changes {
    pub(crate) fn of_one(service: &Service) -> Self {
        // Before the snapshot is read, so that nothing is missed.
        let news = News::new(service.subscribe(), service.directory());
        Self::new(Source::One(service.clone(), news), vec![service.snapshot()])
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Change, Instance};
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://from-nothing").await?;
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// let service = registry.discover("ress").await?;
    /// let mut changes = service.changes().from_nothing();
    /// // Instances that were registered before are reported as well.
    /// assert_eq!(changes.next().await, Some(Change::ServiceAppeared("ress".into())));
    /// assert!(matches!(changes.next().await, Some(Change::Joined(_))));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn from_nothing(mut self) -> Self {
        self.told.clear();
        match &mut self.source {
            Source::One(_, news) => news.changed.mark_changed(),
            Source::All(updates) => updates.start_over(),
        }
        self
    }

    /// Waits for the next change. `None` once the registry has been closed, or the runtime has ended in which the directory was begun.
    /// Cancellation loses nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Change, Instance};
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://changes-next").await?;
    /// let mut changes = registry.discover("ress").await?.changes();
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// loop {
    ///     match changes.next().await {
    ///         Some(Change::MasterChanged { new: Some(master), .. }) => break assert!(master.role.is_master()),
    ///         Some(_) => {}
    ///         None => unreachable!("the registry is open"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn next(&mut self) -> Option<Change> {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Change>> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Poll::Ready(Some(change));
            }
            let snapshots = match &mut self.source {
                Source::One(service, news) => ready!(news.poll(context)).then(|| vec![service.snapshot()]),
                Source::All(updates) => ready!(updates.poll(context)),
            };
            let Some(snapshots) = snapshots else { return Poll::Ready(None) };
            snapshots.into_iter().for_each(|snapshot| self.compare(snapshot));
        }
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

impl Stream for Changes {
    type Item = Change;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Change>> {
        self.poll(context)
    }
}

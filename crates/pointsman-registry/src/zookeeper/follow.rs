//! Follows services for a directory: one persistent recursive watch each, and batches of reads.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt};
use pointsman_net::backoff::Backoff;
use tokio::sync::mpsc::error::SendError;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use zookeeper_client::{Error as ZkError, EventType, MultiReadResult, WatchedEvent};

use super::fault::Fault;
use super::layout::{Layout, MASTER, marked};
use super::reads::{Paths, Read, Watched};
use super::session::{Link, Session, left, up};
use super::tree::{BATCH, Dirty, Kind, Tree, Unread};
use super::{overrides, term_base};
use crate::backend::{Event, Scope};
use crate::overrides::Identity;

/// Sends what the scope holds, and every change, until nobody listens or the registry is closed.
pub(super) async fn follow(
    layout: &Layout,
    scope: &Scope,
    mut link: watch::Receiver<Link>,
    events: &mpsc::Sender<Event>,
) {
    let (mut watched, mut tree): (Option<Watched>, _) = (None, Tree::new(layout));
    while let Some(session) = up(&mut link).await {
        let outcome = tokio::select! {
            outcome = follow_connection(layout, scope, &session, &mut watched, &mut tree, events) => outcome,
            () = left(&mut link, &session) => Ok(()),
            () = events.closed() => return,
        };
        if let Err(fault) = &outcome {
            tracing::warn!(%fault, "directory: reading failed, trying again");
            if fault.is_refusal() && events.send(Event::Refused(fault.to_string().into())).await.is_err() {
                return;
            }
        }
        if events.send(Event::Stale).await.is_err() {
            return;
        }
        if outcome.is_err() {
            // Not lost, but refused or too slow: again, but not at once.
            tokio::select! {
                () = tokio::time::sleep(session.timeout() / 4) => {}
                () = left(&mut link, &session) => {}
            }
        }
    }
}

async fn follow_connection(
    layout: &Layout,
    scope: &Scope,
    session: &Session,
    watched: &mut Option<Watched>,
    tree: &mut Tree,
    events: &mpsc::Sender<Event>,
) -> Result<(), Fault> {
    let reader = Reader { layout, session };
    let Loaded { watched: new, tree: loaded, identity } = reader.load(scope, tree).await?;
    // The old watches are dropped after the new ones are set, so that their removal cannot hit these.
    let watched = watched.insert(new);
    let gone = tree.follow_on(loaded);
    reader.read_markers(tree, &gone).await?;
    let mut watched = watched.ready_chunks(BATCH);
    reader.catch_up(tree, &mut watched, Vec::new()).await?;
    let mut is_identified = identity.is_some();
    // What is taken from the tree is told for sure: this may be cancelled while it waits for room.
    let Ok(room) = events.reserve().await else { return Ok(()) };
    room.send(Event::Reset { states: tree.take_states(), identity });
    if session.is_read_only && events.send(Event::Stale).await.is_err() {
        return Ok(());
    }
    let mut again = Again::new();
    loop {
        again.plan(tree);
        let concerned = tokio::select! {
            batch = watched.next() => match batch {
                Some(batch) => reader.catch_up(tree, &mut watched, batch).await?,
                None => return Err(Fault::new("watch", ZkError::NoWatcher)),
            },
            unread = again.due() => reader.read_again(tree, unread).await?,
        };
        if !is_identified && tree.has_overrides() {
            // Something is set for the first time. Told before what it is: whoever knows of it must be able to miss it.
            if let Some(identity) = overrides::identity(session, layout).await? {
                is_identified = true;
                if events.send(Event::Identity(identity)).await.is_err() {
                    return Ok(());
                }
            }
        }
        for service in concerned {
            if tell(tree, &service, events).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// When to read again what exists and could not be read: no event of ZooKeeper's tells that an access control list was changed.
#[derive(Debug)]
struct Again {
    unread: Unread,
    next: Option<Instant>,
    backoff: Backoff,
}

const FIRST_AGAIN: Duration = Duration::from_millis(500);
const LONGEST_AGAIN: Duration = Duration::from_secs(30);

impl Again {
    fn new() -> Self {
        Self { unread: Unread::default(), next: None, backoff: Backoff::new(FIRST_AGAIN, LONGEST_AGAIN) }
    }

    /// Takes in what cannot be read now. Where that is other than before, it is read again sooner.
    fn plan(&mut self, tree: &Tree) {
        let unread = tree.unread();
        if *unread != self.unread {
            (self.unread, self.next) = (unread.clone(), None);
            self.backoff.reset();
        }
        if self.unread.is_empty() {
            self.next = None;
        } else if self.next.is_none() {
            self.next = Some(Instant::now() + self.backoff.delay());
        }
    }

    /// Waits until it is time, and returns what is to be read. Never returns while all can be read.
    async fn due(&mut self) -> Unread {
        match self.next {
            Some(next) => tokio::time::sleep_until(next).await,
            None => std::future::pending().await,
        }
        self.next = None;
        self.unread.clone()
    }
}

/// Tells one service as it is. Cancelled, it has told nothing, and the tree still knows who has left.
async fn tell(tree: &mut Tree, service: &str, events: &mpsc::Sender<Event>) -> Result<(), SendError<()>> {
    let room = events.reserve().await?;
    room.send(Event::Put(tree.take_state(service)));
    Ok(())
}

/// Readings in a row at most until something is told: whoever never comes to rest is seen on the way.
const CATCH_UPS: usize = 8;

/// What a scope holds when it begins to be followed.
struct Loaded {
    watched: Watched,
    tree: Tree,
    /// Which data the registry holds, where it can tell.
    identity: Option<Identity>,
}

struct Reader<'a> {
    layout: &'a Layout,
    session: &'a Session,
}

/// What a path is, seen from a layout.
enum Subject<'p> {
    Node(&'p str, &'p str),
    Override(&'p str, &'p str),
    /// The marker of a clean leave: which transaction created the node, and whose it was.
    Marker(&'p str, i64, &'p str),
}

impl Reader<'_> {
    /// Watches the scope, and reads everything that it holds: after the watches, so that nothing is missed; what is told twice does no harm.
    /// What was known `before` is read as well where it cannot be listed any more.
    ///
    /// A server that lags behind the one we were connected to before catches up first.
    async fn load(&self, scope: &Scope, before: &Tree) -> Result<Loaded, Fault> {
        let mut tree = Tree::new(self.layout);
        let (watched, nodes, codes) = match scope {
            Scope::Services(services) => {
                let services: Vec<Arc<str>> = services.iter().cloned().collect();
                let paths = self.folders(&services, Kind::Nodes).chain(self.folders(&services, Kind::Overrides));
                let (watched, mut nodes) = self.watch_and_read(scope, paths.collect()).await?;
                let codes = nodes.split_off(services.len());
                let nodes = children(&mut tree, &services, Kind::Nodes, nodes, before);
                (watched, nodes, children(&mut tree, &services, Kind::Overrides, codes, before))
            }
            Scope::All => {
                let (watched, _) = self.watch_and_read(scope, Vec::new()).await?;
                let listing = (self.list(&self.layout.services), self.list(&self.layout.overrides));
                let (services, overridden) = tokio::join!(listing.0, listing.1);
                let services = services?;
                let overridden = overridden_of(&mut tree, &services, overridden)?;
                let nodes = self.children(&mut tree, &services, Kind::Nodes, before).await?;
                (watched, nodes, self.children(&mut tree, &overridden, Kind::Overrides, before).await?)
            }
        };
        let paths = self.paths_of_nodes(&nodes).chain(self.paths_of_overrides(&codes)).collect();
        let reading = self.session.reads.read_and_look(paths);
        let (mut read, folder) = self.session.run(|| format!("read {}", self.layout.services), reading).await?;
        let set = read.split_off(read.len() - codes.len());
        self.take_nodes(&mut tree, &nodes, read)?;
        take_overrides(&mut tree, &codes, set);
        Ok(Loaded { watched, tree, identity: folder.as_ref().map(overrides::identity_of) })
    }

    async fn watch_and_read(&self, scope: &Scope, paths: Paths) -> Result<(Watched, Vec<MultiReadResult>), Fault> {
        let reading = self.session.reads.watch_and_read(scope, paths);
        self.session.run(|| format!("watch {}", self.layout.services), reading).await
    }

    /// Reads again what could not be read, and returns the services that it concerns.
    async fn read_again(&self, tree: &mut Tree, unread: Unread) -> Result<HashSet<Box<str>>, Fault> {
        let mut concerned = unread.services();
        let [folders, mut overridden] = [Kind::Nodes, Kind::Overrides].map(|kind| unread.folders_of(kind));
        if unread.overridden {
            let (known, listed) = (tree.services(), self.list(&self.layout.overrides).await);
            overridden = overridden_of(tree, &known, listed)?;
            concerned.extend(overridden.iter().map(|service| Box::from(&**service)));
        }
        let Unread { mut nodes, mut overrides, .. } = unread;
        // What was known is read, too: it may be gone.
        nodes.extend(tree.names(&folders, Kind::Nodes));
        overrides.extend(tree.names(&overridden, Kind::Overrides));
        let nothing = Tree::default();
        nodes.extend(self.children(tree, &folders, Kind::Nodes, &nothing).await?);
        overrides.extend(self.children(tree, &overridden, Kind::Overrides, &nothing).await?);
        self.read_nodes(tree, &nodes).await?;
        self.read_overrides(tree, &overrides).await?;
        Ok(concerned)
    }

    async fn list(&self, path: &str) -> Result<Vec<Arc<str>>, Fault> {
        match self.session.run(|| format!("list {path}"), self.session.client.list_children(path)).await {
            Ok(names) => Ok(names.into_iter().map(Into::into).collect()),
            Err(fault) if fault.error == ZkError::NoNode => Ok(Vec::new()),
            Err(fault) => Err(fault),
        }
    }

    /// The children of many folders. Of one that cannot be listed, what was known before.
    async fn children(
        &self,
        tree: &mut Tree,
        services: &[Arc<str>],
        kind: Kind,
        before: &Tree,
    ) -> Result<Dirty, Fault> {
        let results = self.read(self.folders(services, kind).collect()).await?;
        Ok(children(tree, services, kind, results, before))
    }

    fn folders(&self, services: &[Arc<str>], kind: Kind) -> impl Iterator<Item = (Read, String)> {
        services.iter().map(move |service| (Read::Children, self.layout.folder(service, kind)))
    }

    /// Whether an instance is not where it was.
    async fn read_nodes(&self, tree: &mut Tree, nodes: &Dirty) -> Result<bool, Fault> {
        let results = self.read(self.paths_of_nodes(nodes).collect()).await?;
        self.take_nodes(tree, nodes, results)
    }

    /// The paths of nodes, and, where a master is among them, of the term bases: these are read after it.
    fn paths_of_nodes(&self, nodes: &Dirty) -> impl Iterator<Item = (Read, String)> {
        let paths = nodes.iter().map(|(service, node)| format!("{}/{service}/{node}", self.layout.services));
        let has_master = nodes.iter().any(|(_, node)| **node == *MASTER);
        paths.chain(has_master.then(|| self.layout.terms.clone())).map(|path| (Read::Data, path))
    }

    /// Takes in what was read of [these paths](Reader::paths_of_nodes). Whether an instance is not where it was.
    fn take_nodes(&self, tree: &mut Tree, nodes: &Dirty, mut results: Vec<MultiReadResult>) -> Result<bool, Fault> {
        if let Some(bases) = results.split_off(nodes.len()).pop() {
            self.take_term_bases(tree, nodes, &results, bases)?;
        }
        let mut went = false;
        for ((service, node), result) in nodes.iter().zip(results) {
            match result {
                MultiReadResult::Data { data, stat } => went |= tree.put(service, node, &data, &stat),
                MultiReadResult::Error { err } if err != ZkError::NoNode => tree.put_unreadable(service, node, &err),
                _ => {
                    tree.remove(service, node);
                    went = true;
                }
            }
        }
        Ok(went)
    }

    /// Takes in which term bases there are, where a master has been read that is newer than they are known to be.
    fn take_term_bases(
        &self,
        tree: &mut Tree,
        nodes: &Dirty,
        results: &[MultiReadResult],
        bases: MultiReadResult,
    ) -> Result<(), Fault> {
        let created = |((_, node), result): (&(Box<str>, Box<str>), &MultiReadResult)| match result {
            MultiReadResult::Data { stat, .. } if **node == *MASTER => Some(stat.czxid),
            _ => None,
        };
        let newest = nodes.iter().zip(results).filter_map(created).max();
        if let Some(newest) = newest.filter(|newest| !tree.knows_bases_of(*newest)) {
            let folder = &self.layout.terms;
            let read = match bases {
                MultiReadResult::Data { data, stat } => Ok((data, stat)),
                MultiReadResult::Error { err } => Err(Fault::new(format!("read {folder}"), err)),
                _ => Err(Fault::new(format!("read {folder}"), ZkError::NoNode)),
            };
            tree.put_bases(term_base::bases_of(folder, read)?, newest);
        }
        Ok(())
    }

    async fn read_overrides(&self, tree: &mut Tree, codes: &Dirty) -> Result<(), Fault> {
        let results = self.read(self.paths_of_overrides(codes).collect()).await?;
        take_overrides(tree, codes, results);
        Ok(())
    }

    fn paths_of_overrides(&self, codes: &Dirty) -> impl Iterator<Item = (Read, String)> {
        codes.iter().map(|(service, code)| (Read::Data, format!("{}/{service}/{code}", self.layout.overrides)))
    }

    /// Lists which instances of these services have left cleanly.
    async fn read_markers(&self, tree: &mut Tree, services: &[Arc<str>]) -> Result<(), Fault> {
        let paths = services.iter().map(|service| (Read::Children, self.layout.left_of(service)));
        let results = self.read(paths.collect()).await?;
        for (service, result) in services.iter().zip(results) {
            let names = match result {
                MultiReadResult::Children { children } => children,
                MultiReadResult::Error { err } if err != ZkError::NoNode => {
                    let path = self.layout.left_of(service);
                    tracing::warn!(%path, %err, "whoever has left this service meanwhile counts as lost");
                    continue;
                }
                _ => continue,
            };
            for (czxid, code) in names.iter().filter_map(|name| marked(name)) {
                if tree.oldest_gone(service).is_some_and(|oldest| oldest <= czxid) {
                    tree.leaves(service, czxid, code);
                }
            }
        }
        Ok(())
    }

    async fn read(&self, paths: Paths) -> Result<Vec<MultiReadResult>, Fault> {
        self.session.run(|| format!("read {}", self.layout.services), self.session.reads.read(paths)).await
    }

    /// Takes in a batch of events, and those that have come since; returns the services that they concern.
    ///
    /// What is read is newer than the event: an instance that is not where it was may have moved, as one does that is promoted,
    /// resigns, or is taken over, and where to is what the watch tells next. It has done so by the time the answer is here, as
    /// a server sends both in order. So nobody is taken for gone who is elsewhere.
    async fn catch_up(
        &self,
        tree: &mut Tree,
        watched: &mut (impl Stream<Item = Vec<WatchedEvent>> + Unpin),
        mut batch: Vec<WatchedEvent>,
    ) -> Result<HashSet<Box<str>>, Fault> {
        let mut concerned = HashSet::new();
        for _ in 1..CATCH_UPS {
            let went = batch.is_empty() || self.apply(tree, &mut batch, &mut concerned).await?;
            if went {
                while let Some(more) = watched.next().now_or_never().flatten() {
                    batch.extend(more);
                }
            }
            if batch.is_empty() {
                return Ok(concerned);
            }
        }
        self.apply(tree, &mut batch, &mut concerned).await?;
        Ok(concerned)
    }

    /// Takes in a batch of events, and adds the services that they concern. Whether an instance is not where it was.
    async fn apply(
        &self,
        tree: &mut Tree,
        batch: &mut Vec<WatchedEvent>,
        concerned: &mut HashSet<Box<str>>,
    ) -> Result<bool, Fault> {
        let (mut nodes, mut overrides) = (Dirty::new(), Dirty::new());
        for event in batch.drain(..).filter(|event| event.event_type != EventType::Session) {
            let (dirty, service, name) = match self.subject(&event.path) {
                Some(Subject::Node(service, node)) => (&mut nodes, service, node),
                Some(Subject::Override(service, code)) => (&mut overrides, service, code),
                Some(Subject::Marker(service, czxid, code)) => {
                    // Told before the node is: nothing is to be read.
                    if event.event_type == EventType::NodeCreated {
                        tree.leaves(service, czxid, code);
                    }
                    continue;
                }
                None => continue,
            };
            concerned.insert(Box::from(service));
            // Deleted ones are read too: the event may be older than what is known, of a node that has been created again.
            dirty.insert((Box::from(service), Box::from(name)));
        }
        let went = self.read_nodes(tree, &nodes).await?;
        self.read_overrides(tree, &overrides).await?;
        Ok(went)
    }

    fn subject<'p>(&self, path: &'p str) -> Option<Subject<'p>> {
        let below = |folder: &str| path.strip_prefix(folder)?.strip_prefix('/')?.split_once('/');
        if let Some((service, node)) = below(&self.layout.services) {
            return (!node.contains('/')).then_some(Subject::Node(service, node));
        }
        if let Some((service, name)) = below(&self.layout.left) {
            return marked(name).map(|(czxid, code)| Subject::Marker(service, czxid, code));
        }
        let (service, code) = below(&self.layout.overrides)?;
        (!code.contains('/')).then_some(Subject::Override(service, code))
    }
}

/// Takes in the children of many folders, and returns them. Of a folder that cannot be listed, what was known before.
fn children(tree: &mut Tree, services: &[Arc<str>], kind: Kind, results: Vec<MultiReadResult>, before: &Tree) -> Dirty {
    let mut children = Dirty::new();
    for (service, result) in services.iter().zip(results) {
        let error = match result {
            MultiReadResult::Error { err } if err != ZkError::NoNode => {
                children.extend(before.names(std::slice::from_ref(service), kind));
                Some(err)
            }
            MultiReadResult::Children { children: names } => {
                children.extend(names.into_iter().map(|name| (Box::from(&**service), name.into())));
                None
            }
            _ => None,
        };
        tree.put_folder(service, kind, error.as_ref());
    }
    children
}

/// Takes in what was read of overrides.
fn take_overrides(tree: &mut Tree, codes: &Dirty, results: Vec<MultiReadResult>) {
    for ((service, code), result) in codes.iter().zip(results) {
        match result {
            MultiReadResult::Data { data, .. } => tree.set_override(service, code, Some(&data)),
            MultiReadResult::Error { err } if err != ZkError::NoNode => {
                tree.put_unreadable_override(service, code, &err);
            }
            _ => tree.set_override(service, code, None),
        }
    }
}

/// The services for which something is set, by what the listing of them has given. Where it is refused, each of those that are known may have
/// something.
fn overridden_of(
    tree: &mut Tree,
    known: &[Arc<str>],
    listed: Result<Vec<Arc<str>>, Fault>,
) -> Result<Vec<Arc<str>>, Fault> {
    match listed {
        Err(fault) if fault.is_refusal() => {
            tracing::warn!(%fault, "of services without instances it is not known what operators have set");
            tree.put_overridden(false);
            Ok(known.to_vec())
        }
        listed => {
            tree.put_overridden(true);
            listed
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pointsman_core::Instance;

    use super::*;
    use crate::zookeeper::wire;

    #[tokio::test]
    async fn who_has_left_is_not_forgotten_when_the_connection_is_lost_before_it_is_told() {
        let stat = crate::zookeeper::stat(5, 5);
        let mut tree = Tree::default();
        let data = wire::encode(&Instance::new("s").code("a"), Duration::from_secs(1), None);
        tree.put("s", "normal0000000001", &data, &stat);
        tree.leaves("s", 5, "a");
        tree.remove("s", "normal0000000001");
        let (events, mut told) = mpsc::channel(1);
        events.send(Event::Stale).await.unwrap();
        assert!(tell(&mut tree, "s", &events).now_or_never().is_none(), "there is no room");
        told.recv().await.unwrap();
        tell(&mut tree, "s", &events).await.unwrap();
        let Some(Event::Put(state)) = told.recv().await else { panic!("it is told") };
        assert_eq!(state.left, ["a".into()]);
    }
}

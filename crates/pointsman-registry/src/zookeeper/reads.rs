//! Reads and watches that are wanted at the same time on one connection go together.
//!
//! A process that follows one service gains nothing by it; one that follows a thousand, each by a directory of its own, needs a fraction of
//! the requests, at its start and after each reconnection. Nobody waits for a batch to fill: what is asked for while a batch is under way
//! goes with the next, as several requests that are not waited for one by one if it is much.
//!
//! **The order of the connection is kept.** ZooKeeper answers a session in the order of its requests, and sends an event before each answer
//! that is newer than it. So the watches, the `sync` and the reads of one query are sent without waiting in between; and before an answer is
//! handed on, the events that came before it are.

use std::collections::BTreeSet;

use futures_util::future::{BoxFuture, Shared, try_join_all};
use futures_util::stream::{self, BoxStream, FuturesOrdered, SelectAll};
use futures_util::{FutureExt, Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};
use zookeeper_client::{
    AddWatchMode, Client, Error as ZkError, EventType, MultiReadResult, MultiReader, PersistentWatcher, Stat,
    WatchedEvent,
};

use self::shared_watch::SharedWatch;
use super::layout::Layout;
use super::tree::BATCH;
use crate::backend::Scope;

mod shared_watch;

/// A handle on the task that puts reads together. It ends with the last handle.
#[derive(Debug, Clone)]
pub(super) struct Reads {
    queries: mpsc::UnboundedSender<Query>,
}

/// What is read of a node.
#[derive(Debug, Clone, Copy)]
pub(super) enum Read {
    Children,
    Data,
}

/// The paths that are read, and what of each.
pub(super) type Paths = Vec<(Read, String)>;

/// The events of the watches of one follower on one connection. After a reconnection they are set anew and everything is listed: what
/// happened meanwhile a watch does not tell (ZOOKEEPER-4698), and zookeeper-client 0.11.2 does not set persistent watches again
/// (`resend_watches` sends only one-shot ones).
pub(super) type Watched = SelectAll<BoxStream<'static, WatchedEvent>>;

/// What one follower asks for at once.
struct Query {
    /// What is watched before it is read.
    watches: Option<Scope>,
    paths: Paths,
    /// Whether the folder of the overrides is looked at after the reads.
    looks: bool,
    reply: oneshot::Sender<Result<Answer, ZkError>>,
}

/// What came of a query.
struct Answer {
    watched: Watched,
    results: Vec<MultiReadResult>,
    overrides: Option<Stat>,
}

/// Maximum number of queries that are taken in together.
const GATHERED: usize = 1024;
/// Number of services that are to be watched at once from which on one watch for all services may be set instead of one each.
const MANY: usize = 64;
/// One watch for all services is set where there are at most this many times as many as are followed: each of the others costs an event for
/// each of its changes.
const OTHERS: usize = 16;

impl Reads {
    /// For one connection.
    pub(super) fn start(client: &Client, layout: &Layout, is_read_only: bool) -> Self {
        let (queries, receiver) = mpsc::unbounded_channel();
        let (client, layout) = (client.clone(), layout.clone());
        tokio::spawn(async move {
            Connection { client: &client, layout: &layout, is_read_only }.serve(receiver).await;
        });
        Self { queries }
    }

    /// Watches a scope, and reads after that, from a server that has caught up with the leader, unless there is none.
    pub(super) async fn watch_and_read(
        &self,
        scope: &Scope,
        paths: Paths,
    ) -> Result<(Watched, Vec<MultiReadResult>), ZkError> {
        let answer = self.ask(Some(scope.clone()), paths, false).await?;
        Ok((answer.watched, answer.results))
    }

    /// Reads; the results are in the order of the paths, which is that of the reads, too.
    pub(super) async fn read(&self, paths: Paths) -> Result<Vec<MultiReadResult>, ZkError> {
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.ask(None, paths, false).await?.results)
    }

    /// As [`Reads::read`], and looks after that at the folder of the overrides; `None` if there is none.
    pub(super) async fn read_and_look(&self, paths: Paths) -> Result<(Vec<MultiReadResult>, Option<Stat>), ZkError> {
        let answer = self.ask(None, paths, true).await?;
        Ok((answer.results, answer.overrides))
    }

    async fn ask(&self, watches: Option<Scope>, paths: Paths, looks: bool) -> Result<Answer, ZkError> {
        let (reply, answer) = oneshot::channel();
        self.queries.send(Query { watches, paths, looks, reply }).map_err(|_| ZkError::ClientClosed)?;
        answer.await.unwrap_or(Err(ZkError::ClientClosed))
    }
}

/// A query that has been sent.
struct Sent<'c> {
    watch: Watch<'c>,
    /// The number of its paths that have been sent.
    paths: usize,
    /// Why it cannot be answered, whatever the server says.
    fault: Option<ZkError>,
    looks: bool,
    reply: oneshot::Sender<Result<Answer, ZkError>>,
}

/// Where the events for a query come from.
enum Watch<'c> {
    None,
    /// From watches of its own.
    Own(BoxFuture<'c, Result<Vec<PersistentWatcher>, ZkError>>),
    /// From that which all share.
    Shared(BoxStream<'static, WatchedEvent>),
}

/// Queries whose reads have been sent together, and what is to be waited for.
struct Batch<'c> {
    queries: Vec<Sent<'c>>,
    sync: Option<Synced<'c>>,
    reads: Vec<BoxFuture<'c, Result<Vec<MultiReadResult>, ZkError>>>,
    look: Option<BoxFuture<'c, Result<Option<Stat>, ZkError>>>,
}

type Synced<'c> = Shared<BoxFuture<'c, Result<(), ZkError>>>;

/// An answer, and who waits for it.
type Answered = (oneshot::Sender<Result<Answer, ZkError>>, Result<Answer, ZkError>);

struct Connection<'c> {
    client: &'c Client,
    layout: &'c Layout,
    is_read_only: bool,
}

impl<'c> Connection<'c> {
    async fn serve(&self, mut queries: mpsc::UnboundedReceiver<Query>) {
        let (mut shared, mut asked) = (None, Vec::new());
        let mut under_way = FuturesOrdered::new();
        loop {
            tokio::select! {
                count = queries.recv_many(&mut asked, GATHERED), if under_way.is_empty() => {
                    if count == 0 {
                        return;
                    }
                    // Whoever has given up needs no answer.
                    asked.retain(|query: &Query| !query.reply.is_closed());
                    for batch in self.send(std::mem::take(&mut asked), &mut shared).await {
                        under_way.push_back(batch.answers());
                    }
                }
                Some(answers) = under_way.next() => {
                    SharedWatch::forward_all(&mut shared);
                    answers.into_iter().for_each(|(reply, answer): Answered| drop(reply.send(answer)));
                }
                () = SharedWatch::forward(&mut shared) => {}
            }
        }
    }

    /// Sends what is asked for: the watches first, then `sync`, then the reads.
    async fn send(&self, queries: Vec<Query>, shared: &mut Option<SharedWatch>) -> Vec<Batch<'c>> {
        let scopes = || queries.iter().filter_map(|query| query.watches.as_ref());
        let services: usize = scopes().map(|scope| scope.services().map_or(0, BTreeSet::len)).sum();
        let setting = match shared {
            None if self.is_worth_sharing(services).await => Some(SharedWatch::set(self.client, self.layout)),
            _ => None,
        };
        let mut subscriptions = setting.as_ref().map(|_| SharedWatch::new(self.layout));
        let mut all = subscriptions.as_mut().or(shared.as_mut());
        let watch = |query: &Query| match (&query.watches, &mut all) {
            (None, _) => Watch::None,
            (Some(Scope::Services(services)), Some(all)) => Watch::Shared(all.subscribe(services)),
            (Some(scope), _) => Watch::Own(self.watch(scope)),
        };
        let watches: Vec<Watch<'c>> = queries.iter().map(watch).collect();
        let is_followed = watches.iter().any(|watch| !matches!(watch, Watch::None));
        let sync = (is_followed && !self.is_read_only).then(|| self.client.sync("/").boxed().shared());
        let mut batches = self.read(queries.into_iter().zip(watches), sync.as_ref());
        if let (Some(mut new), Some(setting)) = (subscriptions, setting) {
            match setting.await {
                Ok(events) => {
                    new.begin(events);
                    *shared = Some(new);
                }
                Err(error) => {
                    let all = batches.iter_mut().flat_map(|batch| &mut batch.queries);
                    all.filter(|query| matches!(query.watch, Watch::Shared(_)))
                        .for_each(|query| query.fault = Some(error.clone()));
                }
            }
        }
        batches
    }

    /// Whether one watch is set for all services, where so many are to be followed.
    async fn is_worth_sharing(&self, followed: usize) -> bool {
        if followed < MANY {
            return false;
        }
        let there = match self.client.check_stat(&self.layout.services).await {
            Ok(stat) => stat.map_or(0, |stat| stat.num_children),
            Err(_) => return false,
        };
        usize::try_from(there).is_ok_and(|there| there <= followed.saturating_mul(OTHERS))
    }

    /// Sets the watches of a scope.
    fn watch(&self, scope: &Scope) -> BoxFuture<'c, Result<Vec<PersistentWatcher>, ZkError>> {
        let paths = match scope.services() {
            None => self.layout.roots().map(str::to_owned).to_vec(),
            Some(services) => services.iter().flat_map(|service| self.layout.watched(service)).collect(),
        };
        let client = self.client;
        try_join_all(paths.iter().map(|path| client.watch(path, AddWatchMode::PersistentRecursive))).boxed()
    }

    /// Sends the reads of queries, in batches.
    fn read(&self, queries: impl Iterator<Item = (Query, Watch<'c>)>, sync: Option<&Synced<'c>>) -> Vec<Batch<'c>> {
        let mut batches = Vec::new();
        let (mut batch, mut reader, mut pending) = (Batch::new(sync), self.client.new_multi_reader(), 0);
        for (Query { paths, looks, reply, .. }, watch) in queries {
            let mut sent = Sent { watch, paths: 0, fault: None, looks, reply };
            for (read, path) in &paths {
                if let Err(error) = add(&mut reader, *read, path) {
                    sent.fault = Some(error);
                    break;
                }
                (sent.paths, pending) = (sent.paths + 1, pending + 1);
                if pending % BATCH == 0 {
                    batch.reads.push(reader.commit().boxed());
                }
            }
            batch.queries.push(sent);
            if pending >= BATCH {
                batches.push(self.close(std::mem::replace(&mut batch, Batch::new(sync)), &mut reader));
                pending = 0;
            }
        }
        if !batch.queries.is_empty() {
            batches.push(self.close(batch, &mut reader));
        }
        batches
    }

    fn close(&self, mut batch: Batch<'c>, reader: &mut MultiReader<'c>) -> Batch<'c> {
        batch.reads.push(reader.commit().boxed());
        let looks = batch.queries.iter().any(|query| query.looks);
        batch.look = looks.then(|| self.client.check_stat(&self.layout.overrides).boxed());
        batch
    }
}

fn add(reader: &mut MultiReader<'_>, read: Read, path: &str) -> Result<(), ZkError> {
    match read {
        Read::Children => reader.add_get_children(path),
        Read::Data => reader.add_get_data(path),
    }
}

impl<'c> Batch<'c> {
    fn new(sync: Option<&Synced<'c>>) -> Self {
        Self { queries: Vec::new(), sync: sync.cloned(), reads: Vec::new(), look: None }
    }

    /// Waits for the answers to all of it.
    async fn answers(self) -> Vec<Answered> {
        let Batch { queries, sync, reads, look } = self;
        let results = async {
            if let Some(sync) = sync {
                sync.await?;
            }
            try_join_all(reads).await
        };
        let results: Result<Vec<Vec<MultiReadResult>>, ZkError> = results.await;
        let looked = match look {
            Some(look) => look.await,
            None => Ok(None),
        };
        let mut answers = Vec::with_capacity(queries.len());
        let mut results = results.map(|results| results.into_iter().flatten());
        for query in queries {
            let results = results.as_mut().map(|results| results.by_ref().take(query.paths).collect());
            let results = results.map_err(|error| error.clone());
            let overrides = if query.looks { looked.clone() } else { Ok(None) };
            answers.push((query.reply, answer(query.watch, query.fault, results, overrides).await));
        }
        answers
    }
}

async fn answer(
    watch: Watch<'_>,
    fault: Option<ZkError>,
    results: Result<Vec<MultiReadResult>, ZkError>,
    overrides: Result<Option<Stat>, ZkError>,
) -> Result<Answer, ZkError> {
    let watched = match watch {
        Watch::None => Watched::new(),
        Watch::Own(watchers) => watchers.await?.into_iter().map(|watcher| events_of(watcher).boxed()).collect(),
        Watch::Shared(events) => std::iter::once(events).collect(),
    };
    fault.map_or(Ok(()), Err)?;
    Ok(Answer { watched, results: results?, overrides: overrides? })
}

/// The events of one watch. It ends with the session: after a terminal event a watcher must not be asked again.
pub(super) fn events_of(watcher: PersistentWatcher) -> impl Stream<Item = WatchedEvent> {
    stream::unfold(Some(watcher), |watcher| async move {
        let mut watcher = watcher?;
        let event = watcher.changed().await;
        let last = event.event_type == EventType::Session && event.session_state.is_terminated();
        Some((event, (!last).then_some(watcher)))
    })
}

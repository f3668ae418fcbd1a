//! An instance's place: the one node under which it is registered, and the single steps that get it there.

use std::sync::Arc;
use std::time::Duration;

use pointsman_core::{Instance, Role, Term};
use zookeeper_client::{
    CreateMode, Error as ZkError, MultiReadResult, MultiWriteError, MultiWriteResult, MultiWriter, OneshotWatcher, Stat,
};

use super::batch::Created;
use super::fault::Fault;
use super::folders::make_container;
use super::layout::{MASTER, is_in_the_way, normal_prefix, number, observer_prefix, removal};
use super::session::Session;
use super::{options, term_base, terms, wire};
use crate::url::{Acl, Folders};

/// The node under which an instance is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The session that owns it.
    pub(super) session: i64,
    /// Its name within the service's folder.
    pub(super) name: String,
    /// When it was created, in the registry's count.
    pub(super) czxid: i64,
    /// The term that its creation began, where that made its holder master.
    pub(super) granted: Option<Term>,
    /// The term that came with it, where a master's place was taken over from the same holder.
    pub(super) inherited: Option<Term>,
}

impl Place {
    pub(super) fn role(&self) -> Role {
        self.term().map_or(Role::Normal, Role::Master)
    }

    /// A master's term: of the mastership, which goes on when the same holder takes the place over.
    pub(super) fn term(&self) -> Option<Term> {
        let granted = || self.granted.unwrap_or(Term(self.czxid.unsigned_abs()));
        (self.name == MASTER).then(|| self.inherited.unwrap_or_else(granted))
    }
}

/// A node that carries the own code.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) place: Place,
    /// For messages: who it is.
    pub(super) who: String,
    /// Who has registered it, where it says so.
    pub(super) holder: Option<wire::Holder>,
    pub(super) session_timeout: Option<Duration>,
}

/// One service's folder, seen through one session. Every step takes at most the session timeout.
pub(super) struct Folder<'a> {
    pub(super) session: &'a Session,
    pub(super) path: &'a str,
    /// Where the service's highest term is recorded.
    pub(super) terms: &'a str,
    pub(super) acl: Acl,
    /// Whether the instance is an observer: it is never master, and its node stands in no queue.
    pub(super) observer: bool,
}

/// What came of an attempt to take the mastership.
pub(super) enum Promotion {
    Won(Place),
    /// Somebody else was faster.
    Lost,
    /// The own normal node, or the folder, is gone.
    Gone,
}

impl Folder<'_> {
    pub(super) fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    /// The names of all nodes; none if the folder does not exist.
    pub(super) async fn names(&self) -> Result<Vec<String>, Fault> {
        let listing = self.session.client.list_children(self.path);
        match self.session.run(|| format!("list {}", self.path), listing).await {
            Err(fault) if fault.error == ZkError::NoNode => Ok(Vec::new()),
            result => result,
        }
    }

    /// A watch on who comes and goes; `None` if the folder does not exist.
    pub(super) async fn watch_names(&self) -> Result<Option<OneshotWatcher>, Fault> {
        let listing = self.session.client.list_and_watch_children(self.path);
        match self.session.run(|| format!("watch {}", self.path), listing).await {
            Ok((_, watcher)) => Ok(Some(watcher)),
            Err(fault) if fault.error == ZkError::NoNode => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Creates the folder and all above it.
    pub(super) async fn make(&self) -> Result<(), Fault> {
        if self.session.folders == Folders::Container {
            return make_container(self.session, self.path, self.acl).await;
        }
        let directory = options(CreateMode::Persistent, self.acl);
        let making = self.session.client.mkdir(self.path, &directory);
        self.session.run(|| format!("create {}", self.path), making).await
    }

    /// Creates a normal node behind a master; `None` if there is no master, or no folder.
    pub(super) async fn create_behind_master(&self, data: &[u8]) -> Result<Option<Place>, Fault> {
        let creating = self.session.batches.create(self.path, data, self.acl);
        match self.session.run(|| format!("create {}", normal_prefix(self.path)), creating).await {
            Ok(Created { name, czxid: Some(czxid) }) => {
                Ok(Some(Place { session: self.session.id(), name, czxid, granted: None, inherited: None }))
            }
            Ok(Created { name, czxid: None }) => self.look_up(name).await.map(Some),
            Err(fault) if fault.error == ZkError::NoNode => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Creates the master's node; `None` if there is one, or no folder.
    pub(super) async fn create_master(&self, data: &[u8]) -> Result<Option<Place>, Fault> {
        let (path, ephemeral) = (self.at(MASTER), options(CreateMode::Ephemeral, self.acl));
        let become_master = |writer: &mut MultiWriter<'_>| writer.add_create(&path, data, &ephemeral);
        match self.commit_term(become_master, "become master of").await? {
            Ok(results) => Ok(Some(self.created_master(&results).await?)),
            Err(MultiWriteError::OperationFailed { source: ZkError::NodeExists | ZkError::NoNode, .. }) => Ok(None),
            Err(error) => Err(self.failed("become master of", error)),
        }
    }

    /// The path to create a node at that is not the master's; the server adds ten digits.
    fn prefix(&self) -> String {
        if self.observer { observer_prefix(self.path) } else { normal_prefix(self.path) }
    }

    /// Creates a normal node, or an observer's, whether there is a master or not; `None` if there is no folder.
    pub(super) async fn create_normal(&self, data: &[u8]) -> Result<Option<Place>, Fault> {
        let path = self.prefix();
        let start = path.rsplit('/').next().unwrap_or_default();
        let name = |sequence| format!("{start}{sequence}");
        self.create(&path, CreateMode::EphemeralSequential, data, name).await
    }

    async fn create(
        &self,
        path: &str,
        mode: CreateMode,
        data: &[u8],
        name: impl FnOnce(zookeeper_client::CreateSequence) -> String,
    ) -> Result<Option<Place>, Fault> {
        let options = options(mode, self.acl);
        let creating = self.session.client.create(path, data, &options);
        match self.session.run(|| format!("create {path}"), creating).await {
            Ok((stat, sequence)) => Ok(Some(self.place(name(sequence), &stat))),
            Err(fault) if matches!(fault.error, ZkError::NodeExists | ZkError::NoNode) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    fn place(&self, name: String, stat: &Stat) -> Place {
        Place { session: self.session.id(), name, czxid: stat.czxid, granted: None, inherited: None }
    }

    /// What the node says, whose it is, and a watch on it; `None` if it is gone.
    pub(super) async fn watch_data(&self, name: &str) -> Result<Option<(Vec<u8>, Stat, OneshotWatcher)>, Fault> {
        let path = self.at(name);
        let reading = self.session.client.get_and_watch_data(&path);
        match self.session.run(|| format!("read {path}"), reading).await {
            Ok(read) => Ok(Some(read)),
            Err(fault) if fault.error == ZkError::NoNode => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Whether the node exists, and a watch on it.
    pub(super) async fn watch(&self, name: &str) -> Result<(bool, OneshotWatcher), Fault> {
        let path = self.at(name);
        let looking = self.session.client.check_and_watch_stat(&path);
        let (stat, watcher) = self.session.run(|| format!("watch {path}"), looking).await?;
        if let Some(stat) = stat.filter(|stat| is_in_the_way(name, stat)) {
            // Whoever waits for it to go waits for ever: each look says so.
            tracing::warn!("{path} {}", removal(&path, &stat));
        }
        Ok((stat.is_some(), watcher))
    }

    /// Whether the node exists.
    pub(super) async fn exists(&self, name: &str) -> Result<bool, Fault> {
        let path = self.at(name);
        let looking = self.session.client.check_stat(&path);
        Ok(self.session.run(|| format!("look at {path}"), looking).await?.is_some())
    }

    /// Replaces what the node says. `false` if it is gone, or has been changed since it was read.
    pub(super) async fn write(&self, name: &str, data: &[u8], version: i32) -> Result<bool, Fault> {
        let path = self.at(name);
        let writing = self.session.client.set_data(&path, data, Some(version));
        match self.session.run(|| format!("write {path}"), writing).await {
            Ok(_) => Ok(true),
            Err(fault) if matches!(fault.error, ZkError::NoNode | ZkError::BadVersion) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Whether a place is still what it was: ours, or whoever's it is.
    pub(super) async fn is_ours(&self, place: &Place) -> Result<bool, Fault> {
        let path = self.at(&place.name);
        let stat = self.session.run(|| format!("look at {path}"), self.session.client.check_stat(&path)).await?;
        Ok(stat.is_some_and(|stat| stat.ephemeral_owner == place.session && stat.czxid == place.czxid))
    }

    /// Deletes our own node. Not what has come in its place: `master` has the same name whoever it is, and numbers start
    /// anew in a folder that was made anew.
    pub(super) async fn delete_own(&self, place: &Place) -> Result<(), Fault> {
        if self.is_ours(place).await? { self.delete(&place.name).await } else { Ok(()) }
    }

    /// Deletes a node, whether it is still there or not.
    pub(super) async fn delete(&self, name: &str) -> Result<(), Fault> {
        let path = self.at(name);
        match self.session.run(|| format!("delete {path}"), self.session.client.delete(&path, None)).await {
            Err(fault) if fault.error != ZkError::NoNode => Err(fault),
            _ => Ok(()),
        }
    }

    /// From normal to master in one transaction, so that nobody ever sees the instance twice, or not at all.
    pub(super) async fn promote(&self, own: &str, data: &[u8]) -> Result<Promotion, Fault> {
        let ephemeral = options(CreateMode::Ephemeral, self.acl);
        let (master, own) = (self.at(MASTER), self.at(own));
        let become_master = |writer: &mut MultiWriter<'_>| {
            writer.add_create(&master, data, &ephemeral)?;
            writer.add_delete(&own, None)
        };
        match self.commit_term(become_master, "become master of").await? {
            Ok(results) => Ok(Promotion::Won(self.created_master(&results).await?)),
            Err(MultiWriteError::OperationFailed { index: 0, source: ZkError::NodeExists }) => Ok(Promotion::Lost),
            Err(MultiWriteError::OperationFailed { source: ZkError::NoNode, .. }) => Ok(Promotion::Gone),
            Err(error) => Err(self.failed("become master of", error)),
        }
    }

    /// From wherever it is to the end of the queue, or out of it where it is an observer's, in one transaction. `None` if the own node is gone.
    pub(super) async fn demote(&self, own: &Place, data: &[u8]) -> Result<Option<Place>, Fault> {
        if !self.is_ours(own).await? {
            return Ok(None);
        }
        let sequential = options(CreateMode::EphemeralSequential, self.acl);
        let mut writer = self.session.client.new_multi_writer();
        let built = writer
            .add_delete(&self.at(&own.name), None)
            .and_then(|()| writer.add_create(&self.prefix(), data, &sequential));
        match self.commit(built.map(|()| writer), "move back in").await? {
            Ok(results) => Ok(Some(self.created_somewhere(&results).await?)),
            Err(MultiWriteError::OperationFailed { source: ZkError::NoNode, .. }) => Ok(None),
            Err(error) => Err(self.failed("move back in", error)),
        }
    }

    /// Puts an own node in the place of another session's of the same holder, in one transaction. `None` if that is not there any more. A
    /// master's is to say with which [term](Place::term): no other mastership begins, and none is recorded; but an observer gives it up.
    ///
    /// `master` has the same name whoever it is, and its successor may come just now. So the node is written once before: the
    /// transaction is about that version, which a node that has just been created does not have.
    pub(super) async fn replace(&self, other: &Place, data: &[u8]) -> Result<Option<Place>, Fault> {
        let old = self.at(&other.name);
        let looking = self.session.client.check_stat(&old);
        let stat = self.session.run(|| format!("look at {old}"), looking).await?;
        let Some(stat) = stat.filter(|stat| stat.ephemeral_owner == other.session && stat.czxid == other.czxid) else {
            return Ok(None);
        };
        if !self.write(&other.name, data, stat.version).await? {
            return Ok(None);
        }
        let (path, mode) = if other.name == MASTER && !self.observer {
            (self.at(MASTER), CreateMode::Ephemeral)
        } else {
            (self.prefix(), CreateMode::EphemeralSequential)
        };
        let mode = options(mode, self.acl);
        let take_over = |writer: &mut MultiWriter<'_>| {
            writer.add_delete(&old, Some(stat.version + 1))?;
            writer.add_create(&path, data, &mode)
        };
        match self.commit_all(take_over, "take over a place in").await? {
            Ok(results) => {
                let inherited = self.inherited(other);
                Ok(Some(Place { inherited, ..self.created_somewhere(&results).await? }))
            }
            Err(MultiWriteError::OperationFailed {
                source: ZkError::NoNode | ZkError::NodeExists | ZkError::BadVersion,
                ..
            }) => Ok(None),
            Err(error) => Err(self.failed("take over a place in", error)),
        }
    }

    /// The term that comes with a place that is taken over.
    pub(super) fn inherited(&self, other: &Place) -> Option<Term> {
        other.term().filter(|_| !self.observer)
    }

    /// Commits operations that make somebody master, and records the term by the same transaction, where that is allowed.
    async fn commit_term(
        &self,
        add: impl Fn(&mut MultiWriter<'_>) -> Result<(), ZkError>,
        what: &str,
    ) -> Result<Result<Vec<MultiWriteResult>, MultiWriteError>, Fault> {
        let recorded = |writer: &mut MultiWriter<'_>| {
            // First, so that its failure is told from all others.
            terms::record(writer, self.terms)?;
            add(writer)
        };
        let mut committed = self.commit_all(recorded, what).await?;
        if is_unrecorded(&committed, |error| *error == ZkError::NoNode)
            && terms::prepare(self.session, self.terms, self.acl).await
        {
            committed = self.commit_all(recorded, what).await?;
        }
        if is_unrecorded(&committed, |_| true) {
            // Whoever asks later for the highest term hears only of a living master's.
            tracing::warn!(path = self.terms, "the term cannot be recorded here");
            self.commit_all(add, what).await
        } else {
            Ok(without_record(committed))
        }
    }

    async fn commit_all(
        &self,
        add: impl Fn(&mut MultiWriter<'_>) -> Result<(), ZkError>,
        what: &str,
    ) -> Result<Result<Vec<MultiWriteResult>, MultiWriteError>, Fault> {
        let mut writer = self.session.client.new_multi_writer();
        let built = add(&mut writer);
        self.commit(built.map(|()| writer), what).await
    }

    pub(super) async fn commit(
        &self,
        writer: Result<MultiWriter<'_>, ZkError>,
        what: &str,
    ) -> Result<Result<Vec<MultiWriteResult>, MultiWriteError>, Fault> {
        let mut writer = writer.map_err(|error| Fault::new(format!("{what} {}", self.path), error))?;
        match tokio::time::timeout(self.session.timeout(), writer.commit()).await {
            Ok(result) => Ok(result),
            Err(_) => Err(Fault::new(format!("{what} {}", self.path), ZkError::Timeout)),
        }
    }

    pub(super) fn failed(&self, what: &str, error: MultiWriteError) -> Fault {
        Fault::new(format!("{what} {}", self.path), error.into())
    }

    /// The place of a master that a transaction has made, with its term.
    async fn created_master(&self, results: &[MultiWriteResult]) -> Result<Place, Fault> {
        let place = self.created(results, MASTER.to_owned()).await?;
        Ok(Place { granted: Some(self.granted(place.czxid).await?), ..place })
    }

    /// The term that the creation of a master's node, which has been seen, began.
    async fn granted(&self, czxid: i64) -> Result<Term, Fault> {
        let folder = self.terms.rsplit_once('/').map_or("/", |(folder, _)| folder);
        Ok(term_base::read(self.session, folder).await?.term(czxid))
    }

    /// The place that a transaction has made, under a name that the server has chosen.
    async fn created_somewhere(&self, results: &[MultiWriteResult]) -> Result<Place, Fault> {
        let name = results.iter().find_map(|result| match result {
            MultiWriteResult::Create { path, .. } => path.rsplit('/').next().map(str::to_owned),
            _ => None,
        });
        self.created(results, name.unwrap_or_default()).await
    }

    /// The place that a transaction has made. Its stat is not in every server's reply (ZOOKEEPER-4026), so it may have
    /// to be asked for.
    async fn created(&self, results: &[MultiWriteResult], name: String) -> Result<Place, Fault> {
        let known = results.iter().find_map(|result| match result {
            MultiWriteResult::Create { stat, .. } if !stat.is_invalid() && stat.czxid > 0 => Some(*stat),
            _ => None,
        });
        match known {
            Some(stat) => Ok(self.place(name, &stat)),
            None => self.look_up(name).await,
        }
    }

    /// The place at a node that we have just created.
    async fn look_up(&self, name: String) -> Result<Place, Fault> {
        let path = self.at(&name);
        match self.session.run(|| format!("look at {path}"), self.session.client.check_stat(&path)).await? {
            Some(stat) if stat.ephemeral_owner == self.session.id() => Ok(self.place(name, &stat)),
            // Gone again already: the same as if the reply had been lost.
            _ => Err(Fault::new(format!("look at {path}"), ZkError::NoNode)),
        }
    }

    /// All instances, by their nodes.
    pub(super) async fn instances(&self, service: &Arc<str>) -> Result<Vec<(String, Instance)>, Fault> {
        let read = self.read_all().await?.into_iter();
        Ok(read.filter_map(|(name, data, _)| Some((name, wire::decode(service, &data).ok()?.instance))).collect())
    }

    /// All nodes that carry the code.
    pub(super) async fn find(&self, service: &Arc<str>, code: &str) -> Result<Vec<Found>, Fault> {
        let mut found = Vec::new();
        for (name, data, stat) in self.read_all().await? {
            let Ok(parsed) = wire::decode(service, &data) else { continue };
            if *parsed.instance.code != *code {
                continue;
            }
            let address = parsed.instance.address.as_deref().unwrap_or("an instance without address");
            let owner = stat.ephemeral_owner;
            let granted = if name == MASTER { Some(self.granted(stat.czxid).await?) } else { None };
            let inherited = granted.and_then(|granted| parsed.inherited(granted));
            found.push(Found {
                who: format!("{address} (node {}, session {owner:#x})", self.at(&name)),
                place: Place { session: owner, name, czxid: stat.czxid, granted, inherited },
                holder: parsed.holder,
                session_timeout: parsed.session_timeout,
            });
        }
        Ok(found)
    }

    /// What each node says. One that may not be read is passed over, as is one that is of no instance: a foreign node must not stop the
    /// others. Our own can be read by everybody.
    async fn read_all(&self) -> Result<Vec<(String, Vec<u8>, Stat)>, Fault> {
        let names = self.names().await?;
        let paths = Vec::from_iter(names.iter().map(|name| self.at(name)));
        let read = read_many(self.session, self.path, &paths).await?;
        let mut all = Vec::with_capacity(names.len());
        for (name, read) in names.into_iter().zip(read) {
            match read {
                Ok(Some((data, stat))) if !is_in_the_way(&name, &stat) => all.push((name, data, stat)),
                Ok(_) => {}
                Err(fault) => tracing::warn!(%fault, "passed over: it is not known whose node this is"),
            }
        }
        Ok(all)
    }
}

/// Whether a transaction failed of the record of the term, which is its first operation.
fn is_unrecorded<T>(committed: &Result<T, MultiWriteError>, of: impl Fn(&ZkError) -> bool) -> bool {
    matches!(committed, Err(MultiWriteError::OperationFailed { index: 0, source }) if of(source))
}

/// Counts a failed operation as if there had been no record before it.
fn without_record<T>(committed: Result<T, MultiWriteError>) -> Result<T, MultiWriteError> {
    committed.map_err(|error| match error {
        MultiWriteError::OperationFailed { index, source } => {
            MultiWriteError::OperationFailed { index: index.saturating_sub(1), source }
        }
        error => error,
    })
}

/// What came of reading one node: `None` if it is gone.
pub(super) type Read = Result<Option<(Vec<u8>, Stat)>, Fault>;

/// Reads many nodes under one folder, in batches; `None` for each that is gone, and why for each that cannot be read. The results are in
/// the order of the paths.
pub(super) async fn read_many(session: &Session, folder: &str, paths: &[String]) -> Result<Vec<Read>, Fault> {
    let mut all = Vec::with_capacity(paths.len());
    for paths in paths.chunks(super::tree::BATCH) {
        let mut reader = session.client.new_multi_reader();
        for path in paths {
            reader.add_get_data(path).map_err(|error| Fault::new(format!("read {path}"), error))?;
        }
        let results = session.run(|| format!("read {folder}"), reader.commit()).await?;
        all.extend(paths.iter().zip(results).map(|(path, result)| match result {
            MultiReadResult::Data { data, stat } => Ok(Some((data, stat))),
            MultiReadResult::Error { err } if err != ZkError::NoNode => Err(Fault::new(format!("read {path}"), err)),
            _ => Ok(None),
        }));
    }
    Ok(all)
}

/// Whether any of the names is a normal node that takes part in the election.
pub(super) fn any_normal(names: &[String]) -> bool {
    names.iter().any(|name| number(name).is_some())
}

//! The highest term of each service: `/pointsman/<prefix>/terms/<service>`, persistent.
//!
//! A term is the number of the transaction that created the master's node, on top of the [term base](super::term_base). So the node here is written in that same transaction, with
//! nothing in it: the number of its last change is then the highest term that was granted, and it stays so when the master
//! has gone. Who takes a master's place over from the same holder goes on with its term, and records none. A process of go-micro-service writes nothing here; so the master's own node counts too, and a term that is accepted without
//! having been recorded is written into the node, until the next is granted.

use pointsman_core::{StaleTerm, Term};
use zookeeper_client::{CreateMode, Error as ZkError, MultiReadResult, MultiWriter, Stat};

use super::fault::Fault;
use super::layout::{Layout, MASTER};
use super::session::Session;
use super::term_base::TermBases;
use super::{options, wire};
use crate::url::Acl;

/// What is recorded of one service.
struct Recorded {
    /// `None`: there is no node yet.
    version: Option<i32>,
    term: u64,
}

impl Recorded {
    fn of(node: Option<(Vec<u8>, Stat)>, bases: &TermBases) -> Self {
        let Some((data, stat)) = node else { return Self { version: None, term: 0 } };
        let accepted = std::str::from_utf8(&data).ok().and_then(|text| text.parse().ok());
        Self { version: Some(stat.version), term: accepted.unwrap_or_else(|| bases.term(stat.mzxid).0) }
    }
}

/// Accepts a term, unless a higher one was granted or accepted; returns the highest.
pub(super) async fn check(
    session: &Session,
    layout: &Layout,
    acl: Acl,
    service: &str,
    term: Term,
) -> Result<Result<Term, StaleTerm>, Fault> {
    let (path, master) = (layout.terms_of(service), format!("{}/{MASTER}", layout.service(service)));
    let client = &session.client;
    let persistent = options(CreateMode::Persistent, acl);
    loop {
        let mut reader = client.new_multi_reader();
        let paths = [&path, &master, &layout.terms];
        // The bases last: they are to be those that count for what has been read before.
        let built = paths.into_iter().try_for_each(|path| reader.add_get_data(path));
        built.map_err(|error| Fault::new(format!("read {path}"), error))?;
        // One round trip: the server answers the read after the `sync` that was sent before it, so it is as new as the leader's word.
        let syncing = session.run(|| format!("sync {path}"), client.sync(&path));
        let reading = session.run(|| format!("read {path}"), reader.commit());
        let ((), read) = tokio::try_join!(biased; syncing, reading)?;
        let mut nodes = read.into_iter();
        let (recorded, master_node) = (node(&path, nodes.next())?, node(&master, nodes.next())?);
        // Without the bases terms are too low: who is refused is refused rightly, and nobody passes.
        let (bases, unread) = match bases(&layout.terms, nodes.next()) {
            Ok(bases) => (bases, None),
            Err(fault) => (TermBases::default(), Some(fault)),
        };
        let recorded = Recorded::of(recorded, &bases);
        let granted = master_node.map_or(0, |(data, stat)| granted(&data, &stat, &bases).0);
        let highest = Term(recorded.term.max(granted));
        if term < highest {
            return Ok(Err(StaleTerm { offered: term, seen: highest }));
        }
        if let Some(fault) = unread {
            return Err(fault);
        }
        if term.0 == recorded.term {
            return Ok(Ok(term));
        }
        let (data, step) = (term.0.to_string(), || format!("write {path}"));
        let written = match recorded.version {
            Some(version) => {
                session.run(step, client.set_data(&path, data.as_bytes(), Some(version))).await.map(|_| ())
            }
            None => session.run(step, client.create(&path, data.as_bytes(), &persistent)).await.map(|_| ()),
        };
        match written {
            Err(fault) if fault.error == ZkError::NoNode && recorded.version.is_none() => {
                session.run(|| format!("create {}", layout.terms), client.mkdir(&layout.terms, &persistent)).await?;
            }
            // Another has been accepted, or granted, meanwhile.
            Err(fault) if matches!(fault.error, ZkError::NodeExists | ZkError::NoNode | ZkError::BadVersion) => {}
            result => return result.map(|()| Ok(term)),
        }
    }
}

/// The term of the master of which this is the node.
fn granted(data: &[u8], stat: &Stat, bases: &TermBases) -> Term {
    let own = bases.term(stat.czxid);
    wire::decode(&"".into(), data).map_or(own, |parsed| parsed.term(own))
}

/// The bases that the folder of the terms says. What cannot be understood is an error: it may have been a high one.
fn bases(path: &str, folder: Option<MultiReadResult>) -> Result<TermBases, Fault> {
    let Some((data, stat)) = node(path, folder)? else { return Ok(TermBases::default()) };
    TermBases::of(&data, &stat)
        .map_err(|reason| Fault::new(format!("read {path}, which {reason}"), ZkError::MarshallingError))
}

/// A node that was read; `None` if there is none. One that may not be read is an error: it may hold a higher term.
fn node(path: &str, read: Option<MultiReadResult>) -> Result<Option<(Vec<u8>, Stat)>, Fault> {
    match read {
        Some(MultiReadResult::Data { data, stat }) => Ok(Some((data, stat))),
        Some(MultiReadResult::Error { err: ZkError::NoNode }) => Ok(None),
        Some(MultiReadResult::Error { err }) => Err(Fault::new(format!("read {path}"), err)),
        // No other answer belongs to such a read.
        _ => Err(Fault::new(format!("read {path}"), ZkError::MarshallingError)),
    }
}

/// Lets a transaction that makes somebody master record the term. It fails with [`ZkError::NoNode`] where there is no node yet: [`prepare`] it.
pub(super) fn record(writer: &mut MultiWriter<'_>, path: &str) -> Result<(), ZkError> {
    writer.add_set_data(path, b"", None)
}

/// Creates the node in which terms are recorded. `false`: it may not be created here, and terms are not recorded.
pub(super) async fn prepare(session: &Session, path: &str, acl: Acl) -> bool {
    let persistent = options(CreateMode::Persistent, acl);
    let making = session.client.mkdir(path, &persistent);
    match session.run(|| format!("create {path}"), making).await {
        Ok(()) => true,
        Err(fault) => {
            tracing::debug!(%fault, "terms are not recorded");
            false
        }
    }
}

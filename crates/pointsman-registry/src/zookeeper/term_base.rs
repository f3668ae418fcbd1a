//! The term base: what is added to ZooKeeper's transaction numbers to make terms of them. It is the data of the folder in which terms are
//! recorded, `/pointsman/<prefix>/terms`.
//!
//! **A base counts for the masterships that begin after it was set.** The folder says which base was set, and the earlier ones with the
//! transactions that set them. So the term of a mastership is a function of two things that never change: the number of the transaction that
//! began it, and the history of the bases up to there. Whoever has seen a master's node and *then* reads the folder knows its term, for good:
//! its holder, those who follow, those who check terms, also of a master of go-micro-service, which knows nothing of bases. Nothing of it
//! is in the node, nothing has to be set in one transaction with anything else, and no term changes while its master lives.
//!
//! Terms never fall, because a base is only ever raised, and transaction numbers rise.

use pointsman_core::Term;
use serde::{Deserialize, Serialize};
use zookeeper_client::{CreateMode, Error as ZkError, Stat};

use super::fault::Fault;
use super::options;
use super::session::Session;
use crate::url::Acl;
use crate::{Error, Result};

/// The bases of a registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TermBases {
    written: Written,
    /// The transaction that set the last of them.
    since: i64,
}

/// What the folder says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    base: u64,
    /// In the order in which they were set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<Earlier>,
}

/// A base that has been raised since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Earlier {
    base: u64,
    /// The transaction that set it.
    since: i64,
}

/// Maximum number of earlier bases that are remembered. Of a mastership that is older than all of these, the oldest counts.
const EARLIER: usize = 100;

impl TermBases {
    /// Reads what the folder says; nothing was set where it is not there, or empty.
    ///
    /// `Err` is the reason for which it cannot be read.
    pub(super) fn of(data: &[u8], stat: &Stat) -> Result<Self, String> {
        if data.is_empty() {
            return Ok(Self::default());
        }
        let written = serde_json::from_slice(data).map_err(|error| format!("is no term base: {error}"))?;
        Ok(Self { written, since: stat.mzxid })
    }

    /// The base that counts now.
    pub(super) fn base(&self) -> u64 {
        self.written.base
    }

    /// The term of a mastership that the transaction `number` began.
    pub(super) fn term(&self, number: i64) -> Term {
        let earlier = self.written.earlier.iter().map(|earlier| (earlier.base, earlier.since));
        let bases = earlier.chain([(self.written.base, self.since)]);
        // They are in their order, and rise.
        let base = bases.filter(|(_, since)| *since < number).map(|(base, _)| base).max().unwrap_or(0);
        Term(base.saturating_add(number.unsigned_abs()))
    }

    /// What the folder is to say for a higher base.
    fn raised(&self, base: u64) -> Written {
        let mut earlier = self.written.earlier.clone();
        if self.written.base > 0 {
            earlier.push(Earlier { base: self.written.base, since: self.since });
        }
        let forgotten = earlier.len().saturating_sub(EARLIER);
        earlier.drain(..forgotten);
        if let Some(oldest) = earlier.first_mut().filter(|_| forgotten > 0) {
            // A term that rises while its master lives does no harm; one that falls does.
            oldest.since = 0;
        }
        Written { base, earlier }
    }
}

/// Reads the bases at `folder`, which must be done after what they are to be applied to has been read. Where the folder may not be read, or
/// says something else, none counts, and that is logged: elections go on without rights under the root.
pub(super) async fn read(session: &Session, folder: &str) -> Result<TermBases, Fault> {
    bases_of(folder, session.run(|| format!("read {folder}"), session.client.get_data(folder)).await)
}

/// The same, by what was read.
pub(super) fn bases_of(folder: &str, read: Result<(Vec<u8>, Stat), Fault>) -> Result<TermBases, Fault> {
    match read {
        Ok((data, stat)) => Ok(TermBases::of(&data, &stat).unwrap_or_else(|reason| {
            tracing::error!("{folder} {reason}: no term base counts");
            TermBases::default()
        })),
        Err(fault) if fault.error == ZkError::NoNode => Ok(TermBases::default()),
        Err(fault) if fault.is_refusal() => {
            tracing::warn!(%fault, "no term base counts");
            Ok(TermBases::default())
        }
        Err(fault) => Err(fault),
    }
}

/// The bases at `folder`, as the leader knows them.
pub(super) async fn known(session: &Session, folder: &str) -> Result<TermBases> {
    Ok(read_for_change(session, folder).await?.map_or_else(TermBases::default, |(bases, _)| bases))
}

/// Raises the base to `base`, unless it is as high; returns what counts then.
pub(super) async fn raise(session: &Session, folder: &str, acl: Acl, base: u64) -> Result<u64> {
    let (client, persistent) = (&session.client, options(CreateMode::Persistent, acl));
    loop {
        let Some((bases, version)) = read_for_change(session, folder).await? else {
            let making = client.mkdir(folder, &persistent);
            session.run(|| format!("create {folder}"), making).await?;
            continue;
        };
        if bases.base() >= base {
            return Ok(bases.base());
        }
        // Numbers under string keys.
        let data = serde_json::to_vec(&bases.raised(base)).unwrap_or_default();
        let writing = client.set_data(folder, &data, Some(version));
        match session.run(|| format!("write {folder}"), writing).await {
            // Somebody else has raised it meanwhile.
            Err(fault) if matches!(fault.error, ZkError::BadVersion | ZkError::NoNode) => {}
            result => return Ok(result.map(|_| base)?),
        }
    }
}

/// The bases and the version of the folder; `None` if there is none.
async fn read_for_change(session: &Session, folder: &str) -> Result<Option<(TermBases, i32)>> {
    let step = || format!("read {folder}");
    let syncing = session.run(|| format!("sync {folder}"), session.client.sync(folder));
    let reading = session.run(step, session.client.get_data(folder));
    match tokio::try_join!(biased; syncing, reading) {
        Ok(((), (data, stat))) => match TermBases::of(&data, &stat) {
            Ok(bases) => Ok(Some((bases, stat.version))),
            Err(reason) => {
                let advice =
                    format!("in zkCli.sh, `get {folder}` shows what it says, and `set {folder} \"\"` removes that");
                Err(Error::refused(step(), format!("it {reason}; {advice}")))
            }
        },
        Err(fault) if fault.error == ZkError::NoNode => Ok(None),
        Err(fault) => Err(fault.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(mzxid: i64) -> Stat {
        super::super::stat(1, mzxid)
    }

    #[test]
    fn a_base_counts_for_what_begins_after_it_was_set() {
        let none = TermBases::of(b"", &stat(5)).unwrap();
        assert_eq!((none.base(), none.term(4), none.term(6)), (0, Term(4), Term(6)));
        let one = TermBases::of(&serde_json::to_vec(&none.raised(1000)).unwrap(), &stat(10)).unwrap();
        assert_eq!((one.base(), one.term(9), one.term(11)), (1000, Term(9), Term(1011)));
        let two = TermBases::of(&serde_json::to_vec(&one.raised(5000)).unwrap(), &stat(20)).unwrap();
        assert_eq!([9, 11, 19, 21].map(|number| two.term(number).0), [9, 1011, 1019, 5021]);
        assert!(TermBases::of(b"x", &stat(1)).unwrap_err().contains("no term base"));
    }

    #[test]
    fn bases_without_end_are_not_remembered() {
        let mut bases = TermBases::default();
        for base in 1..=i64::try_from(EARLIER).unwrap() * 3 {
            let data = serde_json::to_vec(&bases.raised(base.unsigned_abs() * 1000)).unwrap();
            bases = TermBases::of(&data, &stat(base * 10)).unwrap();
        }
        assert_eq!(bases.written.earlier.len(), EARLIER);
        assert_eq!(bases.term(3005), Term(300 * 1000 + 3005));
        let numbers: Vec<_> = (1..=3010).map(|number| bases.term(number)).collect();
        assert!(numbers.is_sorted() && numbers[0] > Term(1000), "terms of old masterships do not fall");
    }
}

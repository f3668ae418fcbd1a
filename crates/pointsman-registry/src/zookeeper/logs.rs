//! Logs: a folder each under `/pointsman/<prefix>/logs`, with a persistent node for each entry. Whoever adds one removes, now and then, what is too
//! much, and the log of a service of which nothing has been heard for long.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zookeeper_client::{CreateMode, Error as ZkError, Stat};

use super::fault::Fault;
use super::folders::make_container;
use super::layout::Layout;
use super::options;
use super::place::read_many;
use super::session::Session;
use crate::log::Log;
use crate::url::Acl;

/// One in so many who add an entry removes what is too much.
const SWEEPERS: u32 = 8;
/// How many services' logs they look at; more than [`SWEEPERS`], so that more logs go than come, however seldom each service has a new master.
const SWEPT: usize = 16;
/// For how long the log of a service is kept to which nothing is added.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// The logs under one prefix, seen through one session.
pub(super) struct Logs<'a> {
    pub(super) session: &'a Session,
    pub(super) layout: &'a Layout,
    pub(super) acl: Acl,
}

impl Logs<'_> {
    /// Adds an entry, unless there is one under that key.
    pub(super) async fn append(&self, log: &Log, key: &str, entry: &str) -> Result<(), Fault> {
        let (client, folder, persistent) =
            (&self.session.client, self.layout.log(log), options(CreateMode::Persistent, self.acl));
        let path = format!("{folder}/{key}");
        loop {
            let creating = client.create(&path, entry.as_bytes(), &persistent);
            match self.session.run(|| format!("create {path}"), creating).await {
                Ok(_) => break,
                Err(fault) if fault.error == ZkError::NodeExists => return Ok(()),
                Err(fault) if fault.error == ZkError::NoNode => {
                    make_container(self.session, &folder, self.acl).await?;
                }
                Err(fault) => return Err(fault),
            }
        }
        if fastrand::u32(..SWEEPERS) == 0
            && let Err(fault) = self.sweep(log).await
        {
            // The next one does it.
            tracing::debug!(%fault, "old entries are not removed");
        }
        Ok(())
    }

    /// The newest entries, in the order of their keys.
    pub(super) async fn read(&self, log: &Log) -> Result<Vec<String>, Fault> {
        let folder = self.layout.log(log);
        let mut keys = self.keys(&folder).await?;
        keys.drain(..keys.len().saturating_sub(log.limit()));
        let read = self.read_keys(&folder, &keys).await?;
        Ok(read.into_iter().flatten().filter_map(|(entry, _)| String::from_utf8(entry).ok()).collect())
    }

    async fn sweep(&self, log: &Log) -> Result<(), Fault> {
        let folder = self.layout.log(log);
        let mut keys = self.keys(&folder).await?;
        keys.truncate(keys.len().saturating_sub(log.limit()));
        self.delete_all(&folder, &keys).await?;
        let masters = self.layout.logs_of_masters();
        let services = self.keys(&masters).await?;
        for service in fastrand::choose_multiple(services, SWEPT) {
            let folder = format!("{masters}/{service}");
            let keys = self.keys(&folder).await?;
            let newest = keys.last().map(std::slice::from_ref).unwrap_or_default();
            let newest = self.read_keys(&folder, newest).await?.into_iter().flatten().next();
            if newest.is_some_and(|(_, stat)| is_older(&stat, KEPT)) {
                self.delete_all(&folder, &keys).await?;
                self.delete(&folder).await?;
            }
        }
        Ok(())
    }

    /// In their order.
    async fn keys(&self, folder: &str) -> Result<Vec<String>, Fault> {
        let listing = self.session.client.list_children(folder);
        match self.session.run(|| format!("list {folder}"), listing).await {
            Ok(mut keys) => {
                keys.sort_unstable();
                Ok(keys)
            }
            Err(fault) if fault.error == ZkError::NoNode => Ok(Vec::new()),
            Err(fault) => Err(fault),
        }
    }

    /// What each of them says. An error if one may not be read: a log with gaps would pass for a whole one.
    async fn read_keys(&self, folder: &str, keys: &[String]) -> Result<Vec<Option<(Vec<u8>, Stat)>>, Fault> {
        let paths: Vec<String> = keys.iter().map(|key| format!("{folder}/{key}")).collect();
        read_many(self.session, folder, &paths).await?.into_iter().collect()
    }

    async fn delete_all(&self, folder: &str, keys: &[String]) -> Result<(), Fault> {
        for key in keys {
            self.delete(&format!("{folder}/{key}")).await?;
        }
        Ok(())
    }

    async fn delete(&self, path: &str) -> Result<(), Fault> {
        match self.session.run(|| format!("delete {path}"), self.session.client.delete(path, None)).await {
            // Something was added just now, or another was faster.
            Err(fault) if !matches!(fault.error, ZkError::NoNode | ZkError::NotEmpty) => Err(fault),
            _ => Ok(()),
        }
    }
}

fn is_older(stat: &Stat, age: Duration) -> bool {
    let written = UNIX_EPOCH + Duration::from_millis(u64::try_from(stat.mtime).unwrap_or_default());
    SystemTime::now().duration_since(written).is_ok_and(|since| since > age)
}

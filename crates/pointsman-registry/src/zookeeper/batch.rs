//! Normal nodes that are to be created at the same time are created by one request.
//!
//! A process with one instance gains nothing by it; one that registers hundreds in one session (an agent, a test fleet,
//! either after a restart) needs a fraction of the requests. Nobody waits for a batch to fill: what is asked for while one
//! request is under way goes with the next. And no request goes before to see whether there is a master: the transaction
//! itself checks that there is one for the normal nodes to stand behind.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::{Semaphore, mpsc, oneshot};
use zookeeper_client::{Client, CreateMode, Error as ZkError, MultiWriteError, MultiWriteResult};

use super::layout::{MASTER, normal_prefix};
use super::options;
use crate::lease::Lease;
use crate::url::Acl;

/// A handle on the task that puts requests together. It ends with the last handle.
#[derive(Debug, Clone)]
pub(super) struct Batches {
    creations: mpsc::UnboundedSender<Creation>,
}

/// A node that is to be created.
#[derive(Debug)]
struct Creation {
    folder: String,
    data: Vec<u8>,
    acl: Acl,
    reply: oneshot::Sender<Result<Created, ZkError>>,
}

/// A node that has been created.
#[derive(Debug)]
pub(super) struct Created {
    pub(super) name: String,
    /// `None` where the server's reply does not tell (ZOOKEEPER-4026).
    pub(super) czxid: Option<i64>,
}

/// Nodes that are created together at most.
const MOST: usize = 64;
/// Bytes of data that go together at most: far below what a server accepts (1 MiB).
const MOST_BYTES: usize = 256 * 1024;
/// Requests under way at most: the server shall have the next one while we read its answer to the last.
const UNDER_WAY: usize = 4;

impl Batches {
    /// For one connection, which ends with its lease.
    pub(super) fn start(client: &Client, lease: &Lease) -> Self {
        let (creations, receiver) = mpsc::unbounded_channel();
        tokio::spawn(create_all(Submitter { client: client.clone(), lease: lease.clone() }, receiver));
        Self { creations }
    }

    /// Creates a normal node in a folder where there is a master. [`ZkError::NoNode`] if there is none, or no folder.
    pub(super) async fn create(&self, folder: &str, data: &[u8], acl: Acl) -> Result<Created, ZkError> {
        let (reply, created) = oneshot::channel();
        let creation = Creation { folder: folder.to_owned(), data: data.to_vec(), acl, reply };
        self.creations.send(creation).map_err(|_| ZkError::ClientClosed)?;
        created.await.unwrap_or(Err(ZkError::ClientClosed))
    }
}

async fn create_all(submitter: Submitter, mut creations: mpsc::UnboundedReceiver<Creation>) {
    let turns = Arc::new(Semaphore::new(UNDER_WAY));
    let mut asked = Vec::new();
    loop {
        let Ok(turn) = turns.clone().acquire_owned().await else { return };
        if asked.is_empty() && creations.recv_many(&mut asked, MOST).await == 0 {
            return;
        }
        let mut bytes = 0;
        let too_much = asked.iter().position(|creation| {
            bytes += creation.data.len();
            bytes > MOST_BYTES
        });
        let batch: Vec<Creation> = asked.drain(..too_much.unwrap_or(asked.len()).max(1)).collect();
        let submitter = submitter.clone();
        tokio::spawn(async move {
            submitter.create_batch(batch).await;
            drop(turn);
        });
    }
}

#[derive(Clone)]
struct Submitter {
    client: Client,
    lease: Lease,
}

impl Submitter {
    async fn create_batch(&self, batch: Vec<Creation>) {
        let batch = self.still_wanted(batch);
        if batch.is_empty() {
            return;
        }
        match create_together(&self.client, &batch).await {
            Ok(created) => {
                for (creation, created) in batch.into_iter().zip(created) {
                    let _ = creation.reply.send(Ok(created));
                }
            }
            // One that cannot be created fails all: each by itself.
            Err(MultiWriteError::OperationFailed { .. }) if batch.len() > 1 => {
                join_all(batch.into_iter().map(|creation| self.create_one(creation))).await;
            }
            Err(error) => {
                let error = ZkError::from(error);
                batch.into_iter().for_each(|creation| drop(creation.reply.send(Err(error.clone()))));
            }
        }
    }

    async fn create_one(&self, creation: Creation) {
        for creation in self.still_wanted(vec![creation]) {
            let created = create_together(&self.client, std::slice::from_ref(&creation)).await;
            let first = |created: Vec<Created>| created.into_iter().next().ok_or(ZkError::NoNode);
            let _ = creation.reply.send(created.map_err(ZkError::from).and_then(first));
        }
    }

    /// What nobody waits for any more, and what belongs to a connection that is lost, must not be sent: whoever wanted it
    /// may have looked for it and created it anew. What has been sent keeps its order.
    fn still_wanted(&self, mut batch: Vec<Creation>) -> Vec<Creation> {
        let over = self.lease.is_over();
        batch.retain(|creation| !over && !creation.reply.is_closed());
        batch
    }
}

async fn create_together(client: &Client, batch: &[Creation]) -> Result<Vec<Created>, MultiWriteError> {
    let mut writer = client.new_multi_writer();
    let folders: BTreeSet<&str> = batch.iter().map(|creation| &*creation.folder).collect();
    for folder in folders {
        writer.add_check_version(&format!("{folder}/{MASTER}"), ANY_VERSION)?;
    }
    for Creation { folder, data, acl, .. } in batch {
        writer.add_create(&normal_prefix(folder), data, &options(CreateMode::EphemeralSequential, *acl))?;
    }
    let results = writer.commit().await?;
    let created = results.into_iter().filter_map(|result| match result {
        MultiWriteResult::Create { path, stat } => Some(Created {
            name: path.rsplit('/').next().unwrap_or_default().to_owned(),
            czxid: (!stat.is_invalid() && stat.czxid > 0).then_some(stat.czxid),
        }),
        _ => None,
    });
    Ok(created.collect())
}

/// ZooKeeper's word for "whatever the version is".
const ANY_VERSION: i32 = -1;

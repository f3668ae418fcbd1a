//! Folders that go by themselves when nothing is left in them: ZooKeeper's container nodes.

use zookeeper_client::{CreateMode, Error as ZkError};

use super::fault::Fault;
use super::options;
use super::session::Session;
use crate::url::Acl;

/// How often in a row the folder above may vanish between its creation and that of the container in it.
const ATTEMPTS: usize = 4;

/// Creates a container, and persistent folders above it. A server that does not know containers (before 3.5.1) gets a persistent folder.
/// Whatever is there already stays what it is.
pub(super) async fn make_container(session: &Session, path: &str, acl: Acl) -> Result<(), Fault> {
    let (container, persistent) = (options(CreateMode::Container, acl), options(CreateMode::Persistent, acl));
    let step = |path: &str| format!("create {path}");
    let above = path.rsplit_once('/').map(|(above, _)| above).filter(|above| !above.is_empty());
    let mut attempts = 0;
    loop {
        let creating = session.client.create(path, b"", &container);
        let Err(fault) = session.run(|| step(path), creating).await else { return Ok(()) };
        match (&fault.error, above) {
            (ZkError::NodeExists, _) => return Ok(()),
            (ZkError::Unimplemented, _) => {
                return session.run(|| step(path), session.client.mkdir(path, &persistent)).await;
            }
            (ZkError::NoNode, Some(above)) if attempts < ATTEMPTS => {
                attempts += 1;
                session.run(|| step(above), session.client.mkdir(above, &persistent)).await?;
            }
            _ => return Err(fault),
        }
    }
}

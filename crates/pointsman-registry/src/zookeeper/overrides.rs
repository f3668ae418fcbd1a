//! Where an operator's settings lie: `<root>/<prefix>/overrides/<service>/<code>`, persistent; the root is `/pointsman` unless told otherwise.

use std::time::SystemTime;

use zookeeper_client::{CreateMode, Error as ZkError, Stat};

use super::fault::Fault;
use super::folders::make_container;
use super::layout::Layout;
use super::options;
use super::session::Session;
use crate::overrides::{Identity, Override, OverrideChange};
use crate::url::Acl;

/// Which data the registry holds: that of another overrides' folder than before is not the same registry any more. `None` while
/// nothing has ever been set.
pub(super) async fn identity(session: &Session, layout: &Layout) -> Result<Option<Identity>, Fault> {
    let path = &layout.overrides;
    let stat = session.run(|| format!("look at {path}"), session.client.check_stat(path)).await?;
    Ok(stat.map(|stat| identity_of(&stat)))
}

/// The same, by what has been seen of the overrides' folder.
pub(super) fn identity_of(folder: &Stat) -> Identity {
    Identity { id: format!("{:x}-{:x}", folder.czxid, folder.ctime), since_unix_ms: u64::try_from(folder.ctime).ok() }
}

/// Sets what was set before the registry lost its data, unless something is set already.
pub(super) async fn restore(
    session: &Session,
    layout: &Layout,
    acl: Acl,
    service: &str,
    code: &str,
    set: Override,
) -> Result<(), Fault> {
    let folder = layout.overrides_of(service);
    let (path, persistent) = (format!("{folder}/{code}"), options(CreateMode::Persistent, acl));
    let data = serde_json::to_vec(&set).unwrap_or_default();
    loop {
        match session.run(|| format!("write {path}"), session.client.create(&path, &data, &persistent)).await {
            // There is none yet, or it has just gone, as nothing was left in it.
            Err(fault) if fault.error == ZkError::NoNode => make(session, &folder, acl).await?,
            Err(fault) if fault.error != ZkError::NodeExists => return Err(fault),
            _ => return Ok(()),
        }
    }
}

/// Creates the folder of a service, which goes when nothing is set any more, and all above it.
async fn make(session: &Session, folder: &str, acl: Acl) -> Result<(), Fault> {
    make_container(session, folder, acl).await.map_err(|fault| match fault.error {
        ZkError::NoAuth => Fault::new(
            format!("create {folder} (an administrator creates the folder above it, or the registry's url names another, with root=PATH)"),
            fault.error,
        ),
        _ => fault,
    })
}

/// Changes what is set, however many operators do so at once: read, change, write if nobody else has.
pub(super) async fn change(
    session: &Session,
    layout: &Layout,
    acl: Acl,
    service: &str,
    code: &str,
    change: OverrideChange,
) -> Result<(), Fault> {
    let folder = layout.overrides_of(service);
    let path = format!("{folder}/{code}");
    let client = &session.client;
    loop {
        let read = match session.run(|| format!("read {path}"), client.get_data(&path)).await {
            Ok((data, stat)) => Some((serde_json::from_slice::<Override>(&data).unwrap_or_default(), stat.version)),
            Err(fault) if fault.error == ZkError::NoNode => None,
            Err(fault) => return Err(fault),
        };
        let set = read.map(|(set, _)| set).unwrap_or_default().changed(change);
        let data = serde_json::to_vec(&set).unwrap_or_default();
        let step = || format!("write {path}");
        // Whoever remembers what young data has lost sets it again where nothing is said: so that something is.
        let is_settled =
            async { Ok(identity(session, layout).await?.is_some_and(|id| id.is_settled(SystemTime::now()))) };
        let may_be_deleted = set.is_empty() && is_settled.await?;
        let written = match read {
            None if may_be_deleted => return Ok(()),
            None => {
                let persistent = options(CreateMode::Persistent, acl);
                match session.run(step, client.create(&path, &data, &persistent)).await {
                    Err(fault) if fault.error == ZkError::NoNode => {
                        make(session, &folder, acl).await?;
                        continue;
                    }
                    result => result.map(|_| ()),
                }
            }
            Some((_, version)) if may_be_deleted => session.run(step, client.delete(&path, Some(version))).await,
            Some((_, version)) => session.run(step, client.set_data(&path, &data, Some(version))).await.map(|_| ()),
        };
        match written {
            Err(fault) if matches!(fault.error, ZkError::NodeExists | ZkError::NoNode | ZkError::BadVersion) => {}
            result => return result,
        }
    }
}

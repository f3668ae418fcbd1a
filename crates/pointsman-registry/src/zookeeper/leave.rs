//! A clean leave, and the marker by which whoever follows the registry knows it from a loss.
//!
//! A node vanishes alike whether its instance leaves or its session expires. So an instance that leaves creates, in the transaction
//! that deletes its node and before the deletion, a persistent node
//! `/pointsman/<prefix>/left/<service>/<creation transaction of the node, in hex>-<code>`. Its name says everything: a watch tells of it before
//! it tells of the deletion, and whoever was disconnected lists the markers. By the code it knows an instance whose node it has never seen,
//! because that moved meanwhile. Each leaver removes a few that are older than a minute, and now and then those of services that have vanished; the
//! folder of a service is a container.

use std::time::Duration;

use zookeeper_client::{CreateMode, Error as ZkError, MultiReadResult, MultiWriteError, Stat};

use super::fault::Fault;
use super::folders::make_container;
use super::layout;
use super::options;
use super::place::{Folder, Place};
use super::session::Session;

/// For how long a marker is kept at least: far longer than a follower takes to reconnect.
const KEPT: Duration = Duration::from_secs(60);
/// With more markers than this not every leaver looks for old ones, but this many of them in the mean.
const SWEEPERS: u32 = 64;
/// Maximum number of old markers that one leaver removes, while there are few.
const SWEPT: usize = 4;
/// Maximum number of old markers that one leaver ever removes of one service.
const MOST_SWEPT: usize = 128;
/// One in so many leavers looks at other services, too: of one that has vanished nobody leaves any more.
const SWEEPERS_OF_OTHERS: u32 = 16;
/// Maximum number of other services that one leaver looks at; more than [`SWEEPERS_OF_OTHERS`], so that more folders go than come.
const OTHERS: usize = 32;

/// Deletes our own node, and leaves a marker of that in the folder `left`. Where the marker cannot be created, the node is deleted
/// without.
pub(super) async fn leave(folder: &Folder<'_>, left: &str, place: &Place, code: &str) -> Result<(), Fault> {
    if !folder.is_ours(place).await? {
        return Ok(());
    }
    let mut outcome = leave_marked(folder, left, place, code).await?;
    if outcome == Outcome::NoFolder {
        outcome = match make_container(folder.session, left, folder.acl).await {
            Ok(()) => leave_marked(folder, left, place, code).await?,
            Err(fault) => Outcome::NoMarker(fault.error),
        };
    }
    match outcome {
        Outcome::Left => {
            let swept = match sweep(folder, left, place, code).await {
                Ok(()) if fastrand::u32(..SWEEPERS_OF_OTHERS) == 0 => {
                    let own = layout::marker(left, place.czxid, code);
                    let looking = folder.session.client.check_stat(&own);
                    match folder.session.run(|| format!("look at {own}"), looking).await {
                        Ok(Some(own)) => sweep_others(folder.session, left, own.ctime).await,
                        // Removed by another already.
                        looked => looked.map(drop),
                    }
                }
                swept => swept,
            };
            if let Err(fault) = swept {
                tracing::debug!(%fault, "old markers of leaves are not removed");
            }
            Ok(())
        }
        Outcome::NoFolder => folder.delete(&place.name).await,
        Outcome::NoMarker(error) => {
            tracing::warn!(folder = left, %error, "leaves without a marker: for others it counts as lost");
            folder.delete(&place.name).await
        }
    }
}

#[derive(Debug, PartialEq)]
enum Outcome {
    /// The node is gone.
    Left,
    /// There is no folder for the marker.
    NoFolder,
    /// The marker cannot be created.
    NoMarker(ZkError),
}

async fn leave_marked(folder: &Folder<'_>, left: &str, place: &Place, code: &str) -> Result<Outcome, Fault> {
    let (marker, node) = (layout::marker(left, place.czxid, code), folder.at(&place.name));
    let persistent = options(CreateMode::Persistent, folder.acl);
    let mut writer = folder.session.client.new_multi_writer();
    let built = writer.add_create(&marker, b"", &persistent).and_then(|()| writer.add_delete(&node, None));
    match folder.commit(built.map(|()| writer), "leave").await? {
        Ok(_) | Err(MultiWriteError::OperationFailed { index: 1, source: ZkError::NoNode }) => Ok(Outcome::Left),
        Err(MultiWriteError::OperationFailed { index: 0, source: ZkError::NoNode }) => Ok(Outcome::NoFolder),
        Err(MultiWriteError::OperationFailed { source, .. }) => Ok(Outcome::NoMarker(source)),
        Err(error) => Err(folder.failed("leave", error)),
    }
}

/// Removes some markers that are old, by the registry's own clock.
async fn sweep(folder: &Folder<'_>, left: &str, place: &Place, code: &str) -> Result<(), Fault> {
    let (session, client) = (folder.session, &folder.session.client);
    let stat = session.run(|| format!("look at {left}"), client.check_stat(left)).await?;
    let count = stat.map_or(0, |stat| u32::try_from(stat.num_children).unwrap_or_default());
    if count > SWEEPERS && fastrand::u32(..count) >= SWEEPERS {
        return Ok(());
    }
    let mut names = session.run(|| format!("list {left}"), client.list_children(left)).await?;
    // The oldest first: their numbers rise with time.
    names.sort_by_cached_key(|name| layout::marked(name).map(|(czxid, _)| czxid));
    names.truncate((names.len() / 16).clamp(SWEPT, MOST_SWEPT));
    let own = layout::marker(left, place.czxid, code);
    let mut reader = client.new_multi_reader();
    let paths: Vec<String> = names.iter().map(|name| format!("{left}/{name}")).collect();
    for path in paths.iter().chain([&own]) {
        reader.add_get_data(path).map_err(|error| Fault::new(format!("read {path}"), error))?;
    }
    let mut read = session.run(|| format!("read {left}"), reader.commit()).await?;
    let own = match read.pop() {
        Some(MultiReadResult::Data { stat, .. }) => stat,
        Some(MultiReadResult::Error { err }) if err != ZkError::NoNode => {
            return Err(Fault::new(format!("read {own}"), err));
        }
        // Removed by another already.
        _ => return Ok(()),
    };
    for (path, result) in paths.iter().zip(read) {
        if matches!(result, MultiReadResult::Data { stat, .. } if is_old(&stat, own.ctime)) {
            delete(session, path).await?;
        }
    }
    Ok(())
}

/// Removes the markers of some other services where all are old, by the registry's own clock, and their folders.
async fn sweep_others(session: &Session, left: &str, now_ms: i64) -> Result<(), Fault> {
    let client = &session.client;
    let Some((all, service)) = left.rsplit_once('/') else { return Ok(()) };
    let mut others = session.run(|| format!("list {all}"), client.list_children(all)).await?;
    others.retain(|other| other != service);
    for other in fastrand::choose_multiple(others, OTHERS) {
        let folder = format!("{all}/{other}");
        let mut names = match session.run(|| format!("list {folder}"), client.list_children(&folder)).await {
            Err(fault) if fault.error == ZkError::NoNode => continue,
            names => names?,
        };
        names.sort_by_cached_key(|name| layout::marked(name).map(|(czxid, _)| czxid));
        if let Some(newest) = names.last() {
            let newest = format!("{folder}/{newest}");
            let stat = session.run(|| format!("look at {newest}"), client.check_stat(&newest)).await?;
            if stat.is_some_and(|stat| !is_old(&stat, now_ms)) {
                continue;
            }
        }
        for name in names.iter().take(MOST_SWEPT) {
            delete(session, &format!("{folder}/{name}")).await?;
        }
        delete(session, &folder).await?;
    }
    Ok(())
}

fn is_old(marker: &Stat, now_ms: i64) -> bool {
    marker.ctime.saturating_add(i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX)) < now_ms
}

/// Deletes a node, unless it is gone already, or there is something in it.
async fn delete(session: &Session, path: &str) -> Result<(), Fault> {
    match session.run(|| format!("delete {path}"), session.client.delete(path, None)).await {
        Err(fault) if !matches!(fault.error, ZkError::NoNode | ZkError::NotEmpty) => Err(fault),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pointsman_testkit::{ZooKeeper, unique_prefix};

    use super::*;
    use crate::url::{Acl, Url};
    use crate::zookeeper::session::Sessions;

    #[tokio::test(flavor = "multi_thread")]
    async fn markers_of_services_that_have_vanished_go_with_their_folders() {
        let url = format!("zookeeper://{}{}", ZooKeeper::shared().await.address(), unique_prefix());
        let Url::ZooKeeper(settings) = Url::parse(&url).unwrap().0 else { panic!("{url} is a zookeeper url") };
        let all = layout::Layout::new(&settings.prefix, &settings.root).left;
        let sessions = Sessions::start(Arc::new(*settings)).unwrap();
        let session = sessions.up().await.unwrap();
        let (client, persistent) = (&session.client, options(CreateMode::Persistent, Acl::Open));
        for service in ["vanished", "own"] {
            make_container(&session, &format!("{all}/{service}"), Acl::Open).await.unwrap();
            for czxid in [5, 7] {
                let marker = layout::marker(&format!("{all}/{service}"), czxid, "a");
                client.create(&marker, b"", &persistent).await.unwrap();
            }
        }
        let newest = client.check_stat(&layout::marker(&format!("{all}/vanished"), 7, "a")).await.unwrap().unwrap();
        let kept = i64::try_from(KEPT.as_millis()).unwrap();
        let left = format!("{all}/own");
        sweep_others(&session, &left, newest.ctime + kept).await.unwrap();
        assert_eq!(client.list_children(&all).await.unwrap().len(), 2, "it is not old enough");
        sweep_others(&session, &left, newest.ctime + kept + 1).await.unwrap();
        assert_eq!(client.list_children(&all).await.unwrap(), ["own"]);
        assert_eq!(client.list_children(&left).await.unwrap().len(), 2);
    }
}

//! A clean leave, and the marker by which whoever follows the registry knows it from a loss.
//!
//! A node vanishes alike whether its instance leaves or its session expires. So an instance that leaves creates, in the transaction
//! that deletes its node and before the deletion, a persistent node
//! `/pointsman/<prefix>/left/<service>/<creation transaction of the node, in hex>-<code>`. Its name says everything: a watch tells of it before
//! it tells of the deletion, and whoever was disconnected lists the markers. By the code it knows an instance whose node it has never seen,
//! because that moved meanwhile. Each leaver removes a few that are older than a minute.

use std::time::Duration;

use zookeeper_client::{CreateMode, Error as ZkError, MultiReadResult, MultiWriteError};

use super::fault::Fault;
use super::layout;
use super::options;
use super::place::{Folder, Place};

/// For how long a marker is kept at least: far longer than a follower takes to reconnect.
const KEPT: Duration = Duration::from_secs(60);
/// With more markers than this not every leaver looks for old ones, but this many of them in the mean.
const SWEEPERS: u32 = 64;
/// Maximum number of old markers that one leaver removes, while there are few.
const SWEPT: usize = 4;
/// Maximum number of old markers that one leaver ever removes.
const MOST_SWEPT: usize = 128;

/// Deletes our own node, and leaves a marker of that in the folder `left`. Where the marker cannot be created, the node is deleted
/// without.
pub(super) async fn leave(folder: &Folder<'_>, left: &str, place: &Place, code: &str) -> Result<(), Fault> {
    if !folder.is_ours(place).await? {
        return Ok(());
    }
    let mut outcome = leave_marked(folder, left, place, code).await?;
    if outcome == Outcome::NoFolder {
        let persistent = options(CreateMode::Persistent, folder.acl);
        let making = folder.session.client.mkdir(left, &persistent);
        outcome = match folder.session.run(|| format!("create {left}"), making).await {
            Ok(()) => leave_marked(folder, left, place, code).await?,
            Err(fault) => Outcome::NoMarker(fault.error),
        };
    }
    match outcome {
        Outcome::Left => {
            if let Err(fault) = sweep(folder, left, place, code).await {
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
    let kept = i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX);
    for (path, result) in paths.iter().zip(read) {
        if matches!(result, MultiReadResult::Data { stat, .. } if stat.ctime + kept < own.ctime) {
            match session.run(|| format!("delete {path}"), client.delete(path, None)).await {
                Err(fault) if fault.error != ZkError::NoNode => return Err(fault),
                _ => {}
            }
        }
    }
    Ok(())
}

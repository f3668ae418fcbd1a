//! What operators have set for codes that are gone: which there is, and what removes it after some days.
//!
//! An override is a persistent node, whose time of last change says when its code was last seen: an instance that finds an override older
//! than its own node writes it anew, and so does the daily look at all overrides, for each code that is registered. The look removes what
//! has not been written for [`OVERRIDES_KEPT`] and whose code is not registered, by a version: whoever has written it meanwhile,
//! an operator or an instance, wins.
//!
//! One of all who follow looks, once a day: it claims the look by writing the overrides' folder, which by the way tells the registry's
//! own time. So no clock but the registry's decides what is removed. While nobody looks, nobody sees which codes are registered; so the
//! folder also says since when somebody has looked day by day, and what was written before counts from then.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use zookeeper_client::{Error as ZkError, MultiReadResult, Stat};

use super::fault::Fault;
use super::layout::Layout;
use super::place::read_many;
use super::session::{Link, Session, up};
use super::tree::{BATCH, Kind};
use super::wire;
use crate::overrides::{CLEARED_AT_ONCE, ClearedOverrides, OVERRIDES_KEPT, Override, OverrideOf, SETTLED};

/// Mean interval at which whoever follows asks whether it is time for a look.
const ASK: Duration = Duration::from_secs(60 * 60);

/// The times by which a look goes.
#[derive(Debug, Clone, Copy)]
struct Ages {
    /// From one look to the next.
    look: Duration,
    /// What was written longer ago than this is written anew while its code is registered: well below `look`, so that each look does.
    fresh: Duration,
    /// Looks are without a gap as long as no two of them are further apart than this.
    gap: Duration,
    /// How long what is set for a code that is gone is kept.
    kept: Duration,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const AGES: Ages =
    Ages { look: DAY, fresh: Duration::from_secs(12 * 60 * 60), gap: DAY.saturating_mul(2), kept: OVERRIDES_KEPT };

/// Looks at what operators have set once a day, if nobody else does, for as long as this is polled.
pub(super) async fn run(layout: &Layout, mut link: watch::Receiver<Link>) -> Infallible {
    loop {
        // Spread, so that a fleet does not ask all at once.
        tokio::time::sleep(ASK.mul_f64(0.5 + fastrand::f64())).await;
        let Some(session) = up(&mut link).await else { return std::future::pending().await };
        match look(&session, layout, &AGES).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "overrides of codes that are gone expired"),
            // Whoever may not write there leaves it to others.
            Err(fault) => tracing::debug!(%fault, "what operators have set is not looked at"),
        }
    }
}

/// What the folder of the overrides says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Looks {
    /// Since when the looks before this one are without a gap, in the registry's time.
    since_ms: i64,
    /// When the folder was written before.
    before_ms: i64,
}

/// Since when looks are without a gap, by what the folder says, and when that was written.
fn looked_since(said: Option<Looks>, written_ms: i64, gap: Duration) -> i64 {
    let follows_on = |looks: &Looks| written_ms.saturating_sub(looks.before_ms) <= millis(gap);
    said.filter(follows_on).map_or(written_ms, |looks| looks.since_ms)
}

/// Looks at all overrides, unless somebody has done so; returns how many were removed.
async fn look(session: &Session, layout: &Layout, ages: &Ages) -> Result<usize, Fault> {
    let (client, folder) = (&session.client, &layout.overrides);
    let (said, stat) = match session.run(|| format!("read {folder}"), client.get_data(folder)).await {
        Ok(read) => read,
        // Nothing was ever set.
        Err(fault) if fault.error == ZkError::NoNode => return Ok(0),
        Err(fault) => return Err(fault),
    };
    let written = UNIX_EPOCH + Duration::from_millis(stat.mtime.unsigned_abs());
    // By our own clock, which may be wrong: then it is asked in vain, or more often.
    if SystemTime::now().duration_since(written).is_ok_and(|age| age < ages.look) {
        return Ok(0);
    }
    let said = serde_json::from_slice(&said).ok();
    let looks = Looks { since_ms: looked_since(said, stat.mtime, ages.gap), before_ms: stat.mtime };
    let data = serde_json::to_vec(&looks).unwrap_or_default();
    let claiming = client.set_data(folder, &data, Some(stat.version));
    let claimed = match session.run(|| format!("write {folder}"), claiming).await {
        Ok(stat) => stat,
        // Another looks.
        Err(fault) if fault.error == ZkError::BadVersion => return Ok(0),
        Err(fault) => return Err(fault),
    };
    let since_ms = looked_since(Some(looks), claimed.mtime, ages.gap);
    let times = Times { now_ms: claimed.mtime, since_ms, is_settled: is_settled(&claimed, claimed.mtime) };
    carry_out(session, layout, read(session, layout, None).await?, |stored| times.fate(stored, ages)).await
}

/// Whether the registry has held its data for so long that nobody sets again what is not set there.
fn is_settled(folder: &Stat, now_ms: i64) -> bool {
    now_ms.saturating_sub(folder.ctime) > millis(SETTLED)
}

/// An override as it is stored.
#[derive(Debug, Clone)]
struct Stored {
    service: Arc<str>,
    code: Arc<str>,
    data: Vec<u8>,
    version: i32,
    written_ms: i64,
    registered: bool,
}

impl Stored {
    /// What it says; `None`: it is not understood.
    fn set(&self) -> Option<Override> {
        serde_json::from_slice(&self.data).ok()
    }
}

/// What becomes of an override.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    /// Its code is registered: it is written anew.
    Refresh,
    Remove,
    /// Nothing is set any more, which is written down.
    Clear,
}

/// The times of one look, in the registry's time.
struct Times {
    now_ms: i64,
    since_ms: i64,
    is_settled: bool,
}

impl Times {
    fn fate(&self, stored: &Stored, ages: &Ages) -> Fate {
        let age = |since_ms: i64| self.now_ms.saturating_sub(since_ms);
        if stored.set().is_some_and(Override::is_empty) {
            // Only while the data is young it matters that nothing is set.
            return if self.is_settled { Fate::Remove } else { Fate::Keep };
        }
        let is_fresh = age(stored.written_ms) < millis(ages.fresh);
        let is_kept = age(stored.written_ms.max(self.since_ms)) < millis(ages.kept);
        match stored.registered {
            true if is_fresh => Fate::Keep,
            true => Fate::Refresh,
            false if is_kept => Fate::Keep,
            false => Fate::Remove,
        }
    }
}

/// Changes that are under way at the same time.
const UNDER_WAY: usize = 32;

/// Carries out what is decided of each; returns how many were removed or cleared. What has been written since it was read stays as it is.
async fn carry_out(
    session: &Session,
    layout: &Layout,
    all: Vec<Stored>,
    decide: impl Fn(&Stored) -> Fate,
) -> Result<usize, Fault> {
    let client = &session.client;
    let nothing = serde_json::to_vec(&Override::default()).unwrap_or_default();
    let decided = all.into_iter().map(|stored| (decide(&stored), stored)).filter(|(fate, _)| *fate != Fate::Keep);
    let changes = decided.map(|(fate, stored)| {
        let (path, nothing) = (format!("{}/{}", layout.overrides_of(&stored.service), stored.code), &nothing);
        async move {
            let version = Some(stored.version);
            let write = async |data: &[u8]| {
                session.run(|| format!("write {path}"), client.set_data(&path, data, version)).await.map(drop)
            };
            let changed = match fate {
                Fate::Keep => Ok(()),
                Fate::Refresh => write(&stored.data).await,
                Fate::Clear => write(nothing).await,
                Fate::Remove => session.run(|| format!("delete {path}"), client.delete(&path, version)).await,
            };
            match changed {
                Ok(()) => Ok((fate != Fate::Refresh).then_some(stored.service)),
                Err(fault) if matches!(fault.error, ZkError::BadVersion | ZkError::NoNode) => Ok(None),
                Err(fault) => Err(fault),
            }
        }
    });
    let mut changes = stream::iter(changes).buffer_unordered(UNDER_WAY);
    let (mut count, mut services) = (0, HashSet::new());
    while let Some(changed) = changes.next().await {
        if let Some(service) = changed? {
            count += 1;
            services.insert(service);
        }
    }
    for service in services {
        remove_if_empty(session, &layout.overrides_of(&service)).await?;
    }
    Ok(count)
}

/// Folders are containers, which go by themselves, but for those of an earlier version, or of an old server.
async fn remove_if_empty(session: &Session, folder: &str) -> Result<(), Fault> {
    match session.run(|| format!("delete {folder}"), session.client.delete(folder, None)).await {
        Err(fault) if !matches!(fault.error, ZkError::NotEmpty | ZkError::NoNode) => Err(fault),
        _ => Ok(()),
    }
}

/// Writes an override anew, as its code has just been registered.
pub(super) async fn refresh(session: &Session, path: &str, data: &[u8], version: i32) {
    let writing = session.client.set_data(path, data, Some(version));
    if let Err(fault) = session.run(|| format!("write {path}"), writing).await {
        // Written by somebody else just now; or it may not be written from here, and is left to the daily look.
        tracing::debug!(%fault, "it is not written that this code is registered");
    }
}

/// What operators have set, in the order of services and codes.
pub(super) async fn list(session: &Session, layout: &Layout, service: Option<&str>) -> Result<Vec<OverrideOf>, Fault> {
    Ok(read(session, layout, service).await?.iter().filter_map(listed).collect())
}

fn listed(stored: &Stored) -> Option<OverrideOf> {
    let set = stored.set().filter(|set| !set.is_empty())?;
    Some(set.of(&stored.service, &stored.code, stored.registered))
}

/// Clears what is set for codes that are not registered.
pub(super) async fn clear_gone(
    session: &Session,
    layout: &Layout,
    service: Option<&str>,
) -> Result<ClearedOverrides, Fault> {
    let folder = &layout.overrides;
    let looking = session.client.check_stat(folder);
    let Some(stat) = session.run(|| format!("look at {folder}"), looking).await? else {
        return Ok(ClearedOverrides::default());
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Whoever remembers what young data has lost sets it again where nothing is said.
    let fate = if is_settled(&stat, millis(now)) { Fate::Remove } else { Fate::Clear };
    let mut gone = read(session, layout, service).await?;
    gone.retain(|stored| !stored.registered && stored.set().is_some_and(|set| !set.is_empty()));
    let remaining = gone.len().saturating_sub(CLEARED_AT_ONCE);
    gone.truncate(CLEARED_AT_ONCE);
    let cleared = gone.iter().filter_map(listed).collect();
    carry_out(session, layout, gone, |_| fate).await?;
    Ok(ClearedOverrides { cleared, remaining })
}

/// Reads all overrides, of one service or of all, in the order of services and codes, and which of their codes are registered.
async fn read(session: &Session, layout: &Layout, service: Option<&str>) -> Result<Vec<Stored>, Fault> {
    // What a server that lags behind does not know of yet must not be taken for gone.
    session.run(|| "sync".to_owned(), session.client.sync("/")).await?;
    let services: Vec<Arc<str>> = match service {
        Some(service) => vec![service.into()],
        None => names(list_many(session, std::slice::from_ref(&layout.overrides)).await?.swap_remove(0)?),
    };
    let folders = Vec::from_iter(services.iter().map(|service| layout.folder(service, Kind::Overrides)));
    let mut codes = Vec::new();
    for (service, listed) in services.iter().zip(list_many(session, &folders).await?) {
        codes.extend(names(listed?).into_iter().map(|code| (service.clone(), code)));
    }
    let paths = Vec::from_iter(codes.iter().map(|(service, code)| format!("{}/{code}", layout.overrides_of(service))));
    let overrides = read_many(session, &layout.overrides, &paths).await?;
    let registered = registered(session, layout, codes.iter().map(|(service, _)| service.clone()).collect()).await?;
    let mut all = Vec::with_capacity(codes.len());
    for ((service, code), read) in codes.into_iter().zip(overrides) {
        let Some((data, stat)) = read? else { continue };
        // A service that cannot be read may have any code.
        let is_registered = registered.get(&service).is_none_or(|codes| codes.contains(&code));
        let (version, written_ms) = (stat.version, stat.mtime);
        all.push(Stored { service, code, data, version, written_ms, registered: is_registered });
    }
    all.sort_by(|a, b| (&a.service, &a.code).cmp(&(&b.service, &b.code)));
    Ok(all)
}

/// The codes that are registered, by service; without those services of which that cannot be read.
async fn registered(
    session: &Session,
    layout: &Layout,
    services: HashSet<Arc<str>>,
) -> Result<HashMap<Arc<str>, HashSet<Arc<str>>>, Fault> {
    let mut codes = HashMap::new();
    let mut services = Vec::from_iter(services);
    for _ in 0..LOOKS {
        services = read_codes(session, layout, services, &mut codes).await?;
        if services.is_empty() {
            break;
        }
    }
    // Instances move in there all the time: what is not seen may be registered.
    services.iter().for_each(|service| drop(codes.remove(service)));
    Ok(codes)
}

/// Maximum number of looks at a service from which nodes vanish between the list and the read.
const LOOKS: usize = 8;

/// Adds the codes that are registered. Returns the services of which a node has vanished meanwhile: an instance that becomes master moves to
/// another node, which is not in the list, and would be missed.
async fn read_codes(
    session: &Session,
    layout: &Layout,
    services: Vec<Arc<str>>,
    codes: &mut HashMap<Arc<str>, HashSet<Arc<str>>>,
) -> Result<Vec<Arc<str>>, Fault> {
    let folders = Vec::from_iter(services.iter().map(|service| layout.service(service)));
    let (mut nodes, mut again) = (Vec::new(), HashSet::new());
    for (service, listed) in services.iter().zip(list_many(session, &folders).await?) {
        codes.remove(service);
        let Ok(listed) = listed else { continue };
        nodes.extend(listed.iter().map(|name| (service, format!("{}/{name}", layout.service(service)))));
        codes.insert(service.clone(), HashSet::new());
    }
    let paths = Vec::from_iter(nodes.iter().map(|(_, path)| path.clone()));
    for ((service, _), read) in nodes.into_iter().zip(read_many(session, &layout.services, &paths).await?) {
        match read {
            Ok(None) => {
                again.insert(service.clone());
            }
            Ok(Some((data, _))) => {
                // What is of no instance has no code.
                if let (Ok(parsed), Some(codes)) = (wire::decode(service, &data), codes.get_mut(service)) {
                    codes.insert(parsed.instance.code.clone());
                }
            }
            Err(_) => {
                codes.remove(service);
            }
        }
    }
    Ok(Vec::from_iter(again))
}

fn names(listed: Vec<String>) -> Vec<Arc<str>> {
    listed.into_iter().map(Into::into).collect()
}

/// Lists many folders, in batches; one that does not exist is empty. The results are in the order of the paths.
async fn list_many(session: &Session, paths: &[String]) -> Result<Vec<Result<Vec<String>, Fault>>, Fault> {
    let mut all = Vec::with_capacity(paths.len());
    for paths in paths.chunks(BATCH) {
        let mut reader = session.client.new_multi_reader();
        for path in paths {
            reader.add_get_children(path).map_err(|error| Fault::new(format!("list {path}"), error))?;
        }
        let results = session.run(|| format!("list {} and others", paths[0]), reader.commit()).await?;
        all.extend(paths.iter().zip(results).map(|(path, result)| match result {
            MultiReadResult::Children { children } => Ok(children),
            MultiReadResult::Error { err } if err != ZkError::NoNode => Err(Fault::new(format!("list {path}"), err)),
            _ => Ok(Vec::new()),
        }));
    }
    Ok(all)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;

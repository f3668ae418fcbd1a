//! Who was master of each service, and what operators have done: in the registry, so that each agent tells the same, and in the memory of this one
//! for as long as the registry is away.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use pointsman_core::Snapshot;
use pointsman_registry::masters::{self, Entry, Mastership};
use pointsman_registry::{Log, Registry, Updates};
use serde::Deserialize;

use crate::feed::now_ms;

/// So many entries are written at a time.
const WRITES: usize = 16;
/// How long the registry may take to answer before what this agent remembers is told.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who is master of each service that has one.
#[derive(Debug, Default)]
struct Masters {
    by_service: HashMap<Arc<str>, u64>,
}

impl Masters {
    /// Takes in a snapshot; what is to be written.
    fn take(&mut self, snapshot: &Snapshot, at_ms: u64) -> Vec<Entry> {
        let service = snapshot.service();
        let now = snapshot.master().and_then(|master| Some((master, master.role.term()?.0)));
        let before = self.by_service.get(service).copied();
        if before == now.map(|(_, term)| term) {
            return Vec::new();
        }
        let mut entries = Vec::from_iter(before.map(|term| Entry::Ended { term, at_ms }));
        match now {
            Some((master, term)) => {
                self.by_service.insert(service.clone(), term);
                let (code, address) = (master.code.clone(), master.address.clone());
                entries.push(Entry::Began { code, address, term, at_ms });
            }
            None => {
                self.by_service.remove(service);
            }
        }
        entries
    }
}

/// Writes down who becomes master, until the registry is closed.
pub(crate) async fn follow_masters(registry: Registry, snapshots: Vec<Arc<Snapshot>>, mut updates: Updates) {
    let mut masters = Masters::default();
    for snapshot in snapshots {
        // Since when is not known; whoever has seen it has written it down.
        masters.take(&snapshot, 0);
    }
    while let Some(snapshots) = updates.next().await {
        // When it was seen, not since when it was waited for.
        let at_ms = now_ms();
        let entries = snapshots.into_iter().flat_map(|snapshot| {
            let log = Log::Masters(snapshot.service().clone());
            masters.take(&snapshot, at_ms).into_iter().map(move |entry| (log.clone(), entry))
        });
        let entries: Vec<_> = entries.collect();
        let writing = stream::iter(entries).for_each_concurrent(WRITES, async |(log, entry)| {
            // Strings and numbers: there is nothing in it that JSON cannot say.
            let text = serde_json::to_string(&entry).unwrap_or_default();
            if let Err(error) = registry.append(&log, &entry.key(), &text).await {
                tracing::debug!(%error, "who is master is not written down");
            }
        });
        writing.await;
    }
}

/// The masterships of a service, the newest first; `seen` is what this agent has seen itself, in any order.
pub(crate) async fn masters(registry: &Registry, service: &str, seen: Vec<Mastership>) -> Vec<Mastership> {
    let log = Log::Masters(service.into());
    let written =
        tokio::time::timeout(PATIENCE, registry.read_log(&log)).await.ok().and_then(Result::ok).unwrap_or_default();
    masters::history(&written, seen)
}

/// What operators have done.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    /// What was done through this agent, the oldest first.
    own: Mutex<VecDeque<String>>,
    /// Number of entries so far: those of one millisecond stay in their order.
    count: AtomicU32,
}

impl Audit {
    /// Notes an entry, here and in the registry.
    pub(crate) async fn note(&self, registry: &Registry, at_ms: u64, line: &str) {
        self.remember(line);
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let key = format!("{at_ms:014}-{number:08x}-{:08x}", fastrand::u32(..));
        let writing = tokio::time::timeout(PATIENCE, registry.append(&Log::Audit, &key, line));
        if let Ok(Err(error)) = writing.await {
            tracing::debug!(%error, "what was done is noted by this agent alone");
        }
    }

    fn remember(&self, line: &str) {
        let mut own = lock(&self.own);
        if own.len() == Log::Audit.limit() {
            own.pop_front();
        }
        own.push_back(line.to_owned());
    }

    /// All entries, the newest first.
    pub(crate) async fn read(&self, registry: &Registry) -> Vec<String> {
        let reading = tokio::time::timeout(PATIENCE, registry.read_log(&Log::Audit));
        let mut lines = reading.await.ok().and_then(Result::ok).unwrap_or_default();
        for line in lock(&self.own).iter() {
            if !lines.contains(line) {
                lines.push(line.clone());
            }
        }
        // Stable: of one millisecond they stay as they are.
        lines.sort_by_key(|line| at_ms(line));
        lines.reverse();
        lines.truncate(Log::Audit.limit());
        lines
    }
}

fn at_ms(line: &str) -> u64 {
    #[derive(Deserialize)]
    struct Line {
        at_ms: u64,
    }
    serde_json::from_str(line).map_or(0, |line: Line| line.at_ms)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held cannot have left the list half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

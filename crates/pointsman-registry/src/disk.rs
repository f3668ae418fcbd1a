//! Snapshots on disk, so that even a restart during a full outage finds its instances.
//!
//! One JSON file a service, replaced in whole (written aside, then renamed), so that a crash leaves the old or the new
//! one. What cannot be read is skipped with a warning: a stale view is a help, never a condition.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pointsman_core::{Instance, ObservedInstance, Role, Snapshot, Status, Term};
use pointsman_net::percent::{FILE_NAME, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use crate::backend::Scope;
use crate::overrides::{Identity, Overrides};

/// A snapshot as it was read from disk.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) snapshot: Snapshot,
    /// What operators have set, also for codes that are not in the snapshot.
    pub(crate) overrides: Overrides,
    /// Since when those of these codes have been gone that are not in the snapshot.
    pub(crate) absent: Absent,
    pub(crate) at: SystemTime,
}

/// Since when codes for which something is set have been gone.
pub(crate) type Absent = BTreeMap<Arc<str>, SystemTime>;

/// What is written of one service.
#[derive(Debug)]
pub(crate) struct ToSave {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) overrides: Overrides,
    pub(crate) absent: Absent,
}

/// What operators had set for the instances of one service.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SavedOverrides {
    pub(crate) service: Arc<str>,
    pub(crate) overrides: Overrides,
    /// How long those of these codes have been gone that were not registered.
    pub(crate) absent_for: BTreeMap<Arc<str>, Duration>,
}

#[derive(Serialize, Deserialize)]
struct File {
    service: String,
    revision: u64,
    saved_at_unix_ms: u64,
    instances: Vec<Entry>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    overrides: Overrides,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    absent_since_unix_ms: BTreeMap<Arc<str>, u64>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    code: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    weight: u32,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tags: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    observer: bool,
    #[serde(default)]
    drained: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    guarded_since_unix_ms: Option<u64>,
}

/// Writes each snapshot. What cannot be written is logged: the disk may be full, and nothing else depends on it.
pub(crate) fn save(folder: &Path, services: Vec<ToSave>) {
    for service in services {
        let path = folder.join(file_name(service.snapshot.service()));
        if let Err(error) = save_one(folder, &path, service) {
            tracing::warn!(path = %path.display(), %error, "snapshot not saved");
        }
    }
}

fn save_one(folder: &Path, path: &Path, ToSave { snapshot, overrides, absent }: ToSave) -> std::io::Result<()> {
    if snapshot.is_empty() && overrides.is_empty() {
        return match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    let absent_since_unix_ms = absent.into_iter().map(|(code, since)| (code, unix_ms(since))).collect();
    write(folder, path, &File { overrides, absent_since_unix_ms, ..File::from(&*snapshot) })
}

/// Writes the whole file or nothing.
fn write(folder: &Path, path: &Path, content: &impl Serialize) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let aside = aside(path);
    std::fs::write(&aside, serde_json::to_vec(content)?)?;
    std::fs::rename(&aside, path)
}

/// The name of no service's file: those end in `.json`.
const IDENTITY: &str = "registry";

/// Writes down which data the registry holds from which the snapshots are.
pub(crate) fn save_identity(folder: &Path, identity: Option<&Identity>) {
    let path = folder.join(IDENTITY);
    if let Err(error) = write(folder, &path, &identity) {
        tracing::warn!(path = %path.display(), %error, "the registry's identity is not saved");
    }
}

/// Which data the registry held from which the snapshots are.
pub(crate) fn load_identity(folder: &Path) -> Option<Identity> {
    serde_json::from_slice(&std::fs::read(folder.join(IDENTITY)).ok()?).ok()?
}

/// What operators had set, by service.
pub(crate) fn load_overrides(folder: &Path) -> Vec<SavedOverrides> {
    let now = SystemTime::now();
    let of = |Saved { snapshot, overrides, absent, .. }: Saved| SavedOverrides {
        service: snapshot.service().clone(),
        overrides,
        absent_for: absent
            .into_iter()
            .map(|(code, since)| (code, now.duration_since(since).unwrap_or_default()))
            .collect(),
    };
    load(folder, &Scope::All).into_iter().map(of).collect()
}

/// Another one for each write: two directories of a process may save the same service at the same time.
fn aside(path: &Path) -> PathBuf {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    path.with_extension(format!("{}-{}.tmp", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed)))
}

/// Reads every snapshot of the scope.
pub(crate) fn load(folder: &Path, scope: &Scope) -> Vec<Saved> {
    let paths: Vec<PathBuf> = match scope {
        Scope::Services(services) => services.iter().map(|service| folder.join(file_name(service))).collect(),
        Scope::All => {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json")).collect()
        }
    };
    paths.iter().filter(|path| path.exists()).filter_map(|path| load_one(path)).collect()
}

/// Revisions and terms are below this. What a double cannot hold is no number of ours: a broken file must not lift everything for good.
pub(crate) const NUMBERS: u64 = 1 << 53;

/// The highest revision or term of all snapshots in a folder; 0 if there are none.
pub(crate) fn highest(folder: &Path) -> u64 {
    let numbers = |saved: Saved| {
        let terms = saved.snapshot.instances().iter().filter_map(|instance| instance.role.term()).map(|term| term.0);
        terms.chain([saved.snapshot.revision()]).collect::<Vec<_>>()
    };
    let numbers = load(folder, &Scope::All).into_iter().flat_map(numbers);
    numbers.filter(|number| *number < NUMBERS).max().unwrap_or_default()
}

fn load_one(path: &Path) -> Option<Saved> {
    let read = std::fs::read(path).map_err(|error| error.to_string());
    match read.and_then(|bytes| serde_json::from_slice::<File>(&bytes).map_err(|error| error.to_string())) {
        Ok(file) => Some(file.into()),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "snapshot not loaded");
            None
        }
    }
}

/// The service's name, with everything but letters, digits, `-` and `_` as `%XX`: fit for any file system.
pub(crate) fn escaped(name: &str) -> String {
    utf8_percent_encode(name, FILE_NAME).to_string()
}

fn file_name(service: &str) -> String {
    let name = escaped(service);
    // File names end at 255 bytes on most file systems; a cut name is told apart by a hash of the whole.
    match name.get(..200) {
        Some(cut) => format!("{cut}%{:016x}.json", fnv1a(name.as_bytes())),
        None => format!("{name}.json"),
    }
}

/// FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>): the same in every process, unlike std's hasher.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn unix_ms(at: SystemTime) -> u64 {
    u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or_default()
}

impl From<&Snapshot> for File {
    fn from(snapshot: &Snapshot) -> Self {
        let entry = |instance: &Arc<ObservedInstance>| Entry {
            code: instance.code.to_string(),
            address: instance.address.as_deref().map(str::to_owned),
            weight: instance.weight,
            tags: instance.tags.clone(),
            term: instance.role.term().map(|term| term.0),
            observer: instance.observer,
            drained: instance.status == Status::Drained,
            guarded_since_unix_ms: instance.guarded_since.map(unix_ms),
        };
        File {
            service: snapshot.service().to_string(),
            revision: snapshot.revision(),
            saved_at_unix_ms: unix_ms(SystemTime::now()),
            instances: snapshot.instances().iter().map(entry).collect(),
            overrides: Overrides::new(),
            absent_since_unix_ms: BTreeMap::new(),
        }
    }
}

impl From<File> for Saved {
    fn from(file: File) -> Self {
        let service: Arc<str> = file.service.into();
        let instances = file.instances.into_iter().map(|entry| {
            let mut registered = Instance::with_code(service.clone(), entry.code).weight(entry.weight);
            (registered.address, registered.tags) = (entry.address.map(Into::into), entry.tags);
            let role = entry.term.map_or(Role::Normal, |term| Role::Master(Term(term)));
            let mut instance = ObservedInstance::new(registered, role);
            instance.observer = entry.observer;
            instance.status = if entry.drained { Status::Drained } else { Status::Passing };
            instance.guarded_since = entry.guarded_since_unix_ms.map(|ms| UNIX_EPOCH + Duration::from_millis(ms));
            Arc::new(instance)
        });
        let snapshot = Snapshot::new(service.clone(), file.revision, instances.collect());
        let at = |unix_ms| UNIX_EPOCH + Duration::from_millis(unix_ms);
        let absent = file.absent_since_unix_ms.into_iter().map(|(code, since)| (code, at(since))).collect();
        Saved { snapshot, overrides: file.overrides, absent, at: at(file.saved_at_unix_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overrides::Override;

    fn snapshot(service: &str) -> Snapshot {
        let mut master =
            ObservedInstance::from(Instance::new(service).code("a").address("h:1").tag("zone", "eu").weight(3));
        master.role = Role::Master(Term(9));
        let mut normal = ObservedInstance::from(Instance::new(service).code("b"));
        (normal.role, normal.observer) = (Role::Normal, true);
        normal.status = Status::Drained;
        let mut lost = ObservedInstance::from(Instance::new(service).code("c"));
        lost.role = Role::Normal;
        lost.guarded_since = Some(UNIX_EPOCH + Duration::from_millis(1_234_567));
        Snapshot::new(service, 5, vec![Arc::new(master), Arc::new(normal), Arc::new(lost)])
    }

    fn to_save(snapshot: Snapshot, overrides: Overrides) -> ToSave {
        ToSave { snapshot: Arc::new(snapshot), overrides, absent: Absent::new() }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let long = "长".repeat(80);
        for service in ["a.b", "A:b", &long] {
            let saved = snapshot(service);
            save(folder.path(), vec![to_save(saved.clone(), Overrides::new())]);
            let loaded = load(folder.path(), &Scope::one(service)).pop().unwrap();
            assert!(loaded.snapshot.same_content(&saved), "{loaded:?}");
            assert!(loaded.at.elapsed().unwrap() < Duration::from_secs(60));
        }
        assert_eq!(load(folder.path(), &Scope::All).len(), 3);
        assert_eq!((highest(folder.path()), highest(Path::new("/does/not/exist"))), (9, 0));
        save(folder.path(), vec![to_save(Snapshot::empty("a.b"), Overrides::new())]);
        assert_eq!(load(folder.path(), &Scope::All).len(), 2);
    }

    #[test]
    fn what_operators_have_set_is_saved_also_for_who_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let overrides = Overrides::from([("z".into(), Override { drained: true, weight: Some(3) })]);
        let since = SystemTime::now() - Duration::from_secs(100);
        let absent = Absent::from([("z".into(), since)]);
        save(folder.path(), vec![ToSave { absent, ..to_save(Snapshot::empty("s"), overrides.clone()) }]);
        let [saved] = load_overrides(folder.path()).try_into().unwrap();
        assert_eq!((&*saved.service, saved.overrides), ("s", overrides));
        assert!((100..110).contains(&saved.absent_for["z"].as_secs()), "{:?}", saved.absent_for);
        assert_eq!(load_identity(folder.path()), None);
        let identity = Identity { id: "x".to_owned(), since_unix_ms: Some(7) };
        save_identity(folder.path(), Some(&identity));
        assert_eq!(load_identity(folder.path()), Some(identity));
        assert_eq!(load(folder.path(), &Scope::All).len(), 1);
    }

    #[test]
    fn no_two_writes_share_a_file() {
        let path = Path::new("folder/s.json");
        assert_ne!(aside(path), aside(path));
        assert_eq!(aside(path).parent(), path.parent(), "a rename must stay within the file system");
    }

    #[test]
    fn a_broken_file_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("s.json"), b"{").unwrap();
        assert!(load(folder.path(), &Scope::one("s")).is_empty());
        assert!(load(&folder.path().join("none"), &Scope::All).is_empty());
    }
}

//! Where the tests may leave files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::run::Failure;

const PREFIX: &str = "pointsman-tests-";
/// File in the folder that is locked for as long as the folder is used.
const LOCK: &str = "lock";

/// A folder for all files that tests make outside the target folder, and the programs that they start. Removed on drop; what runs that were
/// killed have left is removed by the next.
pub(crate) struct Scratch {
    folder: PathBuf,
    _lock: File,
}

impl Scratch {
    pub(crate) fn new() -> Result<Self, Failure> {
        // Short, because sockets in it have short paths.
        let temporary = std::env::temp_dir();
        remove_abandoned(&temporary);
        let folder = temporary.join(format!("{PREFIX}{}", std::process::id()));
        let made = fs::create_dir(&folder).and_then(|()| File::create(folder.join(LOCK)));
        let lock = made.and_then(|lock| lock.lock().map(|()| lock));
        let lock = lock.map_err(|error| Failure::new(format!("make {}: {error}", folder.display())))?;
        Ok(Self { folder, _lock: lock })
    }

    /// The variables by which programs find it, instead of folders of the user's.
    pub(crate) fn environment(&self) -> [(&'static str, String); 3] {
        let below = |name: &str| self.folder.join(name).display().to_string();
        [
            ("TMPDIR", self.folder.display().to_string()),
            ("XDG_CACHE_HOME", below("cache")),
            ("npm_config_cache", below("npm")),
        ]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("xtask: {} is left: {error}", self.folder.display());
        }
    }
}

fn remove_abandoned(temporary: &Path) {
    for entry in fs::read_dir(temporary).into_iter().flatten().flatten() {
        let is_free = || File::open(entry.path().join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_free() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

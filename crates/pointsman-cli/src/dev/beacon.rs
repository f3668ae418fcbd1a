//! The file by which other commands find a running `pointsman dev`: it holds the URL, belongs to the user, and is locked while `dev` runs.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Name of the file.
const NAME: &str = "pointsman-dev.url";
/// Maximum length of its content.
const LARGEST: u64 = 1024;

/// A file that leads to this process, until it is dropped. The lock ends with the process, however that ends.
#[derive(Debug)]
pub(super) struct Beacon {
    path: PathBuf,
    _locked: File,
}

impl Beacon {
    /// Lets the other commands find `url`. The first of several processes is found.
    pub(super) fn light(url: &str) -> Option<Self> {
        let path = path()?;
        match Self::create(&path, url) {
            Ok(beacon) => beacon,
            Err(error) => {
                tracing::info!(path = %path.display(), %error, "other commands do not find this registry by themselves");
                None
            }
        }
    }

    fn create(path: &Path, url: &str) -> io::Result<Option<Self>> {
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.set_len(0)?;
        file.write_all(url.as_bytes())?;
        Ok(Some(Self { path: path.to_owned(), _locked: file }))
    }
}

impl Drop for Beacon {
    fn drop(&mut self) {
        // What is left is locked by nobody, and leads nowhere.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The URL of the `pointsman dev` that runs for this user, if one does.
pub(crate) fn find() -> Option<String> {
    path().and_then(|path| read(&path))
}

/// Reads the file: only one that is this user's alone, and that a living process has locked.
fn read(path: &Path) -> Option<String> {
    let file = File::open(path).ok()?;
    let metadata = file.metadata().ok()?;
    let is_own = metadata.uid() == rustix::process::getuid().as_raw() && metadata.mode() & 0o077 == 0;
    let is_held = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
    let mut url = String::new();
    (is_own && is_held).then(|| file.take(LARGEST).read_to_string(&mut url).ok())??;
    (!url.is_empty()).then_some(url)
}

fn path() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let in_home = || folder("HOME").map(|home| home.join(".cache").join(OsStr::new("pointsman")));
    Some(folder("XDG_RUNTIME_DIR").or_else(in_home)?.join(NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_leads_to_a_living_process_of_the_user_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below").join(NAME);
        let beacon = Beacon::create(&path, "http://127.0.0.1:1").unwrap().unwrap();
        assert_eq!(read(&path).as_deref(), Some("http://127.0.0.1:1"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Beacon::create(&path, "http://127.0.0.1:2").unwrap().is_none(), "the first is found");
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read(&path), None, "others could have written it");
        drop(beacon);
        assert!(!path.exists());
        // Of a process that was killed.
        std::fs::write(&path, "http://127.0.0.1:1").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&path), None);
        Beacon::create(&path, "http://127.0.0.1:3").unwrap().unwrap();
    }
}

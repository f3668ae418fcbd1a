//! The configuration file, and the files that it names: when they are to be read again.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::NamedFile;
use crate::config::problem::NO_FILE;
use crate::failure::Failure;
use crate::signals::Signals;

/// Editors and deployments change a file in several steps: it is read when nothing has happened for so long,
const QUIET: Duration = Duration::from_millis(200);
/// and, in a folder that never gets quiet, after so long.
const LONGEST: Duration = Duration::from_secs(2);

/// A file that is watched. Where everything is said on the command line there is none: then what that names is watched.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: Option<PathBuf>,
    /// What was read last.
    last: Option<Vec<u8>>,
    /// What it names, and what is in force of that.
    named: Vec<NamedFile>,
    /// Whether something that it names had changed before it was watched.
    late: bool,
    events: mpsc::Receiver<()>,
    hangups: Signals,
    /// Whether it is to be read although it may be the same.
    asked: bool,
    /// Ends the watch with this value; `None` where there can be none.
    watcher: Option<RecommendedWatcher>,
}

impl ConfigFile {
    /// Watches from now on. Where the system cannot, that is logged, and SIGHUP is left.
    pub(super) fn watch(path: Option<&Path>) -> Result<Self, Failure> {
        let (sender, events) = mpsc::channel(1);
        let of_path = |watcher: &mut RecommendedWatcher| path.map_or(Ok(()), |path| watch(watcher, path));
        let watcher = match watcher(sender).and_then(|mut watcher| of_path(&mut watcher).map(|()| watcher)) {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(%error, "the configuration file cannot be watched: send SIGHUP when it has changed");
                None
            }
        };
        let (path, hangups) = (path.map(Path::to_owned), Signals::catch(&[Signal::HUP])?);
        Ok(Self { path, last: None, named: Vec::new(), late: false, events, hangups, asked: false, watcher })
    }

    /// Watches these too, as they were when they were read.
    pub(super) fn follow(&mut self, named: &[NamedFile]) {
        self.named = named.to_vec();
        if let Some(watcher) = &mut self.watcher {
            for file in &self.named {
                if let Err(error) = watch(watcher, &file.path) {
                    let path = file.path.display();
                    tracing::warn!(%path, %error, "cannot be watched: send SIGHUP when it has changed");
                }
            }
        }
        self.late = self.named.clone().iter_mut().any(NamedFile::look);
    }

    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Returns its name in messages.
    pub(super) fn name(&self) -> String {
        self.path().map_or_else(|| NO_FILE.to_owned(), |path| path.display().to_string())
    }

    /// Reads it.
    pub(super) fn read(&mut self) -> io::Result<Vec<u8>> {
        let bytes = self.path().map_or(Ok(Vec::new()), std::fs::read)?;
        self.last = Some(bytes.clone());
        Ok(bytes)
    }

    /// Reads it; `None` if it is as it was, with all that it names, and nobody has asked by SIGHUP. A failure is told once.
    pub(super) fn read_if_new(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.late = false;
        // All are looked at, so that each change is told once.
        let changed = self.named.iter_mut().filter_map(|file| file.look().then_some(())).count() > 0;
        let asked = std::mem::take(&mut self.asked) || changed;
        let before = self.last.take();
        match self.read() {
            Ok(bytes) if asked || before.as_ref() != Some(&bytes) => Ok(Some(bytes)),
            Ok(_) => Ok(None),
            Err(_) if before.is_none() && !asked => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits for a reason to read it again.
    pub(super) async fn changed(&mut self) {
        if self.late {
            return;
        }
        let watched = self.watcher.is_some();
        tokio::select! {
            _ = self.hangups.next() => self.asked = true,
            () = quiet(&mut self.events), if watched => {}
        }
    }
}

/// Waits for events, and then for their end.
async fn quiet(events: &mut mpsc::Receiver<()>) {
    if events.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
    let latest = Instant::now() + LONGEST;
    while let Ok(Ok(Some(()))) = timeout_at(latest, timeout(QUIET, events.recv())).await {}
}

fn watcher(sender: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    notify::recommended_watcher(move |event: notify::Result<Event>| {
        if event.map_or(true, |event| is_change(event.kind)) {
            // Full: there is an event waiting already, which says as much.
            let _ = sender.try_send(());
        }
    })
}

/// Watches the folder, because a file that is replaced is another file. A link is followed to the folder of its file as well.
fn watch(watcher: &mut RecommendedWatcher, path: &Path) -> notify::Result<()> {
    let folder = |path: &Path| match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut folders = vec![folder(path)];
    folders.extend(std::fs::canonicalize(path).map(|path| folder(&path)));
    folders.dedup();
    for folder in folders {
        watcher.watch(&folder, RecursiveMode::NonRecursive)?;
    }
    Ok(())
}

/// Whether something was changed: to be read, as here, is no change.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// What is read after the next change.
    async fn next(file: &mut ConfigFile) -> io::Result<Option<Vec<u8>>> {
        timeout(SOON, file.changed()).await.unwrap();
        file.read_if_new()
    }

    #[tokio::test]
    async fn a_file_is_read_again_however_it_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.toml");
        fs::write(&path, "a").unwrap();
        let mut file = ConfigFile::watch(Some(&path)).unwrap();
        assert_eq!(file.read().unwrap(), b"a");
        fs::write(&path, "b").unwrap();
        assert_eq!(next(&mut file).await.unwrap(), Some(b"b".to_vec()));
        // As editors do.
        fs::write(folder.path().join("new"), "c").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(next(&mut file).await.unwrap(), Some(b"c".to_vec()));
        // Another file beside it, and reading it, mean nothing.
        fs::write(folder.path().join("other"), "x").unwrap();
        assert_eq!(next(&mut file).await.unwrap(), None);
        assert!(timeout(3 * QUIET, file.changed()).await.is_err());
        fs::remove_file(&path).unwrap();
        assert!(next(&mut file).await.is_err());
        fs::write(folder.path().join("other"), "y").unwrap();
        assert_eq!(next(&mut file).await.unwrap(), None, "told once");
        fs::write(&path, "c").unwrap();
        assert_eq!(next(&mut file).await.unwrap(), Some(b"c".to_vec()));
    }

    #[tokio::test]
    async fn what_the_file_names_is_watched_too() {
        let folder = tempfile::tempdir().unwrap();
        let (path, token) = (folder.path().join("p.toml"), folder.path().join("secrets/token"));
        fs::create_dir(folder.path().join("secrets")).unwrap();
        fs::write(&path, "a").unwrap();
        fs::write(&token, "1").unwrap();
        let mut file = ConfigFile::watch(Some(&path)).unwrap();
        file.read().unwrap();
        let named = [NamedFile::new(token.clone())];
        // Between reading and watching.
        fs::write(&token, "2").unwrap();
        file.follow(&named);
        assert_eq!(next(&mut file).await.unwrap(), Some(b"a".to_vec()));
        fs::write(&token, "3").unwrap();
        assert_eq!(next(&mut file).await.unwrap(), Some(b"a".to_vec()));
        // What says the same again means nothing.
        fs::write(&token, "3").unwrap();
        assert_eq!(next(&mut file).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_link_that_is_turned_is_a_change() {
        // As Kubernetes mounts configurations.
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, text) in [("1", "a"), ("2", "b")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("p.toml"), text).unwrap();
        }
        std::os::unix::fs::symlink("1", at("data")).unwrap();
        std::os::unix::fs::symlink("data/p.toml", at("p.toml")).unwrap();
        let mut file = ConfigFile::watch(Some(&at("p.toml"))).unwrap();
        assert_eq!(file.read().unwrap(), b"a");
        std::os::unix::fs::symlink("2", at("next")).unwrap();
        fs::rename(at("next"), at("data")).unwrap();
        assert_eq!(next(&mut file).await.unwrap(), Some(b"b".to_vec()));
    }
}

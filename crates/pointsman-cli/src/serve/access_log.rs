//! The file of the access log, which may be moved away and begun anew while it is written to.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often to look whether the file is still the one at its path.
const LOOK: Duration = Duration::from_secs(1);

/// A file that is appended to. If somebody has moved it (`logrotate`), another is begun at the same path.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    looked: Instant,
}

impl LogFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: open(path)?, looked: Instant::now() })
    }

    /// What cannot be looked at stays as it is.
    fn look(&mut self) {
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        let own = self.file.metadata().map(|data| (data.dev(), data.ino()));
        let there = std::fs::metadata(&self.path).map(|data| (data.dev(), data.ino()));
        if matches!((&own, &there), (Ok(own), Ok(there)) if own == there) {
            return;
        }
        match open(&self.path) {
            Ok(file) => self.file = file,
            Err(error) => tracing::warn!(file = %self.path.display(), %error, "the access log cannot be begun anew"),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.look();
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_has_been_moved_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("a.log"), folder.path().join("a.log.1"));
        let mut log = LogFile::open(&path).unwrap();
        log.write_all(b"one\n").unwrap();
        std::fs::rename(&path, &moved).unwrap();
        log.write_all(b"two\n").unwrap();
        log.looked -= LOOK;
        log.write_all(b"three\n").unwrap();
        let read = |path| std::fs::read_to_string(path).unwrap();
        assert_eq!((read(&moved), read(&path)), ("one\ntwo\n".to_owned(), "three\n".to_owned()));
    }
}

//! What a path in a configuration file is relative to: the folder of the file, wherever the process was started.

use std::hash::{DefaultHasher, Hasher as _};
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use pointsman_net::percent::{PATH, utf8_percent_encode};

/// Maximum length of the address of a Unix socket on Linux, with the zero at its end (`unix(7)`).
const SOCKET_PATH_BYTES: usize = 108;

/// The folder of a configuration file.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

/// A file that a setting names, as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedFile {
    pub(crate) path: PathBuf,
    /// A hash of what was in it, which may be a secret; `None` if it could not be read.
    print: Option<u64>,
}

impl NamedFile {
    /// As it is now. To be called before it is read for use: then a change in between is noticed.
    pub(crate) fn new(path: PathBuf) -> Self {
        let print = std::fs::read(&path).ok().map(|bytes| {
            let mut hasher = DefaultHasher::new();
            hasher.write(&bytes);
            hasher.finish()
        });
        Self { path, print }
    }

    /// Looks again; whether it is another than it was.
    pub(crate) fn look(&mut self) -> bool {
        let before = self.print;
        self.print = Self::new(self.path.clone()).print;
        self.print != before
    }
}

impl Folder {
    pub(super) fn of(file: &Path) -> Self {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        Self(file.parent().unwrap_or(Path::new("/")).to_owned())
    }

    /// The working directory, where there is no file.
    pub(super) fn working() -> Self {
        Self(std::env::current_dir().unwrap_or_default())
    }

    /// A path of the file.
    pub(super) fn path(&self, text: &str) -> PathBuf {
        self.0.join(text)
    }

    /// A path of the file to something that can be read.
    pub(super) fn readable(&self, text: &str) -> Result<PathBuf, String> {
        let path = self.path(text);
        let fail = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
        let file = std::fs::File::open(&path).map_err(fail)?;
        if file.metadata().map_err(fail)?.is_dir() {
            return Err(format!("{} is a folder", path.display()));
        }
        Ok(path)
    }

    /// A path of the file to a file that is there and can be written, or that can be made.
    pub(super) fn writable_file(&self, text: &str) -> Result<PathBuf, String> {
        let path = self.path(text);
        if path.is_dir() {
            return Err(format!("{} is a folder", path.display()));
        }
        let place = if path.exists() { Some(path.as_path()) } else { path.parent().filter(|parent| parent.is_dir()) };
        let Some(place) = place else {
            return Err(format!("{} cannot be made: its folder is not there", path.display()));
        };
        check_writable(place).map(|()| path.clone())
    }

    /// A path of the file to a folder that is there and can be written in, or that can be made.
    pub(super) fn writable_folder(&self, text: &str) -> Result<PathBuf, String> {
        let path = self.path(text);
        match path.ancestors().find(|ancestor| ancestor.exists()) {
            Some(there) if !there.is_dir() => Err(format!("{} is not a folder", there.display())),
            Some(there) => check_writable(there).map(|()| path.clone()),
            None => Ok(path),
        }
    }

    /// A path of the file to a Unix socket, which is there or can be made.
    pub(super) fn socket(&self, text: &str) -> Result<PathBuf, String> {
        let path = self.writable_file(text)?;
        let len = path.as_os_str().len();
        if len >= SOCKET_PATH_BYTES {
            return Err(format!(
                "{} has {len} bytes; a socket's path has less than {SOCKET_PATH_BYTES}",
                path.display()
            ));
        }
        check_socket(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    /// A URL of the file, in which some options are paths.
    pub(super) fn url(&self, url: &str, options: &[&str]) -> String {
        let Some((place, query)) = url.split_once('?') else { return url.to_owned() };
        let pairs = query.split('&').map(|pair| match pair.split_once('=') {
            Some((name, value)) if options.contains(&name) && !is_absolute(value) && !value.is_empty() => {
                format!("{name}={}/{value}", encoded(&self.0))
            }
            _ => pair.to_owned(),
        });
        format!("{place}?{}", pairs.collect::<Vec<_>>().join("&"))
    }
}

fn check_writable(path: &Path) -> Result<(), String> {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK)
        .map_err(|error| format!("{} cannot be written: {}", path.display(), std::io::Error::from(error)))
}

/// Checks that at a path there is a socket, or nothing.
pub(crate) fn check_socket(path: &Path) -> std::io::Result<()> {
    match std::fs::metadata(path) {
        Ok(there) if !there.file_type().is_socket() => Err(std::io::Error::new(
            ErrorKind::AlreadyExists,
            "what is there is not a socket; name another path, or remove it",
        )),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_absolute(value: &str) -> bool {
    value.starts_with('/') || value.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("%2f"))
}

fn encoded(folder: &Path) -> String {
    utf8_percent_encode(folder.to_string_lossy().trim_end_matches('/'), PATH).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_folder_of_the_file() {
        let folder = Folder::of(Path::new("/etc/my config/p.toml"));
        assert_eq!(folder.path("users"), Path::new("/etc/my config/users"));
        assert_eq!(folder.path("/users"), Path::new("/users"));
        let url = |text| folder.url(text, &["ca", "key"]);
        assert_eq!(url("mqtts://h?version=5&ca=a+b.pem"), "mqtts://h?version=5&ca=/etc/my%20config/a+b.pem");
        for same in ["mqtts://h", "mqtts://h?ca=/x", "mqtts://h?ca=%2Fx", "mqtts://h?ca=", "mqtts://h?cert=x", "?"] {
            assert_eq!(url(same), same);
        }
        assert_eq!(Folder::of(Path::new("p.toml")).path("x"), std::env::current_dir().unwrap().join("x"));
        assert_eq!(Folder::of(Path::new("/p.toml")).url("m://h?ca=x", &["ca"]), "m://h?ca=/x");
    }

    #[test]
    fn a_file_that_is_named_is_looked_at_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let mut file = NamedFile::new(path.clone());
        assert!(!file.look());
        std::fs::write(&path, "a").unwrap();
        assert!(file.look() && !file.look());
        std::fs::write(&path, "b").unwrap();
        assert!(file.look() && !file.look());
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let folder = Folder::of(Path::new("/tmp/p.toml"));
        assert!(folder.readable("does/not/exist").unwrap_err().starts_with("/tmp/does/not/exist cannot be read: "));
        assert_eq!(folder.readable("/tmp").unwrap_err(), "/tmp is a folder");
    }
}

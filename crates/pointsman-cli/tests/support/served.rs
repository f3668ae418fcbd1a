//! What `serve` runs, from outside.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{DEADLINE, Running, command};

/// A configuration file in a folder of its own.
pub(crate) struct File {
    _folder: TempDir,
    pub(crate) path: PathBuf,
}

impl File {
    pub(crate) fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = Self { path: folder.path().join("p.toml"), _folder: folder };
        std::fs::write(&file.path, text).unwrap();
        file
    }

    /// As editors do.
    pub(crate) fn replace(&self, text: &str) {
        let aside = self.path.with_extension("new");
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(aside, &self.path).unwrap();
    }
}

/// A port that nobody listens on, outside the range of outgoing connections.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(12_000..32_000);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub(crate) fn serve(path: &Path) -> Running {
    Running::start_with_stderr(command([Path::new("serve"), Path::new("--config"), path]))
}

/// Reads the log on to a line that has the words.
pub(crate) async fn logged(running: &mut Running, words: &str) -> String {
    let mut seen = Vec::new();
    let found = tokio::time::timeout(DEADLINE, async {
        loop {
            let line = running.note().await;
            seen.push(line.clone());
            if line.contains(words) {
                return line;
            }
        }
    });
    found.await.unwrap_or_else(|_| panic!("no {words:?} in {seen:#?}"))
}

/// Status line, headers and body.
pub(crate) async fn get(port: u16, path: &str) -> String {
    try_get(port, path).await.unwrap()
}

/// The same, of somebody who may not be there.
pub(crate) async fn try_get(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    Ok(response)
}

/// What Prometheus insists on: each family is described once, each series is there once, and the end is the end.
pub(crate) fn check_metrics(response: &str) {
    let (_, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(body.ends_with("\n# EOF\n") && body.matches("# EOF").count() == 1, "{body}");
    let (mut families, mut series) = (BTreeSet::new(), BTreeSet::new());
    let mut family = "";
    for line in body.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split_once(' ').unwrap().0;
            assert!(families.insert(family), "{family} is described twice");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(series.insert(name), "{name} is there twice");
            assert!(name.starts_with(family) && value.parse::<f64>().is_ok(), "{line} under {family}");
        }
    }
    assert!(!series.is_empty());
}

/// A request, and what the answer's stream has brought so far.
pub(crate) struct Stream {
    stream: TcpStream,
    seen: String,
}

impl Stream {
    pub(crate) async fn open(port: u16, method: &str, path: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Self { stream, seen: String::new() }
    }

    /// Reads on until the words are there.
    pub(crate) async fn until(&mut self, words: &str) {
        let reading = async {
            while !self.seen.contains(words) {
                let mut bytes = Vec::new();
                assert!(self.stream.read_buf(&mut bytes).await.unwrap() > 0, "no {words:?} in {}", self.seen);
                self.seen.push_str(&String::from_utf8_lossy(&bytes));
            }
        };
        let read = tokio::time::timeout(DEADLINE, reading).await;
        read.unwrap_or_else(|_| panic!("no {words:?} in time"));
    }

    /// What has come so far.
    pub(crate) fn seen(&self) -> &str {
        &self.seen
    }

    /// Reads to the end, which must be a whole answer's.
    pub(crate) async fn ended(mut self) -> String {
        let reading = tokio::time::timeout(DEADLINE, self.stream.read_to_string(&mut self.seen));
        reading.await.unwrap_or_else(|_| panic!("no end in time")).unwrap();
        assert!(self.seen.ends_with("\r\n0\r\n\r\n"), "{}", self.seen);
        self.seen
    }
}

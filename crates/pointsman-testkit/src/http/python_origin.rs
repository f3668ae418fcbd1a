//! An origin of Python's standard library.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::PATIENCE;
use crate::process::Process;
use crate::zookeeper::free_port;

const PYTHON: &str = "/usr/bin/python3";

/// `python3 -m http.server`: it speaks HTTP/1.0, and closes after each answer. Killed on drop.
#[derive(Debug)]
pub struct PythonOrigin {
    _process: Process,
    address: SocketAddr,
    folder: TempDir,
}

impl PythonOrigin {
    /// Starts one with these files, and returns once it accepts connections. Lists of folders have no length: without an
    /// `index.html`, `/` is one.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(files: &[(&str, &str)]) -> PythonOrigin {
        assert!(Path::new(PYTHON).exists(), "{PYTHON} is missing; `cargo xtask test` installs it (package python3)");
        let folder = tempfile::Builder::new().prefix("pointsman-python-").tempdir().unwrap();
        let served = folder.path().join("served");
        fs::create_dir(&served).unwrap();
        for (name, text) in files {
            fs::write(served.join(name), text).unwrap();
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let (port, served) = (address.port().to_string(), served.display().to_string());
        let command = [PYTHON, "-m", "http.server", "--bind", "127.0.0.1", "--directory", &served, &port];
        let log = folder.path().join("python.log");
        let mut process = Process::start(&command.map(str::to_owned), folder.path(), &log);
        let start = Instant::now();
        while TcpStream::connect(address).await.is_err() {
            let log = || fs::read_to_string(&log).unwrap_or_default();
            assert!(process.is_running() && start.elapsed() < PATIENCE, "Python does not serve:\n{}", log());
            sleep(Duration::from_millis(5)).await;
        }
        PythonOrigin { _process: process, address, folder }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has logged: a line a request.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("python.log")).unwrap_or_default()
    }
}

//! WebSocket by a library that is none of ours: `websockets` of PyPI.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Instant;

use serde::Deserialize;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::{Duration, sleep};

use super::{PATIENCE, Venv, run};
use crate::process::Process;
use crate::zookeeper::free_port;

const REQUIREMENTS: &str = "websockets==17.4\n";
const SCRIPT: &str = include_str!("websocket.py");

/// The library.
#[derive(Debug, Clone)]
pub struct WebSocket {
    venv: Venv,
    script: String,
}

/// A server that greets with its name and the request's path, and then echoes. Killed on drop.
#[derive(Debug)]
pub struct WebSocketOrigin {
    _process: Process,
    _folder: TempDir,
    address: SocketAddr,
}

/// What a client has found.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct WebSocketAnswer {
    /// 101, or with what it was refused.
    pub status: u16,
    /// What the server has said first.
    pub greeting: Option<String>,
    /// An answer for each message: itself, `pong`, or `size:N` for bytes.
    pub answers: Vec<String>,
    /// With which code the connection was closed.
    pub code: Option<u16>,
}

impl WebSocket {
    /// The library, installed in this folder if it is not yet; `None` where it cannot be, see [`Venv::of`].
    #[must_use]
    pub fn installed(folder: &Path) -> Option<WebSocket> {
        let venv = Venv::of(folder, "websockets", REQUIREMENTS)?;
        let script = venv.script("websocket-driver.py", SCRIPT).display().to_string();
        Some(WebSocket { venv, script })
    }

    /// Starts a server, and returns once it accepts connections.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn serve(&self, name: &str) -> WebSocketOrigin {
        let folder = tempfile::Builder::new().prefix("pointsman-websocket-").tempdir().unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let (python, log) = (self.venv.python().display().to_string(), folder.path().join("log"));
        let command = [&python, &self.script, "server", name, &address.port().to_string()];
        let mut process = Process::start(&command.map(str::to_owned), folder.path(), &log);
        until_accepts(address, &mut process, &log).await;
        WebSocketOrigin { _process: process, _folder: folder, address }
    }

    /// Connects to `address`, says each message (`size:N` is one of so many bytes, `ping` a ping) and waits for its answer
    /// before the next, and closes. The server closes with the code 4001 at `close`.
    ///
    /// # Panics
    /// When the client ends without having said what it has found.
    pub async fn talk(&self, address: SocketAddr, path: &str, messages: &[&str]) -> WebSocketAnswer {
        let url = format!("ws://{address}{path}");
        let arguments = [&[&*self.script, "client", &*url], messages].concat();
        let output = run(self.venv.python(), &arguments).await;
        serde_json::from_str(&output.out).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }
}

impl WebSocketOrigin {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Waits until somebody accepts connections there.
pub(super) async fn until_accepts(address: SocketAddr, process: &mut Process, log: &Path) {
    let start = Instant::now();
    while TcpStream::connect(address).await.is_err() {
        let log = || fs::read_to_string(log).unwrap_or_default();
        assert!(process.is_running() && start.elapsed() < PATIENCE, "nobody listens on {address}:\n{}", log());
        sleep(Duration::from_millis(5)).await;
    }
}

//! gRPC by a library that is none of ours: `grpcio` of PyPI. Messages are plain bytes, so that nothing is generated.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use serde::Deserialize;
use tempfile::TempDir;

use super::websocket::until_accepts;
use super::{Venv, run};
use crate::process::Process;
use crate::zookeeper::free_port;

const REQUIREMENTS: &str = "grpcio==1.85.3\ntyping_extensions==4.16.0\n";
const SCRIPT: &str = include_str!("grpc.py");

/// The library.
#[derive(Debug, Clone)]
pub struct Grpc {
    venv: Venv,
    script: String,
}

/// A server. Killed on drop. Its methods:
///
/// - `Unary`: `unary ` and the message, with the trailer `x-origin`
/// - `Down`: as many messages as the message says
/// - `Up`: how many bytes all messages have
/// - `Both`: `both ` and each message
/// - `Fail`: NOT_FOUND, `no ` and the message, with the trailer `x-why`
/// - `Late`: a message, and then ABORTED
#[derive(Debug)]
pub struct GrpcOrigin {
    _process: Process,
    _folder: TempDir,
    address: SocketAddr,
}

/// What a client has found.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct GrpcAnswer {
    /// The messages.
    pub answers: Vec<String>,
    /// The status by its name: `OK`, `NOT_FOUND`.
    pub code: String,
    /// What it says beside.
    pub details: String,
    /// The trailers that are text, those of gRPC itself not among them.
    pub trailers: BTreeMap<String, String>,
}

impl Grpc {
    /// The library, installed in this folder if it is not yet; `None` where it cannot be, see [`Venv::of`].
    #[must_use]
    pub fn installed(folder: &Path) -> Option<Grpc> {
        let venv = Venv::of(folder, "grpcio", REQUIREMENTS)?;
        // A script named grpc.py would hide the module.
        let script = venv.script("grpc-driver.py", SCRIPT).display().to_string();
        Some(Grpc { venv, script })
    }

    /// Starts a server, and returns once it accepts connections.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn serve(&self, name: &str) -> GrpcOrigin {
        let folder = tempfile::Builder::new().prefix("pointsman-grpc-").tempdir().unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let (python, log) = (self.venv.python().display().to_string(), folder.path().join("log"));
        let command = [&python, &self.script, "server", name, &address.port().to_string()];
        let mut process = Process::start(&command.map(str::to_owned), folder.path(), &log);
        until_accepts(address, &mut process, &log).await;
        GrpcOrigin { _process: process, _folder: folder, address }
    }

    /// Calls a method (`size:N` is a message of so many bytes).
    ///
    /// # Panics
    /// When the client ends without having said what it has found.
    pub async fn call(&self, address: SocketAddr, method: &str, messages: &[&str]) -> GrpcAnswer {
        let target = address.to_string();
        let arguments = [&[&*self.script, "client", &*target, method], messages].concat();
        let output = run(self.venv.python(), &arguments).await;
        serde_json::from_str(&output.out).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }
}

impl GrpcOrigin {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

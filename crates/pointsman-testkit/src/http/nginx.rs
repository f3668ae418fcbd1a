//! An origin of Debian's nginx.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::PATIENCE;
use crate::process::Process;
use crate::zookeeper::free_port;

/// By its whole path: whoever is not root may have no sbin in the path.
const PROGRAM: &str = "/usr/sbin/nginx";

/// A running nginx on loopback. Killed on drop.
#[derive(Debug)]
pub struct Nginx {
    process: Option<Process>,
    address: SocketAddr,
    folder: TempDir,
}

impl Nginx {
    /// Starts one with these lines in its only `server`, and returns once it accepts connections. `FOLDER` in them stands for a folder
    /// that is its own, and [`folder`](Nginx::folder).
    ///
    /// # Panics
    /// When it does not start; its log is in the message.
    pub async fn start(server: &str) -> Nginx {
        Nginx::listening("", server).await
    }

    /// The same, where `options` come after its address: `ssl`, `ssl http2`.
    pub async fn listening(options: &str, server: &str) -> Nginx {
        assert!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing; `cargo xtask test` installs it (package nginx)");
        let folder = tempfile::Builder::new().prefix("pointsman-nginx-").tempdir().unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let own = folder.path().display();
        let server = server.replace("FOLDER", &own.to_string());
        // One process: whoever kills it has killed all of it.
        let text = format!(
            "daemon off; master_process off; worker_processes 1; pid {own}/nginx.pid; error_log stderr;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\naccess_log off; client_body_temp_path {own}/body; proxy_temp_path {own}/proxy;\n\
             fastcgi_temp_path {own}/fastcgi; uwsgi_temp_path {own}/uwsgi; scgi_temp_path {own}/scgi;\n\
             client_max_body_size 0; keepalive_requests 1000000;\n\
             server {{\nlisten {address} {options};\n{server}\n}}\n}}\n"
        );
        fs::write(folder.path().join("nginx.conf"), text).unwrap();
        let mut nginx = Nginx { process: None, address, folder };
        nginx.restart().await;
        nginx
    }

    /// Where it listens; the same after a restart.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `FOLDER` of its configuration.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again, with the same address.
    ///
    /// # Panics
    /// When it does not start; its log is in the message.
    pub async fn restart(&mut self) {
        self.kill();
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let command = [PROGRAM, "-c", &file("nginx.conf"), "-e", &file("error.log")].map(str::to_owned);
        let mut process = Process::start(&command, self.folder.path(), &self.log_file());
        let start = Instant::now();
        while TcpStream::connect(self.address).await.is_err() {
            assert!(process.is_running() && start.elapsed() < PATIENCE, "nginx does not start:\n{}", self.log());
            sleep(Duration::from_millis(5)).await;
        }
        self.process = Some(process);
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        let files = [self.log_file(), self.folder.path().join("error.log")];
        files.map(|file| fs::read_to_string(file).unwrap_or_default()).concat()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("nginx.log")
    }
}

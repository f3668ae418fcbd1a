//! The processes that are measured, each on one core.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pointsman_bench::mqtt::{Observed, Result};
use rustix::process::{Pid, Signal, kill_process};

/// Where the proxies run: one at a time has something to do.
pub(crate) const PROXIES: usize = 0;
/// Where the load comes from, and the backend is.
pub(crate) const LOAD: usize = 1;

/// A server in a process of its own. Ended on drop.
pub(crate) struct Process {
    child: Child,
    /// What it is called in the table.
    pub(crate) name: &'static str,
    /// Where it takes requests.
    pub(crate) address: SocketAddr,
    /// Where it takes HTTP/2, with prior knowledge.
    pub(crate) http2: SocketAddr,
    /// The path that requests are for, without what says how much is to be answered.
    pub(crate) path: String,
    /// What its configuration lies in.
    folder: Option<PathBuf>,
}

impl Process {
    /// This very program again.
    fn own(core: usize, name: &'static str, arguments: &[&str], address: SocketAddr, path: String) -> Result<Self> {
        let mut command = on(core, std::env::current_exe()?);
        // They end when their standard input does.
        let child = command.args(arguments).stdin(Stdio::piped()).spawn()?;
        Self { child, name, address, http2: address, path, folder: None }.once_it_listens()
    }

    pub(crate) fn backend() -> Result<Self> {
        let address = free_address()?;
        Self::own(LOAD, "backend", &["backend", &address.to_string()], address, String::new())
    }

    /// The proxy, with so many routes; requests are for the last of them.
    pub(crate) fn pointsman(name: &'static str, backend: SocketAddr, routes: usize) -> Result<Self> {
        let address = free_address()?;
        let arguments = ["peer", "pointsman", &address.to_string(), &backend.to_string(), &routes.to_string()];
        Self::own(PROXIES, name, &arguments, address, format!("/r{}", routes - 1))
    }

    pub(crate) fn pingora(backend: SocketAddr) -> Result<Self> {
        let address = free_address()?;
        let arguments = ["peer", "pingora", &address.to_string(), &backend.to_string()];
        Self::own(PROXIES, "pingora", &arguments, address, "/r0".into())
    }

    pub(crate) fn nginx(backend: SocketAddr) -> Result<Self> {
        let (address, folder) = (free_address()?, folder("nginx")?);
        let root = folder.display();
        let config = format!(
            "daemon off; worker_processes 1; pid {root}/pid; error_log {root}/error.log;\n\
             events {{ worker_connections 16384; }}\n\
             http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 1h;\n\
             client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;\n\
             uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n\
             upstream backend {{ server {backend}; keepalive 512; keepalive_requests 100000000; keepalive_timeout 1h; }}\n\
             server {{ listen {address} backlog=4096;\n\
             location / {{ proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
             proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
             proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $http_host;\n\
             proxy_set_header X-Request-ID $request_id; }} }} }}\n"
        );
        std::fs::write(folder.join("nginx.conf"), config)?;
        let mut command = on(PROXIES, "/usr/sbin/nginx".into());
        command.arg("-c").arg(folder.join("nginx.conf")).arg("-e").arg(folder.join("error.log"));
        let (child, path) = (command.spawn()?, "/r0".into());
        Self { child, name: "nginx", address, http2: address, path, folder: Some(folder) }.once_it_listens()
    }

    pub(crate) fn haproxy(backend: SocketAddr) -> Result<Self> {
        let (address, http2, folder) = (free_address()?, free_address()?, folder("haproxy")?);
        // It would have two descriptors for each connection at once or not start at all; nobody needs as many here.
        let config = format!(
            "global\n  nbthread 1\n  maxconn 10500\n  no strict-limits\n\
             defaults\n  mode http\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
             frontend clients\n  bind {address} backlog 4096\n  bind {http2} backlog 4096 proto h2\n  option forwardfor\n  \
             http-request set-header x-forwarded-proto http\n  http-request set-header x-forwarded-host %[req.hdr(host)]\n  \
             http-request set-header x-request-id %[uuid()]\n  default_backend backend\n\
             backend backend\n  http-reuse always\n  server backend {backend}\n"
        );
        std::fs::write(folder.join("haproxy.cfg"), config)?;
        let mut command = on(PROXIES, "/usr/sbin/haproxy".into());
        command.args(["-q", "-db", "-f"]).arg(folder.join("haproxy.cfg")).stderr(Stdio::null());
        let (child, path) = (command.spawn()?, "/r0".into());
        Self { child, name: "haproxy", address, http2, path, folder: Some(folder) }.once_it_listens()
    }

    fn once_it_listens(mut self) -> Result<Self> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(self.address).is_err() {
            if Instant::now() > deadline || self.child.try_wait()?.is_some() {
                return Err(format!("{} did not start", self.name).into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(self)
    }

    /// The process that does the work: of nginx the worker.
    pub(crate) fn observed(&self) -> Result<Observed> {
        let pid = self.child.id();
        if self.name != "nginx" {
            return Ok(Observed::new(self.name, Some(pid)));
        }
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let worker = children.split_whitespace().next().ok_or("nginx has no worker")?;
        Ok(Observed::new(self.name, Some(worker.parse()?)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Of nginx, the master: it takes its worker along.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
            && self.folder.is_some()
        {
            let _ = kill_process(pid, Signal::TERM);
        } else {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// A command that has one core.
pub(crate) fn on(core: usize, program: PathBuf) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn folder(name: &str) -> Result<PathBuf> {
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("pointsman-bench-{}-{name}-{number}", std::process::id()));
    std::fs::create_dir_all(Path::new(&folder))?;
    Ok(folder)
}

//! What a service manager is told, by the datagrams of its protocol.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use rustix::process::Signal;
use support::served::{File, free_port};
use support::{DEADLINE, Running, command};
use tempfile::TempDir;
use tokio::net::UnixDatagram;
use tokio::process::Command;
use tokio::time::timeout;

/// The socket of a service manager.
struct Manager {
    folder: TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn listen() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        Self { folder, socket }
    }

    /// Starts a process that finds it.
    fn start(&self, mut command: Command) -> Running {
        command.env("NOTIFY_SOCKET", self.folder.path().join("notify"));
        Running::start_with_stderr(command)
    }

    /// The next message.
    async fn message(&self) -> String {
        let mut message = vec![0; 4096];
        let length = timeout(DEADLINE, self.socket.recv(&mut message)).await.expect("no further message").unwrap();
        message.truncate(length);
        String::from_utf8(message).unwrap()
    }

    /// Reads on to a message that begins so.
    async fn until(&self, begins: &str) -> String {
        loop {
            let message = self.message().await;
            if message.starts_with(begins) {
                return message;
            }
        }
    }
}

#[tokio::test]
async fn a_registration_is_ready_once_it_is_registered_and_says_when_it_ends() {
    let manager = Manager::listen();
    let script = "echo \"socket ${NOTIFY_SOCKET-none}\"; exec sleep 1000";
    let args = ["register", "s", "--code", "a", "--registry", "memory://", "--", "sh", "-c", script];
    let mut process = manager.start(command(args));
    assert_eq!(process.line().await, "socket none", "it is not the command's");
    let mut first = [manager.message().await, manager.message().await];
    first.sort_unstable();
    assert_eq!(first[0], "READY=1\n");
    assert!(first[1].starts_with("STATUS=s/a is master (term "), "{first:?}");
    process.signal(Signal::TERM);
    assert_eq!(manager.message().await, "STOPPING=1\n");
    process.ended().await;
}

#[tokio::test]
async fn an_instance_whose_check_fails_is_not_ready() {
    let manager = Manager::listen();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let check = format!("tcp://{address}");
    let args = ["register", "s", "--code", "a", "--registry", "memory://", "--check", &check];
    let process = manager.start(command(args));
    let waiting = manager.message().await;
    assert!(waiting.starts_with("STATUS=s/a is not registered yet: the check fails: "), "{waiting}");
    let _listener = std::net::TcpListener::bind(address).unwrap();
    manager.until("READY=1").await;
    process.signal(Signal::TERM);
    manager.until("STOPPING=1").await;
    process.ended().await;
}

#[tokio::test]
async fn what_serves_says_when_it_is_ready_reloads_and_ends_and_feeds_its_watchdog() {
    let manager = Manager::listen();
    let config = |port| format!("[agent]\nlisten = '127.0.0.1:{port}'\n");
    let port = free_port();
    let file = File::new(&config(port));
    let mut serve = command(["serve", "-c", file.path.to_str().unwrap()]);
    serve.env("WATCHDOG_USEC", "20000");
    let mut process = manager.start(serve);
    process.ignore_notes();
    manager.until("READY=1").await;
    manager.until("WATCHDOG=1").await;
    process.signal(Signal::HUP);
    let reloading = manager.until("RELOADING=1").await;
    assert!(reloading.contains("\nMONOTONIC_USEC="), "{reloading}");
    manager.until("READY=1").await;
    process.signal(Signal::TERM);
    manager.until("STOPPING=1").await;
    assert_eq!(process.ended().await.code(), Some(0));
}

//! Origins that can be killed: processes of their own, which write down what has come.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pointsman_testkit::http::EchoOrigin;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::setup::{at, until};

/// Where the process finds what it is to be.
const VARIABLE: &str = "SOAK_ORIGIN";

/// Killed on drop.
pub(crate) struct Process {
    pub(crate) port: u16,
    id: String,
    journal: PathBuf,
    child: Child,
}

impl Process {
    pub(crate) async fn start(port: u16, id: &str, folder: &Path) -> Process {
        let journal = folder.join(id);
        let child = spawn(port, id, &journal);
        let process = Process { port, id: id.to_owned(), journal, child };
        process.until_it_listens().await;
        process
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    pub(crate) async fn restart(&mut self) {
        self.child = spawn(self.port, &self.id, &self.journal);
        self.until_it_listens().await;
    }

    async fn until_it_listens(&self) {
        until(async || TcpStream::connect(at(self.port)).await.is_ok(), |listens| *listens).await;
    }

    /// The ids of the requests that have come to it, in all its lives.
    pub(crate) fn arrived(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.journal).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// This very program again.
fn spawn(port: u16, id: &str, journal: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["origin", "--exact", "--ignored"]).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    command.env(VARIABLE, format!("{} {id} {}", at(port), journal.display())).spawn().unwrap()
}

/// What the process does, if it is one. It ends with its parent, even if that is killed.
pub(crate) async fn child() {
    let Ok(told) = std::env::var(VARIABLE) else { return };
    let mut words = told.splitn(3, ' ');
    let address: SocketAddr = words.next().unwrap().parse().unwrap();
    let (id, journal) = (words.next().unwrap(), words.next().unwrap());
    let parent = rustix::process::getppid();
    let origin = EchoOrigin::with_journal(address, id, Path::new(journal)).await;
    tokio::spawn(async move {
        while rustix::process::getppid() == parent {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        std::process::exit(1);
    });
    origin.forever().await;
}

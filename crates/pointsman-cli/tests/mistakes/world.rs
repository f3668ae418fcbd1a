//! The servers of the transcripts: agents, a ZooKeeper, a server of another protocol, ports without a server.

use std::net::TcpListener;
use std::path::Path;

use pointsman_testkit::{TlsFiles, ZooKeeper};
use tokio::io::AsyncWriteExt as _;

use crate::support::served::{free_port, logged};
use crate::support::{Running, command};

/// Places by their names in transcripts, and what keeps them there.
pub(crate) struct World {
    places: Vec<(&'static str, String)>,
    tls: tempfile::TempDir,
    _taken: TcpListener,
    _servers: Vec<Running>,
    _zookeeper: ZooKeeper,
}

const TOKEN: &str = "0123456789abcdef";

impl World {
    pub(crate) async fn start() -> Self {
        let tls = tempfile::tempdir().unwrap();
        let files = TlsFiles::create(tls.path());
        std::fs::create_dir(tls.path().join("other")).unwrap();
        let other = TlsFiles::create(&tls.path().join("other"));
        std::fs::copy(&other.ca, tls.path().join("other-ca.pem")).unwrap();
        std::fs::copy(&other.client_key, tls.path().join("other-key.pem")).unwrap();
        std::fs::remove_dir_all(tls.path().join("other")).unwrap();
        std::fs::write(tls.path().join("token"), TOKEN).unwrap();
        std::fs::write(tls.path().join("other-token"), "fedcba9876543210").unwrap();
        std::fs::write(tls.path().join("short-token"), "secret").unwrap();
        std::fs::write(tls.path().join("empty.pem"), "").unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = files.server.display();
        let [agent, tls_agent, token_agent, self_signed_agent] = std::array::from_fn(|_| free_port());
        let mut servers = vec![
            serve(agent, &[]).await,
            serve(tls_agent, &[format!("agent.tls_cert={server}"), format!("agent.tls_key={server}")]).await,
            serve(
                token_agent,
                &["read", "write"].map(|which| {
                    let file = if which == "write" { "token" } else { "other-token" };
                    format!("agent.{which}_token_file={}", tls.path().join(file).display())
                }),
            )
            .await,
        ];
        let own = TlsFiles::self_signed(tls.path()).display().to_string();
        servers
            .push(serve(self_signed_agent, &[format!("agent.tls_cert={own}"), format!("agent.tls_key={own}")]).await);
        servers.push(registered(agent).await);
        let zookeeper = ZooKeeper::start().await;
        let places = vec![
            ("{closed}", format!("127.0.0.1:{}", free_port())),
            ("{taken}", taken.local_addr().unwrap().to_string()),
            ("{banner}", banner().await),
            ("{agent}", format!("127.0.0.1:{agent}")),
            ("{tls_agent}", format!("127.0.0.1:{tls_agent}")),
            ("{self_signed_agent}", format!("127.0.0.1:{self_signed_agent}")),
            ("{token_agent}", format!("127.0.0.1:{token_agent}")),
            ("{zookeeper}", zookeeper.address()),
        ];
        Self { places, tls, _taken: taken, _servers: servers, _zookeeper: zookeeper }
    }

    /// Puts the files that every case has into a folder.
    pub(crate) fn fill(&self, folder: &Path) {
        for entry in std::fs::read_dir(self.tls.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }

    /// Puts the places into a text that has their names.
    pub(crate) fn put_in(&self, text: &str) -> String {
        self.places.iter().fold(text.to_owned(), |text, (name, place)| text.replace(name, place))
    }

    /// Puts the names into a text that has the places, and leaves out what is logged as information and what is said of a wait.
    pub(crate) fn take_out(&self, text: &str, folder: &Path) -> String {
        // What goes as it should is not a mistake, and what is said of a wait depends on how fast the machine is.
        let is_told = |line: &&str| !line.contains("  INFO ") && !line.starts_with("note: waiting for the registry");
        let lines = text.split_inclusive('\n').filter(is_told);
        let text = lines.collect::<String>().replace(&folder.display().to_string(), "{folder}");
        self.places.iter().fold(text, |text, (name, place)| text.replace(place.as_str(), name))
    }
}

/// An agent with these settings, once it is ready.
async fn serve(port: u16, sets: &[String]) -> Running {
    let mut serve = command(["serve", "--set"]);
    serve.arg(format!("agent.listen=127.0.0.1:{port}"));
    for set in sets {
        serve.arg("--set").arg(set);
    }
    let mut running = Running::start_with_stderr(serve);
    logged(&mut running, "ready").await;
    running.ignore_notes();
    running
}

/// An instance that is registered at an agent, `taken/one`.
async fn registered(agent: u16) -> Running {
    let url = format!("http://127.0.0.1:{agent}");
    let mut running = Running::start(command(["register", "taken", "--code", "one", "--registry", &url]));
    running.line().await;
    running
}

/// A server that greets each client as a mail server does.
async fn banner() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"220 mail.example ESMTP\r\n").await;
            tokio::spawn(async move { tokio::io::copy(&mut stream, &mut tokio::io::sink()).await });
        }
    });
    address
}

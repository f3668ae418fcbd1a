//! One Mosquitto broker of Debian's package.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::process::{Process, run};
use crate::raw_broker::RawClient;
use crate::tls::TlsFiles;
use crate::zookeeper::free_port;

/// How long a broker may take to serve, and to end when asked to.
const DEADLINE: Duration = Duration::from_secs(20);

/// By its whole path: whoever is not root may have no sbin in the path.
const PROGRAM: &str = "/usr/sbin/mosquitto";

/// A running Mosquitto broker on loopback, with its data in a folder of its own. Killed on drop.
#[derive(Debug)]
pub struct Mosquitto {
    process: Option<Process>,
    config: BrokerConfig,
    /// How long the log was when the process was last started.
    log_start: usize,
}

/// What can be asked of a broker before it starts.
#[derive(Debug, Clone)]
pub struct MosquittoOptions {
    persistence: bool,
    passwords: Vec<(String, String)>,
    acl: Option<String>,
    tls: bool,
    bridges: Vec<Bridge>,
    settings: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
struct Bridge {
    to: SocketAddr,
    topic: String,
    qos: u8,
}

impl Default for MosquittoOptions {
    fn default() -> MosquittoOptions {
        let options = MosquittoOptions {
            persistence: false,
            passwords: Vec::new(),
            acl: None,
            tls: false,
            bridges: Vec::new(),
            settings: Vec::new(),
        };
        options.set("allow_anonymous", "true").set("max_queued_messages", "0")
    }
}

impl MosquittoOptions {
    /// Sessions and their messages are written to the disk after every change, but only in the next round of the broker's loop,
    /// up to 100 ms later. So [`Mosquitto::kill`] loses the message that was acknowledged just before, unless
    /// [`Mosquitto::save`] comes in between; [`Mosquitto::stop`] loses none. Either way, shared subscriptions are gone after a
    /// restart (2.0.11), though the sessions and their messages are not.
    #[must_use]
    pub fn persistence(mut self) -> MosquittoOptions {
        self.persistence = true;
        self.set("persistence", "true").set("autosave_on_changes", "true").set("autosave_interval", "1")
    }

    /// Only who has a password may connect.
    #[must_use]
    pub fn password(mut self, user: &str, password: &str) -> MosquittoOptions {
        self.passwords.push((user.to_owned(), password.to_owned()));
        self.set("allow_anonymous", "false")
    }

    /// What users may read and write: the text of an `acl_file`.
    #[must_use]
    pub fn acl(self, lines: &str) -> MosquittoOptions {
        MosquittoOptions { acl: Some(lines.to_owned()), ..self }
    }

    /// A second port that speaks TLS; see [`Mosquitto::tls`] and [`Mosquitto::secure_address`].
    #[must_use]
    pub fn tls(mut self) -> MosquittoOptions {
        self.tls = true;
        self
    }

    /// A bridge of Mosquitto's own: what is published here on `topic` (a filter) is sent to `other`, with `qos` at most. It
    /// speaks MQTT 5, keeps its session, and tries again every second.
    #[must_use]
    pub fn bridge_to(mut self, other: &Mosquitto, topic: &str, qos: u8) -> MosquittoOptions {
        self.bridges.push(Bridge { to: other.socket_address(), topic: topic.to_owned(), qos });
        self
    }

    /// Small packets leave at once.
    #[must_use]
    pub fn nodelay(self) -> MosquittoOptions {
        self.set("set_tcp_nodelay", "true")
    }

    /// Every packet in the log.
    #[must_use]
    pub fn verbose(self) -> MosquittoOptions {
        self.set("log_type", "all")
    }

    /// A line of the broker's configuration that is not about a listener or a bridge; in place of the one with this key, if
    /// there is one.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> MosquittoOptions {
        self.settings.retain(|(other, _)| other != key);
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Starts a broker and returns once it has answered an MQTT client.
    ///
    /// # Panics
    /// When it does not in time; its log is in the message.
    pub async fn start(self) -> Mosquitto {
        for _ in 0..5 {
            let mut broker = Mosquitto { process: None, config: BrokerConfig::new(&self), log_start: 0 };
            match broker.try_start().await {
                Ok(()) => return broker,
                Err(log) if log.contains("Address already in use") => {}
                Err(log) => panic!("Mosquitto did not start:\n{log}"),
            }
        }
        panic!("Mosquitto found no free port five times");
    }
}

impl Mosquitto {
    /// Starts a broker with the defaults (anybody may connect, nothing is kept on the disk, queues have no end) and returns once
    /// it has answered an MQTT client.
    pub async fn start() -> Mosquitto {
        Mosquitto::options().start().await
    }

    /// The settings of a broker, to be changed before its start.
    #[must_use]
    pub fn options() -> MosquittoOptions {
        MosquittoOptions::default()
    }

    /// `127.0.0.1:port`; the same after a restart.
    #[must_use]
    pub fn address(&self) -> String {
        self.config.address.to_string()
    }

    /// The same, as an address.
    #[must_use]
    pub fn socket_address(&self) -> SocketAddr {
        self.config.address
    }

    /// `mqtt://127.0.0.1:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.config.address)
    }

    /// `127.0.0.1:port` of the port that speaks TLS; the certificate names `localhost` and 127.0.0.1.
    ///
    /// # Panics
    /// When the broker was not asked for [`tls`](MosquittoOptions::tls).
    #[must_use]
    pub fn secure_address(&self) -> String {
        self.config.tls.as_ref().expect("a broker with TLS").0.to_string()
    }

    /// The certificates for [`secure_address`](Mosquitto::secure_address). The broker asks no client for one.
    ///
    /// # Panics
    /// When the broker was not asked for [`tls`](MosquittoOptions::tls).
    #[must_use]
    pub fn tls(&self) -> &TlsFiles {
        &self.config.tls.as_ref().expect("a broker with TLS").1
    }

    /// SIGUSR1, and waits until all that the broker has acknowledged so far is on the disk.
    ///
    /// # Panics
    /// When that takes too long, as for a broker without [`persistence`](MosquittoOptions::persistence).
    pub async fn save(&self) {
        let saves = || self.config.log().matches("Saving in-memory database").count();
        let before = saves();
        self.process.as_ref().expect("a running broker").signal(Signal::USR1);
        let start = Instant::now();
        // It logs before it writes, and answers nobody until it has written.
        while saves() == before || !answers(self.config.address).await {
            assert!(start.elapsed() < DEADLINE, "Mosquitto does not save:\n{}", self.config.log());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// SIGKILL. What has been written stays for [`restart`](Mosquitto::restart).
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// SIGTERM, and waits for the end: connections are closed without a DISCONNECT, and what [`persistence`](MosquittoOptions::persistence) keeps is
    /// written.
    ///
    /// # Panics
    /// When it does not end in time, as when it is paused.
    pub async fn stop(&mut self) {
        let Some(process) = &mut self.process else { return };
        process.signal(Signal::TERM);
        let start = Instant::now();
        while process.is_running() {
            assert!(start.elapsed() < DEADLINE, "Mosquitto does not end:\n{}", self.config.log());
            sleep(Duration::from_millis(5)).await;
        }
        self.process = None;
    }

    /// Starts it again, after a stop or a kill or by killing it, with the same address and data; returns once it has answered
    /// an MQTT client.
    pub async fn restart(&mut self) {
        self.kill();
        if let Err(log) = self.try_start().await {
            panic!("Mosquitto did not start again:\n{log}");
        }
    }

    /// SIGSTOP, and waits until it has taken effect: from now on the broker accepts connections and answers nothing.
    pub fn pause(&self) {
        self.process.as_ref().expect("a running broker").pause();
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.process.as_ref().expect("a running broker").resume();
    }

    /// The process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// What the broker has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.config.log()
    }

    /// The error is the log since this start.
    async fn try_start(&mut self) -> Result<(), String> {
        self.log_start = self.config.log().len();
        let command = [PROGRAM.to_owned(), "-c".to_owned(), self.config.path("mosquitto.conf").display().to_string()];
        self.process = Some(Process::start(&command, self.config.folder.path(), &self.config.path("broker.log")));
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            // The log says whether it is this broker that answers, not another one that was quicker to take the port.
            if self.new_log().contains(" running") && answers(self.config.address).await {
                return Ok(());
            }
            if !self.process.as_mut().is_some_and(Process::is_running) {
                return Err(format!("it has ended\n{}", self.new_log()));
            }
            sleep(Duration::from_millis(5)).await;
        }
        Err(format!("it does not serve after {DEADLINE:?}\n{}", self.new_log()))
    }

    fn new_log(&self) -> String {
        self.config.log().split_off(self.log_start)
    }
}

/// Whether an MQTT client is answered within two seconds, be it that it is turned away for having no password.
async fn answers(address: SocketAddr) -> bool {
    let answer = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(&RawClient::connect_packet(4, "is-it-up")).await.ok()?;
        let mut connack = [0; 4];
        stream.read_exact(&mut connack).await.ok()?;
        // DISCONNECT, so that the log has nothing to wonder about.
        let _ = stream.write_all(&[0xe0, 0]).await;
        Some(connack[0] == 0x20)
    };
    timeout(Duration::from_secs(2), answer).await.ok().flatten().unwrap_or(false)
}

/// A broker's folder with `mosquitto.conf`, `broker.log`, and what it keeps.
#[derive(Debug)]
struct BrokerConfig {
    address: SocketAddr,
    folder: TempDir,
    tls: Option<(SocketAddr, TlsFiles)>,
}

impl BrokerConfig {
    fn new(options: &MosquittoOptions) -> BrokerConfig {
        assert!(
            Path::new(PROGRAM).exists(),
            "{PROGRAM} is missing; `cargo xtask test` installs it (package mosquitto)"
        );
        let folder = tempfile::Builder::new().prefix("pointsman-mosquitto-").tempdir().unwrap();
        let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let mut config = BrokerConfig { address: local(free_port()), folder, tls: None };
        // Started by root it would become another user, who cannot read this folder; others it lets be.
        let mut text = "user root\nlog_dest stderr\nlog_timestamp_format %H:%M:%S\n".to_owned();
        writeln!(text, "listener {} {}", config.address.port(), config.address.ip()).unwrap();
        for (key, value) in &options.settings {
            writeln!(text, "{key} {value}").unwrap();
        }
        if options.persistence {
            writeln!(text, "persistence_location {}/", config.folder.path().display()).unwrap();
        }
        if !options.passwords.is_empty() {
            writeln!(text, "password_file {}", config.write_passwords(&options.passwords).display()).unwrap();
        }
        if let Some(lines) = &options.acl {
            fs::write(config.path("acl"), lines).unwrap();
            writeln!(text, "acl_file {}", config.path("acl").display()).unwrap();
        }
        if options.tls {
            let (address, files) = (local(free_port()), TlsFiles::create(config.folder.path()));
            text += &secure_lines(address, &files);
            config.tls = Some((address, files));
        }
        for (index, bridge) in options.bridges.iter().enumerate() {
            text += &bridge.lines(config.address.port(), index);
        }
        fs::write(config.path("mosquitto.conf"), text).unwrap();
        config
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> String {
        fs::read(self.path("broker.log")).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    fn write_passwords(&self, passwords: &[(String, String)]) -> PathBuf {
        let path = self.path("passwords");
        fs::write(&path, "").unwrap();
        for (user, password) in passwords {
            run(&["mosquitto_passwd", "-b", &path.to_string_lossy(), user, password]);
        }
        path
    }
}

/// The lines of a configuration that open a port for TLS.
fn secure_lines(address: SocketAddr, files: &TlsFiles) -> String {
    let (port, ip, server) = (address.port(), address.ip(), files.server.display());
    format!("listener {port} {ip}\ncertfile {server}\nkeyfile {server}\n")
}

impl Bridge {
    /// `own_port` and `index` make a name that no other bridge to the same broker has.
    fn lines(&self, own_port: u16, index: usize) -> String {
        let Bridge { to, topic, qos } = self;
        format!(
            "connection from-{own_port}-{index}\naddress {to}\ntopic {topic} out {qos}\nremote_clientid from-{own_port}-{index}\n\
             bridge_protocol_version mqttv50\ncleansession false\ntry_private false\nnotifications false\nrestart_timeout 1\n"
        )
    }
}

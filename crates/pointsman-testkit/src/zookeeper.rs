//! One ZooKeeper server of Debian's package.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};
use zookeeper_client::Client;

use crate::process::Process;
use crate::tls::TlsFiles;

/// How long a server may take to serve.
const START_DEADLINE: Duration = Duration::from_secs(40);

/// Where Debian puts Java libraries. The manifest of `zookeeper.jar` names what it needs but for a logger and parts of Netty.
const JARS: &str = "/usr/share/java";
const CLASSPATH: [&str; 6] = [
    "zookeeper.jar",
    "slf4j-simple.jar",
    "netty-codec.jar",
    "netty-resolver.jar",
    "netty-transport-native-unix-common.jar",
    "netty-tcnative.jar",
];

/// A running ZooKeeper server on loopback, with its data in a folder of its own. Killed on drop.
#[derive(Debug)]
pub struct ZooKeeper {
    process: Option<Process>,
    config: ServerConfig,
}

/// What can be asked of a server before it starts.
#[derive(Debug, Clone)]
pub struct ZooKeeperOptions {
    tick: Duration,
    full_speed: bool,
    tls: bool,
    extra: Vec<(String, String)>,
    properties: Vec<String>,
}

impl Default for ZooKeeperOptions {
    fn default() -> ZooKeeperOptions {
        ZooKeeperOptions {
            tick: Duration::from_millis(200),
            full_speed: false,
            tls: false,
            extra: Vec::new(),
            properties: Vec::new(),
        }
    }
}

impl ZooKeeperOptions {
    /// The unit in which the server counts time; sessions end on a multiple of it. 200 ms unless set.
    #[must_use]
    pub fn tick(mut self, tick: Duration) -> ZooKeeperOptions {
        self.tick = tick;
        self
    }

    /// Lets sessions last for as long as this: by themselves they last for 20 ticks at most.
    #[must_use]
    pub fn longest_session(self, longest: Duration) -> ZooKeeperOptions {
        self.set("maxSessionTimeout", &longest.as_millis().to_string())
    }

    /// For measuring: the JVM's best compiler and a larger heap, at the price of a slower start.
    #[must_use]
    pub fn full_speed(mut self) -> ZooKeeperOptions {
        self.full_speed = true;
        self
    }

    /// A second port that speaks TLS; see [`ZooKeeper::tls`] and [`ZooKeeper::secure_address`].
    #[must_use]
    pub fn tls(mut self) -> ZooKeeperOptions {
        self.tls = true;
        self
    }

    /// One more line of the server's configuration.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> ZooKeeperOptions {
        self.extra.push((key.to_owned(), value.to_owned()));
        self
    }

    /// A system property of the server's process, for what its configuration cannot say.
    #[must_use]
    pub fn property(mut self, key: &str, value: &str) -> ZooKeeperOptions {
        self.properties.push(format!("-D{key}={value}"));
        self
    }

    /// Starts a server and returns once it serves.
    ///
    /// # Panics
    /// When it does not serve in time; its log is in the message.
    pub async fn start(self) -> ZooKeeper {
        for _ in 0..5 {
            let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), free_port());
            let mut server = ZooKeeper { process: None, config: ServerConfig::new(address, &self) };
            match server.try_start().await {
                Ok(()) => return server,
                Err(log) if log.contains("Address already in use") => {}
                Err(log) => panic!("ZooKeeper did not start:\n{log}"),
            }
        }
        panic!("ZooKeeper found no free port five times");
    }
}

impl ZooKeeper {
    /// Starts a server with the defaults and returns once it serves.
    pub async fn start() -> ZooKeeper {
        ZooKeeper::options().start().await
    }

    /// The settings of a server, to be changed before its start.
    #[must_use]
    pub fn options() -> ZooKeeperOptions {
        ZooKeeperOptions::default()
    }

    /// The one server of this test process, started by the first who asks. Whoever shares it stays under a prefix of its own
    /// ([`unique_prefix`](crate::unique_prefix)) and does no harm to the server.
    pub async fn shared() -> &'static ZooKeeper {
        static SHARED: OnceCell<ZooKeeper> = OnceCell::const_new();
        SHARED.get_or_init(ZooKeeper::start).await
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

    /// `127.0.0.1:port` of the port that speaks TLS; the certificate names `localhost` and 127.0.0.1.
    ///
    /// # Panics
    /// When the server was not asked for [`tls`](ZooKeeperOptions::tls).
    #[must_use]
    pub fn secure_address(&self) -> String {
        self.config.tls.as_ref().expect("a server with TLS").0.to_string()
    }

    /// The certificates for [`secure_address`](ZooKeeper::secure_address). A client may show one, and need not.
    ///
    /// # Panics
    /// When the server was not asked for [`tls`](ZooKeeperOptions::tls).
    #[must_use]
    pub fn tls(&self) -> &TlsFiles {
        &self.config.tls.as_ref().expect("a server with TLS").1
    }

    /// A session of the bare client crate, with a session timeout of ten seconds.
    pub async fn client(&self) -> Client {
        let connector = Client::connector().with_session_timeout(Duration::from_secs(10));
        connector.connect(&self.address()).await.expect("connect to the ZooKeeper of the test")
    }

    /// The answer to a four-letter command such as `srvr` or `cons`; `None` when there is none within two seconds.
    pub async fn ask(&self, command: &str) -> Option<String> {
        ask(self.config.address, command).await
    }

    /// Whether it answers and serves requests.
    pub async fn is_serving(&self) -> bool {
        self.mode().await.is_some()
    }

    /// `standalone`, `leader` or `follower`; `None` when it does not serve.
    pub async fn mode(&self) -> Option<String> {
        let answer = self.ask("srvr").await?;
        answer.lines().find_map(|line| line.strip_prefix("Mode: ")).map(str::to_owned)
    }

    /// SIGKILL. The data stays for [`restart`](ZooKeeper::restart).
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again, after a kill or by killing it, with the same address and data; returns once it serves.
    pub async fn restart(&mut self) {
        self.kill();
        if let Err(log) = self.try_start().await {
            panic!("ZooKeeper did not start again:\n{log}");
        }
    }

    /// Kills it, and removes all that it has stored: it starts again with an empty data folder.
    pub fn wipe(&mut self) {
        self.kill();
        let data = self.config.folder.path().join("data");
        fs::remove_dir_all(&data).unwrap();
        fs::create_dir(&data).unwrap();
    }

    /// SIGSTOP, and waits until it has taken effect: from now on the server accepts connections and answers nothing.
    pub fn pause(&self) {
        self.process.as_ref().expect("a running server").pause();
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.process.as_ref().expect("a running server").resume();
    }

    /// Ends a session at once, as if it had expired: its ephemeral nodes go, and its client learns `Expired` when it next
    /// speaks. The number is that of `Stat::ephemeral_owner` or `Client::session_id`.
    pub async fn expire(&self, session: i64) {
        crate::session::expire(self.config.address, session).await;
    }

    /// What the server has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.config.log()
    }

    /// The process id of the JVM while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// The error is the log.
    async fn try_start(&mut self) -> Result<(), String> {
        self.launch(&[]);
        self.wait_until_serving().await
    }

    /// Starts the process without waiting for it; `wrapper` comes before the command.
    pub(crate) fn launch(&mut self, wrapper: &[&str]) {
        let mut command: Vec<String> = wrapper.iter().map(|&word| word.to_owned()).collect();
        command.extend(self.config.command());
        self.process = Some(Process::start(&command, self.config.folder.path(), &self.config.log_path()));
    }

    pub(crate) async fn wait_until_serving(&mut self) -> Result<(), String> {
        let start = Instant::now();
        while start.elapsed() < START_DEADLINE {
            if self.is_serving().await && self.is_itself().await {
                return Ok(());
            }
            if !self.process.as_mut().is_some_and(Process::is_running) {
                return Err(format!("it has ended\n{}", self.log()));
            }
            sleep(Duration::from_millis(10)).await;
        }
        Err(format!("it does not serve after {START_DEADLINE:?}\n{}", self.log()))
    }

    /// Whether what answers is this server, not another one that was quicker to take the port.
    async fn is_itself(&self) -> bool {
        let folder = self.config.folder.path().to_string_lossy();
        self.ask("conf").await.is_some_and(|answer| answer.contains(&*folder))
    }

    /// A server that is to be started by [`launch`](ZooKeeper::launch).
    pub(crate) fn prepared(config: ServerConfig) -> ZooKeeper {
        ZooKeeper { process: None, config }
    }
}

/// A server's folder with `zoo.cfg`, `data/` and `server.log`.
#[derive(Debug)]
pub(crate) struct ServerConfig {
    address: SocketAddr,
    folder: TempDir,
    full_speed: bool,
    tls: Option<(SocketAddr, TlsFiles)>,
    properties: Vec<String>,
}

impl ServerConfig {
    pub(crate) fn new(address: SocketAddr, options: &ZooKeeperOptions) -> ServerConfig {
        let folder = tempfile::Builder::new().prefix("pointsman-zookeeper-").tempdir().unwrap();
        let tick = options.tick.as_millis();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        let mut text = format!(
            "clientPort={}\nclientPortAddress={}\ndataDir={}\ntickTime={tick}\nminSessionTimeout={}\nmaxSessionTimeout=120000\n\
             initLimit={}\nsyncLimit={}\nmaxClientCnxns=0\nadmin.enableServer=false\n4lw.commands.whitelist=*\n\
             extendedTypesEnabled=true\n",
            address.port(),
            address.ip(),
            data.display(),
            tick * 2,
            10_000 / tick,
            (2_000 / tick).max(2),
        );
        let tls = options.tls.then(|| {
            let (port, files) = (free_port(), TlsFiles::create(folder.path()));
            text += &secure_lines(port, &files);
            (SocketAddr::new(address.ip(), port), files)
        });
        for (key, value) in &options.extra {
            writeln!(text, "{key}={value}").unwrap();
        }
        fs::write(folder.path().join("zoo.cfg"), text).unwrap();
        ServerConfig { address, folder, full_speed: options.full_speed, tls, properties: options.properties.clone() }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    fn log(&self) -> String {
        fs::read(self.log_path()).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    fn command(&self) -> Vec<String> {
        let zookeeper = Path::new(JARS).join(CLASSPATH[0]);
        assert!(
            zookeeper.exists() && in_path("java"),
            "java or {} is missing; `cargo xtask test` installs both (packages libzookeeper-java and default-jre-headless)",
            zookeeper.display()
        );
        let classpath: Vec<String> = CLASSPATH.iter().map(|jar| format!("{JARS}/{jar}")).collect();
        let speed: &[&str] =
            if self.full_speed { &["-Xmx1g"] } else { &["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"] };
        let mut command = vec!["java".to_owned(), "-Xshare:auto".to_owned(), "-XX:-UsePerfData".to_owned()];
        command.extend(speed.iter().map(|&flag| flag.to_owned()));
        let properties = [
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
            "-Dzookeeper.jmx.log4j.disable=true",
            // The tests kill processes, not the machine: what the kernel has is safe enough.
            "-Dzookeeper.forceSync=no",
            "-Dzookeeper.extendedTypesEnabled=true",
        ];
        command.extend(properties.iter().map(|&property| property.to_owned()));
        command.extend(self.properties.iter().cloned());
        command.extend(["-cp".to_owned(), classpath.join(":")]);
        command.push("org.apache.zookeeper.server.quorum.QuorumPeerMain".to_owned());
        command.push(self.folder.path().join("zoo.cfg").display().to_string());
        command
    }
}

/// The lines of a configuration that open a port for TLS.
fn secure_lines(port: u16, files: &TlsFiles) -> String {
    format!(
        "secureClientPort={port}\nserverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n\
         ssl.keyStore.location={}\nssl.keyStore.type=PEM\nssl.trustStore.location={}\nssl.trustStore.type=PEM\n\
         ssl.clientAuth=want\n",
        files.server.display(),
        files.ca.display()
    )
}

/// A port that nobody listens on, below the range from which the kernel takes the ports of outgoing connections: no
/// connection can take it while the server is down, and no client that tries it can be connected to itself.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(12_000..32_000);
        if std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

pub(crate) fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// Sends a four-letter command and reads the answer, within two seconds.
pub(crate) async fn ask(address: SocketAddr, command: &str) -> Option<String> {
    let answer = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(command.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    };
    timeout(Duration::from_secs(2), answer).await.ok()?.filter(|answer| !answer.is_empty())
}

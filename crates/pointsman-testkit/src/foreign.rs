//! A participant that does to the znodes exactly what go-micro-service does, and a reader that takes them as it would.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use zookeeper_client::{Acls, Client, CreateMode, Error, EventType};

/// A go-micro-service process that has registered one instance. Its session ends when it is dropped.
#[derive(Debug)]
pub struct Foreign {
    client: Client,
    role: watch::Receiver<ForeignRole>,
    task: JoinHandle<()>,
}

/// Which node a foreign participant holds, as far as it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignRole {
    /// `master`.
    Master,
    /// `normal…`.
    Normal,
    /// None; its session has ended.
    None,
}

/// What a foreign participant registers, and how.
#[derive(Debug, Clone)]
pub struct ForeignOptions {
    servers: String,
    folder: String,
    code: String,
    port: u16,
    weight: i64,
    session_timeout: Duration,
    promotion_pause: Duration,
}

impl ForeignOptions {
    /// The port that it registers; 50001 unless set.
    #[must_use]
    pub fn port(mut self, port: u16) -> ForeignOptions {
        self.port = port;
        self
    }

    /// Its weight; 1 unless set.
    #[must_use]
    pub fn weight(mut self, weight: i64) -> ForeignOptions {
        self.weight = weight;
        self
    }

    /// What it asks the server for; 1 s unless set, as the original does.
    #[must_use]
    pub fn session_timeout(mut self, timeout: Duration) -> ForeignOptions {
        self.session_timeout = timeout;
        self
    }

    /// How long it takes between its two steps, the creation of `master` and the deletion of its own normal. None unless set.
    #[must_use]
    pub fn promotion_pause(mut self, pause: Duration) -> ForeignOptions {
        self.promotion_pause = pause;
        self
    }

    /// Registers and returns when that is done.
    pub async fn start(self) -> Foreign {
        let connector = Client::connector().with_session_timeout(self.session_timeout);
        let client = connector.connect(&self.servers).await.expect("connect as a foreign participant");
        let (sender, mut role) = watch::channel(ForeignRole::None);
        let participant = Participant { client: client.clone(), options: self, role: sender };
        let task = tokio::spawn(participant.run());
        role.wait_for(|role| *role != ForeignRole::None).await.expect("register as a foreign participant");
        Foreign { client, role, task }
    }

    /// Byte for byte what the original writes.
    fn data(&self) -> String {
        format!(
            r#"{{"serverip":"127.0.0.1","serverport":{},"username":"","userpwd":"","serveruniquecode":"{}","weight":{}}}"#,
            self.port, self.code, self.weight
        )
    }
}

impl Foreign {
    /// A participant that will register `code` at `/<prefix>/<service>` of the servers `host:port,…`.
    #[must_use]
    pub fn options(servers: &str, prefix: &str, service: &str, code: &str) -> ForeignOptions {
        ForeignOptions {
            servers: servers.to_owned(),
            folder: format!("/{}/{service}", prefix.trim_matches('/')),
            code: code.to_owned(),
            port: 50001,
            weight: 1,
            session_timeout: Duration::from_secs(1),
            promotion_pause: Duration::ZERO,
        }
    }

    /// Registers `code` with the defaults.
    pub async fn start(servers: &str, prefix: &str, service: &str, code: &str) -> Foreign {
        Foreign::options(servers, prefix, service, code).start().await
    }

    /// The node that it holds, as far as it knows.
    #[must_use]
    pub fn role(&self) -> ForeignRole {
        *self.role.borrow()
    }

    /// Returns when it has this role.
    ///
    /// # Panics
    /// When it has another one after `within`.
    pub async fn becomes(&self, role: ForeignRole, within: Duration) {
        let start = Instant::now();
        while self.role() != role {
            assert!(start.elapsed() < within, "the foreign participant is {:?}, not {role:?}", self.role());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Its session, for planting and reading nodes.
    #[must_use]
    pub fn raw(&self) -> &Client {
        &self.client
    }

    /// The number of its session, for [`ZooKeeper::expire`](crate::ZooKeeper::expire).
    #[must_use]
    pub fn session(&self) -> i64 {
        self.client.session_id().0
    }

    /// Ends it in good order: its session is closed, and its nodes go. Returns when they have gone.
    pub async fn stop(mut self) {
        let mut states = self.client.state_watcher();
        self.task.abort();
        drop((&mut self.task).await);
        drop(self);
        while !states.state().is_terminated() {
            sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Participant {
    client: Client,
    options: ForeignOptions,
    role: watch::Sender<ForeignRole>,
}

impl Participant {
    async fn run(self) {
        if let Err(error) = self.register_and_stand_for_election().await {
            self.role.send_replace(ForeignRole::None);
            eprintln!("foreign participant {} ends: {error}", self.options.code);
        }
    }

    async fn register_and_stand_for_election(&self) -> Result<(), Error> {
        self.create_parents().await?;
        let mut normal = None;
        if !self.create_master().await? {
            normal = Some(self.create_normal().await?);
        }
        while normal.is_some() {
            let (stat, watcher) = self.client.check_and_watch_stat(&self.master()).await?;
            if stat.is_some() {
                let event = watcher.changed().await;
                if event.event_type == EventType::Session {
                    return Err(Error::SessionExpired);
                }
            }
            if self.client.check_stat(&self.master()).await?.is_none() && self.create_master().await? {
                sleep(self.options.promotion_pause).await;
                if let Some(normal) = normal.take() {
                    self.client.delete(&normal, None).await?;
                }
            }
        }
        // The master watches nothing; it only has to notice the end of its session.
        let mut states = self.client.state_watcher();
        while !states.state().is_terminated() {
            states.changed().await;
        }
        Err(Error::SessionExpired)
    }

    async fn create_parents(&self) -> Result<(), Error> {
        let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
        let folder = &self.options.folder;
        let ends = folder.match_indices('/').map(|(at, _)| at).skip(1).chain([folder.len()]);
        for end in ends {
            match self.client.create(&folder[..end], b"", &options).await {
                Ok(_) | Err(Error::NodeExists) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether it has won.
    async fn create_master(&self) -> Result<bool, Error> {
        let options = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
        match self.client.create(&self.master(), self.options.data().as_bytes(), &options).await {
            Ok(_) => {
                self.role.send_replace(ForeignRole::Master);
                Ok(true)
            }
            Err(Error::NodeExists) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The path of its normal.
    async fn create_normal(&self) -> Result<String, Error> {
        let options = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
        let stem = format!("{}/normal", self.options.folder);
        let (_, sequence) = self.client.create(&stem, self.options.data().as_bytes(), &options).await?;
        self.role.send_replace(ForeignRole::Normal);
        Ok(format!("{stem}{sequence}"))
    }

    fn master(&self) -> String {
        format!("{}/master", self.options.folder)
    }
}

/// A service as go-micro-service sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForeignView {
    /// What `master` says; `None` when there is none or it does not parse.
    pub master: Option<ForeignInstance>,
    /// Every other child that parses, in the order of the nodes' names.
    pub normals: Vec<ForeignInstance>,
    /// The names of the nodes that did not parse.
    pub skipped: Vec<String>,
}

/// An instance as go-micro-service sees it: a field that is missing, or of another type, is empty or zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForeignInstance {
    /// `serverip`
    pub ip: String,
    /// `serverport`
    pub port: i64,
    /// `serveruniquecode`
    pub code: String,
    /// `weight`
    pub weight: i64,
}

impl ForeignView {
    /// The codes of the normals, sorted.
    #[must_use]
    pub fn normal_codes(&self) -> Vec<&str> {
        let mut codes: Vec<&str> = self.normals.iter().map(|instance| instance.code.as_str()).collect();
        codes.sort_unstable();
        codes
    }

    /// The code of the master.
    #[must_use]
    pub fn master_code(&self) -> Option<&str> {
        self.master.as_ref().map(|instance| instance.code.as_str())
    }
}

/// Reads a prefix as go-micro-service's balancer does: every child of the prefix is a service, and every child of a service but
/// `master` is a normal, whatever its name.
pub async fn read_as_foreign(client: &Client, prefix: &str) -> BTreeMap<String, ForeignView> {
    let prefix = format!("/{}", prefix.trim_matches('/'));
    let mut services = BTreeMap::new();
    for service in client.list_children(&prefix).await.unwrap_or_default() {
        let folder = format!("{prefix}/{service}");
        let mut nodes = client.list_children(&folder).await.unwrap_or_default();
        nodes.sort_unstable();
        let mut view = ForeignView::default();
        for node in nodes {
            // Gone since it was listed: it does not count.
            let Ok((data, _)) = client.get_data(&format!("{folder}/{node}")).await else { continue };
            match parse(&data) {
                None => view.skipped.push(node),
                Some(instance) if node == "master" => view.master = Some(instance),
                Some(instance) => view.normals.push(instance),
            }
        }
        services.insert(service, view);
    }
    services
}

/// As Go's `encoding/json` into a struct: keys in any case, bytes that are no UTF-8 replaced, wrong types left out.
fn parse(data: &[u8]) -> Option<ForeignInstance> {
    let value: Value = serde_json::from_str(&String::from_utf8_lossy(data)).ok()?;
    let field = |name: &str| {
        let fields = value.as_object()?;
        fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    };
    let text = |name: &str| field(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |name: &str| field(name).and_then(Value::as_i64).unwrap_or_default();
    Some(ForeignInstance {
        ip: text("serverip"),
        port: number("serverport"),
        code: text("serveruniquecode"),
        weight: number("weight"),
    })
}

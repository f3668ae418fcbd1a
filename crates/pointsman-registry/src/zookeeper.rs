//! The registry on ZooKeeper, side by side with go-micro-service.

mod batch;
mod explain;
mod fault;
mod folders;
mod follow;
mod heartbeat;
mod keep;
mod layout;
mod leave;
mod logs;
mod overrides;
mod peers;
mod place;
mod reads;
mod session;
mod term_base;
mod terms;
#[cfg(feature = "tls")]
mod tls;
mod tree;
mod upkeep;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pointsman_core::Term;
use tokio::sync::{Mutex, OnceCell, mpsc};
use tokio::time::Instant;
use zookeeper_client::{Acl, Acls, CreateMode, CreateOptions, Permission};

use self::layout::Layout;
use self::logs::Logs;
use self::session::{Link, Session, Sessions};
use crate::backend::{Backend, Event, Scope};
use crate::log::Log;
use crate::overrides::{ClearedOverrides, Override, OverrideChange, OverrideOf};
use crate::peers::Part;
use crate::registration::{End, Task};
use crate::url::{Acl as AclSetting, ROOT, ZooKeeperUrl};
use crate::wait::Wait;
use crate::{Error, Result};

/// One ensemble and one prefix.
///
/// Two sessions: registrations hold one-shot watches, directories persistent ones, and ZooKeeper mixes these up when
/// one session sets both on the same path (ZOOKEEPER-4466). It also keeps a directory's traffic from delaying the
/// heartbeats that a mastership depends on. Each session is made when it is first needed.
pub(crate) struct ZooKeeper {
    settings: Arc<ZooKeeperUrl>,
    layout: Layout,
    /// The first session, made to see whether anybody answers; whoever needs one first takes it.
    first: std::sync::Mutex<Option<Arc<Sessions>>>,
    registrations: OnceCell<Arc<Sessions>>,
    directories: OnceCell<Arc<Sessions>>,
    /// How long a first registration may take to find the registry; set once connected.
    patience: OnceCell<Option<Duration>>,
    /// Held by that one of those who follow which sees to the upkeep.
    upkeep: Mutex<()>,
}

impl ZooKeeper {
    pub(crate) fn new(settings: ZooKeeperUrl) -> Result<Self> {
        let layout = Layout::new(&settings.prefix, &settings.root);
        let settings = Arc::new(settings);
        let first = std::sync::Mutex::new(Some(Arc::new(Sessions::start(settings.clone())?)));
        let (registrations, directories, patience) = (OnceCell::new(), OnceCell::new(), OnceCell::new());
        Ok(Self { settings, layout, first, registrations, directories, patience, upkeep: Mutex::const_new(()) })
    }

    async fn registrations(&self) -> Result<&Arc<Sessions>> {
        let sessions = self.registrations.get_or_try_init(|| async { self.take_or_start() }).await?;
        sessions.revive()?;
        Ok(sessions)
    }

    async fn directories(&self) -> Result<&Arc<Sessions>> {
        // No role is ever held by this session, whoever took the first one.
        let taking = || async { self.take_or_start().inspect(|sessions| sessions.without_leases()) };
        let sessions = self.directories.get_or_try_init(taking).await?;
        sessions.revive()?;
        Ok(sessions)
    }

    /// Whichever sessions there are already.
    async fn any(&self) -> Result<&Arc<Sessions>> {
        if self.registrations.get().is_some() { self.registrations().await } else { self.directories().await }
    }

    /// A connection for something that is done once.
    async fn session(&self, step: impl FnOnce() -> String) -> Result<Session> {
        let sessions = self.any().await?;
        let wait = self.patience.get().copied().flatten().unwrap_or(Duration::MAX);
        match tokio::time::timeout(wait, sessions.up()).await {
            Ok(Ok(session)) => Ok(session),
            Ok(Err(reason)) => Err(Error::unavailable(step(), reason)),
            Err(_) => Err(Error::unavailable(step(), sessions.trouble())),
        }
    }

    fn take_or_start(&self) -> Result<Arc<Sessions>> {
        let first = self.first.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        match first {
            Some(first) => Ok(first),
            None => Ok(Arc::new(Sessions::start(self.settings.clone())?)),
        }
    }
}

/// Options for creating a node, with the access that the settings ask for.
fn options(mode: CreateMode, acl: AclSetting) -> CreateOptions<'static> {
    static PROTECTED: [Acl; 2] =
        [Acl::new_const(Permission::ALL, "auth", ""), Acl::new_const(Permission::READ, "world", "anyone")];
    mode.with_acls(match acl {
        AclSetting::Open => Acls::anyone_all(),
        AclSetting::Protected => Acls::new(&PROTECTED),
    })
}

/// What ZooKeeper says of an ephemeral node, for tests.
#[cfg(test)]
fn stat(czxid: i64, mzxid: i64) -> zookeeper_client::Stat {
    zookeeper_client::Stat {
        czxid,
        mzxid,
        pzxid: 0,
        ctime: 0,
        mtime: 0,
        version: 0,
        cversion: 0,
        aversion: 0,
        ephemeral_owner: 1,
        data_length: 0,
        num_children: 0,
    }
}

#[async_trait]
impl Backend for ZooKeeper {
    async fn connected(&self, wait: Wait<'_>) -> Result<()> {
        let _ = self.patience.set(wait.limit);
        let started = Instant::now();
        let first = self.first.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let Some(sessions) = first else { return Ok(()) };
        let tried = || format!("connect to {:?}", self.settings);
        let unreachable = |waited, reason: String| Error::Unreachable { tried: tried(), waited, reason };
        let mut link = sessions.readable();
        let trying = async {
            loop {
                let state = link.borrow_and_update().clone();
                match state {
                    Link::Up(_) => return Ok(()),
                    Link::Down(obstacle) => wait.failed(&obstacle, tried)?,
                    Link::Closed => return Err(unreachable(started.elapsed(), "the registry is closed".to_owned())),
                }
                if link.changed().await.is_err() {
                    return Err(unreachable(started.elapsed(), "the registry is closed".to_owned()));
                }
            }
        };
        match wait.limit {
            None => trying.await,
            Some(limit) => {
                let late = |_| Err(unreachable(limit, sessions.trouble()));
                tokio::time::timeout(limit, trying).await.unwrap_or_else(late)
            }
        }
    }

    async fn keep(&self, task: Box<Task>) -> End {
        match self.registrations().await {
            Ok(sessions) => keep::keep(&self.settings, &self.layout, sessions.link(), task).await,
            Err(error) => End::failed(task.report, error),
        }
    }

    async fn follow(&self, scope: Scope, events: mpsc::Sender<Event>) {
        match self.directories().await {
            Ok(sessions) => tokio::select! {
                () = follow::follow(&self.layout, &scope, sessions.readable(), &events) => {}
                never = async {
                    let _turn = self.upkeep.lock().await;
                    upkeep::run(&self.layout, sessions.link()).await
                } => match never {},
            },
            Err(error) => tracing::error!(%error, "directory not followed"),
        }
    }

    async fn set_override(&self, service: &str, code: &str, change: OverrideChange) -> Result<()> {
        let session = self.session(|| format!("override {service}/{code}")).await?;
        Ok(overrides::change(&session, &self.layout, self.settings.acl, service, code, change).await?)
    }

    async fn restore_override(&self, service: &str, code: &str, set: Override) -> Result<()> {
        let session = self.session(|| format!("restore override {service}/{code}")).await?;
        Ok(overrides::restore(&session, &self.layout, self.settings.acl, service, code, set).await?)
    }

    async fn overrides(&self, service: Option<&str>) -> Result<Vec<OverrideOf>> {
        let session = self.session(|| "list what operators have set".to_owned()).await?;
        Ok(upkeep::list(&session, &self.layout, service).await?)
    }

    async fn clear_gone(&self, service: Option<&str>) -> Result<ClearedOverrides> {
        let session = self.session(|| "clear what is set for codes that are gone".to_owned()).await?;
        Ok(upkeep::clear_gone(&session, &self.layout, service).await?)
    }

    async fn check_term(&self, service: &str, term: Term) -> Result<Term> {
        let session = self.session(|| format!("check term {term} of {service}")).await?;
        let checked = terms::check(&session, &self.layout, self.settings.acl, service, term).await?;
        checked.map_err(|stale| Error::StaleTerm { service: service.into(), stale })
    }

    async fn term_base(&self) -> Result<Term> {
        let session = self.session(|| "read the term base".to_owned()).await?;
        Ok(Term(term_base::known(&session, &self.layout.terms).await?.base()))
    }

    async fn raise_term_base(&self, base: Term) -> Result<Term> {
        let session = self.session(|| "raise the term base".to_owned()).await?;
        term_base::raise(&session, &self.layout.terms, self.settings.acl, base.0).await.map(Term)
    }

    async fn exchange(&self, part: Part) {
        match self.directories().await {
            Ok(sessions) => peers::exchange(&self.layout, self.settings.acl, sessions.link(), part).await,
            Err(error) => tracing::error!(%error, "no part in what processes ask each other"),
        }
    }

    async fn append(&self, log: &Log, key: &str, entry: &str) -> Result<()> {
        let session = self.session(|| format!("add to {log}")).await?;
        let logs = Logs { session: &session, layout: &self.layout, acl: self.settings.acl };
        Ok(logs.append(log, key, entry).await?)
    }

    async fn read_log(&self, log: &Log) -> Result<Vec<String>> {
        let session = self.session(|| format!("read {log}")).await?;
        let logs = Logs { session: &session, layout: &self.layout, acl: self.settings.acl };
        Ok(logs.read(log).await?)
    }

    async fn close(&self) {
        let first = self.first.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        for sessions in [first.as_ref(), self.registrations.get(), self.directories.get()].into_iter().flatten() {
            sessions.close().await;
        }
    }

    fn label(&self) -> String {
        let ZooKeeperUrl { prefix, servers, root, .. } = &*self.settings;
        // Another ensemble may have the same prefix. The same one may be named in any order.
        let mut servers: Vec<_> = servers.iter().map(String::as_str).collect();
        servers.sort_unstable();
        // What operators have set elsewhere is not of this registry.
        let root = if root == ROOT { "" } else { root };
        let ensemble = crate::disk::fnv1a(format!("{}{root}", servers.join(",")).as_bytes());
        format!("zookeeper-{}-{ensemble:016x}", crate::disk::escaped(prefix.trim_start_matches('/')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::url::Url;

    #[tokio::test]
    async fn each_ensemble_and_prefix_has_a_label_of_its_own() {
        let label = |url: &str| match Url::parse(url).unwrap().0 {
            Url::ZooKeeper(settings) => ZooKeeper::new(*settings).unwrap().label(),
            _ => panic!("{url} is a zookeeper url"),
        };
        let one = label("zookeeper://127.0.0.1:1,127.0.0.1:2/a");
        assert_eq!(one, label("zookeeper://127.0.0.1:2,127.0.0.1:1/a"));
        assert_ne!(one, label("zookeeper://127.0.0.1:1,127.0.0.1:3/a"));
        assert_ne!(one, label("zookeeper://127.0.0.1:1,127.0.0.1:2/b"));
        assert_ne!(one, label("zookeeper://127.0.0.1:1,127.0.0.1:2/a?root=/b"));
        assert_eq!(one, label("zookeeper://127.0.0.1:1,127.0.0.1:2/a?root=/pointsman"));
    }
}

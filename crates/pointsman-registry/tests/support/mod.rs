//! What the tests against ZooKeeper share: a small fleet, and what must hold after each fault.
#![allow(dead_code, missing_docs, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "test support")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::{Instance, ObservedInstance, Role, Snapshot, Term};
use pointsman_registry::{Registration, Registry, Service};
use pointsman_testkit::ZooKeeper;
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions};

/// Far longer than anything here takes: a deadline, not a wait. An election of ZooKeeper's may take over a minute, when a server that has
/// lost its word waits until it says it again (`maxNotificationInterval`).
pub(crate) const SOON: Duration = Duration::from_secs(90);

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// For whoever looks into a failure: RUST_LOG=debug.
pub(crate) fn log() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}

pub(crate) const OPEN: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());
pub(crate) const EPHEMERAL: CreateOptions<'static> = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
pub(crate) const SEQUENTIAL: CreateOptions<'static> = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());

/// Some instances of the service `s`, each of its own process as far as the registry can tell, and a directory.
pub(crate) struct Fleet {
    pub(crate) prefix: String,
    pub(crate) members: Vec<Member>,
    pub(crate) service: Service,
    pub(crate) raw: Client,
    terms: Vec<(Term, Arc<str>)>,
    _watcher: Registry,
}

pub(crate) struct Member {
    pub(crate) registry: Registry,
    pub(crate) registration: Registration,
}

impl Member {
    fn has(&self, code: &str) -> bool {
        *self.registration.instance().code == *code
    }
}

pub(crate) fn url(address: &str, prefix: &str, options: &str) -> String {
    format!("zookeeper://{address}{prefix}?session_timeout=2s&guard=off{options}")
}

impl Fleet {
    /// Starts `count` instances through `address`, watched through `directly`.
    pub(crate) async fn start(address: &str, server: &ZooKeeper, count: usize) -> Self {
        log();
        let prefix = pointsman_testkit::unique_prefix();
        let watcher = Registry::connect(&url(&server.address(), &prefix, "")).await.unwrap();
        let service = watcher.discover("s").await.unwrap();
        let mut fleet =
            Self { prefix, members: vec![], service, raw: server.client().await, terms: vec![], _watcher: watcher };
        for number in 0..count {
            let code = format!("{}", char::from(b'a' + u8::try_from(number).unwrap()));
            fleet.join(address, &code).await;
        }
        fleet
    }

    /// Follows and looks into the registry through `servers` from now on, instead of through one.
    pub(crate) async fn watch_through(&mut self, servers: &str) {
        let watcher = Registry::connect(&url(servers, &self.prefix, "")).await.unwrap();
        self.service = watcher.discover("s").await.unwrap();
        self._watcher = watcher;
        self.raw = Client::connector().with_session_timeout(SOON).connect(servers).await.unwrap();
    }

    pub(crate) async fn join(&mut self, address: &str, code: &str) {
        let registry = Registry::connect(&url(address, &self.prefix, "")).await.unwrap();
        let instance = Instance::new("s").code(code).address("127.0.0.1:50000");
        let registration = registry.register(instance).await.unwrap();
        self.members.push(Member { registry, registration });
    }

    pub(crate) fn master(&self) -> &Member {
        self.members.iter().find(|member| member.registration.role().is_master()).expect("a master")
    }

    pub(crate) fn role(&self, index: usize) -> Role {
        self.members[index].registration.role()
    }

    pub(crate) fn path(&self, node: &str) -> String {
        format!("{}/s/{node}", self.prefix)
    }

    /// What the registry itself holds: code and owner by node.
    pub(crate) async fn nodes(&self) -> BTreeMap<String, (String, i64)> {
        let folder = format!("{}/s", self.prefix);
        while self.raw.sync("/").await.is_err() {}
        let mut nodes = BTreeMap::new();
        for name in self.raw.list_children(&folder).await.unwrap_or_default() {
            let Ok((data, stat)) = self.raw.get_data(&format!("{folder}/{name}")).await else { continue };
            let code = serde_json::from_slice::<serde_json::Value>(&data)
                .map(|json| json["serveruniquecode"].as_str().unwrap_or("?").to_owned())
                .unwrap_or_else(|_| "broken".to_owned());
            nodes.insert(name, (code, stat.ephemeral_owner));
        }
        nodes
    }

    /// The node under which a code is registered, and the session that owns it.
    pub(crate) async fn node_of(&self, code: &str) -> (String, i64) {
        let found = self.nodes().await.into_iter().find(|(_, (other, _))| other == code);
        let (name, (_, owner)) = found.unwrap_or_else(|| panic!("{code} is not registered"));
        (name, owner)
    }

    /// After a fault: every instance has a role again, exactly one is master, the registry holds each exactly once, the
    /// directory says the same, and the term has not fallen.
    pub(crate) async fn settled(&mut self, after: &str) {
        let registrations = self.members.iter_mut().map(|member| &mut member.registration);
        for registration in registrations {
            let mut roles = registration.roles();
            let attached = async { while roles.changed().await.expect("the registration lives") == Role::Detached {} };
            soon(&format!("{after}: {} attached", registration.instance().code), attached).await;
        }
        let codes: Vec<Arc<str>> = self.members.iter().map(|m| m.registration.instance().code.clone()).collect();
        let mut wanted: Vec<&str> = codes.iter().map(|code| &**code).collect();
        wanted.sort_unstable();
        let registered = async {
            loop {
                let nodes = self.nodes().await;
                let mut registered: Vec<&str> = nodes.values().map(|(code, _)| &**code).collect();
                registered.sort_unstable();
                if registered == wanted && nodes.contains_key("master") {
                    return;
                }
            }
        };
        soon(&format!("{after}: the registry holds each exactly once"), registered).await;
        // From here the promise is two seconds.
        let complete = |snapshot: &Snapshot| {
            let listed: Vec<&str> = snapshot.instances().iter().map(|instance| &*instance.code).collect();
            listed == wanted && snapshot.master().is_some()
        };
        let listed = self.service.wait_for(complete);
        let snapshot = tokio::time::timeout(Duration::from_secs(2), listed).await.unwrap_or_else(|_| {
            panic!("{after}: the directory is not what the registry is after 2 s: {:?}", self.service.snapshot())
        });
        let snapshot = snapshot.unwrap();
        // The directory may know of a master before the instance itself does; or it may not know yet that the master of before
        // has got another term.
        let agreed = async {
            let mut snapshot = snapshot;
            loop {
                let master = snapshot.master().filter(|_| complete(&snapshot));
                let knows = |is: &ObservedInstance| {
                    self.members.iter().any(|member| member.has(&is.code) && member.registration.role() == is.role)
                };
                if master.is_some_and(|master| knows(master)) {
                    return snapshot;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
                snapshot = self.service.snapshot();
            }
        };
        let snapshot = soon(&format!("{after}: the master knows, and so does the directory"), agreed).await;
        let master = snapshot.master().unwrap();
        let nodes = self.nodes().await;
        let mut registered: Vec<&str> = nodes.values().map(|(code, _)| &**code).collect();
        registered.sort_unstable();
        assert_eq!(registered.len(), codes.len(), "{after}: each exactly once: {nodes:?}");
        registered.dedup();
        assert_eq!(registered.len(), codes.len(), "{after}: each exactly once: {nodes:?}");
        assert_eq!(nodes["master"].0, *master.code, "{after}");
        let masters: Vec<_> = self.members.iter().filter(|m| m.registration.role().is_master()).collect();
        assert_eq!(masters.len(), 1, "{after}");
        assert_eq!(masters[0].registration.instance().code, master.code, "{after}");
        assert_eq!(masters[0].registration.role(), master.role, "{after}");
        let term = master.role.term().unwrap();
        if let Some((last, code)) = self.terms.last() {
            let same = *last == term && *code == master.code;
            assert!(same || *last < term, "{after}: terms only rise: {:?} then {term} of {}", self.terms, master.code);
        }
        self.terms.push((term, master.code.clone()));
    }
}

pub(crate) async fn until_role(what: &str, registration: &mut Registration, wanted: impl Fn(Role) -> bool) -> Role {
    let mut roles = registration.roles();
    let waiting = async {
        loop {
            let role = roles.changed().await.expect("the registration lives");
            if wanted(role) {
                return role;
            }
        }
    };
    soon(what, waiting).await
}

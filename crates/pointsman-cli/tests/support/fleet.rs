//! Several processes of one service, and what must hold after each fault.

use std::collections::BTreeMap;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use pointsman::{Registry, Role, Service, Snapshot, Term, TermGuard};
use pointsman_testkit::{ZooKeeper, unique_prefix};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::time::timeout;
use zookeeper_client::Client;

use super::{DEADLINE, command};

/// How long the sessions of the processes last.
pub(crate) const SESSION: Duration = Duration::from_secs(2);

/// Processes `pointsman register s --code CODE -o json`, their role lines in the order in which they are written, and a
/// directory that follows the same service.
pub(crate) struct Fleet {
    pub(crate) url: String,
    pub(crate) prefix: String,
    pub(crate) service: Service,
    pub(crate) raw: Client,
    /// Accepts every term that is claimed: what it would refuse is claimed by nobody.
    pub(crate) guard: TermGuard,
    children: BTreeMap<String, Child>,
    /// Codes that somebody else has registered.
    pub(crate) others: Vec<String>,
    roles: BTreeMap<String, Role>,
    claims: mpsc::UnboundedReceiver<Claim>,
    claim: mpsc::UnboundedSender<Claim>,
    registry: Registry,
}

/// A role line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) code: String,
    pub(crate) role: Role,
}

impl Fleet {
    /// Starts these, one after the other: the first is master.
    pub(crate) async fn start(server: &ZooKeeper, codes: &[&str]) -> Fleet {
        let prefix = unique_prefix();
        let url = format!("zookeeper://{}{prefix}?session_timeout={}s&guard=off", server.address(), SESSION.as_secs());
        let registry = Registry::connect(&url).await.unwrap();
        let service = registry.discover("s").await.unwrap();
        let (claim, claims) = mpsc::unbounded_channel();
        let (guard, raw) = (TermGuard::new(), server.client().await);
        let (children, others, roles) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        let mut fleet = Fleet { url, prefix, service, raw, guard, children, others, roles, claims, claim, registry };
        for code in codes {
            fleet.launch(code);
            fleet.until(|claim| claim.code == *code).await;
        }
        fleet
    }

    /// Starts one more process, without waiting for its first role.
    pub(crate) fn launch(&mut self, code: &str) {
        self.launch_with(code, &[]);
    }

    /// The same with further arguments.
    pub(crate) fn launch_with(&mut self, code: &str, more: &[&str]) {
        let args = ["register", "s", "--code", code, "--registry", &self.url, "-o", "json"];
        let mut child = command(args.iter().chain(more)).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (claim, name) = (self.claim.clone(), code.to_owned());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                // What a command writes stands among the role lines.
                let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
                if value["event"] == "role" {
                    let _ = claim.send(Claim { code: name.clone(), role: role(&value) });
                }
            }
        });
        self.children.insert(code.to_owned(), child);
        self.roles.remove(code);
    }

    /// The next role line of any process.
    pub(crate) async fn next(&mut self) -> Claim {
        let claim = timeout(DEADLINE, self.claims.recv()).await;
        let claim = claim.unwrap_or_else(|_| panic!("no further role line; {:?}", self.roles)).unwrap();
        self.take(claim)
    }

    /// No term is claimed that the guard refuses, and none twice by different ones.
    fn take(&mut self, claim: Claim) -> Claim {
        if let Some(term) = claim.role.term() {
            self.guard.check(term).unwrap_or_else(|error| panic!("{claim:?}: {error}"));
            let same = |(code, role): (&String, &Role)| *code != claim.code && role.term() == Some(term);
            assert!(!self.roles.iter().any(same), "{claim:?}, {:?}", self.roles);
        }
        self.roles.insert(claim.code.clone(), claim.role);
        claim
    }

    /// Reads on until a line satisfies the condition.
    pub(crate) async fn until(&mut self, condition: impl Fn(&Claim) -> bool) -> Claim {
        let end = Instant::now() + DEADLINE;
        loop {
            let claim = self.next().await;
            if condition(&claim) {
                return claim;
            }
            assert!(Instant::now() < end, "not in time: {:?}", self.roles);
        }
    }

    /// The next roles of one process.
    pub(crate) async fn roles_of<const N: usize>(&mut self, code: &str) -> [Role; N] {
        let mut roles = [Role::Detached; N];
        for role in &mut roles {
            *role = self.until(|claim| claim.code == code).await.role;
        }
        roles
    }

    /// Waits until this is what a process says of itself.
    pub(crate) async fn wait_for_role(&mut self, code: &str, wanted: impl Fn(Role) -> bool) {
        while !self.roles.get(code).is_some_and(|role| wanted(*role)) {
            self.next().await;
        }
    }

    /// Looks into the registry by another session, after the server has been away.
    pub(crate) async fn reopen(&mut self, server: &ZooKeeper) {
        self.raw = server.client().await;
    }

    /// Code and term of the master.
    pub(crate) fn master(&self) -> (String, Term) {
        let master = self.service.master().unwrap();
        (master.code.to_string(), master.role.term().unwrap())
    }

    pub(crate) fn codes(&self) -> Vec<String> {
        self.children.keys().cloned().collect()
    }

    pub(crate) fn pid(&self, code: &str) -> u32 {
        self.children[code].id().unwrap()
    }

    pub(crate) fn signal(&self, code: &str, signal: Signal) {
        send(self.pid(code), signal);
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self, code: &str) {
        self.signal(code, Signal::KILL);
        self.ended(code).await;
    }

    /// SIGTERM, after which it ends well.
    pub(crate) async fn terminate(&mut self, code: &str) {
        self.signal(code, Signal::TERM);
        assert_eq!(self.ended(code).await.code(), Some(0), "{code}");
    }

    /// Waits for the end of a process, which no longer counts from then on.
    pub(crate) async fn ended(&mut self, code: &str) -> ExitStatus {
        let mut child = self.children.remove(code).unwrap();
        self.roles.remove(code);
        timeout(DEADLINE, child.wait()).await.unwrap_or_else(|_| panic!("{code} does not end")).unwrap()
    }

    /// Every process still runs.
    pub(crate) fn all_run(&mut self) {
        for (code, child) in &mut self.children {
            assert_eq!(child.try_wait().unwrap(), None, "{code} has ended");
        }
    }

    /// After a fault: the directory lists each living instance and nobody else, the registry holds each exactly once, and
    /// each process says of itself what the directory says.
    pub(crate) async fn settled(&mut self, after: &str) {
        let mut wanted: Vec<String> = self.children.keys().chain(&self.others).cloned().collect();
        wanted.sort();
        let complete = |snapshot: &Snapshot| {
            snapshot.master().is_some() && snapshot.instances().iter().map(|i| &*i.code).eq(&wanted)
        };
        let end = tokio::time::Instant::now() + DEADLINE;
        // The directory may know of a role before the process has told of it; or it may still tell of the process's earlier life.
        loop {
            let (service, roles) = (self.service.clone(), self.roles.clone());
            let codes = self.codes();
            let told = |snapshot: &Snapshot| {
                codes.iter().all(|code| roles.get(code) == snapshot.find(code).map(|instance| &instance.role))
            };
            tokio::select! {
                _ = service.wait_for(|snapshot| complete(snapshot) && told(snapshot)) => break,
                claim = self.claims.recv() => drop(self.take(claim.unwrap())),
                () = tokio::time::sleep_until(end) => {
                    panic!("{after}: {wanted:?}, but {:?} and {:?}", service.snapshot(), self.roles)
                }
            }
        }
        let mut registered = self.registered().await;
        // A foreign one takes over in two steps, and is registered twice in between.
        let end = Instant::now() + DEADLINE;
        while !self.others.is_empty() && registered != wanted && Instant::now() < end {
            registered = self.registered().await;
        }
        assert_eq!(registered, wanted, "{after}: each exactly once");
    }

    /// The code of each node.
    async fn registered(&self) -> Vec<String> {
        let mut codes: Vec<String> = self.nodes().await.into_values().collect();
        codes.sort();
        codes
    }

    /// What the registry itself holds: codes by node.
    pub(crate) async fn nodes(&self) -> BTreeMap<String, String> {
        while self.raw.sync("/").await.is_err() {}
        let mut nodes = BTreeMap::new();
        for name in self.raw.list_children(&self.path("")).await.unwrap_or_default() {
            let Ok((data, _)) = self.raw.get_data(&self.path(&name)).await else { continue };
            let node: Value = serde_json::from_slice(&data).unwrap_or_default();
            nodes.insert(name, node["serveruniquecode"].as_str().unwrap_or("?").to_owned());
        }
        nodes
    }

    /// The path of a node in the service's folder, or of the folder.
    pub(crate) fn path(&self, node: &str) -> String {
        format!("{}/s/{node}", self.prefix).trim_end_matches('/').to_owned()
    }

    /// Closes the directory's session.
    pub(crate) async fn end(self) {
        self.registry.close().await;
    }
}

fn role(line: &Value) -> Role {
    match (line["role"].as_str(), line["term"].as_u64()) {
        (Some("master"), Some(term)) => Role::Master(Term(term)),
        (Some("normal"), None) => Role::Normal,
        (Some("detached"), None) => Role::Detached,
        _ => panic!("{line}"),
    }
}

/// Sends a signal to any process.
pub(crate) fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

//! The processes `pointsman serve`: number 0 with an agent and a proxy, number 1 with a proxy that is handed over.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use crate::recorder::Recorder;
use crate::support::DEADLINE;
use crate::support::command;
use crate::support::served::free_port;

/// Number of the process with the agent.
pub(crate) const AGENT: usize = 0;

/// Number of the process that can be handed over.
pub(crate) const HANDED_OVER: usize = 1;

/// A route by which the load asks: its path, and whether it is for the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) path: &'static str,
    pub(crate) is_master: bool,
    algorithm: &'static str,
}

const fn normal(path: &'static str, algorithm: &'static str) -> Route {
    Route { path, is_master: false, algorithm }
}

/// All of them. The algorithm of the last changes with each reload.
pub(crate) const ROUTES: &[Route] = &[
    Route { path: "/master", is_master: true, algorithm: "round-robin" },
    normal("/least", "least-connections"),
    normal("/hash", "url-hash"),
    normal("/ewma", "peak-ewma"),
    normal("/weighted", "weighted-round-robin"),
    normal("/random", "weighted-random"),
    normal("/", "round-robin"),
];

const RELOADED: [&str; 4] = ["round-robin", "random", "least-connections", "ip-hash"];

/// Time until the first byte of an answer after which a request goes elsewhere.
pub(crate) const FIRST_BYTE: Duration = Duration::from_secs(2);

/// One process, started again in the place of the one before.
#[derive(Debug)]
pub(crate) struct Serve {
    number: usize,
    pub(crate) port: u16,
    pub(crate) agent: Option<u16>,
    folder: PathBuf,
    registry: String,
    recorder: Recorder,
    child: Option<Child>,
    starts: usize,
    reloads: usize,
}

impl Serve {
    pub(crate) async fn start(number: usize, folder: &Path, registry: &str, recorder: &Recorder) -> Self {
        let agent = (number == AGENT).then(free_port);
        let (folder, registry, recorder) = (folder.to_owned(), registry.to_owned(), recorder.clone());
        let mut serve =
            Self { number, port: free_port(), agent, folder, registry, recorder, child: None, starts: 0, reloads: 0 };
        serve.write_config();
        serve.start_again().await;
        serve
    }

    /// Starts a process and waits until it is ready.
    pub(crate) async fn start_again(&mut self) {
        let (child, log) = self.launch();
        self.child = Some(child);
        if self.is_ready(&log).await {
            self.recorder.serve(self.number, true, "ready");
        } else {
            let log = std::fs::read_to_string(log).unwrap_or_default();
            panic!("serve {} does not become ready: {log}", self.number);
        }
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self) {
        self.recorder.serve(self.number, false, "killed");
        if let Some(mut child) = self.child.take() {
            let _ = child.kill().await;
        }
    }

    /// Starts the next process, which takes over; the first ends by itself.
    pub(crate) async fn hand_over(&mut self) {
        self.recorder.note(format!("serve {}: the next process starts and takes over", self.number));
        let (next, log) = self.launch();
        if !self.is_ready(&log).await {
            self.recorder.note(format!("serve {}: the next process did not become ready", self.number));
            return;
        }
        let first = self.child.replace(next);
        self.recorder.note(format!("serve {}: the next process is ready", self.number));
        if let Some(mut first) = first {
            let end = timeout(2 * DEADLINE, first.wait()).await;
            self.recorder.note(format!("serve {}: the process before has ended: {end:?}", self.number));
        }
    }

    /// Writes the next configuration; the process follows the file.
    pub(crate) fn reload(&mut self) {
        self.reloads += 1;
        self.recorder.note(format!("serve {}: reload {}", self.number, self.reloads));
        self.write_config();
    }

    /// SIGTERM; waits for the end.
    pub(crate) async fn end(mut self) {
        if let Some(mut child) = self.child.take() {
            if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
            let _ = timeout(DEADLINE, child.wait()).await;
        }
    }

    /// The file with its access log, one JSON object a line.
    pub(crate) fn access_log(&self) -> PathBuf {
        self.folder.join(format!("access-{}.log", self.number))
    }

    fn launch(&mut self) -> (Child, PathBuf) {
        self.starts += 1;
        let log = self.folder.join(format!("serve-{}-{}.log", self.number, self.starts));
        let mut command = command(["serve".as_ref(), "--config".as_ref(), self.config().as_os_str()]);
        command.stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        (command.spawn().unwrap(), log)
    }

    async fn is_ready(&self, log: &Path) -> bool {
        let ready = async {
            while !std::fs::read_to_string(log).unwrap_or_default().contains(" ready") {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(2 * DEADLINE, ready).await.is_ok()
    }

    fn config(&self) -> PathBuf {
        self.folder.join(format!("serve-{}.toml", self.number))
    }

    /// As editors do: aside, then in one step.
    fn write_config(&self) {
        let aside = self.config().with_extension("new");
        std::fs::write(&aside, self.text()).unwrap();
        std::fs::rename(aside, self.config()).unwrap();
    }

    fn text(&self) -> String {
        let Self { port, registry, .. } = self;
        // So that a process that starts just after an outage knows those who have not registered again yet.
        let snapshots = self.folder.join(format!("snapshots-{}", self.number));
        let agent = self.agent.map(|port| format!("[agent]\nlisten = '127.0.0.1:{port}'\n")).unwrap_or_default();
        let hand_over = if self.number == HANDED_OVER { "hand_over = 'serve.sock'\n" } else { "" };
        let mut text = format!(
            "registry = '{registry}&snapshots={}'\n{agent}[http]\nlisten = '127.0.0.1:{port}'\nworkers = 2\nregister_as = 'http-balancer'\n\
             access_log = 'json'\naccess_log_file = '{}'\ndrain_timeout = '5s'\n{hand_over}",
            snapshots.display(),
            self.access_log().display(),
        );
        if self.reloads % 2 == 1 {
            text += "[[http.route]]\nname = 'added'\nmatch = '^/added'\nservice = 'ress'\n";
        }
        for route in ROUTES {
            let is_last = route.path == "/";
            let algorithm = if is_last { RELOADED[self.reloads % RELOADED.len()] } else { route.algorithm };
            let role = if route.is_master { "master" } else { "normal" };
            text += &format!(
                "[[http.route]]\nmatch = '^{}'\nservice = 'ress'\nalgorithm = '{algorithm}'\nrole = '{role}'\n\
                 first_byte_timeout = '{}s'\n",
                route.path,
                FIRST_BYTE.as_secs(),
            );
        }
        text
    }
}

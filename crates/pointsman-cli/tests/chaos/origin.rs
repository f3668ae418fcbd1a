//! The program that an instance runs: answers every request with its code, and writes down what has arrived.

use std::convert::Infallible;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, test_kill_process};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Where the process finds what it is to be.
const VARIABLE: &str = "CHAOS_ORIGIN";

/// Header with the id of a request; the proxy passes it on.
pub(crate) const ID: &str = "x-request-id";

/// Header with the code of the instance that has answered.
pub(crate) const CODE: &str = "x-code";

/// Time for which an origin goes on serving after SIGTERM, as a program does that knows that news takes a while.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// What an origin is told, and where it writes to.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) code: String,
    pub(crate) port: u16,
    pub(crate) journal: PathBuf,
}

/// A request that has arrived at an origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// Since 1970.
    pub(crate) at: Duration,
    pub(crate) id: String,
    pub(crate) is_post: bool,
}

impl Order {
    /// The program and its arguments: this very program again.
    pub(crate) fn command() -> Vec<String> {
        let program = std::env::current_exe().unwrap().to_string_lossy().into_owned();
        [&program, "origin", "--exact", "--ignored"].map(str::to_owned).to_vec()
    }

    /// The variable that makes it an origin. It ends with the run, not with the process that starts it.
    pub(crate) fn variable(&self) -> (&'static str, String) {
        (VARIABLE, format!("{} {} {} {}", std::process::id(), self.port, self.code, self.journal.display()))
    }

    /// Returns the id of its process, once it listens.
    pub(crate) fn pid(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(&self.journal).ok()?;
        Pid::from_raw(text.lines().next()?.strip_prefix("pid ")?.parse().ok()?)
    }

    /// Returns what has arrived.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        let text = std::fs::read_to_string(&self.journal).unwrap_or_default();
        text.lines().filter_map(arrival).collect()
    }
}

fn arrival(line: &str) -> Option<Arrival> {
    let mut words = line.split(' ');
    let method = words.next().filter(|word| *word != "pid")?;
    let at = Duration::from_micros(words.next()?.parse().ok()?);
    Some(Arrival { at, id: words.next()?.to_owned(), is_post: method == "POST" })
}

/// What the process does, if it is one.
pub(crate) async fn run() {
    let Ok(told) = std::env::var(VARIABLE) else { return };
    let mut words = told.splitn(4, ' ');
    let mut word = || words.next().unwrap();
    let (run, port, code) = (word().parse().unwrap(), word().parse::<u16>().unwrap(), word().to_owned());
    let journal = Journal::create(Path::new(word()));
    let listener = listen(run, port).await;
    let mut term = signal(SignalKind::terminate()).unwrap();
    journal.write(&format!("pid {}\n", std::process::id()));
    let origin = Arc::new(Program { code, journal });
    let (end, ending) = watch::channel(false);
    let mut connections = JoinSet::new();
    let told = async {
        term.recv().await;
        sleep(GRACE).await;
    };
    tokio::pin!(told);
    loop {
        tokio::select! {
            () = &mut told => break,
            () = sleep(Duration::from_secs(1)) => end_with(run),
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(serve(stream, origin.clone(), ending.clone()));
                }
            }
            _ = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    drop(listener);
    end.send_replace(true);
    connections.join_all().await;
    // Without the report of the test harness.
    std::process::exit(0);
}

/// Listens as soon as the one that was killed there has let go.
async fn listen(run: i32, port: u16) -> TcpListener {
    loop {
        match TcpListener::bind((crate::instance::host(run), port)).await {
            Ok(listener) => return listener,
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Ends this process if that of the run has ended.
pub(crate) fn end_with(run: i32) {
    if Pid::from_raw(run).is_none_or(|run| test_kill_process(run).is_err()) {
        std::process::exit(1);
    }
}

struct Program {
    code: String,
    journal: Journal,
}

async fn serve(stream: TcpStream, origin: Arc<Program>, mut ending: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| answer(origin.clone(), request));
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = ending.wait_for(|ending| *ending) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

async fn answer(origin: Arc<Program>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let id = request.headers().get(ID).and_then(|id| id.to_str().ok()).unwrap_or("-").to_owned();
    let is_post = request.method() == Method::POST;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Written before anything is answered, in one call: a kill cannot take it back.
    origin.journal.write(&format!("{} {} {id}\n", request.method(), now.as_micros()));
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let takes = if fastrand::u8(..50) == 0 { fastrand::u64(100..500) } else { fastrand::u64(0..10) };
    sleep(Duration::from_millis(takes)).await;
    let body = if is_post { body } else { Bytes::from(id) };
    Ok(Response::builder().header(CODE, &*origin.code).body(Full::new(body)).unwrap())
}

struct Journal(File);

impl Journal {
    fn create(path: &Path) -> Self {
        Self(File::options().create(true).append(true).open(path).unwrap())
    }

    fn write(&self, line: &str) {
        let _ = (&self.0).write_all(line.as_bytes());
    }
}

//! Clients that ask all the time.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::origin::{CODE, ID};
use crate::recorder::Recorder;
use crate::request::{Outcome, Request, Way};
use crate::serves::ROUTES;

/// Time a client waits for a proxy: longer than all attempts of one request take.
const PROXY: Duration = Duration::from_secs(15);

/// Time a client waits for an instance that the agent has picked.
const PICKED: Duration = Duration::from_secs(2);

/// How the reason begins when an answer has broken off.
const IN_THE_BODY: &str = "in the body";

/// Algorithms that the agent is asked for.
const ALGORITHMS: [&str; 5] = ["round-robin", "least-connections", "weighted-random", "url-hash", "peak-ewma"];

/// Where the clients ask: the proxies by number, and the agent.
#[derive(Debug, Clone)]
pub(crate) struct Targets {
    pub(crate) proxies: Vec<u16>,
    pub(crate) agent: u16,
}

/// Running clients.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    targets: Targets,
    recorder: Recorder,
    requests: Mutex<Vec<Request>>,
    is_ending: AtomicBool,
}

impl Load {
    /// Starts clients of each kind: at each proxy two that keep their connection and two that do not, and two at the agent.
    pub(crate) fn start(targets: Targets, recorder: Recorder, rng: &mut fastrand::Rng) -> Self {
        let proxies = targets.proxies.len();
        let shared = Shared { targets, recorder, requests: Mutex::default(), is_ending: AtomicBool::new(false) };
        let (shared, mut clients) = (Arc::new(shared), JoinSet::new());
        let mut client = |name: String| Client { name, shared: shared.clone(), rng: rng.fork(), count: 0 };
        for serve in 0..proxies {
            for keeps in [true, true, false, false] {
                let number = clients.len();
                clients.spawn(client(format!("p{number}")).ask_proxy(serve, keeps));
            }
        }
        for number in 0..2 {
            clients.spawn(client(format!("a{number}")).ask_agent());
        }
        Self { shared, clients }
    }

    /// Ends the clients after what they have under way, and returns all requests.
    pub(crate) async fn end(mut self) -> Vec<Request> {
        self.shared.is_ending.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client that does not panic");
        }
        let mut requests = std::mem::take(&mut *self.shared.requests.lock().unwrap());
        requests.sort_by_key(|request| request.start);
        requests
    }
}

struct Client {
    name: String,
    shared: Arc<Shared>,
    rng: fastrand::Rng,
    count: u64,
}

impl Client {
    async fn ask_proxy(mut self, serve: usize, keeps: bool) {
        let mut connection = None;
        while self.goes_on().await {
            let address = at(self.shared.targets.proxies[serve]);
            // The master's route as often as all the others.
            let route = if self.rng.u8(..4) == 0 { ROUTES[0] } else { ROUTES[self.rng.usize(1..ROUTES.len())] };
            let (id, is_post) = (self.id(), self.rng.u8(..10) < 3);
            let ask =
                Ask { target: format!("{}/{}", route.path.trim_end_matches('/'), self.rng.u16(..50)), id, is_post };
            let start = self.shared.recorder.now();
            let outcome = exchange(&mut connection, address, &ask, PROXY).await;
            if !keeps {
                connection = None;
            }
            let way = Way::Proxy { serve, path: route.path, is_master: route.is_master };
            self.record(ask, way, start, outcome);
        }
    }

    async fn ask_agent(mut self) {
        let mut agent = None;
        while self.goes_on().await {
            let address = at(self.shared.targets.agent);
            let algorithm = ALGORITHMS[self.rng.usize(..ALGORITHMS.len())];
            let target = format!("/v1/services/ress/pick?algorithm={algorithm}&key={}&ttl=5s", self.rng.u16(..50));
            let (id, is_post) = (self.id(), self.rng.bool());
            let start = self.shared.recorder.now();
            let pick = Ask { target, id: id.clone(), is_post: false };
            let (picked, outcome) = match ask(&mut agent, address, &pick, "GET", PROXY).await {
                Ok(answer) if answer.status == 200 => self.call(&mut agent, &answer, &id, is_post).await,
                Ok(answer) => (None, Outcome::Refused(answer.status, answer.problem())),
                Err(why) => (None, Outcome::Broken(format!("agent: {why}"))),
            };
            let ask = Ask { target: String::new(), id, is_post };
            self.record(ask, Way::Agent { algorithm, picked }, start, outcome);
        }
    }

    /// Calls the instance that the agent has picked, and tells the agent what came of it.
    async fn call(
        &self,
        agent: &mut Option<Connection>,
        answer: &Answer,
        id: &str,
        is_post: bool,
    ) -> (Option<(String, u16)>, Outcome) {
        let picked: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (code, address) = (text(&picked["instance"]["code"]), text(&picked["instance"]["address"]));
        let Ok(address) = address.parse::<SocketAddr>() else {
            return (None, Outcome::Wrong(format!("no address: {picked}")));
        };
        let call = Ask { target: "/direct".to_owned(), id: id.to_owned(), is_post };
        let outcome = exchange(&mut None, address, &call, PICKED).await;
        let word = if matches!(outcome, Outcome::Answered(_)) { "success" } else { "failure" };
        let target = format!("/v1/claims/{}?outcome={word}", text(&picked["claim"]));
        let release = Ask { target, id: format!("{id}-claim"), is_post: false };
        // A claim that is not released expires.
        let _ = ask(agent, at(self.shared.targets.agent), &release, "DELETE", PROXY).await;
        (Some((code, address.port())), outcome)
    }

    /// Waits a little; `false` at the end.
    async fn goes_on(&mut self) -> bool {
        sleep(Duration::from_millis(self.rng.u64(10..50))).await;
        !self.shared.is_ending.load(Ordering::Relaxed)
    }

    fn id(&mut self) -> String {
        self.count += 1;
        format!("{}-{}", self.name, self.count)
    }

    fn record(&self, ask: Ask, way: Way, start: Duration, outcome: Outcome) {
        let end = self.shared.recorder.now();
        let request = Request { id: ask.id, way, is_post: ask.is_post, start, end, outcome };
        self.shared.requests.lock().unwrap().push(request);
    }
}

pub(crate) fn at(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

pub(crate) type Connection = SendRequest<Full<Bytes>>;

struct Ask {
    target: String,
    id: String,
    is_post: bool,
}

struct Answer {
    status: u16,
    code: Option<String>,
    body: Bytes,
}

impl Answer {
    fn problem(&self) -> Option<String> {
        let problem: Value = serde_json::from_slice(&self.body).ok()?;
        problem["type"].as_str()?.rsplit(':').next().map(str::to_owned)
    }
}

/// Sends a request for an instance, and checks the answer.
async fn exchange(connection: &mut Option<Connection>, address: SocketAddr, what: &Ask, limit: Duration) -> Outcome {
    let method = if what.is_post { "POST" } else { "GET" };
    match ask(connection, address, what, method, limit).await {
        Ok(answer) if answer.status != 200 => Outcome::Refused(answer.status, answer.problem()),
        Ok(Answer { code: Some(code), body, .. }) if body == what.id => Outcome::Answered(code),
        Ok(answer) => Outcome::Wrong(String::from_utf8_lossy(&answer.body).into_owned()),
        Err(why) => Outcome::Broken(why),
    }
}

/// Sends a request on the connection if there is one. If that has ended while it was idle, as a server may do at any time, the
/// request goes over another, as every client does.
async fn ask(
    connection: &mut Option<Connection>,
    address: SocketAddr,
    what: &Ask,
    method: &str,
    limit: Duration,
) -> Result<Answer, String> {
    let asking = async {
        if let Some(mut sender) = connection.take() {
            match send(&mut sender, what, method).await {
                Ok(answer) => {
                    *connection = Some(sender);
                    return Ok(answer);
                }
                Err(why) if why.starts_with(IN_THE_BODY) => return Err(why),
                Err(_) => {}
            }
        }
        let mut sender = connect(address).await?;
        let answer = send(&mut sender, what, method).await?;
        *connection = Some(sender);
        Ok(answer)
    };
    timeout(limit, asking).await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
}

pub(crate) async fn connect(address: SocketAddr) -> Result<Connection, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
    let _ = stream.set_nodelay(true);
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn send(sender: &mut Connection, what: &Ask, method: &str) -> Result<Answer, String> {
    sender.ready().await.map_err(|error| error.to_string())?;
    let body = if method == "POST" { Bytes::from(what.id.clone()) } else { Bytes::new() };
    let request = hyper::Request::builder().method(method).uri(&what.target).header("host", "127.0.0.1");
    let request = request.header(ID, &*what.id).body(Full::new(body)).unwrap();
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let (head, body) = answer.into_parts();
    let code = head.headers.get(CODE).and_then(|code| code.to_str().ok()).map(str::to_owned);
    let body = body.collect().await.map_err(|error| format!("{IN_THE_BODY}: {error}"))?.to_bytes();
    Ok(Answer { status: head.status.as_u16(), code, body })
}

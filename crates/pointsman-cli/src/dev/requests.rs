//! Requests: a proxy whose routes lead to the sample service, and a client.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use pointsman::proxy::{self, Action, Answer, Network, Pass, Proxy, ProxyError, Route, RouteRole, Settings, Sticky};
use pointsman::{Algorithm, Registry};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::failure::{Failure, chain};

/// The service whose instances are reached by their addresses.
pub(super) const SERVICE: &str = "ress";
/// Where clients ask for it; below [`MASTER`] for its master, below [`STICKY`] for always the same instance.
pub(super) const PATH: &str = "/picture";
pub(super) const MASTER: &str = "/picture/master";
pub(super) const STICKY: &str = "/basket";
/// The cookie by which clients stay with their instance.
pub(super) const COOKIE: &str = "lb";
/// The name under which the proxy is found.
const PROXIES: &str = "http-balancer";
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The proxy.
#[derive(Debug)]
pub(super) struct Requests {
    proxy: Proxy,
}

/// What a client gets.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
}

/// Where the proxy listens, unless somebody else does.
pub(super) fn usual_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7481))
}

impl Requests {
    /// Starts the proxy: at `address`, or, if that is taken, at a free port.
    pub(super) async fn start(registry: &Registry, address: SocketAddr) -> Result<Self, Failure> {
        let start =
            |address| Proxy::builder(registry, settings(address, Algorithm::RoundRobin)).register_as(PROXIES).start();
        let started = match start(address).await {
            Err(proxy::Error::Proxy(ProxyError::Listen { .. })) => start(SocketAddr::new(address.ip(), 0)).await,
            started => started,
        };
        let mut proxy = started.map_err(|error| failed("start the proxy", &error))?;
        proxy.ready().await.map_err(|error| failed("register the proxy", &error))?;
        Ok(Self { proxy })
    }

    /// Where the proxy listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.proxy.address()
    }

    /// Asks the proxy as a client would.
    pub(super) async fn ask(&self, path: &str, fields: &[(&str, &str)]) -> io::Result<Reply> {
        ask(&self.address().to_string(), path, fields).await
    }

    /// Lets the proxy choose by another algorithm.
    pub(super) async fn balance_by(&self, algorithm: Algorithm) -> Result<(), Failure> {
        let settings = settings(self.address(), algorithm);
        self.proxy.reload(&settings).await.map_err(|error| failed("change the algorithm", &error))
    }

    /// What the proxy has counted, as Prometheus reads it, without the end.
    pub(super) fn metrics(&self) -> String {
        self.proxy.metrics()
    }

    /// Ends it in order.
    pub(super) async fn close(self) {
        self.proxy.close().await;
    }
}

impl Reply {
    fn read(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        Some(Self { status, head: head.to_owned(), body: body.to_owned() })
    }

    /// The value of a field of its head, by its name in lower case.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(':'));
        { fields }.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

fn settings(listen: SocketAddr, algorithm: Algorithm) -> Settings {
    let mut settings = Settings::new();
    settings.listen = listen;
    // Several would share the port with whoever else lets them: a second `dev` would get half of the first one's requests.
    settings.workers = 1;
    settings.drain_timeout = PATIENCE;
    // The sample clients say where they come from, as a hop before the proxy would.
    settings.trusted = vec![Network::from(listen.ip())];
    settings.routes = vec![
        route("picture-master", MASTER, |pass| pass.role = RouteRole::Master),
        route("picture", PATH, |pass| pass.algorithm = algorithm),
        route("basket", STICKY, |pass| pass.sticky = Some(Sticky { cookie: COOKIE.to_owned(), max_age: None })),
        help(),
    ];
    settings
}

/// Requests for this path, and what is below it, go to the sample service.
fn route(name: &str, path: &str, change: impl FnOnce(&mut Pass)) -> Route {
    let mut pass = Pass::new(SERVICE);
    change(&mut pass);
    with_action(name, format!("^{path}(/|$)"), Action::Pass(Box::new(pass)))
}

/// What there is to be asked for, answered by the proxy itself.
fn help() -> Route {
    let body = format!(
        "The proxy of `pointsman dev`. Ask for\n\
         {PATH:<18} round robin over the normal instances of {SERVICE} (the algorithm changes with the key a)\n\
         {MASTER:<18} the master of {SERVICE}, whoever that is\n\
         {STICKY:<18} always the same instance, for those who keep the cookie {COOKIE}\n"
    );
    let headers = vec![("content-type".to_owned(), "text/plain; charset=utf-8".to_owned())];
    with_action("help", "^/$".to_owned(), Action::Answer(Answer { status: 200, headers, body }))
}

fn with_action(name: &str, pattern: String, action: Action) -> Route {
    let mut route = Route::new(pattern, SERVICE);
    name.clone_into(&mut route.name);
    route.action = action;
    route
}

/// Asks for a path, on a connection of its own.
pub(super) async fn ask(address: &str, path: &str, fields: &[(&str, &str)]) -> io::Result<Reply> {
    let asking = async {
        let mut stream = TcpStream::connect(address).await?;
        let mut request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
        for (name, value) in fields {
            request.extend([*name, ": ", *value, "\r\n"]);
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await?;
        Reply::read(&reply).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no answer"))
    };
    tokio::time::timeout(PATIENCE, asking).await?
}

fn failed(what: &str, error: &proxy::Error) -> Failure {
    Failure::new(format!("{what}: {}", chain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::sample::{Server, who};

    #[tokio::test]
    async fn who_asks_for_nothing_finds_help_and_each_address_has_its_instance() {
        let registry = Registry::connect("memory://requests").await.unwrap();
        let requests = Requests::start(&registry, ([127, 0, 0, 1], 0).into()).await.unwrap();
        let (mut registrations, mut servers) = (Vec::new(), Vec::new());
        for code in ["ress-1", "ress-2", "ress-3"] {
            let server = Server::start(code, crate::dev::sample::Pace::Busy).await.unwrap();
            let instance = pointsman::Instance::new(SERVICE).code(code).address(server.address());
            registrations.push(registry.register(instance).await.unwrap());
            servers.push(server);
        }
        let from = async |path: &str, fields: &[(&str, &str)]| {
            let reply = requests.ask(path, fields).await.unwrap();
            who(&reply.body).unwrap_or(&reply.body).to_owned()
        };
        // The proxy hears of them a moment later than they are registered.
        let heard = async { while from(PATH, &[]).await != "ress-3" {} };
        tokio::time::timeout(PATIENCE, heard).await.unwrap();
        assert!(from("/", &[]).await.contains(MASTER));
        assert_eq!(requests.ask("/nowhere", &[]).await.unwrap().status, 404);
        // Where a client comes from is what it says: the hashes need more than one address.
        requests.balance_by(Algorithm::IpHash).await.unwrap();
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 2 {
            let address = format!("10.0.0.{}", fastrand::u8(..));
            let fields = [("x-forwarded-for", &*address)];
            let one = from(PATH, &fields).await;
            assert_eq!(from(PATH, &fields).await, one);
            seen.insert(one);
        }
        assert!(requests.metrics().contains("route=\"picture-master\""), "{}", requests.metrics());
        requests.close().await;
    }
}

//! Balanced channels for [tonic]'s clients.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use pointsman_balance::{Algorithm, Balancer, Claim, Outcome};
use tokio::sync::OnceCell;
use tonic::body::Body;
use tonic::transport::{Channel as Connection, Endpoint};
use tonic::{Code, Status, TimeoutExpired};
use tower::{Service, ServiceExt as _};

use crate::client::NoAddress;
use crate::held_body::HeldBody;

type BoxError = Box<dyn Error + Send + Sync>;

/// How long to try to connect to an instance, unless [`Channel::endpoint`] says otherwise: the proxy's default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A channel over the instances of a service, in turn, as they come and go. Where it is to be another algorithm, see [`Channel::new`].
///
/// ```
/// # async fn example(registry: pointsman::Registry) -> pointsman::Result<()> {
/// let channel = pointsman::grpc::channel(&registry.discover("ress").await?);
/// // let client = GreeterClient::new(channel);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn channel(service: &crate::Service) -> Channel {
    Channel::new(service.balancer(Algorithm::default()))
}

/// A channel that sends each call to an instance of a service: what a generated client takes. Cheap to clone; the clones are one.
///
/// An instance is connected to with the first call that goes there; where it cannot be reached, the call goes to another one. Statuses that
/// are the instance's fault ([`Outcome::of_grpc_status`]), a broken connection, and a call that is given up before the first
/// of its answer count as failures, by which instances are ejected. A call counts as in flight until its last message has come. A call that
/// nobody can take, or whose connection breaks, fails with `UNAVAILABLE`.
#[derive(Clone)]
pub struct Channel {
    balancer: Balancer,
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: Box<dyn Fn(Endpoint) -> Endpoint + Send + Sync>,
    /// By address.
    connections: Mutex<HashMap<Arc<str>, Arc<OnceCell<Connection>>>>,
}

impl Channel {
    /// Over this balancer. With the hashes the key is the path of the call, `/package.Service/Method`.
    #[must_use]
    pub fn new(balancer: Balancer) -> Self {
        let endpoint = Box::new(|endpoint| endpoint);
        Self { balancer, shared: Arc::new(Shared { endpoint, connections: Mutex::default() }) }
    }

    /// With settings for the connections, such as TLS, keep-alive, or a timeout for each call. It has no connections yet.
    #[must_use]
    pub fn endpoint(self, settings: impl Fn(Endpoint) -> Endpoint + Send + Sync + 'static) -> Self {
        let shared = Shared { endpoint: Box::new(settings), connections: Mutex::default() };
        Self { shared: Arc::new(shared), ..self }
    }

    /// The balancer.
    #[must_use]
    pub fn balancer(&self) -> &Balancer {
        &self.balancer
    }

    /// A claim on an instance and a connection to it.
    async fn connected(&self, key: &str) -> Result<(Claim, Arc<OnceCell<Connection>>, Connection), BoxError> {
        let mut unreached: Vec<Arc<str>> = Vec::new();
        let mut last: Option<BoxError> = None;
        loop {
            let picked = match unreached.is_empty() {
                true => self.balancer.pick(key),
                false => self.balancer.pick_excluding(key, &unreached),
            };
            let claim = match (picked, last) {
                (Ok(claim), _) => claim,
                (Err(_), Some(last)) => return Err(last),
                (Err(refusal), None) => return Err(refusal.into()),
            };
            let cell = self.cell(&claim)?;
            let claim = claim.fail_unless_reported();
            match cell.get_or_try_init(|| self.connect(&claim)).await {
                Ok(connection) => {
                    let connection = connection.clone();
                    return Ok((claim, cell, connection));
                }
                Err(error) => {
                    claim.report(Outcome::Unreached);
                    unreached.push(claim.code().clone());
                    last = Some(error);
                }
            }
        }
    }

    fn cell(&self, claim: &Claim) -> Result<Arc<OnceCell<Connection>>, NoAddress> {
        let Some(address) = &claim.instance().address else {
            return Err(NoAddress { service: claim.instance().service.clone(), code: claim.code().clone() });
        };
        if let Some(cell) = self.shared.connections().get(address) {
            return Ok(cell.clone());
        }
        // Connections to instances that have gone end with the calls on them.
        let snapshot = self.balancer.snapshot();
        let there: HashSet<&Arc<str>> = snapshot.instances().iter().filter_map(|i| i.address.as_ref()).collect();
        let mut connections = self.shared.connections();
        connections.retain(|address, _| there.contains(address));
        // Another call may have been here meanwhile.
        Ok(connections.entry(address.clone()).or_default().clone())
    }

    async fn connect(&self, claim: &Claim) -> Result<Connection, BoxError> {
        let endpoint = Endpoint::from_shared(format!("http://{}", claim.address().unwrap_or_default()))?;
        let endpoint = (self.shared.endpoint)(endpoint.connect_timeout(CONNECT_TIMEOUT));
        endpoint.connect().await.map_err(|error| {
            format!("connect to {} of {}: {}", claim.code(), claim.instance().service, with_causes(&error)).into()
        })
    }

    async fn send(self, request: Request<Body>) -> Response<HeldBody<Body>> {
        let (claim, cell, connection) = match self.connected(request.uri().path()).await {
            Ok(connected) => connected,
            Err(error) => return Status::unavailable(error.to_string()).into_http().map(HeldBody::of_nobody),
        };
        match connection.oneshot(request).await {
            Ok(response) => {
                if let Some(outcome) = judge(response.headers()) {
                    claim.report(outcome);
                }
                // From here on it has answered: whoever leaves a stream early does not speak against it.
                response.map(|body| HeldBody::new(body, claim.need_not_report(), judge))
            }
            Err(error) => {
                claim.report(Outcome::Failure);
                // The next call connects anew, and so finds out whether the instance can be reached at all.
                self.shared.connections().retain(|_, other| !Arc::ptr_eq(other, &cell));
                let message = format!("call {} of {}: {}", claim.code(), claim.instance().service, with_causes(&error));
                let code = if is_timeout(&error) { Code::DeadlineExceeded } else { Code::Unavailable };
                Status::new(code, message).into_http().map(HeldBody::of_nobody)
            }
        }
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<OnceCell<Connection>>>> {
        // Each step leaves the map whole.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the outcome that the gRPC status tells, if the fields have one.
fn judge(headers: &HeaderMap) -> Option<Outcome> {
    let status = headers.get("grpc-status")?;
    let status = status.to_str().ok().and_then(|status| status.parse().ok());
    Some(status.map_or(Outcome::Failure, Outcome::of_grpc_status))
}

/// Whether the timeout of the connection's settings, or that of the call, has ended it.
fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    error.is::<TimeoutExpired>() || error.source().is_some_and(is_timeout)
}

fn with_causes(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

impl Service<Request<Body>> for Channel {
    type Response = Response<HeldBody<Body>>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let channel = self.clone();
        Box::pin(async move { Ok(channel.send(request).await) })
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("balancer", &self.balancer).finish_non_exhaustive()
    }
}

//! go-micro-service's agent: its three URLs, for those who have programs that ask them. What it says on the wire is the same;
//! what it breaks is not (`tests/go_micro_service.rs`).
//!
//! `init` says where services are registered, where balancers are, and who the caller is; `register` registers the caller for as
//! long as this agent lives; `loadbalance` names a balancer to go through. There is one caller at a time: `init` again
//! replaces what was there.

mod wire;

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::Extension;
use axum::extract::State as Of;
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use bytes::Bytes;
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use pointsman_balance::{Algorithm, Balancer};
use pointsman_core::Instance;
use pointsman_registry::{Registration, Registry, Service};
use tokio::sync::Mutex;

use self::wire::{Failure, Init, Picked, Place, Said};
use crate::State;
use crate::api::Answering;
use crate::body::Unread;
use crate::server::Peer;

/// The only path whose body is read.
pub(crate) const INIT: &str = "/server/init";

/// The paths, the names under which their calls are counted, and what answers them: whatever the method, with 200.
pub(crate) const ROUTES: [(&str, &str, Answering); 3] = [
    (INIT, "go-init", || any(init)),
    ("/service/register", "go-register", || any(register)),
    ("/connect/loadbalance", "go-loadbalance", || any(loadbalance)),
];

/// What the last `init` has set up.
#[derive(Debug, Default)]
pub(crate) struct GoMicroService {
    /// Who asks for a balancer does not wait while something is set up.
    balancers: ArcSwapOption<Balancers>,
    /// Held while something is set up or taken down, so that one `init` follows another.
    slot: Mutex<Slot>,
}

#[derive(Debug, Default)]
struct Slot {
    own: Option<Own>,
    /// The agent has ended: nothing is set up any more.
    is_closed: bool,
}

/// Where balancers are found.
#[derive(Debug)]
struct Balancers {
    said: (Place, Algorithm, String),
    registry: Registry,
    /// Keeps the balancer's view alive.
    _service: Service,
    balancer: Balancer,
}

/// Who the caller is, and where it registers.
#[derive(Debug)]
struct Own {
    said: (Place, Instance),
    registry: Registry,
    registration: Option<Registration>,
}

impl GoMicroService {
    /// Sets up what is different from what is there; then takes down what that replaces.
    async fn init(&self, init: Init) -> Result<(), Failure> {
        let mut slot = self.slot.lock().await;
        if slot.is_closed {
            return Err(Failure::Cannot("the agent is about to end".to_owned()));
        }
        let balancers = match self.balancers.load_full() {
            Some(there) if there.said == init.balancers => None,
            _ => Some(Arc::new(Balancers::connect(init.balancers).await?)),
        };
        let own = match &slot.own {
            Some(there) if there.said == init.own => None,
            _ => Some(Own::connect(init.own).await?),
        };
        if let Some(balancers) = balancers
            && let Some(old) = self.balancers.swap(Some(balancers))
        {
            old.registry.clone().close().await;
        }
        if let Some(own) = own
            && let Some(old) = slot.own.replace(own)
        {
            old.close().await;
        }
        Ok(())
    }

    async fn register(&self) -> Result<(), Failure> {
        self.slot.lock().await.own.as_mut().ok_or(Failure::NotStarted)?.register().await
    }

    fn pick(&self, client: IpAddr) -> Result<Picked, Failure> {
        self.balancers.load().as_ref().ok_or(Failure::NotStarted)?.pick(client)
    }

    /// Ends what is registered.
    pub(crate) async fn close(&self) {
        let mut slot = self.slot.lock().await;
        slot.is_closed = true;
        if let Some(balancers) = self.balancers.swap(None) {
            balancers.registry.clone().close().await;
        }
        if let Some(own) = slot.own.take() {
            own.close().await;
        }
    }
}

impl Balancers {
    async fn connect(said: (Place, Algorithm, String)) -> Result<Self, Failure> {
        let (place, algorithm, name) = &said;
        let registry = Registry::connect(&place.url()).await?;
        let service = registry.discover(name).await?;
        let balancer = Balancer::builder(service.view()).algorithm(*algorithm).build();
        Ok(Self { said, registry, _service: service, balancer })
    }

    fn pick(&self, client: IpAddr) -> Result<Picked, Failure> {
        let (_, _, name) = &self.said;
        let claim = self.balancer.pick(client.to_string());
        let claim = claim.map_err(|error| Failure::NoBalancer(format!("service {name}: {error}")))?;
        Picked::new(claim.instance())
    }
}

impl Own {
    async fn connect(said: (Place, Instance)) -> Result<Self, Failure> {
        let registry = Registry::connect(&said.0.url()).await?;
        Ok(Self { said, registry, registration: None })
    }

    /// Registers, once.
    async fn register(&mut self) -> Result<(), Failure> {
        if self.registration.is_none() {
            let registering = self.registry.register(self.said.1.clone()).await;
            self.registration = Some(registering.map_err(Failure::NotRegistered)?);
        }
        Ok(())
    }

    async fn close(self) {
        if let Some(registration) = self.registration
            && let Err(error) = registration.close().await
        {
            // It is removed as soon as the registry is back.
            tracing::warn!(%error, "deregister");
        }
        self.registry.close().await;
    }
}

/// `POST /server/init`.
async fn init(Of(state): Of<Arc<State>>, method: Method, unread: Option<Extension<Unread>>, body: Bytes) -> Response {
    let answer = async {
        wrong_method_unless(&method, &Method::POST, 102)?;
        // Whatever is wrong with it, it is this one error.
        if let Some(Extension(Unread(problem))) = unread {
            return Err(Failure::Unreadable(problem.detail.into_owned()));
        }
        let init = Init::read(&body)?;
        to_its_end(async move { state.go_micro_service.init(init).await }).await?;
        Ok(Said::ok(None))
    };
    respond(answer.await)
}

/// `POST /service/register`.
async fn register(Of(state): Of<Arc<State>>, method: Method) -> Response {
    let answer = async {
        wrong_method_unless(&method, &Method::POST, 112)?;
        to_its_end(async move { state.go_micro_service.register().await }).await?;
        Ok(Said::ok(None))
    };
    respond(answer.await)
}

/// Does it all, also when the client has gone meanwhile: nothing is left half set up.
async fn to_its_end(work: impl Future<Output = Result<(), Failure>> + Send + 'static) -> Result<(), Failure> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(Failure::Cannot(error.to_string())))
}

/// `GET /connect/loadbalance`.
async fn loadbalance(Of(state): Of<Arc<State>>, Extension(Peer(peer)): Extension<Peer>, method: Method) -> Response {
    let answer = || {
        wrong_method_unless(&method, &Method::GET, 122)?;
        state.go_micro_service.pick(peer.ip()).map(|picked| Said::ok(Some(picked)))
    };
    respond(answer())
}

fn wrong_method_unless(method: &Method, wanted: &Method, number: u16) -> Result<(), Failure> {
    if method == wanted { Ok(()) } else { Err(Failure::Method(number)) }
}

/// Always 200, and text.
fn respond(answer: Result<Said, Failure>) -> Response {
    let said = answer.unwrap_or_else(|failure| {
        tracing::debug!(%failure, "go-micro-service's agent");
        Said::failed(&failure)
    });
    // Strings and numbers under string keys: there is nothing in it that JSON cannot say.
    let mut response = serde_json::to_vec(&said).unwrap_or_default().into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

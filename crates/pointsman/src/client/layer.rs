//! A layer that sends each request to an instance.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use pin_project_lite::pin_project;
use pointsman_balance::{Balancer, Claim, Outcome};
use pointsman_core::ObservedInstance;
use tower::{Layer, Service};

use crate::held_body::HeldBody;

type BoxError = Box<dyn Error + Send + Sync>;

/// A layer for HTTP clients: picks an instance for each request, puts its address into the request's URI, and reports how it went: a status of 500
/// and above, an error, and a request that is given up before its answer are failures. The instance counts as in flight until the body of
/// the answer has ended; it is found in the extensions of request and answer, as an `Arc<ObservedInstance>`.
///
/// A retry belongs around it, and picks anew; a timeout too.
///
/// ```
/// use pointsman::Algorithm;
/// use pointsman::client::BalanceLayer;
/// use tower::Layer as _;
///
/// # async fn example(service: pointsman::Service, http_client: impl Clone) {
/// // A hyper-util `Client`, for one.
/// let client = BalanceLayer::new(service.balancer(Algorithm::LeastConnections)).layer(http_client);
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct BalanceLayer {
    balancer: Balancer,
    scheme: Scheme,
}

impl BalanceLayer {
    /// Over this balancer. The key of the hashes is the request's path with its query.
    #[must_use]
    pub fn new(balancer: Balancer) -> Self {
        Self { balancer, scheme: Scheme::HTTP }
    }

    /// With this scheme in the URI. Default: `http`.
    #[must_use]
    pub fn scheme(self, scheme: Scheme) -> Self {
        Self { scheme, ..self }
    }
}

impl<S> Layer<S> for BalanceLayer {
    type Service = Balanced<S>;

    fn layer(&self, inner: S) -> Balanced<S> {
        Balanced { inner, balancer: self.balancer.clone(), scheme: self.scheme.clone() }
    }
}

/// A client under a [`BalanceLayer`]. Its errors are a [`PickError`](crate::PickError), [`NoAddress`], or the client's own.
#[derive(Debug, Clone)]
pub struct Balanced<S> {
    inner: S,
    balancer: Balancer,
    scheme: Scheme,
}

/// The instance that was picked is reached by its code, not by an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoAddress {
    /// The service.
    pub service: Arc<str>,
    /// The instance's code.
    pub code: Arc<str>,
}

impl fmt::Display for NoAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "call {} of {}: it has no address that can be called over HTTP", self.code, self.service)
    }
}

impl Error for NoAddress {}

impl<S, B, R> Service<Request<B>> for Balanced<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
{
    type Response = Response<HeldBody<R>>;
    type Error = BoxError;
    type Future = CallFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let key = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let claim = match self.balancer.pick(key) {
            Ok(claim) => claim,
            Err(refusal) => return CallFuture::refused(refusal.into()),
        };
        let Some(authority) = claim.address().and_then(|address| address.parse().ok()) else {
            let (service, code) = (claim.instance().service.clone(), claim.code().clone());
            return CallFuture::refused(NoAddress { service, code }.into());
        };
        let claim = claim.fail_unless_reported();
        *request.uri_mut() = at(request.uri(), self.scheme.clone(), authority);
        request.extensions_mut().insert(claim.instance().clone());
        CallFuture { future: Some(self.inner.call(request)), claim: Some(claim), refusal: None }
    }
}

/// The same path at another authority.
fn at(uri: &Uri, scheme: Scheme, authority: Authority) -> Uri {
    let mut parts = uri.clone().into_parts();
    (parts.scheme, parts.authority) = (Some(scheme), Some(authority));
    let path = parts.path_and_query.take();
    parts.path_and_query = Some(path.unwrap_or_else(|| http::uri::PathAndQuery::from_static("/")));
    // All three parts are there, and each is valid.
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

pin_project! {
    /// The answer of [`Balanced`].
    pub struct CallFuture<F> {
        #[pin]
        future: Option<F>,
        claim: Option<Claim>,
        refusal: Option<BoxError>,
    }
}

impl<F> CallFuture<F> {
    fn refused(refusal: BoxError) -> Self {
        Self { future: None, claim: None, refusal: Some(refusal) }
    }
}

impl<F, R, E> Future for CallFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<HeldBody<R>>, BoxError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(refusal) = this.refusal.take() {
            return Poll::Ready(Err(refusal));
        }
        let Some(future) = this.future.as_pin_mut() else { return Poll::Pending };
        let answer = ready!(future.poll(context));
        let Some(claim) = this.claim.take() else { return Poll::Pending };
        match answer {
            Ok(mut response) => {
                claim.report(response.status());
                let instance: Arc<ObservedInstance> = claim.instance().clone();
                response.extensions_mut().insert(instance);
                Poll::Ready(Ok(response.map(|body| HeldBody::new(body, claim, |_| None))))
            }
            Err(error) => {
                claim.report(Outcome::Failure);
                Poll::Ready(Err(error.into()))
            }
        }
    }
}

impl<F> fmt::Debug for CallFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallFuture").field("claim", &self.claim).finish_non_exhaustive()
    }
}

//! Streams of events (`text/event-stream`, WHATWG HTML 9.2).

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};

use crate::State;
use crate::metrics::Counted;
use crate::problem::{Kind, Problem};

/// A comment so often lets both ends notice that the other is gone.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(10);
/// The comment.
pub(super) const BEAT: Bytes = Bytes::from_static(b":\n\n");

const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// nginx would keep events back.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Where events come from.
pub(super) trait Source: Send + 'static {
    /// The next ones, as text; `None` at the end. It is dropped when the client has gone.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// Counts who watches, unless there are too many.
pub(super) fn counted(state: &State) -> Result<Counted, Problem> {
    let limit = state.limits.watchers;
    let many = || Problem::new(Kind::TooMany, format!("{limit} streams are open, and no more are served"));
    state.metrics.watch(limit).ok_or_else(many)
}

/// The answer that goes on for as long as the source does.
pub(super) fn answer(source: impl Source, counted: Counted) -> Response {
    let next = |(mut source, counted): (_, Counted)| async move {
        let text = Source::next(&mut source).await?;
        Some((text, (source, counted)))
    };
    let stream = unfold((source, counted), next).map(Ok::<_, std::convert::Infallible>);
    let mut response = Body::from_stream(stream).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, EVENT_STREAM);
    headers.insert(CACHE_CONTROL, NO_STORE);
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

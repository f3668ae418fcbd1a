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
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The comment.
const BEAT: Bytes = Bytes::from_static(b":\n\n");

/// The type of such an answer.
pub(crate) const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// nginx would keep events back.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Where events come from.
pub(super) trait Source: Send + 'static {
    /// The next ones, or a part of one, as text; `None` at the end. What is waited for here may be dropped, and asked for again.
    /// The source is dropped when the client has gone.
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
        // Here, where no source can put it off by waking for something that it has nothing to say about.
        let text = match tokio::time::timeout(HEARTBEAT, Source::next(&mut source)).await {
            Ok(text) => text?,
            Err(_) => BEAT,
        };
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

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::metrics::Metrics;

    /// Wakes every second, and has something to say in the 25th.
    struct Restless(u32);

    impl Source for Restless {
        async fn next(&mut self) -> Option<Bytes> {
            while self.0 != 25 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                self.0 += 1;
            }
            self.0 += 1;
            Some(Bytes::from_static(b"event"))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn hearts_beat_whatever_else_goes_on() {
        let (counted, started) = (Metrics::new().watch(1).unwrap(), Instant::now());
        let mut stream = answer(Restless(0), counted).into_body().into_data_stream();
        let mut told = Vec::new();
        for _ in 0..3 {
            let text = stream.next().await.unwrap().unwrap();
            told.push((text, started.elapsed().as_secs()));
        }
        assert_eq!(told[0], (BEAT, 10));
        assert_eq!(told[1], (BEAT, 20));
        assert_eq!(told[2].0, "event");
    }
}

//! HTTP/2 towards an instance.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{Request, Uri};

use crate::flow::{Broken, Sink, Source};
use crate::forward;
use crate::head::{Fields, Framing, Name, ResponseHead, Verb, Version};
use crate::http1::parse::{self, Bounds};
use crate::http2::{CONNECTION_WINDOW, Incoming, Outgoing, SEND_BUFFER, STREAM_WINDOW, add, broken};
use crate::io::Io;

use super::{Failure, Sending};

/// More than the largest head that can be allowed, with what HTTP/2 reckons for each field.
const LARGEST_HEAD: u32 = 128 << 10;

/// One request on a connection.
#[derive(Debug)]
pub(crate) struct Http2 {
    send: SendRequest<Bytes>,
    usage: Arc<Usage>,
    reused: bool,
    to_head: bool,
    response: Option<ResponseFuture>,
    outgoing: Option<Outgoing>,
    incoming: Option<Incoming>,
    /// Why the request could not even be begun.
    failure: Option<h2::Error>,
    /// It has no form in HTTP/2.
    is_unsendable: bool,
    sent: bool,
}

/// The connections of one worker to the instances of one service. Requests share one, as long as the instance takes so many on it.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    by_address: Mutex<HashMap<Arc<str>, Vec<Shared>>>,
}

/// A connection that requests share.
#[derive(Debug)]
struct Shared {
    send: SendRequest<Bytes>,
    usage: Arc<Usage>,
}

/// Held by each request on a connection.
#[derive(Debug, Default)]
struct Usage {
    /// A request has had no answer in time: nobody is there any more, for all that can be told.
    is_suspect: AtomicBool,
}

impl Shared {
    fn requests(&self) -> usize {
        Arc::strong_count(&self.usage) - 1
    }

    fn is_alive(&mut self, cx: &mut Context<'_>) -> bool {
        !self.usage.is_suspect.load(Ordering::Relaxed) && !matches!(self.send.poll_ready(cx), Poll::Ready(Err(_)))
    }
}

impl Connections {
    /// One that still takes requests.
    pub(crate) fn get(&self, address: &str, cx: &mut Context<'_>) -> Option<Http2> {
        let mut all = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = all.get_mut(address)?;
        shared.retain_mut(|one| one.is_alive(cx));
        let one = shared.iter().find(|one| one.requests() < one.send.current_max_send_streams())?;
        Some(Http2::new(one.send.clone(), one.usage.clone(), true))
    }

    /// Begins to speak HTTP/2.
    pub(crate) async fn begin(&self, address: &Arc<str>, io: Io) -> Result<Http2, io::Error> {
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            // What it is exactly is looked at when a head is there.
            .max_header_list_size(LARGEST_HEAD)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(4 * CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER);
        let (send, connection) = builder.handshake::<_, Bytes>(io).await.map_err(broken)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to an instance");
            }
        });
        let shared = Shared { send: send.clone(), usage: Arc::default() };
        let begun = Http2::new(send, shared.usage.clone(), false);
        let mut all = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(address.clone()).or_default().push(shared);
        Ok(begun)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_address.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Lets go of connections to who is no longer there, of those that have ended, and of those that are no longer needed. How many are
    /// left.
    pub(crate) fn sweep(&self, cx: &mut Context<'_>, is_there: impl Fn(&str) -> bool) -> usize {
        let mut all = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|address, shared| {
            let mut idle = 0;
            shared.retain_mut(|one| {
                idle += usize::from(one.requests() == 0);
                one.is_alive(cx) && (one.requests() > 0 || idle == 1)
            });
            is_there(address) && !shared.is_empty()
        });
        all.values().map(Vec::len).sum()
    }
}

impl Http2 {
    fn new(send: SendRequest<Bytes>, usage: Arc<Usage>, reused: bool) -> Self {
        Self {
            send,
            usage,
            reused,
            to_head: false,
            response: None,
            outgoing: None,
            incoming: None,
            failure: None,
            is_unsendable: false,
            sent: false,
        }
    }

    pub(super) fn send(&mut self, sending: &Sending<'_>, scheme: &str) {
        let Sending { head, target, framing, hop, .. } = sending;
        self.to_head = head.verb == Verb::Head;
        let mut request = Request::new(());
        *request.version_mut() = http::Version::HTTP_2;
        let method = http::Method::from_bytes(head.method());
        let path = if *target == b"*" { &b"*"[..] } else { target };
        let uri = Uri::builder().scheme(scheme).authority(head.host()).path_and_query(path).build();
        let (Ok(method), Ok(uri)) = (method, uri) else {
            // Some of what HTTP/1 lets pass has none: a target with `<` in it, or no host.
            self.is_unsendable = true;
            return;
        };
        (*request.method_mut(), *request.uri_mut()) = (method, uri);
        let map = request.headers_mut();
        forward::request(head, *hop, &mut |name, value| add(map, name, value));
        let mut left = None;
        if let Framing::Length(length) = framing {
            // After what comes by HTTP/2 trailers may follow, whatever its length.
            left = Some(*length).filter(|_| head.version != Version::Http2);
            map.insert(http::header::CONTENT_LENGTH, (*length).into());
        } else if *framing == Framing::Empty && head.fields.get(Name::ContentLength).is_some() {
            map.insert(http::header::CONTENT_LENGTH, 0.into());
        }
        if head.takes_trailers {
            map.insert(http::header::TE, http::HeaderValue::from_static("trailers"));
        }
        let ended = *framing == Framing::Empty;
        match self.send.send_request(request, ended) {
            Ok((response, stream)) => {
                self.sent = true;
                self.response = Some(response);
                self.outgoing = Some(Outgoing::new(stream, left, ended));
            }
            Err(error) => self.failure = Some(error),
        }
    }

    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut ResponseHead,
        bounds: Bounds,
    ) -> Poll<Result<(), Failure>> {
        if self.is_unsendable {
            return Poll::Ready(Err(Failure::Unsendable("its target or its host cannot be written in HTTP/2")));
        }
        let Some(future) = &mut self.response else {
            let failure = self.failure.take().map_or_else(|| io::ErrorKind::NotConnected.into(), broken);
            return Poll::Ready(Err(Failure::Unanswered(failure)));
        };
        if let Poll::Ready(Some(Ok(interim))) = future.poll_informational(cx) {
            return Poll::Ready(read(interim.status(), interim.headers(), head, bounds));
        }
        match ready!(Pin::new(future).poll(cx)) {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                if let Err(failure) = read(parts.status, &parts.headers, head, bounds) {
                    return Poll::Ready(Err(failure));
                }
                let length = parts.headers.get(http::header::CONTENT_LENGTH);
                let length = length.and_then(|length| parse::content_length(length.as_bytes()));
                let incoming = Incoming::new(body);
                head.told_length = length.filter(|_| head.status >= 200 && head.status != 204);
                head.framing = match length {
                    _ if self.to_head || incoming.is_at_end() || matches!(head.status, 204 | 304) => Framing::Empty,
                    Some(length) => Framing::Length(length),
                    None => Framing::Chunked,
                };
                if head.framing == Framing::Empty && !self.to_head && head.status != 304 && head.status != 204 {
                    head.told_length = Some(0);
                }
                self.incoming = Some(incoming);
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                // The instance says that it has not looked at it (RFC 9113, 8.7): of a GOAWAY only those streams are told that come after the
                // last that it sees to.
                let is_leaving =
                    error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
                self.sent &= error.reason() != Some(h2::Reason::REFUSED_STREAM) && !is_leaving;
                Poll::Ready(Err(Failure::Unanswered(broken(error))))
            }
        }
    }

    /// There has been no answer in time.
    pub(super) fn distrust(&self) {
        self.usage.is_suspect.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    pub(super) fn has_sent(&self) -> bool {
        self.sent
    }
}

fn read(
    status: http::StatusCode,
    map: &http::HeaderMap,
    head: &mut ResponseHead,
    bounds: Bounds,
) -> Result<(), Failure> {
    head.clear();
    let bytes: usize = map.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if map.len() > bounds.fields || bytes > bounds.bytes {
        return Err(Failure::Nonsense("its head is too large"));
    }
    head.status = status.as_u16();
    head.version = Version::Http2;
    for (name, value) in map {
        head.fields.push(name.as_str().as_bytes(), value.as_bytes());
    }
    Ok(())
}

impl Drop for Http2 {
    fn drop(&mut self) {
        // Whoever gives up says so; after the end of both bodies that says nothing.
        let ended = self.incoming.as_ref().is_some_and(Incoming::is_at_end);
        if let Some(outgoing) = self.outgoing.as_mut().filter(|_| !ended) {
            outgoing.reset(h2::Reason::CANCEL);
        }
    }
}

impl Source for Http2 {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        match &mut self.incoming {
            Some(incoming) => incoming.poll(cx),
            None => Poll::Ready(Ok(false)),
        }
    }

    fn body(&self) -> &[u8] {
        self.incoming.as_ref().map_or(&[], Incoming::bytes)
    }

    fn consume(&mut self, count: usize) {
        if let Some(incoming) = &mut self.incoming {
            incoming.consume(count);
        }
    }

    fn trailers(&self) -> Option<&Fields> {
        self.incoming.as_ref().and_then(Incoming::trailers)
    }
}

impl Sink for Http2 {
    fn poll_push(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.outgoing {
            Some(outgoing) => outgoing.poll_push(cx, data),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn finish(&mut self, trailers: Option<&Fields>) {
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.finish(trailers);
        }
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task writes.
        Poll::Ready(Ok(()))
    }
}

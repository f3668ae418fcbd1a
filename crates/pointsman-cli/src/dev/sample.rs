//! The sample services: what their instances do.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A tiny HTTP server, which says its name. Ends when dropped, with all its connections, as a process that was killed.
#[derive(Debug)]
pub(super) struct Server {
    address: String,
    flights: watch::Receiver<usize>,
    _serving: JoinSet<()>,
}

/// What an answer takes.
#[derive(Debug, Clone)]
pub(super) enum Pace {
    /// As long as it takes a program that has something to do.
    Busy,
    /// Until the gate is open.
    Gated(watch::Receiver<bool>),
}

/// What its connections share.
#[derive(Debug, Clone)]
struct Shared {
    greeting: Bytes,
    pace: Pace,
    flights: watch::Sender<usize>,
}

/// What an answer begins with; the name follows.
const GREETING: &str = "hello from ";

impl Server {
    /// Listens on a free port of loopback.
    pub(super) async fn start(name: &str, pace: Pace) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (sender, flights) = watch::channel(0);
        let mut serving = JoinSet::new();
        serving
            .spawn(serve(listener, Shared { greeting: format!("{GREETING}{name}\n").into(), pace, flights: sender }));
        Ok(Self { address, flights, _serving: serving })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// How many requests it is at, now and later.
    pub(super) fn flights(&self) -> &watch::Receiver<usize> {
        &self.flights
    }
}

/// The name of the one who has answered so.
pub(super) fn who(body: &str) -> Option<&str> {
    body.strip_prefix(GREETING).map(str::trim_end)
}

async fn serve(listener: TcpListener, shared: Shared) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                let shared = shared.clone();
                let answering = service_fn(move |_: Request<_>| answer(shared.clone()));
                let talking = http1::Builder::new().serve_connection(TokioIo::new(stream), answering);
                connections.spawn(async move {
                    // The caller went away: nobody to answer.
                    let _ = talking.await;
                });
            }
            Some(_) = connections.join_next() => {}
            else => {}
        }
    }
}

async fn answer(mut shared: Shared) -> Result<Response<Full<Bytes>>, Infallible> {
    let _flight = Flight::begin(&shared.flights);
    match &mut shared.pace {
        Pace::Busy => work().await,
        // Who could open it is gone: then it is of no use to wait.
        Pace::Gated(gate) => drop(gate.wait_for(|open| *open).await),
    }
    Ok(Response::new(Full::new(shared.greeting)))
}

/// A request that an instance is at.
struct Flight<'a>(&'a watch::Sender<usize>);

impl<'a> Flight<'a> {
    fn begin(flights: &'a watch::Sender<usize>) -> Self {
        flights.send_modify(|count| *count += 1);
        Self(flights)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// What an answer takes: mostly short, now and then long, so that there is something in flight to be seen.
pub(super) async fn work() {
    let long = fastrand::u8(..10) == 0;
    let milliseconds = if long { fastrand::u64(300..900) } else { fastrand::u64(20..120) };
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::requests::ask;

    #[tokio::test]
    async fn a_server_answers_until_it_is_dropped() {
        let (gate, opened) = watch::channel(true);
        let server = Server::start("ress-1", Pace::Gated(opened)).await.unwrap();
        let address = server.address().to_owned();
        let answer = ask(&address, "/x", &[]).await.unwrap();
        assert_eq!((answer.status, who(&answer.body)), (200, Some("ress-1")));
        gate.send_replace(false);
        let asking = tokio::spawn({
            let address = address.clone();
            async move { ask(&address, "/x", &[]).await }
        });
        server.flights().clone().wait_for(|count| *count == 1).await.unwrap();
        drop(server);
        assert!(asking.await.unwrap().is_err(), "its connections end with it");
        let gone = async { while ask(&address, "/x", &[]).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
    }
}

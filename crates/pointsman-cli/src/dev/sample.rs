//! The sample services: what their instances do.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A tiny HTTP server, which says its name. Ends when dropped, with all its connections.
#[derive(Debug)]
pub(super) struct Server {
    address: String,
    _serving: JoinSet<()>,
}

impl Server {
    /// Listens on a free port of loopback.
    pub(super) async fn start(name: &str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, format!("hello from {name}\n")));
        Ok(Self { address, _serving: serving })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> &str {
        &self.address
    }
}

async fn serve(listener: TcpListener, body: String) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                let body = body.clone();
                connections.spawn(async move {
                    // The caller went away: nobody to answer.
                    let _ = answer(stream, &body).await;
                });
            }
            Some(_) = connections.join_next() => {}
            else => {}
        }
    }
}

async fn answer(mut stream: TcpStream, body: &str) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if request.len() > 4096 || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    work().await;
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    stream.shutdown().await
}

/// What an answer takes: mostly short, now and then long, so that there is something in flight to be seen.
pub(super) async fn work() {
    let long = fastrand::u8(..10) == 0;
    let milliseconds = if long { fastrand::u64(300..900) } else { fastrand::u64(20..120) };
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// Calls a server as a client would, and returns what it says.
pub(super) async fn call(address: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await?;
    match reply.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_answers_until_it_is_dropped() {
        let server = Server::start("ress-1").await.unwrap();
        assert_eq!(call(server.address(), "/x").await.unwrap(), "hello from ress-1\n");
        let address = server.address().to_owned();
        drop(server);
        let gone = async { while call(&address, "/x").await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
    }
}

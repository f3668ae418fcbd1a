//! Accepting connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pointsman_net::accept::AcceptPause;
use pointsman_net::tls::{self, ServerTls};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::shared::Broking;
use super::{Error, Tls};

/// A client that is silent, and has not promised to speak, is asked by the kernel whether it is still there.
const PROBE: Duration = Duration::from_secs(60);

/// Binds, before anything is served; on the runtime on which connections will be accepted.
pub(super) async fn bind(address: SocketAddr, runtime: &Handle) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source| Error::Listen { address, source };
    let listener =
        runtime.spawn(TcpListener::bind(address)).await.map_err(io::Error::other).flatten().map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Accepts for ever, once clients are let in. Until then the system lets them wait.
pub(super) async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, broking: Arc<Broking>) {
    broking.opened().await;
    let mut pause = AcceptPause::new("MQTT broker");
    loop {
        let Some((socket, peer)) = pause.take(listener.accept().await, || ()).await else { continue };
        prepare(&socket);
        let name: Arc<str> = peer.to_string().into();
        match tls.clone() {
            None => broking.serve(name, false, async move { Ok(socket) }),
            Some(tls) => broking.serve(name, false, handshake(tls, socket)),
        }
    }
}

/// What cannot be set makes the connection slower, or a dead one live longer.
fn prepare(socket: &TcpStream) {
    let _ = socket.set_nodelay(true);
    let _ = rustix::net::sockopt::set_socket_keepalive(socket, true);
    let _ = rustix::net::sockopt::set_tcp_keepidle(socket, PROBE);
    let _ = rustix::net::sockopt::set_tcp_keepintvl(socket, PROBE / 6);
}

/// Reads certificate and key.
pub(super) fn acceptor(tls: &Tls) -> Result<TlsAcceptor, Error> {
    let files = ServerTls { cert: tls.cert.clone(), key: tls.key.clone(), client_ca: None };
    Ok(files.load(&[])?.into())
}

/// Secures a connection. The error is in plain English.
async fn handshake(tls: TlsAcceptor, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    tls.accept(socket).await.map_err(|error| io::Error::new(error.kind(), tls::describe_io(&error)))
}

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
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use super::certificate;
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
pub(super) async fn accept(listener: TcpListener, broking: Arc<Broking>) {
    broking.opened().await;
    let mut pause = AcceptPause::new("MQTT broker");
    loop {
        let Some((socket, peer)) = pause.take(listener.accept().await, || ()).await else { continue };
        prepare(&socket);
        let name: Arc<str> = peer.to_string().into();
        match broking.tls() {
            None => broking.serve(name, false, async move { Ok((socket, None)) }),
            Some(tls) => broking.serve(name, false, handshake(tls.into(), socket)),
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

/// Reads certificate and key, and the authorities of clients.
pub(super) fn tls_config(tls: &Tls) -> Result<Arc<ServerConfig>, Error> {
    let files = ServerTls { cert: tls.cert.clone(), key: tls.key.clone(), client_ca: tls.client_ca.clone() };
    Ok(files.load(&[])?)
}

/// Secures a connection, and says which user the client's certificate names, if it had to show one. The error is in plain English.
async fn handshake(tls: TlsAcceptor, socket: TcpStream) -> io::Result<(TlsStream<TcpStream>, Option<Arc<str>>)> {
    let describe = |error: io::Error| io::Error::new(error.kind(), tls::describe_io(&error));
    let stream = tls.accept(socket).await.map_err(describe)?;
    let Some(certificates) = stream.get_ref().1.peer_certificates() else { return Ok((stream, None)) };
    let user = certificates.first().and_then(|certificate| certificate::user(certificate));
    let user = user.ok_or_else(|| io::Error::other("the client's certificate names no user"))?;
    Ok((stream, Some(user.into())))
}

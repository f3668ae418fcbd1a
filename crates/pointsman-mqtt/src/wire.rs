//! One connection to a broker: bytes in and out, packets cut out of them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use pointsman_net::tls;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::broker::Handle;
use crate::packet::{Connack, Connect, Decoder, Malformed, Packet, encode};
use crate::reason::Reason;
use crate::url::BrokerUrl;

/// How much is read at once. A chunk holds some hundred small messages, and what is made of them is written at once as well.
const CHUNK: usize = 64 << 10;
/// How long a broker may take to accept and to answer CONNECT.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a broker may take to read the last packets and to close the connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a client connects to.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// A broker of one's own.
    Url(BrokerUrl),
    /// The broker in this process.
    Embedded(Handle),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No bytes can be exchanged.
    #[error("{step}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// What went wrong.
        source: io::Error,
    },
    /// The broker did not answer in time.
    #[error("{0}: no answer within 10 s")]
    Timeout(&'static str),
    /// What the broker says is no MQTT.
    #[error("the broker's answer is not MQTT: {0}")]
    Malformed(#[from] Malformed),
    /// The broker refuses.
    #[error("the broker refuses the connection: {reason}{}", .detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Refused {
        /// Why.
        reason: Reason,
        /// In the broker's own words.
        detail: Option<String>,
    },
}

/// A connection on which CONNECT has been answered.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: Stream,
    decoder: Decoder,
    input: BytesMut,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Pipe(DuplexStream),
}

impl Wire {
    /// Connects. Dropped before it is done, nothing stays open.
    pub(crate) async fn connect(
        target: Target,
        mut connect: Connect,
        max_packet: usize,
    ) -> Result<(Self, Connack), ConnectError> {
        let stream = match &target {
            Target::Embedded(handle) => Stream::Pipe(handle.connect()),
            Target::Url(url) => {
                let credentials =
                    url.credentials().map_err(|source| ConnectError::Io { step: "read auth_file", source })?;
                if let Some(credentials) = credentials {
                    connect.user = Some(credentials.user.into());
                    connect.password = Some(credentials.password.into_bytes().into());
                }
                timeout(CONNECT_TIMEOUT, open(url)).await.map_err(|_| ConnectError::Timeout("connect"))??
            }
        };
        let decoder = Decoder::new(connect.version, max_packet).cutting();
        let mut wire = Self { stream, decoder, input: BytesMut::new() };
        let greeting = wire.greet(connect);
        let connack = timeout(CONNECT_TIMEOUT, greeting).await.map_err(|_| ConnectError::Timeout("CONNECT"))??;
        Ok((wire, connack))
    }

    async fn greet(&mut self, connect: Connect) -> Result<Connack, ConnectError> {
        // With TLS 1.3 the broker says only after the handshake that it refuses the certificate of this side.
        let io = |step| move |source| ConnectError::Io { step, source: in_plain_english(source) };
        let mut out = BytesMut::new();
        let version = connect.version;
        let packet = Packet::Connect(Box::new(connect));
        encode(&packet, version, &mut out).map_err(|error| io("CONNECT")(io::Error::other(error)))?;
        self.stream.write_all_buf(&mut out).await.map_err(io("send CONNECT"))?;
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.input)? {
                return match packet {
                    Packet::Connack(connack) if connack.reason.is_error() => Err(ConnectError::Refused {
                        reason: connack.reason,
                        detail: connack.properties.reason_string.map(|text| text.to_string()),
                    }),
                    Packet::Connack(connack) => Ok(*connack),
                    _ => Err(Malformed::protocol("the first packet is not CONNACK").into()),
                };
            }
            if self.stream.read_buf(&mut self.input).await.map_err(io("read CONNACK"))? == 0 {
                let closed = io::Error::new(io::ErrorKind::UnexpectedEof, "the broker closed the connection");
                return Err(io("read CONNACK")(closed));
            }
        }
    }

    /// The next packet that is all there.
    pub(crate) fn decode(&mut self) -> Result<Option<Packet>, Malformed> {
        self.decoder.decode(&mut self.input)
    }

    /// Whether the packet that was read last is a message without the payload that it has, because it is too large.
    pub(crate) fn take_cut(&mut self) -> bool {
        self.decoder.take_cut()
    }

    /// Reads one chunk; `false` at the end.
    pub(crate) fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.input.reserve(CHUNK);
        Poll::Ready(Ok(ready!(read(&mut self.stream, context, &mut self.input))? > 0))
    }

    /// To be called when what has been read is answered: see [`Stream::acknowledge_quickly`].
    pub(crate) fn acknowledge_quickly(&self) {
        self.stream.acknowledge_quickly();
    }

    /// Writes what is in `out`, as far as it goes.
    pub(crate) fn poll_drain(&mut self, context: &mut Context<'_>, out: &mut BytesMut) -> Poll<io::Result<()>> {
        while !out.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            out.advance(written);
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }
}

impl Wire {
    /// Writes the last packets, DISCONNECT among them, and closes the connection when the broker has. A socket that is closed while
    /// something waits in it to be read would be reset, and the broker might never read what has been written.
    pub(crate) async fn finish(mut self, mut out: BytesMut) {
        let finished = async {
            self.stream.write_all_buf(&mut out).await?;
            self.stream.shutdown().await?;
            while self.stream.read_buf(&mut self.input).await? > 0 {
                self.input.clear();
            }
            io::Result::Ok(())
        };
        // A broker that has gone, or does not read, has not heard it; that ends nothing that has not ended.
        let _ = timeout(CLOSE_TIMEOUT, finished).await;
    }
}

/// Reads into the free room of `buffer`. The future of `read_buf` keeps no state, so that a new one each time does no harm.
fn read(stream: &mut Stream, context: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<usize>> {
    std::pin::pin!(stream.read_buf(buffer)).poll(context)
}

impl Stream {
    /// Lets the kernel acknowledge at once what has come. A broker that does not set `TCP_NODELAY` (mosquitto, unless told
    /// to) sends its next small packet only after that; the kernel would otherwise wait 40 ms for an answer to go with.
    fn acknowledge_quickly(&self) {
        let socket = match self {
            Stream::Tcp(socket) => socket,
            Stream::Tls(stream) => stream.get_ref().0,
            Stream::Pipe(_) => return,
        };
        // If it cannot be had, it is slower.
        let _ = rustix::net::sockopt::set_tcp_quickack(socket, true);
    }
}

/// Puts an error of TLS in plain English, and leaves others as they are.
fn in_plain_english(error: io::Error) -> io::Error {
    match tls::find(&error) {
        Some(reason) => io::Error::new(error.kind(), tls::describe(reason)),
        None => error,
    }
}

async fn open(url: &BrokerUrl) -> Result<Stream, ConnectError> {
    let io = |step| move |source| ConnectError::Io { step, source };
    let host = url.host.trim_start_matches('[').trim_end_matches(']');
    let socket = TcpStream::connect((host, url.port)).await.map_err(io("connect"))?;
    socket.set_nodelay(true).map_err(io("set TCP_NODELAY"))?;
    let Some(files) = &url.tls else { return Ok(Stream::Tcp(socket)) };
    // Read anew for each connection, so that a renewed certificate is taken up.
    let config = files.load(&[]).map_err(|error| io("set up TLS")(io::Error::other(error)))?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| io("set up TLS")(io::Error::other(error)))?;
    let failed = |error: io::Error| io("TLS handshake")(io::Error::new(error.kind(), tls::describe_io(&error)));
    let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.map_err(failed)?;
    Ok(Stream::Tls(Box::new(stream)))
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Pipe(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Pipe(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Pipe(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Pipe(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use pointsman_net::tls::ServerTls;
    use pointsman_testkit::TlsFiles;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    #[tokio::test]
    async fn a_missing_client_certificate_is_told_in_plain_english() {
        let folder = tempfile::tempdir().unwrap();
        let files = TlsFiles::create(folder.path());
        let server =
            ServerTls { cert: files.server.clone(), key: files.server.clone(), client_ca: Some(files.ca.clone()) };
        let acceptor = TlsAcceptor::from(server.load(&[]).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("mqtts://{}?ca={}", listener.local_addr().unwrap(), files.ca.display());
        tokio::spawn(async move { acceptor.accept(listener.accept().await.unwrap().0).await.map(drop) });
        let target = Target::Url(url.parse().unwrap());
        let error = Wire::connect(target, Connect::default(), 1 << 20).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("the other side requires a certificate of this side"), "{text}");
    }
}

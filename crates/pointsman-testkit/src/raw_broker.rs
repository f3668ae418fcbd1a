//! A peer that says what a test tells it to, byte by byte: a bad broker, or a bad client.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// How long a peer may take where a method is given no time.
const PATIENCE: Duration = Duration::from_secs(20);

/// A TCP listener on loopback behind which a test plays the broker. A connection that is not accepted by
/// [`accept`](RawBroker::accept) is established by the kernel, and finds nobody who answers.
#[derive(Debug)]
pub struct RawBroker {
    listener: TcpListener,
    address: SocketAddr,
}

/// Plays the client.
#[derive(Debug)]
pub struct RawClient;

/// One end of a connection, with everything that has come in on it. Closed on drop.
#[derive(Debug)]
pub struct RawConnection {
    stream: TcpStream,
    received: Vec<u8>,
    /// How much of `received` has been handed out.
    read: usize,
}

impl RawBroker {
    /// CONNACK of MQTT 3.1.1: welcome, no session present.
    pub const CONNACK_3: [u8; 4] = [0x20, 2, 0, 0];
    /// CONNACK of MQTT 5: welcome, no session present, no properties.
    pub const CONNACK_5: [u8; 5] = [0x20, 3, 0, 0, 0];

    /// Listens on a port that the kernel chooses.
    pub async fn start() -> RawBroker {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        RawBroker { listener, address }
    }

    /// `127.0.0.1:port`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The next connection.
    ///
    /// # Panics
    /// When there is none within 20 seconds.
    pub async fn accept(&self) -> RawConnection {
        let (stream, _) = patiently(PATIENCE, "a connection", self.listener.accept()).await.unwrap();
        RawConnection::new(stream)
    }
}

impl RawClient {
    /// Connects to `host:port` and says nothing.
    ///
    /// # Panics
    /// When that is refused, or takes longer than 20 seconds.
    pub async fn connect(address: &str) -> RawConnection {
        let stream = patiently(PATIENCE, "an established connection", TcpStream::connect(address)).await;
        RawConnection::new(stream.unwrap_or_else(|error| panic!("connect to {address}: {error}")))
    }

    /// A CONNECT packet of protocol level `level` (4 is MQTT 3.1.1, 5 is MQTT 5) for a clean session, with a keep-alive of a
    /// minute, no properties, and no user.
    ///
    /// # Panics
    /// When the client id is longer than 100 bytes: the packet's length is kept in one.
    #[must_use]
    pub fn connect_packet(level: u8, client_id: &str) -> Vec<u8> {
        assert!(client_id.len() <= 100, "a short client id");
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', level, 0b10, 0, 60];
        if level == 5 {
            body.push(0);
        }
        body.extend([0, u8::try_from(client_id.len()).unwrap()]);
        body.extend(client_id.as_bytes());
        [&[0x10, u8::try_from(body.len()).unwrap()], &body[..]].concat()
    }
}

impl RawConnection {
    fn new(stream: TcpStream) -> RawConnection {
        drop(stream.set_nodelay(true));
        RawConnection { stream, received: Vec::new(), read: 0 }
    }

    /// What has come next, as much as there is; empty when the peer has closed or reset the connection.
    ///
    /// # Panics
    /// When nothing happens for so long.
    pub async fn read_some(&mut self, within: Duration) -> Vec<u8> {
        if self.read == self.received.len() {
            patiently(within, "more bytes, or the end", self.fill()).await;
        }
        self.take(self.received.len() - self.read)
    }

    /// The next `count` bytes.
    ///
    /// # Panics
    /// When they do not come within 20 seconds, or the connection ends before.
    pub async fn read_exact(&mut self, count: usize) -> Vec<u8> {
        while self.received.len() - self.read < count {
            let more = patiently(PATIENCE, "more bytes", self.fill()).await;
            assert!(more, "{count} bytes expected, then came the end after {:?}", &self.received[self.read..]);
        }
        self.take(count)
    }

    /// One whole MQTT control packet, its header included.
    ///
    /// # Panics
    /// When none comes within 20 seconds, or what comes is none.
    pub async fn read_packet(&mut self) -> Vec<u8> {
        let mut packet = self.read_exact(2).await;
        let mut length = usize::from(packet[1] & 0x7f);
        for shift in [7, 14, 21] {
            if packet[packet.len() - 1] & 0x80 == 0 {
                break;
            }
            packet.extend(self.read_exact(1).await);
            length |= usize::from(packet[packet.len() - 1] & 0x7f) << shift;
        }
        assert!(packet[packet.len() - 1] & 0x80 == 0, "no remaining length of MQTT: {packet:?}");
        packet.extend(self.read_exact(length).await);
        packet
    }

    /// Everything that comes until the peer closes or resets the connection.
    ///
    /// # Panics
    /// When it does neither for so long.
    pub async fn read_until_closed(&mut self, within: Duration) -> Vec<u8> {
        patiently(within, "the end of the connection", async { while self.fill().await {} }).await;
        self.take(self.received.len() - self.read)
    }

    /// Everything that has been read so far, from the first byte of the connection.
    #[must_use]
    pub fn received(&self) -> &[u8] {
        &self.received
    }

    /// Sends these bytes. Whether the peer is still there is for a read to find out.
    pub async fn write(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes).await);
    }

    /// Ends it with a RST: the peer's next read fails.
    pub fn reset(self) {
        self.stream.set_zero_linger().expect("SO_LINGER");
    }

    /// Ends it with a FIN after what has been written: the peer's next read finds the end.
    pub async fn close(mut self) {
        drop(self.stream.shutdown().await);
        // To close with bytes unread would be a RST.
        while self.stream.try_read_buf(&mut self.received).is_ok_and(|count| count > 0) {}
    }

    /// Waits for bytes; `false` at the end.
    async fn fill(&mut self) -> bool {
        self.stream.read_buf(&mut self.received).await.unwrap_or(0) > 0
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let from = self.read;
        self.read += count;
        self.received[from..self.read].to_vec()
    }
}

async fn patiently<T>(within: Duration, what: &str, happens: impl Future<Output = T>) -> T {
    timeout(within, happens).await.unwrap_or_else(|_| panic!("{what} expected within {within:?}"))
}

//! Senders that are there before the relay.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use pointsman::Instance;
use pointsman::mqtt::Relay;
use pointsman::mqtt::broker::{Broker, Options};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;

use crate::support::{registry, route, within};

const STARTS: usize = 20;
/// How many messages a sender sends, each on a connection of its own.
const MESSAGES: u8 = 10;

/// `MQTT`, version 5, a clean start, no keep alive, no properties; the client id.
fn connect(id: u8) -> Vec<u8> {
    [b"\x10\x0e\0\x04MQTT\x05\x02\0\0\0\0\x01", &[id][..]].concat()
}

async fn packet(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(u8, Vec<u8>)> {
    let (first, length) = (stream.read_u8().await?, stream.read_u8().await?);
    assert!(length < 0x80, "no packet here is that long");
    let mut rest = vec![0; length.into()];
    stream.read_exact(&mut rest).await?;
    Ok((first, rest))
}

/// Sends a message of QoS 1 as soon as somebody listens; the reason code of its acknowledgement.
async fn send(address: SocketAddr, id: u8) -> u8 {
    let mut stream = loop {
        match TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    // Without waiting for the CONNACK.
    let publish = b"\x32\x0c\0\x06/login\0\x01\0x";
    stream.write_all(&[&connect(id), &publish[..]].concat()).await.unwrap();
    assert_eq!(packet(&mut stream).await.unwrap().0, 0x20);
    let (kind, rest) = packet(&mut stream).await.unwrap();
    assert_eq!((kind, &rest[..2]), (0x40, &b"\0\x01"[..]));
    rest.get(2).copied().unwrap_or(0)
}

/// Takes everything under the code `one`, from within the process.
async fn serve(mut stream: DuplexStream) {
    stream.write_all(&connect(b's')).await.unwrap();
    assert_eq!(packet(&mut stream).await.unwrap().0, 0x20);
    stream.write_all(b"\x82\x0b\0\x01\0\0\x05one/#\x01").await.unwrap();
    assert_eq!(packet(&mut stream).await.unwrap().0, 0x90);
    tokio::spawn(async move {
        while let Ok((_, rest)) = packet(&mut stream).await {
            let topic = usize::from(rest[1]);
            stream.write_all(&[0x40, 2, rest[2 + topic], rest[3 + topic]]).await.unwrap();
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_comes_before_the_relay_has_subscribed() {
    for _ in 0..STARTS {
        let registry = registry().await;
        let instance = registry.register(Instance::new("cfgs").code("one")).await.unwrap();
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let senders: Vec<_> = (0..MESSAGES).map(|id| tokio::spawn(send(free, b'A' + id))).collect();
        let broker = Broker::bind(Options::new(free)).await.unwrap();
        serve(broker.handle().connect()).await;
        let mut settings = pointsman::mqtt::Settings::new();
        settings.routes = vec![route()];
        settings.drain_timeout = Duration::from_millis(100);
        let relay = Relay::start(&registry, settings, None, Some(&broker)).await.unwrap();
        for sender in senders {
            assert_eq!(within(sender).await.unwrap(), 0);
        }
        let figures = relay.figures().await.unwrap();
        assert_eq!((figures.received, figures.dead_letters), (u64::from(MESSAGES), 0), "{figures:?}");
        relay.close().await;
        instance.close().await.unwrap();
        broker.close().await;
    }
}

//! The broker beside what else runs in its process.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;

use super::options;
use crate::broker::Broker;

/// One thread for everything but the broker. While that is held up, with a client's packets to read, the rest goes on.
#[tokio::test]
async fn nothing_else_in_the_process_waits_for_the_broker() {
    let broker = Broker::start(options()).await.unwrap();
    let (held, is_held) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let broking = std::sync::Arc::clone(&broker.broking);
    let holder = thread::spawn(move || {
        let core = broking.core();
        held.send(()).unwrap();
        let _ = released.recv();
        drop(core);
    });
    is_held.recv().unwrap();
    let mut client = TcpStream::connect(broker.address()).unwrap();
    client.write_all(b"\x10\x0d\0\x04MQTT\x05\x02\0\0\0\0\0").unwrap();
    let mut local = broker.handle().connect();
    tokio::io::AsyncWriteExt::write_all(&mut local, b"\x10").await.unwrap();
    // As long as the broker's tasks need to run into the lock, where they ran on this thread.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(!holder.is_finished());
    drop(release);
    holder.join().unwrap();
    broker.close().await;
}

//! Ends somebody else's session.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Attaches to the session and closes it, until the server knows it no longer. A session is guarded by a password, which the
/// server computes from the session's number and a constant of its source (`ZooKeeperServer.generatePasswd`).
pub(crate) async fn expire(address: SocketAddr, session: i64) {
    let end = async {
        let attempt = || timeout(Duration::from_secs(1), attach_and_close(address, session));
        while !matches!(attempt().await, Ok(Ok(false))) {
            sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(Duration::from_secs(10), end).await.is_ok(), "end session {session:#x} at {address}: no success");
}

/// Whether the session was still there. Both requests go out together: the owner of the session loses its connection by the
/// first one, and would take the session back before the second.
async fn attach_and_close(address: SocketAddr, session: i64) -> io::Result<bool> {
    let mut connect = Vec::new();
    connect.extend(0_i32.to_be_bytes()); // protocol version
    connect.extend(0_i64.to_be_bytes()); // last zxid seen
    connect.extend(30_000_i32.to_be_bytes()); // session timeout in ms
    connect.extend(session.to_be_bytes());
    connect.extend(16_i32.to_be_bytes());
    connect.extend(password(session));
    connect.push(0); // read-only
    let mut close = Vec::new();
    close.extend(1_i32.to_be_bytes()); // xid
    close.extend((-11_i32).to_be_bytes()); // closeSession
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&[frame(&connect), frame(&close)].concat()).await?;
    let _length = stream.read_u32().await?;
    let _version = stream.read_i32().await?;
    let negotiated = stream.read_i32().await?;
    // Until the server ends the connection, so that the close has been carried out.
    drop(stream.read_to_end(&mut Vec::new()).await);
    Ok(negotiated > 0)
}

fn frame(body: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    frame.extend(body);
    frame
}

/// `new java.util.Random(session ^ 0xB3415C00).nextBytes(16)`.
fn password(session: i64) -> [u8; 16] {
    const MULTIPLIER: u64 = 0x5_DEEC_E66D;
    const MASK: u64 = (1 << 48) - 1;
    let mut state = (session.cast_unsigned() ^ 0xB341_5C00 ^ MULTIPLIER) & MASK;
    let mut bytes = [0; 16];
    for chunk in bytes.chunks_exact_mut(4) {
        state = state.wrapping_mul(MULTIPLIER).wrapping_add(0xB) & MASK;
        let word = u32::try_from(state >> 16).unwrap();
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

//! What is behind the proxies: answers that lie ready in memory, one read and one write each.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use pointsman_bench::mqtt::Result;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;

/// Paths that end with this are answered with 16 KiB, all others with 128 bytes.
pub(crate) const LARGE: &str = "/16k";
pub(crate) const SMALL: &str = "/128";

/// Answers at `address`, for good, on one thread. The head is what nginx would send, so that the proxies have as much to read.
pub(crate) fn serve(address: SocketAddr) -> Result<()> {
    let (small, large) = (answer(128), answer(16 << 10));
    let listener = TcpListener::bind(address)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    let mut connections: HashMap<u64, Connection> = HashMap::new();
    let (mut last, mut events) = (0, Vec::with_capacity(1024));
    loop {
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result?,
        };
        for event in events.drain(..) {
            let id = event.data.u64();
            if id == 0 {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                last += 1;
                epoll::add(&epoll, &stream, epoll::EventData::new_u64(last), epoll::EventFlags::IN)?;
                connections.insert(last, Connection { stream, request: Vec::new(), unsent: Vec::new() });
                continue;
            }
            let Some(connection) = connections.get_mut(&id) else { continue };
            let waited = !connection.unsent.is_empty();
            if connection.go_on(&small, &large).is_err() {
                // Who is closed is out of the epoll as well.
                connections.remove(&id);
                continue;
            }
            let waits = !connection.unsent.is_empty();
            if waits != waited {
                let interest = if waits { epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
                epoll::modify(&epoll, &connection.stream, epoll::EventData::new_u64(id), interest)?;
            }
        }
    }
}

fn answer(length: usize) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Wed, 25 Nov 2026 12:00:00 GMT\r\nContent-Type: text/plain\r\n\
         Content-Length: {length}\r\nConnection: keep-alive\r\n\r\n"
    )
    .into_bytes();
    answer.resize(answer.len() + length, b'x');
    answer
}

struct Connection {
    stream: TcpStream,
    /// What has come of a request that is not here whole.
    request: Vec<u8>,
    /// What the socket did not take.
    unsent: Vec<u8>,
}

impl Connection {
    /// Requests have no bodies, and come one by one.
    fn go_on(&mut self, small: &[u8], large: &[u8]) -> std::io::Result<()> {
        if !self.unsent.is_empty() {
            let unsent = std::mem::take(&mut self.unsent);
            return self.send(&unsent);
        }
        let mut chunk = [0; 4096];
        let read = match self.stream.read(&mut chunk) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        if self.request.is_empty() && chunk[..read].ends_with(b"\r\n\r\n") {
            return self.send(if is_large(&chunk[..read]) { large } else { small });
        }
        self.request.extend_from_slice(&chunk[..read]);
        if self.request.ends_with(b"\r\n\r\n") {
            let request = std::mem::take(&mut self.request);
            return self.send(if is_large(&request) { large } else { small });
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let written = match self.stream.write(bytes) {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        self.unsent.extend_from_slice(&bytes[written..]);
        Ok(())
    }
}

fn is_large(request: &[u8]) -> bool {
    request.split(|&byte| byte == b' ').nth(1).is_some_and(|path| path.ends_with(LARGE.as_bytes()))
}

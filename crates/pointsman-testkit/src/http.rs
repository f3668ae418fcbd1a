//! HTTP from outside, for the tests of the proxy: origins of several kinds, and clients that are none of ours.
//!
//! Origins listen on loopback and end with the value that stands for them.

mod echo_origin;
mod frames;
mod grpc;
mod hyper_origin;
mod load;
mod message;
mod nginx;
mod node_modules;
mod python_origin;
mod raw_client;
mod raw_origin;
mod tools;
mod venv;
mod websocket;

pub use echo_origin::{EchoOrigin, Trouble, pattern};
pub use frames::{Frame, FrameClient, kind};
pub use grpc::{Grpc, GrpcAnswer, GrpcOrigin};
pub use hyper_origin::{Answer, HyperOrigin, Seen, SeenBody, answer};
pub use load::{Load, MIXED, Plan, Tally, Way};
pub use message::{Response, head_end};
pub use nginx::Nginx;
pub use node_modules::NodeModules;
pub use python_origin::PythonOrigin;
pub use raw_client::{RawClient, get, request};
pub use raw_origin::{Play, RawOrigin, RawRequest, whole};
pub use tools::{Output, curl, resident_memory, run, varnishtest};
pub use venv::Venv;
pub use websocket::{WebSocket, WebSocketAnswer, WebSocketOrigin};

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};

use crate::zookeeper::free_port;

/// How long anything may take where a method is given no time.
const PATIENCE: Duration = Duration::from_secs(20);

/// An address where nobody listens, and where the kernel lets nobody who asks for any port.
#[must_use]
pub fn unused_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// As [`TcpListener::bind`], with room for more than 128 who connect at the same moment: the others would have to try again, a
/// second later.
#[allow(clippy::unused_async, reason = "it has to be called within a runtime")]
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

//! In the place of `tls.rs` in a build without TLS: types that have no value, so that nothing of them is ever called.

use std::error::Error as StdError;
use std::io;

use tokio::net::TcpStream;

use crate::Result;

/// TLS towards a registry: no URL has it.
#[derive(Debug, Clone)]
pub(crate) enum Tls {}

pub(crate) fn check(files: &Tls) -> Result<()> {
    match *files {}
}

/// A stand-in for the connector.
pub(crate) enum Connector {}

impl Connector {
    pub(crate) fn new(files: &Tls) -> Result<Self> {
        match *files {}
    }

    #[expect(clippy::unused_async, reason = "as where there is TLS")]
    pub(crate) async fn connect(&self, _address: &str, _stream: TcpStream) -> io::Result<TcpStream> {
        match *self {}
    }

    pub(crate) fn explain(&self, _error: &(dyn StdError + 'static), _address: &str) -> Option<String> {
        match *self {}
    }
}

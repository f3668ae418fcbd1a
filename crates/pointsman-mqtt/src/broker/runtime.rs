//! The thread that a broker runs on.
//!
//! It is a thread of the broker's own, so that an agent, a relay and leases in the same process do not wait while the broker is busy. It
//! is one thread, so that the tasks of connections take turns: with several, whoever asks for the core's lock again at once would
//! have it before those that have waited for it.

use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A runtime on a thread of its own, which ends with [`BrokerRuntime::stop`] or when this is dropped; or one that is somebody else's.
#[derive(Debug)]
pub(super) struct BrokerRuntime {
    handle: Handle,
    end: Option<oneshot::Sender<()>>,
}

impl BrokerRuntime {
    pub(super) fn new(given: Option<Handle>) -> io::Result<Self> {
        if let Some(handle) = given {
            return Ok(Self { handle, end: None });
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        thread::Builder::new().name("mqtt-broker".to_owned()).spawn(move || {
            // Without a sender it has ended as well.
            let _ = runtime.block_on(ended);
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, end: Some(end) })
    }

    /// To spawn tasks on it.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends its tasks and its thread, without waiting for that.
    pub(super) fn stop(&mut self) {
        self.end = None;
    }
}

//! How a request went: for metrics, and for the access log.

use std::sync::Arc;

use tokio::time::Instant;

use crate::forward::{Ids, Peer};
use crate::head::RequestHead;
use crate::metrics::RouteMetrics;
use crate::problem::Kind;
use crate::worker::Worker;

#[derive(Debug)]
pub(super) struct Record {
    pub(super) metrics: Arc<RouteMetrics>,
    pub(super) started: Instant,
    /// If somebody has asked the clock already.
    pub(super) ended: Option<Instant>,
    /// 0: there was no answer.
    pub(super) status: u16,
    pub(super) reason: Option<Kind>,
    pub(super) retries: u32,
    /// Bytes of the body, from the client and to it.
    pub(super) received: u64,
    pub(super) sent: u64,
    /// The client did not wait.
    pub(super) gone: bool,
    /// The answer broke off.
    pub(super) broken: bool,
}

impl Record {
    pub(super) fn new(metrics: Arc<RouteMetrics>) -> Self {
        Self {
            metrics,
            started: Instant::now(),
            ended: None,
            status: 0,
            reason: None,
            retries: 0,
            received: 0,
            sent: 0,
            gone: false,
            broken: false,
        }
    }

    pub(super) fn end(&self, worker: &Worker, head: &RequestHead, peer: &Peer, ids: &Ids) {
        let time = self.ended.unwrap_or_else(Instant::now).saturating_duration_since(self.started);
        let status = if self.gone { 0 } else { self.status };
        self.metrics.of(worker.number).end(status, time, self.received, self.sent);
        let _ = (head, peer, ids, self.reason, self.broken, self.retries);
    }
}

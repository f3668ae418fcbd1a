//! How a request went: for metrics, and for the access log.

use std::sync::Arc;
use std::time::SystemTime;

use pointsman_core::ObservedInstance;
use tokio::time::Instant;

use crate::access_log::Entry;
use crate::forward::{self, Ids, Peer};
use crate::head::RequestHead;
use crate::metrics::RouteMetrics;
use crate::problem::Kind;
use crate::settings::AccessLog;
use crate::table::{Endpoint, Table};
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
    /// How it is to be logged.
    log: AccessLog,
    /// Who was asked last; only if it is to be logged.
    instance: Option<Arc<ObservedInstance>>,
}

impl Record {
    pub(super) fn new(metrics: Arc<RouteMetrics>, worker: &Worker, table: &Table) -> Self {
        let log = if worker.shared.log.is_some() { table.access_log } else { AccessLog::Off };
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
            log,
            instance: None,
        }
    }

    /// It is sent to this one.
    pub(super) fn goes_to(&mut self, endpoint: &Endpoint) {
        if self.log != AccessLog::Off {
            self.instance = Some(endpoint.instance().clone());
        }
    }

    pub(super) fn end(&self, worker: &Worker, table: &Table, head: &RequestHead, peer: &Peer, ids: &Ids) {
        let time = self.ended.unwrap_or_else(Instant::now).saturating_duration_since(self.started);
        let status = if self.gone { 0 } else { self.status };
        self.metrics.of(worker.number).end(status, time, self.received, self.sent);
        let Some(log) = worker.shared.log.as_ref().filter(|_| self.log != AccessLog::Off) else { return };
        let instance = self.instance.as_deref();
        let entry = Entry {
            head,
            client: forward::client_address(head, peer, &table.trusted),
            started: SystemTime::now().checked_sub(self.started.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH),
            time,
            status: Some(status).filter(|status| *status != 0),
            sent: self.sent,
            received: self.received,
            route: self.metrics.name(),
            service: instance.map_or(&self.metrics.service().name, |instance| &instance.service),
            instance,
            retries: self.retries,
            id: ids.request(head),
            problem: self.reason.map(Kind::name).or(self.broken.then_some("cut-off")),
        };
        log.add(self.log, &entry);
    }
}

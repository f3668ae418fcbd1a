//! The way to one relay: its code, and the connection to its broker, which several relays may share.

use std::sync::Arc;

use pointsman_mqtt::client;
use tokio::sync::watch;

/// What messages are sent by now.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) link: Option<Arc<Link>>,
    /// Why there is none.
    pub(super) trouble: String,
}

/// A connection to a broker, where relays listen. It ends when nobody needs it any more, so that requests under way get their
/// answers although new ones go elsewhere.
#[derive(Debug)]
pub(super) struct Station {
    pub(super) client: client::Client,
    /// `host:port`, as relays register it.
    pub(super) address: Arc<str>,
}

/// The way to one relay.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) code: Arc<str>,
    pub(super) station: Arc<Station>,
    end: watch::Sender<End>,
}

/// Whether a link is still the one to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Not,
    /// The relay has left the registry, or takes no more work. What it has, it may still answer.
    Left,
    /// Its broker is lost, and another one has been found.
    Lost,
}

impl Link {
    pub(super) fn new(code: Arc<str>, station: Arc<Station>) -> Arc<Self> {
        Arc::new(Self { code, station, end: watch::Sender::new(End::Not) })
    }

    pub(super) fn end(&self, end: End) {
        self.end.send_replace(end);
    }

    /// Returns when another link is to be used.
    pub(super) async fn left(&self) {
        // The sender is here: it cannot fail.
        let _ = self.end.subscribe().wait_for(|end| *end != End::Not).await;
    }

    /// Returns when nothing can come by this link any more.
    pub(super) async fn lost(&self) {
        let (mut end, mut status) = (self.end.subscribe(), self.station.client.status());
        loop {
            let (how, up) = (*end.borrow_and_update(), status.borrow_and_update().up);
            if how == End::Lost || (how == End::Left && !up) {
                return;
            }
            tokio::select! {
                _ = end.changed() => {}
                changed = status.changed() => if changed.is_err() { return },
            }
        }
    }
}

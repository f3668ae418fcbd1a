//! Which services have changed.

use std::sync::Arc;

use pointsman_core::Snapshot;
use pointsman_registry::{Changes, Directory};

pub(super) struct Updates {
    changes: Changes,
    directory: Directory,
}

impl Updates {
    pub(super) fn new(directory: &Directory) -> Self {
        Self { changes: directory.changes(), directory: directory.clone() }
    }

    pub(super) async fn next(&mut self) -> Vec<Arc<Snapshot>> {
        let change = self.changes.next().await;
        vec![self.directory.snapshot(change.service())]
    }
}

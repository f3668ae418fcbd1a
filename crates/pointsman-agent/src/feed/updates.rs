//! Which services have changed.

use std::sync::Arc;

use pointsman_core::Snapshot;
use pointsman_registry::{Changes, Directory};

pub(crate) struct Updates {
    changes: Changes,
    directory: Directory,
}

impl Updates {
    pub(crate) fn new(directory: &Directory) -> Self {
        Self { changes: directory.changes(), directory: directory.clone() }
    }

    pub(crate) async fn next(&mut self) -> Vec<Arc<Snapshot>> {
        let change = self.changes.next().await;
        vec![self.directory.snapshot(change.service())]
    }
}

//! Where the newest snapshot lies: one writer, many readers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::snapshot::Snapshot;

/// A reader's handle on the newest snapshot of one service. Cheap to clone, cheap to read, never blocks.
#[derive(Debug, Clone)]
pub struct View {
    shared: Arc<Shared>,
}

/// The one place from which a [`View`] is written. Not `Clone`: there is one writer.
#[derive(Debug)]
pub struct ViewWriter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    snapshot: ArcSwap<Snapshot>,
    generation: AtomicU64,
}

impl ViewWriter {
    /// A writer whose readers see `snapshot` until the first [`ViewWriter::store`].
    #[must_use]
    pub fn new(snapshot: Snapshot) -> Self {
        let snapshot = ArcSwap::from_pointee(snapshot);
        Self { shared: Arc::new(Shared { snapshot, generation: AtomicU64::new(0) }) }
    }

    /// A handle for a reader.
    #[must_use]
    pub fn view(&self) -> View {
        View { shared: self.shared.clone() }
    }

    /// Lets every reader see `snapshot` from now on.
    pub fn store(&mut self, snapshot: Arc<Snapshot>) {
        self.shared.snapshot.store(snapshot);
        // After the snapshot: who sees the new generation also sees the new snapshot.
        self.shared.generation.fetch_add(1, Ordering::Release);
    }

    /// What readers see now.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }
}

impl View {
    /// A view that never changes: for tests, and for a list of instances that is known beforehand.
    #[must_use]
    pub fn fixed(snapshot: Snapshot) -> Self {
        ViewWriter::new(snapshot).view()
    }

    /// The newest snapshot.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// Whether both are written by the same writer.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Rises with every snapshot stored. One atomic load: ask this first, and [`View::load`] only when it has risen.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_see_what_was_written_last() {
        let mut writer = ViewWriter::new(Snapshot::empty("s"));
        let view = writer.view();
        let before = view.generation();
        writer.store(Arc::new(Snapshot::new("s", 5, vec![])));
        assert_eq!(view.load().revision(), 5);
        assert!(view.generation() > before);
    }
}

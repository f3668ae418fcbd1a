//! Where the newest snapshot lies: one writer, many readers.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

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
    masters: AtomicU64,
    waiting: Mutex<Waiting>,
}

/// Those who wait for another snapshot. Behind a mutex of std's, because it is held for no longer than an insertion takes.
#[derive(Debug, Default)]
struct Waiting {
    wakers: BTreeMap<u64, Waker>,
    next: u64,
}

impl ViewWriter {
    /// A writer whose readers see `snapshot` until the first [`ViewWriter::store`].
    #[must_use]
    pub fn new(snapshot: Snapshot) -> Self {
        let masters = AtomicU64::new(u64::from(has_master(&snapshot)));
        let snapshot = ArcSwap::from_pointee(snapshot);
        Self {
            shared: Arc::new(Shared { snapshot, generation: AtomicU64::new(0), masters, waiting: Mutex::default() }),
        }
    }

    /// A handle for a reader.
    #[must_use]
    pub fn view(&self) -> View {
        View { shared: self.shared.clone() }
    }

    /// Whether anybody has a handle, and so may read what is stored later. A handle can only be made by [`ViewWriter::view`], and from
    /// another handle: where this is `false` it stays so until the writer gives one out.
    #[must_use]
    pub fn has_readers(&self) -> bool {
        Arc::strong_count(&self.shared) > 1
    }

    /// Lets every reader see `snapshot` from now on, and wakes those who wait for it.
    pub fn store(&mut self, snapshot: Arc<Snapshot>) {
        // Before the snapshot: who sees that also sees the count of all before it.
        self.shared.masters.fetch_add(u64::from(has_master(&snapshot)), Ordering::Release);
        self.shared.snapshot.store(snapshot);
        // After the snapshot: who sees the new generation also sees the new snapshot.
        self.shared.generation.fetch_add(1, Ordering::Release);
        let wakers = std::mem::take(&mut self.shared.waiting().wakers);
        // Outside the lock: a waker may run anything.
        wakers.into_values().for_each(Waker::wake);
    }

    /// What readers see now.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }
}

fn has_master(snapshot: &Snapshot) -> bool {
    snapshot.master().is_some_and(|master| master.takes_work())
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics half-way in there.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Counts the snapshots, from the first, with a master that takes work. Whoever looks seldom learns by it that there was one in between.
    #[must_use]
    pub fn masters(&self) -> u64 {
        self.shared.masters.load(Ordering::Acquire)
    }

    /// Waits until the [generation](View::generation) is another than `seen`, and returns it. Never ends, if the writer is gone. Needs no
    /// runtime; cancellation loses nothing.
    pub fn changed(&self, seen: u64) -> impl Future<Output = u64> + Send + 'static {
        Changed { view: self.clone(), seen, place: None }
    }
}

/// See [`View::changed`].
#[derive(Debug)]
struct Changed {
    view: View,
    seen: u64,
    /// Under which number its waker is kept.
    place: Option<u64>,
}

impl Future for Changed {
    type Output = u64;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u64> {
        let shared = self.view.shared.clone();
        let mut waiting = shared.waiting();
        // Under the lock: what is stored after this finds the waker.
        let now = self.view.generation();
        if now != self.seen {
            return Poll::Ready(now);
        }
        let place = *self.place.get_or_insert_with(|| {
            waiting.next += 1;
            waiting.next
        });
        waiting.wakers.insert(place, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.view.shared.waiting().wakers.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn readers_see_what_was_written_last() {
        let mut writer = ViewWriter::new(Snapshot::empty("s"));
        assert!(!writer.has_readers());
        let view = writer.view();
        assert!(writer.has_readers());
        let before = view.generation();
        writer.store(Arc::new(Snapshot::new("s", 5, vec![])));
        assert_eq!(view.load().revision(), 5);
        assert!(view.generation() > before);
    }

    #[test]
    fn those_who_wait_are_woken_and_those_who_have_gone_are_forgotten() {
        let mut writer = ViewWriter::new(Snapshot::empty("s"));
        let (view, woken) = (writer.view(), Arc::new(Count::default()));
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let seen = view.generation();
        let mut changed = pin!(view.changed(seen));
        assert!(changed.as_mut().poll(&mut cx).is_pending() && changed.as_mut().poll(&mut cx).is_pending());
        for _ in 0..100 {
            let mut gone = Box::pin(view.changed(seen));
            assert!(gone.as_mut().poll(&mut cx).is_pending());
        }
        assert_eq!(view.shared.waiting().wakers.len(), 1);
        writer.store(Arc::new(Snapshot::new("s", 1, vec![])));
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert_eq!(changed.as_mut().poll(&mut cx), Poll::Ready(view.generation()));
        assert!(pin!(view.changed(seen)).poll(&mut cx).is_ready(), "what has changed already is not waited for");
    }
}

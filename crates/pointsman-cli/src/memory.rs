//! Small memory for commands that need little.
//!
//! Some systems give huge pages to whoever does not ask for them, as the allocator here does not: the first byte in each makes 2 MiB resident. A
//! process that does nothing but keep an instance registered uses little of that, and of ten thousand watchers each has 20 KiB resident of
//! which it uses 12, while neither the proxy nor the agent answers faster with them (benches/README.md). So this process does without, and
//! the command that it runs is not to notice: the setting is inherited.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::{disable_transparent_huge_pages, transparent_huge_pages_are_disabled};

/// Whether this process has turned huge pages off itself, and has not inherited that.
static IS_SMALL: AtomicBool = AtomicBool::new(false);

/// Does without huge pages from now on: the earlier, the better. Where the system does not let that be set, nothing changes.
pub(crate) fn stay_small() {
    if transparent_huge_pages_are_disabled().is_ok_and(|disabled| !disabled) {
        IS_SMALL.store(disable_transparent_huge_pages(true).is_ok(), Ordering::Relaxed);
    }
}

/// Ends what [`stay_small`] began.
fn grow() {
    if IS_SMALL.swap(false, Ordering::Relaxed) {
        // It could be set a moment ago.
        let _ = disable_transparent_huge_pages(false);
    }
}

/// Starts another program, with huge pages as they were before [`stay_small`].
pub(crate) fn as_before<T>(start: impl FnOnce() -> T) -> T {
    let was_small = IS_SMALL.load(Ordering::Relaxed);
    grow();
    let started = start();
    if was_small {
        stay_small();
    }
    started
}

//! What a claim holds: one instance as it was picked, and its count of claims.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Instant;

use pointsman_core::Instance;

use crate::ewma::{Ewma, Ticks};
use crate::health::{Alarm, Failures};
use crate::ranking::Ranking;

/// One instance as some snapshot shows it.
///
/// The claims in flight are counted by the `Arc`s that hold a seat, as in tower's `PendingRequests`: a claim needs the
/// `Arc` anyhow, and two atomic operations per claim are half of four. Who holds a seat without being a claim does so
/// through [`Keep`], which counts itself out.
///
/// When an instance changes (weight, tags, role), it gets a new seat with the same [`Person`]; claims on the older seats
/// still count.
// Aligned so that the counts in the `Arc`'s header, which every claim writes, share no cache line with what is only read.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Seat {
    pub(crate) instance: Arc<Instance>,
    pub(crate) person: Arc<Person>,
    keeps: AtomicUsize,
    older: Box<[Keep]>,
}

/// What stays the same about an instance while its seats change.
#[derive(Debug)]
pub(crate) struct Person {
    pub(crate) ewma: Ewma,
    pub(crate) failures: Failures,
    pub(crate) shared: Arc<Shared>,
    /// Its leaf in the ranking; read and written only under the ranking's lock.
    pub(crate) leaf: AtomicU32,
}

/// What all instances of a service share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) alarm: Alarm,
    pub(crate) ranking: Ranking,
    /// The zero of [`Ticks`].
    pub(crate) base: Instant,
}

impl Shared {
    pub(crate) fn ticks(&self, now: Instant) -> Ticks {
        Ticks::at(self.base, now)
    }
}

impl Person {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { ewma: Ewma::default(), failures: Failures::default(), shared, leaf: AtomicU32::new(Ranking::NOWHERE) }
    }
}

impl Seat {
    /// A seat for an instance that had none.
    pub(crate) fn first(instance: Arc<Instance>, person: Arc<Person>) -> Keep {
        Self::with_older(instance, person, Box::default())
    }

    /// A seat for an instance that has changed. Of its former seats those on which claims are still held stay counted.
    pub(crate) fn after(former: &Keep, instance: Arc<Instance>) -> Keep {
        let older = former.older.iter().chain([former]).filter(|seat| seat.own_claims() > 0).cloned().collect();
        Self::with_older(instance, former.person.clone(), older)
    }

    fn with_older(instance: Arc<Instance>, person: Arc<Person>, older: Box<[Keep]>) -> Keep {
        let seat = Arc::new(Self { instance, person, keeps: AtomicUsize::new(1), older });
        Keep { seat }
    }

    /// How many claims are held on the instance. Exact while no table is being prepared or dropped at this very moment;
    /// otherwise never too low.
    pub(crate) fn in_flight(self: &Arc<Self>) -> usize {
        let own = own_claims(self);
        if self.older.is_empty() { own } else { own + self.older.iter().map(Keep::own_claims).sum::<usize>() }
    }
}

fn own_claims(seat: &Arc<Seat>) -> usize {
    // The count of keeps is the first to fall and the last to rise, so that this is never too low.
    Arc::strong_count(seat).saturating_sub(seat.keeps.load(Ordering::Acquire))
}

/// A hold on a seat that is not a claim.
#[derive(Debug)]
pub(crate) struct Keep {
    seat: Arc<Seat>,
}

impl Keep {
    fn own_claims(&self) -> usize {
        own_claims(&self.seat)
    }

    /// The seat, held as by a claim.
    #[inline]
    pub(crate) fn claim(&self) -> Arc<Seat> {
        Arc::clone(&self.seat)
    }
}

impl Deref for Keep {
    type Target = Arc<Seat>;

    #[inline]
    fn deref(&self) -> &Arc<Seat> {
        &self.seat
    }
}

impl Clone for Keep {
    fn clone(&self) -> Self {
        let seat = Arc::clone(&self.seat);
        seat.keeps.fetch_add(1, Ordering::AcqRel);
        Self { seat }
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.seat.keeps.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loads::Loads;

    #[test]
    fn claims_on_former_seats_still_count() {
        let person = Arc::new(Person::new(Loads::new().shared().clone()));
        let instance = Arc::new(Instance::new("s"));
        let first = Seat::first(instance.clone(), person);
        let _kept = first.clone();
        assert_eq!(first.in_flight(), 0);
        let (a, b) = (first.claim(), first.claim());
        let second = Seat::after(&first, instance.clone());
        drop(first);
        let c = second.claim();
        assert_eq!(second.in_flight(), 3);
        let third = Seat::after(&second, instance.clone());
        drop((second, a));
        assert_eq!(third.in_flight(), 2);
        drop((b, c));
        assert_eq!(third.in_flight(), 0);
        assert!(Seat::after(&third, instance).older.is_empty());
    }
}

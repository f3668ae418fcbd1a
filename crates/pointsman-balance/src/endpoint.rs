//! What a claim holds: one instance as it was picked, and its count of claims.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Instant;

use pointsman_core::ObservedInstance;

use crate::ejection::{Epoch, Failures};
use crate::ewma::{Ewma, Ticks};
use crate::ranking::Ranking;

/// One instance as some snapshot shows it.
///
/// The claims in flight are counted by the `Arc`s that hold a endpoint, as in tower's `PendingRequests`: a claim needs the
/// `Arc` anyhow, and two atomic operations per claim are half of four. A holder of an endpoint that is not a claim holds it
/// through [`Keep`], which counts itself out.
///
/// When an instance changes (weight, tags, role), it gets a new endpoint with the same [`EndpointStats`]; claims on the older endpoints
/// still count.
// Aligned so that the counts in the `Arc`'s header, which every claim writes, share no cache line with what is only read.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Endpoint {
    pub(crate) instance: Arc<ObservedInstance>,
    pub(crate) stats: Arc<EndpointStats>,
    keeps: AtomicUsize,
    older: Box<[Keep]>,
}

/// Statistics of one instance, kept while its endpoints change.
#[derive(Debug)]
pub(crate) struct EndpointStats {
    pub(crate) ewma: Ewma,
    pub(crate) failures: Failures,
    pub(crate) shared: Arc<Shared>,
    /// Its leaf in the ranking; read and written only under the ranking's lock.
    pub(crate) leaf: AtomicU32,
}

/// What all instances of a service share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) epoch: Epoch,
    pub(crate) ranking: Ranking,
    /// The zero of [`Ticks`].
    pub(crate) base: Instant,
}

impl Shared {
    pub(crate) fn ticks(&self, now: Instant) -> Ticks {
        Ticks::at(self.base, now)
    }
}

impl EndpointStats {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { ewma: Ewma::default(), failures: Failures::default(), shared, leaf: AtomicU32::new(Ranking::NOWHERE) }
    }
}

impl Endpoint {
    /// A endpoint for an instance that had none.
    pub(crate) fn first(instance: Arc<ObservedInstance>, stats: Arc<EndpointStats>) -> Keep {
        Self::with_older(instance, stats, Box::default())
    }

    /// A endpoint for an instance that has changed. Of its former endpoints those on which claims are still held stay counted.
    pub(crate) fn after(former: &Keep, instance: Arc<ObservedInstance>) -> Keep {
        let older = former.older.iter().chain([former]).filter(|endpoint| endpoint.own_claims() > 0).cloned().collect();
        Self::with_older(instance, former.stats.clone(), older)
    }

    fn with_older(instance: Arc<ObservedInstance>, stats: Arc<EndpointStats>, older: Box<[Keep]>) -> Keep {
        let endpoint = Arc::new(Self { instance, stats, keeps: AtomicUsize::new(1), older });
        Keep { endpoint }
    }

    /// How many claims are held on the instance. Exact while no table is being prepared or dropped at this very moment;
    /// otherwise never too low.
    pub(crate) fn in_flight(self: &Arc<Self>) -> usize {
        let own = own_claims(self);
        if self.older.is_empty() { own } else { own + self.older.iter().map(Keep::own_claims).sum::<usize>() }
    }
}

fn own_claims(endpoint: &Arc<Endpoint>) -> usize {
    // The count of keeps is the first to fall and the last to rise, so that this is never too low.
    Arc::strong_count(endpoint).saturating_sub(endpoint.keeps.load(Ordering::Acquire))
}

/// A hold on a endpoint that is not a claim.
#[derive(Debug)]
pub(crate) struct Keep {
    endpoint: Arc<Endpoint>,
}

impl Keep {
    fn own_claims(&self) -> usize {
        own_claims(&self.endpoint)
    }

    /// The endpoint, held as by a claim.
    #[inline]
    pub(crate) fn claim(&self) -> Arc<Endpoint> {
        Arc::clone(&self.endpoint)
    }
}

impl Deref for Keep {
    type Target = Arc<Endpoint>;

    #[inline]
    fn deref(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Clone for Keep {
    fn clone(&self) -> Self {
        let endpoint = Arc::clone(&self.endpoint);
        endpoint.keeps.fetch_add(1, Ordering::AcqRel);
        Self { endpoint }
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.endpoint.keeps.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use pointsman_core::Instance;

    use super::*;
    use crate::endpoints::Endpoints;

    #[test]
    fn claims_on_former_seats_still_count() {
        let stats = Arc::new(EndpointStats::new(Endpoints::new().shared().clone()));
        let instance = Arc::new(ObservedInstance::from(Instance::new("s")));
        let first = Endpoint::first(instance.clone(), stats);
        let _kept = first.clone();
        assert_eq!(first.in_flight(), 0);
        let (a, b) = (first.claim(), first.claim());
        let second = Endpoint::after(&first, instance.clone());
        drop(first);
        let c = second.claim();
        assert_eq!(second.in_flight(), 3);
        let third = Endpoint::after(&second, instance.clone());
        drop((second, a));
        assert_eq!(third.in_flight(), 2);
        drop((b, c));
        assert_eq!(third.in_flight(), 0);
        assert!(Endpoint::after(&third, instance).older.is_empty());
    }
}

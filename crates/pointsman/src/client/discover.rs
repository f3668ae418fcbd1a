//! The instances of a service as they come and go, for what is built on [`tower::discover`].

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_util::StreamExt as _;
use pointsman_balance::{Algorithm, Balancer, Explanation};
use pointsman_core::ObservedInstance;
use pointsman_registry::Changes;
use tower::discover::Change;

use crate::Service;

/// A stream of changes that [`tower::discover::Discover`] accepts: the instances among which a [`Balancer`] would pick are inserted under
/// their code, those that it would not pick any more (gone, drained, weight 0) are removed, and changed ones are inserted anew. So the
/// master is one of them only while no normal instance can take work, and guarded ones only while there is no other.
///
/// `connect` makes a tower service of an instance.
///
/// ```
/// # async fn example(service: pointsman::Service) {
/// use tower::discover::Discover;
///
/// let discover = pointsman::client::discover(&service, |instance| instance.address.clone());
/// fn accepts(_: impl Discover<Key = std::sync::Arc<str>>) {}
/// accepts(discover);
/// # }
/// ```
pub fn discover<S, F>(service: &Service, connect: F) -> DiscoverStream<F>
where
    F: FnMut(&Arc<ObservedInstance>) -> S + Unpin,
{
    let changes = service.changes().from_nothing();
    let balancer = service.balancer(Algorithm::default());
    DiscoverStream { balancer, changes, connect, inserted: HashMap::new(), ready: VecDeque::new() }
}

/// See [`discover`].
pub struct DiscoverStream<F> {
    balancer: Balancer,
    changes: Changes,
    connect: F,
    inserted: HashMap<Arc<str>, Arc<ObservedInstance>>,
    /// Instances to be inserted, and codes to be removed, that have not been told yet.
    ready: VecDeque<Result<Arc<ObservedInstance>, Arc<str>>>,
}

impl<S, F: FnMut(&Arc<ObservedInstance>) -> S + Unpin> Stream for DiscoverStream<F> {
    type Item = Result<Change<Arc<str>, S>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match self.ready.pop_front() {
                Some(Ok(instance)) => {
                    let service = (self.connect)(&instance);
                    return Poll::Ready(Some(Ok(Change::Insert(instance.code.clone(), service))));
                }
                Some(Err(code)) => return Poll::Ready(Some(Ok(Change::Remove(code)))),
                None => {}
            }
            match self.changes.poll_next_unpin(context) {
                // Which change it was does not matter: whether a guarded instance counts depends on the others.
                Poll::Ready(Some(_)) => self.compare(),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl<F> DiscoverStream<F> {
    /// Notes what differs between the newest snapshot and what has been inserted.
    fn compare(&mut self) {
        let Explanation { instances, tier, .. } = self.balancer.explain("");
        let used = instances.into_iter().filter(|considered| tier.is_some() && considered.tier == tier);
        let wanted: HashMap<Arc<str>, Arc<ObservedInstance>> =
            used.map(|considered| (considered.instance.code.clone(), considered.instance)).collect();
        let gone = self.inserted.keys().filter(|code| !wanted.contains_key(*code)).cloned().map(Err);
        let same = |a: &ObservedInstance, b: &ObservedInstance| {
            a.address == b.address && a.weight == b.weight && a.tags == b.tags && a.is_guarded() == b.is_guarded()
        };
        let is_new =
            |one: &&Arc<ObservedInstance>| self.inserted.get(&one.code).is_none_or(|before| !same(before, one));
        let new = wanted.values().filter(is_new).cloned().map(Ok);
        self.ready.extend(gone.chain(new).collect::<Vec<_>>());
        self.inserted = wanted;
    }
}

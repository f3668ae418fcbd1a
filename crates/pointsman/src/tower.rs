//! An adapter to [`tower::discover`]: the instances of a service as they come and go.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_util::StreamExt as _;
use pointsman_core::{Change as Difference, ObservedInstance};
use tower::discover::Change;

use crate::Service;

/// A stream of changes that [`tower::discover::Discover`] accepts: instances that may be given work are inserted under
/// their code, instances that may not any more (gone, drained, weight 0) are removed, and changed ones are inserted anew.
/// Guarded instances count only while there is no other.
///
/// `connect` makes a tower service of an instance.
///
/// ```
/// # async fn example(service: pointsman::Service) {
/// use tower::discover::Discover;
///
/// let discover = pointsman::tower::discover(&service, |instance| instance.address.clone());
/// fn accepts(_: impl Discover<Key = std::sync::Arc<str>>) {}
/// accepts(discover);
/// # }
/// ```
pub fn discover<S, F>(service: &Service, connect: F) -> DiscoverStream<F>
where
    F: FnMut(&Arc<ObservedInstance>) -> S + Unpin,
{
    let changes = Box::pin(service.changes().from_nothing().into_stream());
    DiscoverStream { service: service.clone(), changes, connect, inserted: HashMap::new(), ready: VecDeque::new() }
}

/// See [`discover`].
pub struct DiscoverStream<F> {
    service: Service,
    changes: Pin<Box<dyn Stream<Item = Difference> + Send>>,
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
        let snapshot = self.service.snapshot();
        let working = || snapshot.instances().iter().filter(|instance| instance.takes_work());
        let is_any_registered = working().any(|instance| !instance.is_guarded());
        let wanted: HashMap<Arc<str>, Arc<ObservedInstance>> = working()
            .filter(|instance| !is_any_registered || !instance.is_guarded())
            .map(|instance| (instance.code.clone(), instance.clone()))
            .collect();
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

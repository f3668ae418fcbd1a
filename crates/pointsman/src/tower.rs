//! An adapter to [`tower::discover`]: the instances of a service as they come and go.

use std::collections::HashSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_util::StreamExt as _;
use pointsman_core::{Change as Difference, Instance};
use tower::discover::Change;

use crate::Service;

/// A stream of changes that [`tower::discover::Discover`] accepts: instances that may be given work are inserted under
/// their code, instances that may not any more (gone, drained, weight 0) are removed, and changed ones are inserted anew.
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
    F: FnMut(&Arc<Instance>) -> S + Unpin,
{
    let changes = Box::pin(service.changes().from_nothing().into_stream());
    DiscoverStream { changes, connect, inserted: HashSet::new() }
}

/// See [`discover`].
pub struct DiscoverStream<F> {
    changes: Pin<Box<dyn Stream<Item = Difference> + Send>>,
    connect: F,
    inserted: HashSet<Arc<str>>,
}

impl<S, F: FnMut(&Arc<Instance>) -> S + Unpin> Stream for DiscoverStream<F> {
    type Item = Result<Change<Arc<str>, S>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let difference = match self.changes.poll_next_unpin(context) {
                Poll::Ready(Some(difference)) => difference,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            };
            let change = match difference {
                Difference::Joined(new) | Difference::Updated { new, .. } if new.takes_work() => {
                    self.inserted.insert(new.code.clone());
                    let service = (self.connect)(&new);
                    Change::Insert(new.code.clone(), service)
                }
                Difference::Updated { new: gone, .. } | Difference::Left(gone) if self.inserted.remove(&gone.code) => {
                    Change::Remove(gone.code.clone())
                }
                _ => continue,
            };
            return Poll::Ready(Some(Ok(change)));
        }
    }
}

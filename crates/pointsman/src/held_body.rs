//! The body of an answer, with the claim that it belongs to.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use pointsman_balance::{Claim, Outcome};

/// Returns the outcome that an answer's trailers tell, if they do.
pub(crate) type Judge = fn(&http::HeaderMap) -> Option<Outcome>;

pin_project! {
    /// The body of an answer. The instance counts as in flight until it has ended or is dropped; one that breaks off is a failure.
    #[derive(Debug)]
    pub struct HeldBody<B> {
        #[pin]
        body: B,
        claim: Option<Claim>,
        judge: Judge,
    }
}

impl<B> HeldBody<B> {
    /// A body over which the outcome of the call is known only when the trailers, or the end, have come.
    pub(crate) fn new(body: B, claim: Claim, judge: Judge) -> Self {
        Self { body, claim: Some(claim), judge }
    }

    /// A body that belongs to no instance.
    #[cfg(feature = "tonic")]
    pub(crate) fn of_nobody(body: B) -> Self {
        Self { body, claim: None, judge: |_| None }
    }
}

impl<B: Body> Body for HeldBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(context));
        let outcome = match &frame {
            Some(Ok(frame)) => frame.trailers_ref().and_then(|trailers| (this.judge)(trailers)),
            Some(Err(_)) => Some(Outcome::Failure),
            None => Some(Outcome::Success),
        };
        if let (Some(claim), Some(outcome)) = (&this.claim, outcome) {
            // Without effect after the first report.
            claim.report(outcome);
        }
        if !matches!(frame, Some(Ok(_))) {
            *this.claim = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

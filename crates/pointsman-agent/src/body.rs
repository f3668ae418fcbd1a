//! The body of a request, read whole, within the limits of its length and its time.

use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Body;

use crate::problem::{Kind, Problem};
use crate::settings::Limits;

/// Why it could not be read: for a path that has an answer of its own to that.
#[derive(Debug, Clone)]
pub(crate) struct Unread(pub(crate) Problem);

/// Reads it.
pub(crate) async fn read<B>(body: B, limits: &Limits) -> Result<Bytes, Problem>
where
    B: Body<Error: std::error::Error + Send + Sync + 'static>,
{
    let (limit, time) = (limits.body, limits.body_time);
    match tokio::time::timeout(time, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Problem::new(Kind::TooLarge, format!("the body has more than {limit} bytes")))
        }
        Ok(Err(error)) => Err(Problem::bad(format!("the body: {error}"))),
        Err(_) => Err(Problem::new(Kind::RequestTimeout, format!("the body was not there after {time:?}"))),
    }
}

/// Reads it, and keeps nothing of it. Whether it has come whole.
pub(crate) async fn discard<B>(body: B, limits: &Limits) -> bool
where
    B: Body<Error: std::error::Error + Send + Sync + 'static>,
{
    let mut body = std::pin::pin!(Limited::new(body, limits.body));
    let reading = async {
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(limits.body_time, reading).await.unwrap_or_default()
}

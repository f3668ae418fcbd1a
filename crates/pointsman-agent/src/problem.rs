//! What goes wrong, as problem+json (RFC 9457): in words for whoever called.

use std::borrow::Cow;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use pointsman_core::Snapshot;
use pointsman_net::problem::{self, ProblemBody};
use pointsman_registry::{Error, Unanswered};
use serde::{Deserialize, Serialize};

/// Why a request is not answered as it was meant.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Problem {
    pub(crate) kind: Kind,
    pub(crate) detail: Cow<'static, str>,
    /// Of a stale term: the highest.
    pub(crate) highest: Option<u64>,
}

macro_rules! kinds {
    ($($kind:ident $name:literal $status:ident $title:literal)*) => {
        /// The types of problems. Part of the contract: each has a name, a status and a title.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(into = "&'static str", try_from = "String")]
        pub(crate) enum Kind { $($kind),* }

        impl Kind {
            /// All of them, for those who check that all are described.
            #[cfg(test)]
            pub(crate) const ALL: &[Kind] = &[$(Kind::$kind),*];

            pub(crate) const fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name),* }
            }

            pub(crate) const fn status(self) -> StatusCode {
                match self { $(Kind::$kind => StatusCode::$status),* }
            }

            /// The kind of this name.
            fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Kind::$kind),)*
                    _ => None,
                }
            }

            const fn title(self) -> &'static str {
                match self { $(Kind::$kind => $title),* }
            }
        }
    };
}

kinds! {
    BadRequest "bad-request" BAD_REQUEST "the request cannot be understood"
    Unauthorized "unauthorized" UNAUTHORIZED "a token is needed"
    Forbidden "forbidden" FORBIDDEN "this is not allowed"
    NotFound "not-found" NOT_FOUND "there is nothing at this path"
    NoMaster "no-master" NOT_FOUND "the service has no master now"
    NoClaim "no-claim" NOT_FOUND "there is no such claim"
    UnknownInstance "unknown-instance" NOT_FOUND "the service has no such instance"
    NotRegistered "not-registered" NOT_FOUND "this agent has no such registration"
    MethodNotAllowed "method-not-allowed" METHOD_NOT_ALLOWED "the path is not for this method"
    RequestTimeout "request-timeout" REQUEST_TIMEOUT "the request did not arrive in time"
    DuplicateCode "duplicate-code" CONFLICT "the code is registered already"
    NotMaster "not-master" CONFLICT "the instance is not master"
    StaleTerm "stale-term" CONFLICT "a higher term has been seen"
    TooLarge "too-large" PAYLOAD_TOO_LARGE "the request is too large"
    UnsupportedMediaType "unsupported-media-type" UNSUPPORTED_MEDIA_TYPE "the body is not of a type that is understood here"
    Misdirected "misdirected" MISDIRECTED_REQUEST "this agent does not go by that name"
    Internal "internal" INTERNAL_SERVER_ERROR "the agent has failed"
    Unreadable "unreadable" SERVICE_UNAVAILABLE "the registry does not let the service be read"
    NoInstance "no-instance" SERVICE_UNAVAILABLE "no instance can take work"
    TooMany "too-many" SERVICE_UNAVAILABLE "the agent is at its limit"
    Unavailable "unavailable" SERVICE_UNAVAILABLE "the registry cannot be reached"
    Refused "refused" UNPROCESSABLE_ENTITY "the registry refuses"
    Closing "closing" SERVICE_UNAVAILABLE "the agent is about to end"
}

impl From<Kind> for &'static str {
    fn from(kind: Kind) -> Self {
        kind.name()
    }
}

impl TryFrom<String> for Kind {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Kind::named(&name).ok_or_else(|| format!("there is no kind of problem {name}"))
    }
}

impl Problem {
    pub(crate) fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), highest: None }
    }

    pub(crate) fn bad(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::BadRequest, detail)
    }

    pub(crate) fn unknown_instance(service: &str, code: &str) -> Self {
        Self::new(
            Kind::UnknownInstance,
            format!("service {service} has no instance {code}, and nothing is set for one"),
        )
    }

    /// The service's folder may not be read: which instances it has is not known.
    pub(crate) fn unreadable(snapshot: &Snapshot) -> Option<Self> {
        let reason = &snapshot.unreadable()?.reason;
        Some(Self::new(Kind::Unreadable, format!("service {} cannot be read: {reason}", snapshot.service())))
    }

    /// The registry has not answered within `limit`.
    pub(crate) fn too_late(step: &str, limit: Duration) -> Self {
        Self::new(
            Kind::Unavailable,
            format!("{step}: the registry has not answered within {limit:?}; it is not done later"),
        )
    }

    pub(crate) fn closing() -> Self {
        Self::new(Kind::Closing, "the agent is about to end; go to another")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.kind.status();
        let body = ProblemBody::new(self.kind.name(), self.kind.title(), status.as_u16(), &self.detail);
        let body = Bytes::from(body.with_highest(self.highest).json());
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(problem::MEDIA_TYPE));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"pointsman\""));
        }
        response.extensions_mut().insert(self.kind);
        response
    }
}

/// The path is there, but for other methods.
pub(crate) fn method_not_allowed(allowed: &'static str) -> Response {
    let detail = format!("allowed here: {allowed}");
    let mut response = Problem::new(Kind::MethodNotAllowed, detail).into_response();
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// Whether another agent has what was asked for is not known: that is not the same as that none has it.
impl From<Unanswered> for Problem {
    fn from(_: Unanswered) -> Self {
        Self::new(Kind::Unavailable, "another agent of this registry may have it, and has not answered; ask again")
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Invalid(_) | Error::Fixed { .. } => Kind::BadRequest,
            Error::TooLarge { .. } => Kind::TooLarge,
            Error::DuplicateCode { .. } => Kind::DuplicateCode,
            Error::NoMaster { .. } => Kind::NoMaster,
            Error::NotMaster { .. } => Kind::NotMaster,
            Error::StaleTerm { .. } => Kind::StaleTerm,
            Error::Refused { .. } => Kind::Refused,
            Error::Closed { .. } => Kind::Closing,
            error if error.is_retryable() => Kind::Unavailable,
            _ => Kind::Internal,
        };
        let highest = match &error {
            Error::StaleTerm { stale, .. } => Some(stale.seen.0),
            _ => None,
        };
        Self { highest, ..Self::new(kind, error.to_string()) }
    }
}

impl From<pointsman_core::InvalidName> for Problem {
    fn from(error: pointsman_core::InvalidName) -> Self {
        Self::bad(error.to_string())
    }
}

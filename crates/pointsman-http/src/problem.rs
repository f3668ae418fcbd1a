//! What the proxy itself has to say, as problem+json (RFC 9457).

use std::borrow::Cow;

use pointsman_net::problem::ProblemBody;

macro_rules! kinds {
    ($($kind:ident $name:literal $status:literal $title:literal)*) => {
        /// The types of problems. Part of the contract: each has a name, a status and a title.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum Kind { $($kind),* }

        impl Kind {
            pub(crate) const ALL: &[Kind] = &[$(Kind::$kind),*];

            pub(crate) const fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name),* }
            }

            pub(crate) const fn status(self) -> u16 {
                match self { $(Kind::$kind => $status),* }
            }

            pub(crate) const fn title(self) -> &'static str {
                match self { $(Kind::$kind => $title),* }
            }
        }
    };
}

kinds! {
    BadRequest "bad-request" 400 "the request cannot be understood"
    NoRoute "no-route" 404 "no route is for this request"
    MethodNotAllowed "method-not-allowed" 405 "the method is not passed on"
    RequestTimeout "request-timeout" 408 "the request did not arrive in time"
    ExpectationFailed "expectation-failed" 417 "what is expected is not known here"
    TooLarge "too-large" 431 "the head of the request is too large"
    NotImplemented "not-implemented" 501 "the body is encoded as is not understood here"
    Unreachable "unreachable" 502 "no instance could be reached"
    BadAnswer "bad-answer" 502 "the instance's answer cannot be understood"
    NoInstance "no-instance" 503 "no instance can take the request"
    Overloaded "overloaded" 503 "too many requests are under way"
    GatewayTimeout "gateway-timeout" 504 "the instance did not answer in time"
    Loop "loop" 508 "the request goes round in circles"
}

/// Why a request is not answered by an instance.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) kind: Kind,
    /// The kind's, or one that says it more exactly.
    pub(crate) status: u16,
    /// For people; never has what a client or an instance has sent.
    pub(crate) detail: Cow<'static, str>,
}

impl Problem {
    pub(crate) fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, status: kind.status(), detail: detail.into() }
    }

    pub(crate) fn bad(detail: &'static str) -> Self {
        Self::new(Kind::BadRequest, detail)
    }

    /// The same with another status.
    pub(crate) fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    /// The body.
    pub(crate) fn json(&self) -> String {
        ProblemBody::new(self.kind.name(), self.kind.title(), self.status, &self.detail).json()
    }

    /// Whether it is worth asking again soon.
    pub(crate) fn retry_after(&self) -> bool {
        self.status == 503
    }
}

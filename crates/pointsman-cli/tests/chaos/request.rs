//! What the load has asked, and what came of it.

use crate::history::Time;

/// A request that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) id: String,
    pub(crate) way: Way,
    pub(crate) is_post: bool,
    pub(crate) start: Time,
    pub(crate) end: Time,
    pub(crate) outcome: Outcome,
}

/// Whom a request asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// A process `serve`, by this path.
    Proxy { serve: usize, path: &'static str, is_master: bool },
    /// The agent for an instance, then that instance. It is the code and the port that the agent has given, if it has.
    Agent { algorithm: &'static str, picked: Option<(String, u16)> },
}

/// How a request has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With status 200, by the instance with this code.
    Answered(String),
    /// With another status, and the type of the problem if it names one.
    Refused(u16, Option<String>),
    /// Without a whole answer, for this reason.
    Broken(String),
    /// With an answer that belongs to another request, or to none.
    Wrong(String),
}

/// What the access log of a proxy says about a request: that is not the truth, but tells whom it was sent to last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) code: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) retries: u64,
    pub(crate) problem: Option<String>,
}

impl Request {
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self.outcome, Outcome::Answered(_))
    }

    pub(crate) fn is_for_the_master(&self) -> bool {
        matches!(self.way, Way::Proxy { is_master: true, .. })
    }
}

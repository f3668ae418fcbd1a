//! Roles, terms, and the guard that makes a mastership safe.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

/// The fencing number of a mastership: strictly rising per service. Over ZooKeeper it is the `czxid` of the master node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct Term(pub u64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads what `Display` writes: decimal digits alone.
impl FromStr for Term {
    type Err = InvalidTerm;

    fn from_str(text: &str) -> Result<Self, InvalidTerm> {
        let digits = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let number = digits.and_then(|digits| digits.parse().ok());
        number.map(Term).ok_or_else(|| InvalidTerm { text: text.chars().take(64).collect() })
    }
}

/// A text that is not a term.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a term: it is a whole number from 0 to {}", u64::MAX)]
#[non_exhaustive]
pub struct InvalidTerm {
    /// The text as it was given, cut after 64 characters.
    pub text: String,
}

/// What an instance is among the instances of its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Role {
    /// The one instance that does what must not be done twice at a time. Fence whatever it writes with the term.
    Master(Term),
    /// One of the instances that calls are balanced over.
    Normal,
    /// Not known to hold either role now: not registered, or cut off from the registry.
    #[default]
    Detached,
}

impl Role {
    /// The term of a master, `None` for the others.
    #[must_use]
    pub fn term(self) -> Option<Term> {
        match self {
            Role::Master(term) => Some(term),
            Role::Normal | Role::Detached => None,
        }
    }

    /// Whether this is a master.
    #[must_use]
    pub fn is_master(self) -> bool {
        matches!(self, Role::Master(_))
    }

    /// `master`, `normal` or `detached`: the word that JSON and tables use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Master(_) => "master",
            Role::Normal => "normal",
            Role::Detached => "detached",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Master(term) => write!(f, "master (term {term})"),
            Role::Normal | Role::Detached => f.write_str(self.name()),
        }
    }
}

/// Remembers the highest term seen and refuses lower ones.
///
/// No registry can promise that two processes never both believe to be master at one moment of wall-clock time: a master
/// may be paused between the check of its role and the write that follows. What can be promised is that the write is
/// refused. Put one guard before whatever is written under a mastership (a file, a table, a device), hand the term along
/// with each write, and ask the guard. See "How to do distributed locking" (Kleppmann, 2016) for the argument.
#[derive(Debug, Default)]
pub struct TermGuard {
    highest: AtomicU64,
}

impl TermGuard {
    /// A guard that has seen no term.
    #[must_use]
    pub const fn new() -> Self {
        Self { highest: AtomicU64::new(0) }
    }

    /// A guard that has already seen `term`: for a guard whose memory outlives its process.
    #[must_use]
    pub const fn resume(term: Term) -> Self {
        Self { highest: AtomicU64::new(term.0) }
    }

    /// Lets `term` pass if no higher one has been seen, and remembers it.
    ///
    /// # Errors
    ///
    /// [`StaleTerm`] when a higher term has been seen: whoever offers this one is master no longer.
    pub fn check(&self, term: Term) -> Result<(), StaleTerm> {
        let seen = self.highest.fetch_max(term.0, Ordering::AcqRel);
        if seen > term.0 { Err(StaleTerm { offered: term, seen: Term(seen) }) } else { Ok(()) }
    }

    /// The highest term seen so far, `None` before the first.
    #[must_use]
    pub fn highest(&self) -> Option<Term> {
        match self.highest.load(Ordering::Acquire) {
            0 => None,
            term => Some(Term(term)),
        }
    }
}

/// A write under a mastership that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("term {offered} is stale: term {seen} has been seen")]
pub struct StaleTerm {
    /// The term that was offered.
    pub offered: Term,
    /// The higher term that had been seen before.
    pub seen: Term,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_is_read_as_it_is_written() {
        for term in [Term(0), Term(7), Term(u64::MAX)] {
            assert_eq!(term.to_string().parse(), Ok(term));
        }
        for text in ["", "+7", "-1", " 7", "7.0", "18446744073709551616"] {
            let error = text.parse::<Term>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} is not a term")), "{error}");
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_term_is_a_number_in_json() {
        assert_eq!(serde_json::to_string(&Term(7)).unwrap(), "7");
        assert_eq!(serde_json::from_str::<Term>("7").unwrap(), Term(7));
    }

    #[test]
    fn the_guard_refuses_what_is_lower_than_the_highest() {
        let guard = TermGuard::new();
        assert_eq!(guard.highest(), None);
        guard.check(Term(5)).unwrap();
        guard.check(Term(5)).unwrap();
        guard.check(Term(9)).unwrap();
        assert_eq!(guard.check(Term(5)), Err(StaleTerm { offered: Term(5), seen: Term(9) }));
        assert_eq!(guard.highest(), Some(Term(9)));
        assert!(TermGuard::resume(Term(9)).check(Term(8)).is_err());
    }
}

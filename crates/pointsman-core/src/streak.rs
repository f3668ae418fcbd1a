//! Results of a health check that come in a row.

/// What is known of an instance's health, and how many results in a row have said otherwise: rise and fall thresholds. Pure.
///
/// ```
/// use pointsman_core::Streak;
///
/// let mut streak = Streak::default();
/// assert!(streak.note(true, 1), "the first result tells something");
/// assert!(!streak.note(false, 2), "one failure is not enough");
/// assert!(streak.note(false, 2));
/// assert_eq!(streak.passes(), Some(false));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streak {
    passes: Option<bool>,
    otherwise: u32,
}

impl Streak {
    /// Whether the instance passes its check; `None` as long as too little is known.
    #[must_use]
    pub fn passes(&self) -> Option<bool> {
        self.passes
    }

    /// Takes in one result. `needed` is the number of equal results in a row (at least 1) after which they count; results that
    /// confirm what is known begin the count anew. Returns whether something else is known now.
    pub fn note(&mut self, passed: bool, needed: u32) -> bool {
        if self.passes == Some(passed) {
            self.otherwise = 0;
            return false;
        }
        self.otherwise += 1;
        if self.otherwise < needed.max(1) {
            return false;
        }
        *self = Self { passes: Some(passed), otherwise: 0 };
        true
    }
}

//! Lengths of time, as people write them.

use std::time::Duration;

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration; write for example 500ms, 10s or 2m")]
#[non_exhaustive]
pub struct InvalidDuration {
    /// The text.
    pub text: String,
}

/// Reads a length of time: a whole number with `ms`, `s`, `m` or `h`.
///
/// # Errors
///
/// [`InvalidDuration`].
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// assert_eq!(pointsman_core::parse_duration("500ms")?, Duration::from_millis(500));
/// assert!(pointsman_core::parse_duration("10").is_err()); // a number needs a unit
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    match number.parse::<u64>().ok().filter(|_| millis > 0).and_then(|number| number.checked_mul(millis)) {
        Some(millis) => Ok(Duration::from_millis(millis)),
        None => Err(InvalidDuration { text: text.to_owned() }),
    }
}

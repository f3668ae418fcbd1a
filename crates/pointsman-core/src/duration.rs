//! Lengths of time, as people write them.

use std::time::Duration;

/// Reads a length of time: a whole number with `ms`, `s`, `m` or `h`.
///
/// # Errors
///
/// A sentence that says what would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
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
        None => Err(format!("{text:?} is not a duration; write for example 500ms, 10s or 2m")),
    }
}

//! Problem details for HTTP APIs (RFC 9457).

use serde::Serialize;

/// Media type of a problem.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// Body of an answer that says what has gone wrong.
#[derive(Debug, Serialize)]
pub struct ProblemBody<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    highest: Option<u64>,
}

impl<'a> ProblemBody<'a> {
    /// The problem of the type `urn:pointsman:problem:NAME`.
    #[must_use]
    pub fn new(name: &str, title: &'a str, status: u16, detail: &'a str) -> Self {
        Self { r#type: urn(name), title, status, detail, highest: None }
    }

    /// Adds the highest term, to the problem of a stale one.
    #[must_use]
    pub fn with_highest(self, highest: Option<u64>) -> Self {
        Self { highest, ..self }
    }

    /// The body as JSON.
    #[must_use]
    pub fn json(&self) -> String {
        // Strings and numbers: there is nothing in it that JSON cannot say.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The `type` of a problem.
#[must_use]
pub fn urn(name: &str) -> String {
    format!("urn:pointsman:problem:{name}")
}

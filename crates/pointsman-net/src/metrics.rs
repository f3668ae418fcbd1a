//! Metrics as text, in the format of Prometheus (0.0.4), which is that of OpenMetrics 1.0 but for the end.

use std::fmt::{Display, Write as _};

/// Ends all families, and returns the media type that the request accepts: the same text is both, and OpenMetrics, the stricter one, is for
/// those who know it. `accept` is the value of the header `Accept`.
pub fn finish(text: &mut String, accept: Option<&[u8]>) -> &'static str {
    text.push_str("# EOF\n");
    let accept = accept.and_then(|accept| std::str::from_utf8(accept).ok());
    if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
        return "application/openmetrics-text; version=1.0.0; charset=utf-8";
    }
    "text/plain; version=0.0.4; charset=utf-8"
}

/// Kind of a family of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A value that only grows. Its samples end with `_total`.
    Counter,
    /// A value that goes up and down.
    Gauge,
    /// Counts of values, by upper bounds.
    Histogram,
}

/// Writes families of metrics to a text.
#[derive(Debug)]
pub struct MetricsText<'t> {
    text: &'t mut String,
    prefix: &'static str,
}

/// Writes the samples of one family.
#[derive(Debug)]
pub struct Family<'t> {
    text: &'t mut String,
    name: String,
    suffix: &'static str,
}

impl<'t> MetricsText<'t> {
    /// Appends to `text`. Each name begins with `prefix` and an underscore.
    pub fn new(text: &'t mut String, prefix: &'static str) -> Self {
        Self { text, prefix }
    }

    /// Begins a family.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) -> Family<'_> {
        let name = format!("{}_{name}", self.prefix);
        let (kind, suffix) = match kind {
            Kind::Counter => ("counter", "_total"),
            Kind::Gauge => ("gauge", ""),
            Kind::Histogram => ("histogram", ""),
        };
        // Writing to a string cannot fail; so below.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Family { text: self.text, name, suffix }
    }

    /// Writes a gauge that has no labels.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, Kind::Gauge, help).sample([], value);
    }

    /// Writes a counter that has no labels.
    pub fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, Kind::Counter, help).sample([], value);
    }
}

impl Family<'_> {
    /// Writes a sample. The values of labels are escaped here.
    pub fn sample<'l>(&mut self, labels: impl IntoIterator<Item = (&'l str, &'l str)>, value: impl Display) {
        self.part(self.suffix, labels, value);
    }

    /// Writes a sample of a histogram: `suffix` is `_bucket`, `_sum` or `_count`.
    pub fn part<'l>(
        &mut self,
        suffix: &str,
        labels: impl IntoIterator<Item = (&'l str, &'l str)>,
        value: impl Display,
    ) {
        self.text.push_str(&self.name);
        self.text.push_str(suffix);
        let mut is_first = true;
        for (name, value) in labels {
            let _ = write!(self.text, "{}{name}=\"", if std::mem::take(&mut is_first) { '{' } else { ',' });
            escape(value, self.text);
            self.text.push('"');
        }
        let _ = writeln!(self.text, "{} {value}", if is_first { "" } else { "}" });
    }
}

fn escape(value: &str, text: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_counters_have_their_suffix() {
        let mut text = String::new();
        let mut metrics = MetricsText::new(&mut text, "p");
        metrics.family("c", Kind::Counter, "Help").sample([("a", "x\\\"\n"), ("b", "y")], 1);
        metrics.family("h", Kind::Histogram, "Help").part("_sum", [], 0.5);
        metrics.gauge("g", "Help", 2);
        let right = "# HELP p_c Help\n# TYPE p_c counter\np_c_total{a=\"x\\\\\\\"\\n\",b=\"y\"} 1\n\
                     # HELP p_h Help\n# TYPE p_h histogram\np_h_sum 0.5\n\
                     # HELP p_g Help\n# TYPE p_g gauge\np_g 2\n";
        assert_eq!(text, right);
    }
}

//! From the expressions of routes to the topic filters that cover what they can match.

use regex_syntax::hir::literal::Extractor;
use regex_syntax::hir::{Hir, HirKind, Look};

use crate::topic;

/// Topic filters that cover every topic that one of the expressions matches. None covers, or overlaps with, another.
pub(crate) fn filters<'a>(patterns: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut all: Vec<String> = patterns.flat_map(of_pattern).collect();
    // A shorter one may cover longer ones.
    all.sort_by_key(|filter| (filter.split('/').count(), filter.clone()));
    let mut kept: Vec<String> = Vec::new();
    for filter in all {
        if !kept.iter().any(|other| topic::covers(other, &filter)) {
            kept.push(filter);
        }
    }
    kept
}

fn of_pattern(pattern: &str) -> Vec<String> {
    literal_prefixes(pattern).map_or_else(
        || vec!["#".to_owned()],
        |prefixes| {
            prefixes.iter().filter(|prefix| !prefix.contains(['+', '#'])).map(|prefix| of_prefix(prefix)).collect()
        },
    )
}

/// What every topic that matches begins with, as one of several; `None` where that cannot be told. A prefix that ends with
/// [`END`] is a whole topic.
fn literal_prefixes(pattern: &str) -> Option<Vec<String>> {
    let hir = regex_syntax::parse(pattern).ok()?;
    if !hir.properties().look_set_prefix().contains(Look::Start) {
        return None;
    }
    let prefixes = Extractor::new().extract(&with_end(hir));
    prefixes.literals()?.iter().map(|literal| String::from_utf8(literal.as_bytes().to_vec()).ok()).collect()
}

/// Stands for the end of a topic; no topic has it inside.
const END: char = '\0';

/// The same expression with a character where it asks for the end.
fn with_end(hir: Hir) -> Hir {
    match hir.into_kind() {
        HirKind::Look(Look::End) => Hir::literal([END as u8]),
        HirKind::Concat(parts) => Hir::concat(parts.into_iter().map(with_end).collect()),
        HirKind::Alternation(parts) => Hir::alternation(parts.into_iter().map(with_end).collect()),
        HirKind::Capture(capture) => with_end(*capture.sub),
        HirKind::Repetition(mut repetition) => {
            repetition.sub = Box::new(with_end(*repetition.sub));
            Hir::repetition(repetition)
        }
        HirKind::Empty => Hir::empty(),
        HirKind::Literal(literal) => Hir::literal(literal.0),
        HirKind::Class(class) => Hir::class(class),
        HirKind::Look(look) => Hir::look(look),
    }
}

/// The whole levels of a prefix, and everything under them: a code may follow.
fn of_prefix(prefix: &str) -> String {
    match (prefix.split_once(END), prefix.rsplit_once('/')) {
        (Some((topic, _)), _) => format!("{topic}/#"),
        (None, Some((levels, _))) => format!("{levels}/#"),
        (None, None) => "#".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(patterns: &[&str]) -> Vec<String> {
        filters(patterns.iter().copied())
    }

    #[test]
    fn literal_beginnings_become_filters() {
        for (patterns, expected) in [
            (&["^/login(/|$)"][..], &["/login/#"][..]),
            (&["^/login$"], &["/login/#"]),
            (&["^/picture"], &["/#"]),
            (&["^/a/b/[0-9]+$"], &["/a/b/#"]),
            (&["^(/a/|/b/)"], &["/a/#", "/b/#"]),
            (&["^/a/", "^/a/b/", "^/c(/|$)"], &["/a/#", "/c/#"]),
            (&["^/a/", "login"], &["#"]),
            (&["^login"], &["#"]),
            (&["^/x/.*", "^/x/y"], &["/x/#"]),
            (&["(?i)^/ab/"], &["/AB/#", "/Ab/#", "/aB/#", "/ab/#"]),
            (&[""], &["#"]),
            // No topic has these.
            (&[r"^/c\+\+/", "^/c#/", "^/d/"], &["/d/#"]),
        ] {
            assert_eq!(of(patterns), expected, "{patterns:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_matches_is_subscribed_to(
            pattern in r"\^?(/[ab]|/\(a\|b\)|/\[ab\]\+|\.\*|/a\*){1,4}(\(/\|\$\)|\$|/)?",
            topic in "(/[abc]{1,2}){1,4}/?",
        ) {
            let expression = regex::Regex::new(&pattern).unwrap();
            let filters = of(&[&pattern]);
            prop_assert!(filters.iter().enumerate().all(|(i, f)| filters[..i].iter().all(|g| !topic::intersect(f, g))));
            if expression.is_match(&topic) {
                for whole in [topic.clone(), format!("{topic}/code")] {
                    prop_assert!(filters.iter().any(|filter| topic::matches(filter, &whole)), "{pattern} {whole} {filters:?}");
                }
            }
        }
    }
}

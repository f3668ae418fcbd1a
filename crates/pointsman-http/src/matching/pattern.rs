//! The expressions of routes.

use regex::bytes::{Regex, RegexBuilder, RegexSetBuilder};
use regex_syntax::ParserBuilder;
use regex_syntax::hir::literal::{Extractor, Literal};
use regex_syntax::hir::{Hir, HirKind, Look};

use crate::settings::{Invalid, Route};

/// The memory that all expressions together may take when compiled.
const PATTERNS_BYTES: usize = 16 << 20;
/// The longest expression.
const PATTERN_BYTES: usize = 64 << 10;
/// What each expression may remember while it matches, for each thread: clients choose the paths, so it is bounded tightly.
const SCRATCH_BYTES: usize = 256 << 10;

/// What is wrong with an expression.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), String> {
    compile(pattern).map(drop)
}

/// Whether all expressions together are small enough.
pub(crate) fn check_size(routes: &[Route]) -> Result<(), Invalid> {
    let patterns = routes
        .iter()
        .flat_map(|Route { when, .. }| when.pattern.iter().chain(when.headers.iter().map(|(_, pattern)| pattern)));
    RegexSetBuilder::new(patterns).size_limit(PATTERNS_BYTES).build().map(drop).map_err(|_| Invalid {
        key: "route".to_owned(),
        reason: format!("has expressions that together take more than {PATTERNS_BYTES} bytes when compiled"),
    })
}

pub(super) fn compile(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > PATTERN_BYTES {
        return Err(format!("has {} bytes; an expression may have {PATTERN_BYTES}", pattern.len()));
    }
    let built = RegexBuilder::new(pattern).size_limit(PATTERNS_BYTES).dfa_size_limit(SCRATCH_BYTES).build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(limit) => format!("takes more than {limit} bytes when compiled; make it simpler"),
        error => {
            let error = error.to_string();
            let reason = error.lines().last().unwrap_or_default().trim();
            format!("is not a regular expression: {}", reason.strip_prefix("error: ").unwrap_or(reason))
        }
    })
}

/// What an expression's matches begin with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Literals {
    /// None begins with another.
    pub(super) texts: Vec<Vec<u8>>,
    /// Whether whatever begins so matches.
    pub(super) are_all: bool,
}

/// What every path that matches begins with, as one of several; `None` where that cannot be told.
pub(super) fn literals(pattern: &str) -> Option<Literals> {
    let hir = ParserBuilder::new().utf8(false).build().parse(pattern).ok()?;
    if !hir.properties().look_set_prefix().contains(Look::Start) {
        return None;
    }
    let prefixes = Extractor::new().extract(&hir);
    let literals = prefixes.literals()?;
    let are_all = only_looks_for_its_beginning(&hir) && literals.iter().all(Literal::is_exact);
    let mut texts: Vec<Vec<u8>> = literals.iter().map(|literal| literal.as_bytes().to_vec()).collect();
    texts.sort_unstable();
    texts.dedup_by(|longer, shorter| longer.starts_with(shorter));
    Some(Literals { texts, are_all })
}

/// Whether it is `^` and something without any other look around: what its literals leave out are just looks.
fn only_looks_for_its_beginning(hir: &Hir) -> bool {
    let HirKind::Concat(parts) = hir.kind() else { return matches!(hir.kind(), HirKind::Look(Look::Start)) };
    let Some((HirKind::Look(Look::Start), rest)) = parts.split_first().map(|(first, rest)| (first.kind(), rest)) else {
        return false;
    };
    rest.iter().all(|part| part.properties().look_set().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_beginnings_are_found() {
        for (pattern, texts, are_all) in [
            ("^/picture", &["/picture"][..], true),
            ("^/(a|b)/", &["/a/", "/b/"], true),
            ("^/login(/|$)", &["/login"], false),
            ("^/login$", &["/login"], false),
            ("^/a/[0-9]+", &["/a/0", "/a/1", "/a/2", "/a/3", "/a/4", "/a/5", "/a/6", "/a/7", "/a/8", "/a/9"], false),
            ("(?i)^/ab", &["/AB", "/Ab", "/aB", "/ab"], true),
            ("^", &[""], true),
        ] {
            let found = literals(pattern).unwrap_or_else(|| panic!("{pattern}"));
            let expected = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
            assert_eq!(found, Literals { texts: expected, are_all }, "{pattern}");
        }
        for pattern in ["picture", "^/a|b", "(?m)^/a", r"\.png$", "^.*x", ""] {
            assert_eq!(literals(pattern), None, "{pattern}");
        }
    }

    #[test]
    fn what_is_too_large_is_told() {
        assert!(check_pattern(&"x".repeat(70_000)).unwrap_err().contains("may have 65536"));
        assert!(check_pattern(r"^/(\w{1000}){1000}").unwrap_err().contains("make it simpler"));
        assert!(check_pattern("^/(").unwrap_err().contains("is not a regular expression: "));
        let routes: Vec<Route> = (0..60).map(|n| Route::new(format!(r"^/{n}/\w{{20}}"), "s")).collect();
        assert_eq!(check_size(&routes).unwrap_err().key, "route");
        assert!(check_size(&routes[..10]).is_ok());
    }
}

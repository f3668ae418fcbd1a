//! Codes as people write them: in a table as short as they are unique, on the command line by a prefix.

use pointsman::Snapshot;

use crate::failure::Failure;
use crate::output::shown;

/// Minimum number of characters of a code that is shown by its prefix.
const SHORTEST: usize = 8;
/// Maximum number of codes in a message.
const LISTED: usize = 8;

/// Returns the shortest prefix of a code that no other of the codes begins with; the code itself where there is none.
pub(crate) fn shortest<'a>(code: &'a str, codes: &[&str]) -> &'a str {
    let is_unique = |prefix: &str| codes.iter().all(|other| *other == code || !other.starts_with(prefix));
    let ends = code.char_indices().map(|(at, _)| at).skip(SHORTEST);
    ends.map(|at| &code[..at]).find(|prefix| is_unique(prefix) && can_stand_for(prefix, code)).unwrap_or(code)
}

/// Returns the code that is meant by a text: that code, or the only one of the service's instances that begins with it. The message of an
/// unknown code ends with `hint`.
pub(crate) fn resolve<'a>(snapshot: &'a Snapshot, text: &str, hint: &str) -> Result<&'a str, Failure> {
    let codes: Vec<&str> = snapshot.instances().iter().map(|instance| &*instance.code).collect();
    if let Some(code) = codes.iter().find(|code| **code == text) {
        return Ok(code);
    }
    let begin: Vec<&str> = codes.iter().filter(|code| can_stand_for(text, code)).copied().collect();
    let service = shown(snapshot.service());
    match begin.as_slice() {
        [code] => Ok(code),
        [] => Err(Failure::new(format!("{}{hint}", unknown(&service, text, &codes)))),
        several => Err(Failure::usage(format!(
            "several codes of service {service} begin with {text}: {}; give more of the code",
            listed(several)
        ))),
    }
}

/// Whether a code may be named by a text that it begins with. `ress-1` is another code than `ress-10`, also while that one alone is there; in a
/// UUID digits are no number.
fn can_stand_for(text: &str, code: &str) -> bool {
    let Some(rest) = code.strip_prefix(text) else { return false };
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    is_uuid(code) || !(is_digit(text.chars().next_back()) && is_digit(rest.chars().next()))
}

fn is_uuid(code: &str) -> bool {
    let is_right =
        |(at, c): (usize, char)| if matches!(at, 8 | 13 | 18 | 23) { c == '-' } else { c.is_ascii_hexdigit() };
    code.len() == 36 && code.char_indices().all(is_right)
}

fn unknown(service: &str, text: &str, codes: &[&str]) -> String {
    let mut near: Vec<_> = codes.iter().map(|code| (strsim::damerau_levenshtein(text, code), *code)).collect();
    near.retain(|(distance, code)| *distance <= 2.max(text.chars().count() / 4) || code.contains(text));
    near.sort_unstable();
    let near: Vec<_> = near.into_iter().map(|(_, code)| code).collect();
    let there_are = match (near.as_slice(), codes) {
        (_, []) => "it has no instances now; `pointsman services` lists services that have".to_owned(),
        ([], _) => format!("its codes are {}; `pointsman instances {service} --all` lists them", listed(codes)),
        (near, _) => format!("near ones are {}; `pointsman instances {service} --all` lists all", listed(near)),
    };
    format!("service {service} has no instance with code {text}: {there_are}")
}

fn listed(codes: &[&str]) -> String {
    let more = codes.len().saturating_sub(LISTED);
    let first: Vec<_> = codes.iter().take(LISTED).map(|code| shown(code)).collect();
    if more > 0 { format!("{} and {more} more", first.join(", ")) } else { first.join(", ") }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pointsman::{Instance, ObservedInstance};

    use super::*;

    fn service(codes: &[&str]) -> Snapshot {
        let instance = |code: &&str| Arc::new(ObservedInstance::from(Instance::with_code("ress", *code)));
        Snapshot::new("ress", 1, codes.iter().map(instance).collect())
    }

    const A: &str = "efda4376-11f5-4e79-9fb4-2bd2c1a9a5a7";
    const B: &str = "efda4376-12f5-4e79-9fb4-2bd2c1a9a5a7";
    const C: &str = "0c1d2e3f-12f5-4e79-9fb4-2bd2c1a9a5a7";

    #[test]
    fn a_code_is_as_short_as_it_is_unique() {
        let codes = [A, B, C, "short", "service-front-1", "service-front-12", "service-front-12-b"];
        let shown = codes.map(|code| shortest(code, &codes));
        assert_eq!(
            shown,
            [
                "efda4376-11",
                "efda4376-12",
                "0c1d2e3f",
                "short",
                "service-front-1",
                "service-front-12",
                "service-front-12-"
            ]
        );
        // Each shown prefix is accepted as input.
        let service = service(&codes);
        for (code, shown) in codes.into_iter().zip(shown) {
            assert_eq!(resolve(&service, shown, ""), Ok(code));
        }
    }

    #[test]
    fn a_prefix_names_the_only_code_that_begins_with_it() {
        let all = service(&[A, B, C, "ress-10"]);
        assert_eq!(resolve(&all, "0c", ""), Ok(C));
        let failure = resolve(&all, "efda", "").unwrap_err();
        assert_eq!(
            failure.message(),
            format!("several codes of service ress begin with efda: {A}, {B}; give more of the code")
        );
        assert_eq!(failure, Failure::usage(failure.message().to_owned()));
        // It may be the code of an instance that is gone.
        let failure = resolve(&all, "ress-1", "").unwrap_err();
        assert!(failure.message().contains("near ones are ress-10; `pointsman instances ress --all`"), "{failure:?}");
        assert_eq!(failure, Failure::new(failure.message().to_owned()));
        let failure = resolve(&service(&[]), "x", " (hint)").unwrap_err();
        assert!(failure.message().ends_with("that have (hint)"), "{failure:?}");
    }
}

//! Topics and topic filters (MQTT 5, section 4.7).

/// The longest topic, topic filter, or other string, in bytes.
pub const MAX_TEXT_BYTES: usize = 65_535;

/// What shared subscriptions begin with: `$share/GROUP/FILTER`.
pub const SHARE: &str = "$share/";

/// Whether messages can be published to it: not empty, without wildcards and NUL, not longer than 65,535 bytes.
#[must_use]
pub fn is_topic(topic: &str) -> bool {
    !topic.is_empty() && topic.len() <= MAX_TEXT_BYTES && !topic.bytes().any(|b| matches!(b, b'+' | b'#' | 0))
}

/// Checks a topic filter, shared or not.
///
/// # Errors
///
/// What is wrong with it.
pub fn check_filter(filter: &str) -> Result<(), &'static str> {
    if filter.len() > MAX_TEXT_BYTES {
        return Err("is longer than 65,535 bytes");
    }
    let filter = match filter.strip_prefix(SHARE) {
        None => filter,
        Some(rest) => {
            let Some((group, filter)) = rest.split_once('/') else { return Err("has no filter after the group") };
            if group.is_empty() || group.contains(['+', '#']) {
                return Err("has no proper group after $share/");
            }
            filter
        }
    };
    if filter.is_empty() {
        return Err("is empty");
    }
    if filter.contains('\0') {
        return Err("has a NUL in it");
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level.contains('#') && (level.len() > 1 || levels.peek().is_some()) {
            return Err("has a # that is not its whole last level");
        }
        if level.contains('+') && level.len() > 1 {
            return Err("has a + that is not a whole level");
        }
    }
    Ok(())
}

/// The group and the filter of a shared subscription.
#[must_use]
pub fn split_share(filter: &str) -> Option<(&str, &str)> {
    filter.strip_prefix(SHARE)?.split_once('/')
}

/// Whether a topic matches a filter (without `$share`). Topics that begin with `$` match no filter that begins with a
/// wildcard.
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (mut filters, mut topics) = (filter.split('/'), topic.split('/'));
    loop {
        match (filters.next(), topics.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(filter), Some(topic)) if filter == topic => {}
            _ => return false,
        }
    }
}

/// Whether every topic that matches `inner` matches `outer` too.
#[must_use]
pub fn covers(outer: &str, inner: &str) -> bool {
    if inner.starts_with('$') && outer.starts_with(['+', '#']) {
        return false;
    }
    let (mut outer, mut inner) = (outer.split('/'), inner.split('/'));
    loop {
        match (outer.next(), inner.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

/// Whether some topic matches both.
#[must_use]
pub fn intersect(a: &str, b: &str) -> bool {
    let wild = |filter: &str| filter.starts_with(['+', '#']);
    if (a.starts_with('$') && wild(b)) || (b.starts_with('$') && wild(a)) {
        return false;
    }
    let (mut a, mut b) = (a.split('/').peekable(), b.split('/').peekable());
    loop {
        match (a.next(), b.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some("+"), Some(_)) | (Some(_), Some("+")) => {}
            (Some(x), Some(y)) if x == y => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn topics() {
        for good in ["a", "/", "//", "a b", "/login/user", "$SYS/x", "用户"] {
            assert!(is_topic(good), "{good}");
        }
        for bad in ["", "a/+", "#", "a#", "a\0b"] {
            assert!(!is_topic(bad), "{bad}");
        }
        assert!(is_topic(&"x".repeat(65_535)) && !is_topic(&"x".repeat(65_536)));
    }

    #[test]
    fn filters() {
        for good in ["#", "+", "/#", "a/+/b/#", "$share/g/#", "$share/g//a", "+/+", "$SYS/#", "/"] {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for bad in ["", "a#", "#/a", "a/#/b", "a+/b", "$share/g", "$share//a", "$share/g/", "$share/+/a", "a\0"] {
            assert!(check_filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn matching_is_the_specifications() {
        for (filter, topic) in [
            ("sport/tennis/player1/#", "sport/tennis/player1"),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon"),
            ("sport/#", "sport"),
            ("#", "/a"),
            ("sport/+", "sport/"),
            ("+/+", "/finance"),
            ("/+", "/finance"),
            ("$SYS/#", "$SYS/monitor"),
            ("/login/#", "/login"),
        ] {
            assert!(matches(filter, topic), "{filter} {topic}");
        }
        for (filter, topic) in [
            ("sport/tennis/+", "sport/tennis/player1/ranking"),
            ("sport/+", "sport"),
            ("+", "/finance"),
            ("#", "$SYS/monitor"),
            ("+/monitor", "$SYS/monitor"),
            ("a", "A"),
            ("/login/#", "/loginx"),
        ] {
            assert!(!matches(filter, topic), "{filter} {topic}");
        }
    }

    fn level() -> impl Strategy<Value = String> {
        prop_oneof![Just("a".to_owned()), Just("b".to_owned()), Just(String::new()), Just("$x".to_owned())]
    }

    fn topic() -> impl Strategy<Value = String> {
        proptest::collection::vec(level(), 1..4)
            .prop_map(|levels| levels.join("/"))
            .prop_filter("empty", |t| !t.is_empty())
    }

    fn filter() -> impl Strategy<Value = String> {
        let one = prop_oneof![3 => level(), 1 => Just("+".to_owned())];
        (proptest::collection::vec(one, 0..4), any::<bool>())
            .prop_map(|(mut levels, all)| {
                if all || levels.is_empty() {
                    levels.push("#".to_owned());
                }
                levels.join("/")
            })
            .prop_filter("empty", |filter| !filter.is_empty())
    }

    proptest! {
        #[test]
        fn what_covers_matches_whatever_the_covered_one_does(a in filter(), b in filter(), topic in topic()) {
            if covers(&a, &b) && matches(&b, &topic) {
                prop_assert!(matches(&a, &topic));
            }
            if matches(&a, &topic) && matches(&b, &topic) {
                prop_assert!(intersect(&a, &b));
            }
            prop_assert_eq!(intersect(&a, &b), intersect(&b, &a));
            if covers(&a, &b) {
                prop_assert!(intersect(&a, &b));
            }
            prop_assert!(covers(&a, &a));
        }
    }
}

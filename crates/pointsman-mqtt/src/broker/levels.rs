//! Topics in the order of their levels: what begins with the same levels lies together, so that a filter can be walked by leaps.

/// What a filter makes of a topic.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It matches.
    Match,
    /// It does not, nor does any other before this one.
    Seek(String),
    /// It does not, nor does any other behind it.
    End,
}

/// Separates levels in a place. It is in no topic, and comes before everything that is: so a topic comes before those below it, and
/// those before every other.
const SEPARATOR: char = '\0';
/// Comes behind all topics below a place, and before whatever continues its last level.
const BEHIND: char = '\u{1}';

/// Where a topic stands in the order.
pub(super) fn levels(topic: &str) -> String {
    topic.replace('/', "\0")
}

/// Whether a filter (without `$share`) matches the topic at that place, and otherwise which is the next that it could match.
pub(super) fn step(filter: &str, place: &str) -> Step {
    if place.starts_with('$') && filter.starts_with(['+', '#']) {
        // Behind all that begin with `$`.
        return Step::Seek("%".to_owned());
    }
    // How much of the place has been compared, and up to where a `+` has taken it last.
    let (mut compared, mut plus) = (0, None);
    let (mut filters, mut topics) = (filter.split('/'), place.split(SEPARATOR));
    let behind = |plus: Option<usize>| plus.map_or(Step::End, |end| Step::Seek(format!("{}{BEHIND}", &place[..end])));
    loop {
        let (wanted, level) = (filters.next(), topics.next());
        let end = compared + level.map_or(0, str::len);
        match (wanted, level) {
            (Some("#"), _) | (None, None) => return Step::Match,
            (Some("+"), Some(_)) => plus = Some(end),
            (Some("+"), None) => return Step::Seek(format!("{place}{SEPARATOR}")),
            (Some(wanted), None) => return Step::Seek(format!("{place}{SEPARATOR}{wanted}")),
            (Some(wanted), Some(level)) if wanted == level => {}
            (Some(wanted), Some(level)) if level < wanted => {
                return Step::Seek(format!("{}{wanted}", &place[..compared]));
            }
            (Some(_) | None, Some(_)) => return behind(plus),
        }
        compared = end + SEPARATOR.len_utf8();
    }
}

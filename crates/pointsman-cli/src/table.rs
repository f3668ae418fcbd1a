//! Tables for people: plain and aligned, with nothing drawn around them.

use std::time::{Duration, SystemTime};

use comfy_table::{CellAlignment, Table, presets};
use pointsman::masters::Mastership;
use pointsman::{ObservedInstance, OverrideOf, Problem, Snapshot};
use unicode_width::UnicodeWidthStr as _;

use crate::audit::Action;
use crate::output::shown;
use crate::{codes, json};

/// The services. In a table that would be wider than `width`, codes are shown as their shortest unique prefixes.
pub(crate) fn services(snapshots: &[&Snapshot], width: Option<usize>) -> String {
    fitting(width, |codes| {
        let rows = snapshots.iter().map(|snapshot| {
            let master = snapshot.master();
            vec![
                shown(snapshot.service()),
                snapshot.instances().len().to_string(),
                master.map_or_else(dash, |master| codes.show(&master.code, snapshot)),
                master.and_then(|master| master.role.term()).map_or_else(dash, |term| term.to_string()),
                snapshot.problems().len().to_string(),
            ]
        });
        write(&["SERVICE", "INSTANCES", "MASTER", "TERM", "PROBLEMS"], rows)
    })
}

/// Instances of a service, and below them what is none. In a table that would be wider than `width`, codes are shown as their shortest
/// prefixes that are unique in the service, and then tags are left out.
pub(crate) fn instances(
    instances: &[&ObservedInstance],
    problems: &[&Problem],
    snapshot: &Snapshot,
    width: Option<usize>,
) -> String {
    fitting(width, |codes| {
        let mut header = vec!["CODE", "ADDRESS", "WEIGHT", "ROLE", "TERM", "STATUS", "TAGS"];
        let mut rows: Vec<_> = instances.iter().map(|instance| row(instance, codes, snapshot)).collect();
        if !problems.is_empty() {
            header.push("NOTE");
            rows.iter_mut().for_each(|row| row.push(String::new()));
            rows.extend(problems.iter().map(|problem| problem_row(problem)));
        }
        if codes == Codes::ShortWithoutTags {
            header.retain(|column| *column != "TAGS");
            rows.iter_mut().for_each(|row| drop(row.remove(TAGS)));
        }
        write(&header, rows.into_iter())
    })
}

fn row(instance: &ObservedInstance, codes: Codes, snapshot: &Snapshot) -> Vec<String> {
    let tags: Vec<_> = instance.tags.iter().map(|(name, value)| shown(&format!("{name}={value}"))).collect();
    vec![
        codes.show(&instance.code, snapshot),
        instance.address.as_deref().map_or_else(dash, shown),
        instance.weight.to_string(),
        if instance.observer { "observer" } else { instance.role.name() }.to_owned(),
        instance.role.term().map_or_else(dash, |term| term.to_string()),
        json::status(instance).to_owned(),
        if tags.is_empty() { dash() } else { tags.join(",") },
    ]
}

/// The column of the tags.
const TAGS: usize = 6;

/// Form of codes and tags in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codes {
    Whole,
    /// As their shortest unique prefixes.
    Short,
    ShortWithoutTags,
}

impl Codes {
    fn show(self, code: &str, snapshot: &Snapshot) -> String {
        if self == Codes::Whole {
            return shown(code);
        }
        let all: Vec<_> = snapshot.instances().iter().map(|instance| &*instance.code).collect();
        shown(codes::shortest(code, &all))
    }
}

/// The widest of the tables that fits into the width, or else the narrowest.
fn fitting(width: Option<usize>, table: impl Fn(Codes) -> String) -> String {
    let fits = |table: &String| width.is_none_or(|width| table.lines().all(|line| line.width() <= width));
    let wider = [Codes::Whole, Codes::Short].into_iter().map(&table).find(fits);
    wider.unwrap_or_else(|| table(Codes::ShortWithoutTags))
}

fn problem_row(problem: &Problem) -> Vec<String> {
    let note = format!("node {}: {}", shown(&problem.node), shown(&problem.reason));
    let status = json::problem_status(problem).to_owned();
    vec![dash(), dash(), dash(), dash(), dash(), status, dash(), note]
}

/// What operators have set.
pub(crate) fn overrides(all: &[OverrideOf]) -> String {
    let yes_or_no = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let rows = all.iter().map(|set| {
        let weight = set.weight.map_or_else(dash, |weight| weight.to_string());
        vec![shown(&set.service), shown(&set.code), yes_or_no(set.drained), weight, yes_or_no(set.registered)]
    });
    write(&["SERVICE", "CODE", "DRAINED", "WEIGHT", "REGISTERED"], rows)
}

/// What operators have done.
pub(crate) fn actions(actions: &[Action]) -> String {
    let rows = actions.iter().map(|action| {
        let Action { at_ms, actor, action, service, code, detail } = action;
        let or_dash = |text: &str| if text.is_empty() { dash() } else { shown(text) };
        vec![age(ago(*at_ms)), or_dash(service), or_dash(code), shown(action), shown(actor), shown(detail)]
    });
    write(&["AGE", "SERVICE", "CODE", "ACTION", "ACTOR", "DETAIL"], rows)
}

/// The masters of a service.
pub(crate) fn masters(masters: &[Mastership]) -> String {
    let rows = masters.iter().map(|mastership| {
        let Mastership { code, address, term, since_ms, until_ms } = mastership;
        let until = until_ms.map_or_else(|| "is master".to_owned(), |until| age(ago(until)));
        vec![term.to_string(), shown(code), address.as_deref().map_or_else(dash, shown), age(ago(*since_ms)), until]
    });
    write(&["TERM", "CODE", "ADDRESS", "SINCE", "ENDED"], rows)
}

/// The time that has passed since a moment, in milliseconds since 1970.
fn ago(at_ms: u64) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(at_ms))
}

/// A time that has passed, in its largest unit.
fn age(passed: Duration) -> String {
    let seconds = passed.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Any rows; numbers stand on the right.
pub(crate) fn write(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(header);
    table.add_rows(rows);
    let last = header.len().saturating_sub(1);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { 2 }));
        if matches!(header[index], "INSTANCES" | "WEIGHT" | "TERM" | "PROBLEMS" | "PICK") {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines = table.lines().map(|line| line.trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pointsman::{Instance, Role, Term};

    use super::*;

    fn table(listed: &ObservedInstance, problems: &[&Problem]) -> String {
        let snapshot = Snapshot::new("s", 1, vec![Arc::new(listed.clone())]);
        instances(&[listed], problems, &snapshot, None)
    }

    #[test]
    fn a_table_is_plain_and_aligned() {
        let registered = Instance::new("s").code("a\u{1b}[2J").address("127.0.0.1:80").weight(12).tag("zone", "eu");
        let instance = ObservedInstance::from(registered);
        let problem = Problem { node: "normal1".to_owned(), reason: "is empty".to_owned(), skipped: true };
        let table = table(&instance, &[&problem]);
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[0].starts_with("CODE"), "{table}");
        assert!(lines[1].starts_with("a\\u{1b}[2J"), "{table}");
        assert!(lines[2].ends_with("node normal1: is empty"), "{table}");
        let status = lines[0].find("STATUS").unwrap();
        assert_eq!(&lines[1][status..status + 7], "passing", "{table}");
        assert_eq!(&lines[2][status..status + 7], "invalid", "{table}");
    }

    #[test]
    fn an_age_is_in_its_largest_unit() {
        let told = [59, 60, 3_599, 3_600, 86_400].map(|seconds| age(Duration::from_secs(seconds)));
        assert_eq!(told, ["59s", "1m", "59m", "1h", "1d"]);
    }

    #[test]
    fn an_observer_is_listed_as_one() {
        let mut instance = ObservedInstance::from(Instance::new("s").code("a"));
        instance.observer = true;
        let table = table(&instance, &[]);
        assert!(table.lines().nth(1).unwrap().contains("observer"), "{table}");
    }

    #[test]
    fn a_guarded_instance_is_listed_as_one() {
        let mut instance = ObservedInstance::from(Instance::new("s").code("a"));
        instance.guarded_since = Some(SystemTime::now());
        let table = table(&instance, &[]);
        let lines: Vec<_> = table.lines().collect();
        let status = lines[0].find("STATUS").unwrap();
        assert_eq!(&lines[1][status..status + 7], "guarded", "{table}");
    }

    #[test]
    fn without_problems_there_is_no_note() {
        let instance = ObservedInstance::from(Instance::new("s"));
        assert!(!table(&instance, &[]).contains("NOTE"));
    }

    #[test]
    fn on_a_terminal_of_80_columns_no_line_is_broken() {
        let codes = ["fcae5124-f37e-4987-a6d7-3782f90c6288", "fcae5124-0000-4987-a6d7-3782f90c6288", "short", "fcae"];
        let listed = codes.map(|code| {
            let instance = Instance::with_code("ress", code).address("192.168.100.200:50000").tag("zone", "eu-1");
            Arc::new(ObservedInstance::new(instance.tag("version", "2.1.7"), Role::Master(Term(1_795_418_027_019_215))))
        });
        let snapshot = Snapshot::new("ress", 1, listed.to_vec());
        let listed: Vec<_> = listed.iter().map(|instance| &**instance).collect();
        let table = |width| instances(&listed, &[], &snapshot, width);
        for line in table(Some(80)).lines() {
            assert!(line.len() <= 80, "{line}");
        }
        let first_words = |table: String| -> Vec<_> {
            table.lines().skip(1).map(|line| line.split(' ').next().unwrap().to_owned()).collect()
        };
        assert_eq!(first_words(table(Some(80))), ["fcae5124-f", "fcae5124-0", "short", "fcae"]);
        assert_eq!(first_words(table(Some(300))), codes);
        assert_eq!(first_words(table(None)), codes);
        let services = services(&[&snapshot], Some(50));
        assert!(services.contains(" fcae5124-f ") || services.contains("short"), "{services}");
    }
}

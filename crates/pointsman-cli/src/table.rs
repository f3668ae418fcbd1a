//! Tables for people: plain and aligned, with nothing drawn around them.

use comfy_table::{CellAlignment, Table, presets};
use pointsman::{ObservedInstance, OverrideOf, Problem, Snapshot};

use crate::json;
use crate::output::shown;

/// The services.
pub(crate) fn services<'a>(snapshots: impl Iterator<Item = &'a Snapshot>) -> String {
    let rows = snapshots.map(|snapshot| {
        let master = snapshot.master();
        vec![
            shown(snapshot.service()),
            snapshot.instances().len().to_string(),
            master.map_or_else(dash, |master| shown(&master.code)),
            master.and_then(|master| master.role.term()).map_or_else(dash, |term| term.to_string()),
            snapshot.problems().len().to_string(),
        ]
    });
    write(&["SERVICE", "INSTANCES", "MASTER", "TERM", "PROBLEMS"], rows)
}

/// Instances, and below them what is none.
pub(crate) fn instances<'a>(
    instances: impl Iterator<Item = &'a ObservedInstance>,
    problems: impl Iterator<Item = &'a Problem>,
) -> String {
    let problems: Vec<_> = problems.collect();
    let with_note = !problems.is_empty();
    let mut header = vec!["CODE", "ADDRESS", "WEIGHT", "ROLE", "TERM", "STATUS", "TAGS"];
    let mut rows: Vec<_> = instances.map(row).collect();
    if with_note {
        header.push("NOTE");
        rows.iter_mut().for_each(|row| row.push(String::new()));
        rows.extend(problems.into_iter().map(problem_row));
    }
    write(&header, rows.into_iter())
}

fn row(instance: &ObservedInstance) -> Vec<String> {
    let tags: Vec<_> = instance.tags.iter().map(|(name, value)| shown(&format!("{name}={value}"))).collect();
    vec![
        shown(&instance.code),
        instance.address.as_deref().map_or_else(dash, shown),
        instance.weight.to_string(),
        if instance.observer { "observer" } else { instance.role.name() }.to_owned(),
        instance.role.term().map_or_else(dash, |term| term.to_string()),
        json::status(instance).to_owned(),
        if tags.is_empty() { dash() } else { tags.join(",") },
    ]
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
    use pointsman::Instance;

    use super::*;

    #[test]
    fn a_table_is_plain_and_aligned() {
        let registered = Instance::new("s").code("a\u{1b}[2J").address("127.0.0.1:80").weight(12).tag("zone", "eu");
        let instance = ObservedInstance::from(registered);
        let problem = Problem { node: "normal1".to_owned(), reason: "is empty".to_owned(), skipped: true };
        let table = instances([&instance].into_iter(), [&problem].into_iter());
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[0].starts_with("CODE"), "{table}");
        assert!(lines[1].starts_with("a\\u{1b}[2J"), "{table}");
        assert!(lines[2].ends_with("node normal1: is empty"), "{table}");
        let status = lines[0].find("STATUS").unwrap();
        assert_eq!(&lines[1][status..status + 7], "passing", "{table}");
        assert_eq!(&lines[2][status..status + 7], "invalid", "{table}");
    }

    #[test]
    fn an_observer_is_listed_as_one() {
        let mut instance = ObservedInstance::from(Instance::new("s").code("a"));
        instance.observer = true;
        let table = instances([&instance].into_iter(), [].into_iter());
        assert!(table.lines().nth(1).unwrap().contains("observer"), "{table}");
    }

    #[test]
    fn a_guarded_instance_is_listed_as_one() {
        let mut instance = ObservedInstance::from(Instance::new("s").code("a"));
        instance.guarded_since = Some(std::time::SystemTime::now());
        let table = instances([&instance].into_iter(), [].into_iter());
        let lines: Vec<_> = table.lines().collect();
        let status = lines[0].find("STATUS").unwrap();
        assert_eq!(&lines[1][status..status + 7], "guarded", "{table}");
    }

    #[test]
    fn without_problems_there_is_no_note() {
        let instance = ObservedInstance::from(Instance::new("s"));
        assert!(!instances([&instance].into_iter(), [].into_iter()).contains("NOTE"));
    }
}

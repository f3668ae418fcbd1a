//! The picture that `dev` shows: pure, from what there is to lines of text.

use std::sync::Arc;
use std::time::Duration;

use pointsman::{Algorithm, ObservedInstance, Snapshot};
use unicode_width::UnicodeWidthChar as _;

use crate::json;
use crate::output::shown;

/// What is to be shown.
pub(super) struct Scene<'a> {
    /// Its URL.
    pub(super) dashboard: &'a str,
    /// Where calls can be sent to.
    pub(super) doors: &'a str,
    pub(super) algorithm: Algorithm,
    pub(super) elapsed: Duration,
    /// Calls, failed ones, and those that nobody was there for.
    pub(super) totals: (u64, u64, u64),
    pub(super) services: Vec<ServiceScene>,
    /// The newest last.
    pub(super) events: Vec<(Duration, String)>,
    pub(super) keys: &'a [(&'a str, &'a str)],
}

/// One service.
pub(super) struct ServiceScene {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) rows: Vec<Row>,
}

/// One instance.
pub(super) struct Row {
    pub(super) instance: Arc<ObservedInstance>,
    pub(super) in_flight: usize,
    pub(super) picks: u64,
    pub(super) selected: bool,
}

/// How a piece of text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Plain,
    Dim,
    Bold,
    /// The bar at the top and the bar at the bottom.
    Frame,
    Master,
    Good,
    Warning,
    Bar,
}

/// One line: pieces of text, one after the other.
#[derive(Debug, Default)]
pub(super) struct Line(pub(super) Vec<(Look, String)>);

impl Line {
    fn with(mut self, look: Look, text: impl Into<String>) -> Self {
        self.0.push((look, text.into()));
        self
    }

    /// Cut to `width` columns; a frame is filled up to them.
    fn fitted(mut self, width: usize) -> Self {
        let mut left = width;
        for (_, text) in &mut self.0 {
            let mut kept = String::new();
            for c in text.chars() {
                let columns = c.width().unwrap_or(0);
                if columns > left {
                    left = 0;
                    break;
                }
                left -= columns;
                kept.push(c);
            }
            *text = kept;
        }
        if let Some((Look::Frame, text)) = self.0.last_mut() {
            text.push_str(&" ".repeat(left));
        }
        self
    }
}

/// At most `height` lines of at most `width` columns.
pub(super) fn draw(scene: &Scene<'_>, width: usize, height: usize) -> Vec<Line> {
    let mut lines = vec![head(scene, width), Line::default().with(Look::Dim, format!(" {}", scene.doors))];
    for service in &scene.services {
        lines.push(title(service));
        lines.push(Line::default().with(Look::Dim, COLUMNS));
        let all: u64 = service.rows.iter().map(|row| row.picks).sum();
        lines.extend(service.rows.iter().map(|row| instance(row, all, width)));
        lines.push(Line::default());
    }
    lines.push(Line::default().with(Look::Bold, " events"));
    // The last line is the keys'.
    let room = height.saturating_sub(1);
    lines.truncate(room);
    let newest = scene.events.iter().rev().take(room - lines.len()).rev();
    lines.extend(newest.map(|(when, event)| {
        Line::default().with(Look::Dim, format!(" {:>7.1}s  ", when.as_secs_f64())).with(Look::Plain, shown(event))
    }));
    lines.resize_with(room, Line::default);
    lines.push(foot(scene));
    lines.into_iter().map(|line| line.fitted(width)).collect()
}

fn head(scene: &Scene<'_>, width: usize) -> Line {
    let (calls, failed, unserved) = scene.totals;
    let seconds = scene.elapsed.as_secs();
    let right = format!("{calls} calls, {} failed   {:02}:{:02} ", failed + unserved, seconds / 60, seconds % 60);
    let rest = format!("{}   {}", scene.dashboard, scene.algorithm);
    // Where it is narrow, the URL speaks for itself.
    let fits = |words: &&str| words.len() + rest.chars().count() + right.chars().count() < width;
    let words = [" pointsman   dashboard ", " dashboard "].into_iter().find(fits).unwrap_or(" ");
    let left = format!("{words}{rest}");
    let gap = width.saturating_sub(left.chars().count() + right.chars().count()).max(1);
    Line::default().with(Look::Frame, format!("{left}{}{right}", " ".repeat(gap)))
}

fn title(service: &ServiceScene) -> Line {
    let snapshot = &service.snapshot;
    let line = Line::default().with(Look::Bold, format!(" {}", shown(snapshot.service())));
    let line = match snapshot.master() {
        Some(master) => line.with(Look::Master, format!("   {} is {}", shown(&master.code), master.role)),
        None => line.with(Look::Warning, "   no master"),
    };
    let normals = snapshot.normals().filter(|instance| instance.takes_work()).count();
    let master_works = snapshot.master().is_some_and(|master| master.takes_work());
    match (normals, master_works) {
        (0, true) => line.with(Look::Warning, "   the master stands in for the normals"),
        (0, false) => line.with(Look::Warning, "   nobody takes calls"),
        (1, _) => line.with(Look::Dim, "   1 normal instance takes calls"),
        (many, _) => line.with(Look::Dim, format!("   {many} normal instances take calls")),
    }
}

const COLUMNS: &str = "   CODE      ROLE    ADDRESS         WEIGHT  STATUS   FLIGHT  PICKS";

fn instance(row: &Row, all: u64, width: usize) -> Line {
    let instance = &row.instance;
    let marker = if row.selected { " > " } else { "   " };
    let look = match (instance.role.is_master(), row.selected) {
        (true, _) => Look::Master,
        (false, true) => Look::Bold,
        (false, false) => Look::Plain,
    };
    let status = json::status(instance);
    let address = instance.address.as_deref().map_or_else(|| "-".to_owned(), shown);
    Line::default()
        .with(look, format!("{marker}{:<9.9} {:<7} ", shown(&instance.code), instance.role.name()))
        .with(Look::Plain, format!("{address:<15.15} {:>6}  ", instance.weight))
        .with(if instance.takes_work() { Look::Good } else { Look::Warning }, format!("{status:<8}"))
        .with(Look::Plain, format!(" {:>6} {:>6} ", row.in_flight, row.picks))
        .with(Look::Bar, bar(row.picks, all, width.saturating_sub(FIXED).min(40)))
}

/// The columns before the bar.
const FIXED: usize = 68;

/// A bar of at most `width` columns, drawn to an eighth of a column.
pub(super) fn bar(part: u64, all: u64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = part.saturating_mul(8 * width as u64).checked_div(all).unwrap_or(0);
    let (full, rest) = (usize::try_from(eighths / 8).unwrap_or(0), usize::try_from(eighths % 8).unwrap_or(0));
    format!("{}{}", "█".repeat(full.min(width)), EIGHTHS[rest])
}

fn foot(scene: &Scene<'_>) -> Line {
    let keys: Vec<_> = scene.keys.iter().map(|(key, what)| format!("{key} {what}")).collect();
    Line::default().with(Look::Frame, format!(" {}", keys.join("  ")))
}

#[cfg(test)]
mod tests {
    use pointsman::{Instance, Role, Term};

    use super::*;

    fn service(name: &str, instances: u32) -> ServiceScene {
        let instance = |number| {
            let mut instance =
                ObservedInstance::from(Instance::new(name).code(format!("{name}-{number}")).address("127.0.0.1:40000"));
            instance.role = if number == 0 { Role::Master(Term(123_456)) } else { Role::Normal };
            Arc::new(instance)
        };
        let snapshot = Arc::new(Snapshot::new(name, 1, (0..instances).map(instance).collect()));
        let row = |instance: &Arc<ObservedInstance>| Row {
            instance: instance.clone(),
            in_flight: 2,
            picks: 40,
            selected: false,
        };
        ServiceScene { rows: snapshot.instances().iter().map(row).collect(), snapshot }
    }

    fn scene(instances: u32, events: usize) -> Scene<'static> {
        Scene {
            dashboard: "http://127.0.0.1:47480",
            doors: "proxy http://127.0.0.1:47481/picture  broker mqtt://127.0.0.1:47482 /login/user",
            algorithm: Algorithm::WeightedRoundRobin,
            elapsed: Duration::from_secs(3723),
            totals: (123_456, 3, 4),
            services: vec![service("ress", instances), service("cfgs", instances)],
            events: (0..events).map(|number| (Duration::from_secs(1), format!("event {number}"))).collect(),
            keys: &[("q", "quit")],
        }
    }

    fn text(lines: &[Line]) -> Vec<String> {
        lines.iter().map(|line| line.0.iter().map(|(_, text)| text.as_str()).collect()).collect()
    }

    #[test]
    fn it_fits_into_80_by_24() {
        let lines = text(&draw(&scene(3, 50), 80, 24));
        assert_eq!(lines.len(), 24);
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{lines:#?}");
        assert!(lines[0].contains("weighted-round-robin") && lines[0].contains("62:03"), "{}", lines[0]);
        assert!(lines[0].contains("http://127.0.0.1:47480"), "{}", lines[0]);
        assert!(lines[1].ends_with("127.0.0.1:47482 /login/user"), "{}", lines[1]);
        let wide = text(&draw(&scene(3, 50), 100, 24));
        assert!(
            wide[0].starts_with(" pointsman   dashboard http://127.0.0.1:47480   weighted-round-robin "),
            "{}",
            wide[0]
        );
        assert!(lines[2].contains("ress-0 is master (term 123456)"), "{}", lines[2]);
        assert!(lines[22].contains("event 49"), "{}", lines[22]);
        assert!(lines[23].contains("q quit"), "{}", lines[23]);
    }

    #[test]
    fn any_size_is_drawn() {
        for (width, height) in [(0, 0), (1, 1), (10, 3), (40, 12), (300, 100)] {
            for instances in [0, 1, 30] {
                let lines = draw(&scene(instances, 5), width, height);
                assert!(lines.len() <= height.max(1), "{width}x{height}");
                assert!(text(&lines).iter().all(|line| line.chars().count() <= width));
            }
        }
    }

    #[test]
    fn bars_are_parts_of_the_whole() {
        assert_eq!(bar(0, 0, 8), "");
        assert_eq!(bar(1, 1, 4), "████");
        assert_eq!(bar(1, 2, 4), "██");
        assert_eq!(bar(1, 8, 4), "▌");
    }
}

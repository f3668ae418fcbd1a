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

/// The instances of a service in the order in which they are shown: by their codes, numbers at their end as numbers.
pub(super) fn sorted(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<ObservedInstance>> {
    let key = |instance: &&Arc<ObservedInstance>| {
        let name = instance.code.trim_end_matches(|c: char| c.is_ascii_digit());
        (name.to_owned(), instance.code[name.len()..].parse::<u64>().unwrap_or(0), instance.code.clone())
    };
    let mut instances: Vec<_> = snapshot.instances().iter().collect();
    instances.sort_by_cached_key(key);
    instances.into_iter()
}

/// At most `height` lines of at most `width` columns.
pub(super) fn draw(scene: &Scene<'_>, width: usize, height: usize) -> Vec<Line> {
    let layout = Layout::fit(scene, height);
    let mut lines = vec![head(scene, width)];
    if layout.doors {
        lines.push(Line::default().with(Look::Dim, format!(" {}", scene.doors)));
    }
    let is_narrow = width < FIXED;
    for (service, room) in scene.services.iter().zip(&layout.rows) {
        lines.push(title(service));
        if layout.columns {
            lines.push(Line::default().with(Look::Dim, if is_narrow { NARROW_COLUMNS } else { COLUMNS }));
        }
        lines.extend(rows(service, *room, width));
        if layout.gaps {
            lines.push(Line::default());
        }
    }
    if layout.events > 0 {
        lines.push(Line::default().with(Look::Bold, " events"));
    }
    let newest = scene.events.iter().rev().take(layout.events).rev();
    lines.extend(newest.map(|(when, event)| {
        Line::default().with(Look::Dim, format!(" {:>7.1}s  ", when.as_secs_f64())).with(Look::Plain, shown(event))
    }));
    // The last line is the keys'.
    lines.resize_with(height.saturating_sub(1), Line::default);
    lines.push(foot(scene, width));
    lines.into_iter().map(|line| line.fitted(width)).collect()
}

/// What there is room for.
struct Layout {
    doors: bool,
    columns: bool,
    gaps: bool,
    /// The lines of each service's instances.
    rows: Vec<usize>,
    /// Those of events, without their heading.
    events: usize,
}

impl Layout {
    /// Gives the lines to what matters most: some instances of each service, then what explains them, then some events, then the rest.
    fn fit(scene: &Scene<'_>, height: usize) -> Self {
        const SOME_ROWS: usize = 3;
        const SOME_EVENTS: usize = 3;
        let services = scene.services.len();
        // Head, foot, titles.
        let mut left = height.saturating_sub(2 + services);
        let mut rows = vec![0; services];
        let mut add_rows = |left: &mut usize, most: usize| {
            for wanted in 1..=most {
                for (rows, service) in rows.iter_mut().zip(&scene.services) {
                    if *left > 0 && *rows < wanted.min(service.rows.len()) {
                        *rows += 1;
                        *left -= 1;
                    }
                }
            }
        };
        let take = |left: &mut usize, lines: usize| {
            let fits = *left >= lines;
            *left -= if fits { lines } else { 0 };
            fits
        };
        add_rows(&mut left, SOME_ROWS);
        let doors = take(&mut left, 1);
        let columns = take(&mut left, services);
        let has_events = take(&mut left, 1 + SOME_EVENTS);
        let gaps = take(&mut left, services);
        let most = scene.services.iter().map(|service| service.rows.len()).max().unwrap_or(0);
        add_rows(&mut left, most);
        let events = if has_events { SOME_EVENTS + left } else { left.saturating_sub(1) };
        Self { doors, columns, gaps, rows, events }
    }
}

/// The instances of a service, in `room` lines: those around the selected one, and how many are hidden.
fn rows(service: &ServiceScene, room: usize, width: usize) -> Vec<Line> {
    let all: u64 = service.rows.iter().map(|row| row.picks).sum();
    let is_whole = service.rows.len() <= room;
    let count = if is_whole { service.rows.len() } else { room.saturating_sub(1) };
    let selected = service.rows.iter().position(|row| row.selected).unwrap_or(0);
    let first = selected.saturating_sub(count / 2).min(service.rows.len() - count);
    let shown = service.rows.iter().skip(first).take(count);
    let mut lines: Vec<_> = shown.map(|row| instance(row, all, width)).collect();
    if !is_whole && room > 0 {
        let hidden = service.rows.len() - count;
        lines.push(Line::default().with(Look::Dim, format!("   {hidden} more are hidden: \u{2191}\u{2193} PgUp PgDn")));
    }
    lines
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

const NARROW_COLUMNS: &str = "   CODE      ROLE    WT STATUS   PICKS";

fn instance(row: &Row, all: u64, width: usize) -> Line {
    let instance = &row.instance;
    let marker = if row.selected { " > " } else { "   " };
    let look = match (instance.role.is_master(), row.selected) {
        (true, _) => Look::Master,
        (false, true) => Look::Bold,
        (false, false) => Look::Plain,
    };
    let status = json::status(instance);
    let status_look = if instance.takes_work() { Look::Good } else { Look::Warning };
    let line =
        Line::default().with(look, format!("{marker}{:<9.9} {:<7} ", shown(&instance.code), instance.role.name()));
    if width < FIXED {
        return line
            .with(Look::Plain, format!("{:>2} ", instance.weight))
            .with(status_look, format!("{status:<8}"))
            .with(Look::Plain, format!("{:>6}", row.picks));
    }
    let address = instance.address.as_deref().map_or_else(|| "-".to_owned(), shown);
    line.with(Look::Plain, format!("{address:<15.15} {:>6}  ", instance.weight))
        .with(status_look, format!("{status:<8}"))
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

fn foot(scene: &Scene<'_>, width: usize) -> Line {
    let mut keys: Vec<_> = scene.keys.iter().map(|(key, what)| format!("{key} {what}")).collect();
    if keys.iter().map(|key| key.chars().count() + 2).sum::<usize>() > width {
        // The last one ends it: whoever sees nothing else has to see that.
        keys.rotate_right(1);
    }
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
        ServiceScene { rows: sorted(&snapshot).map(row).collect(), snapshot }
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
    fn the_important_lines_stay_in_40_by_10() {
        let mut scene = scene(30, 50);
        scene.services[0].rows[17].selected = true;
        scene.keys = &[("k", "kill the master and whoever else"), ("n", "new"), ("q", "quit")];
        let lines = text(&draw(&scene, 40, 10));
        assert_eq!(lines.len(), 10, "{lines:#?}");
        assert!(lines[0].contains("http://127.0.0.1:47480"), "{lines:#?}");
        assert!(lines[1].contains("ress-0 is master") && lines[5].contains("cfgs-0 is master"), "{lines:#?}");
        assert!(lines[3].starts_with(" > ress-17") && lines[3].ends_with("passing     40"), "{lines:#?}");
        assert_eq!(lines[4], "   28 more are hidden: \u{2191}\u{2193} PgUp PgDn");
        assert!(lines[9].starts_with(" q quit"), "{lines:#?}");
    }

    #[test]
    fn codes_are_sorted_with_their_numbers() {
        let snapshot = service("ress", 12).snapshot;
        let codes: Vec<_> = sorted(&snapshot).map(|instance| &*instance.code).collect();
        assert_eq!((codes[2], codes[9], codes[10], codes[11]), ("ress-2", "ress-9", "ress-10", "ress-11"));
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

//! `dev` on a terminal: draws the picture, and does what the keys say.

use std::io::{self, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::style::{PrintStyledContent, Stylize as _};
use crossterm::{cursor, execute, queue, terminal};
use futures_util::stream::{StreamExt as _, select_all};
use rustix::process::{Signal, kill_current_process_group};

use crate::dev::board::Board;
use crate::dev::fleet::{Fleet, SERVICES};
use crate::dev::picture::{self, Line, Look, Row, Scene, ServiceScene};
use crate::dev::traffic::{Traffic, lock};
use crate::failure::Failure;
use crate::signals::Signals;
use crate::watch;

const CLEAR: terminal::Clear = terminal::Clear(terminal::ClearType::All);

/// From one picture to the next.
const FRAME: Duration = Duration::from_millis(100);

/// How many instances a key goes on that turns the page.
const PAGE: isize = 10;
/// How long a shell may take to stop this process. One that has no shell is not stopped.
const STOPPING: Duration = Duration::from_millis(200);

const KEYS: &[(&str, &str)] =
    &[("k", "kill master"), ("n", "new"), ("d", "drain/undrain"), ("a", "algorithm"), ("↑↓", "select"), ("q", "quit")];

/// Where people and programs can go to.
pub(super) struct Doors {
    /// A URL.
    pub(super) dashboard: String,
    /// Those of calls, in words.
    pub(super) calls: String,
}

/// Draws until the user has seen enough.
pub(super) async fn run(
    fleet: &mut Fleet,
    traffic: &Traffic,
    board: &Arc<Mutex<Board>>,
    doors: &Doors,
) -> Result<(), Failure> {
    let broken = |error: io::Error| Failure::new(format!("draw on the terminal: {error}"));
    let terminal = Terminal::take().map_err(broken)?;
    let mut signals = Signals::listen()?;
    let mut continued = Signals::catch(&[Signal::CONT])?;
    let mut changes = select_all(fleet.services().iter().map(|service| service.changes().from_nothing()));
    let mut keys = EventStream::new();
    let mut frames = tokio::time::interval(FRAME);
    let mut selected = Selected { service: 0, code: format!("{}-2", SERVICES[0]) };
    loop {
        selected.settle(fleet);
        tokio::select! {
            _ = frames.tick() => draw(&scene(fleet, traffic, board, &selected, doors)).map_err(broken)?,
            Some(change) = changes.next() => lock(board).add_event(watch::sentence(&change)),
            _ = signals.next() => return Ok(()),
            // Stopped by somebody else: what is on the terminal is the shell's.
            _ = continued.next() => terminal.enter().map_err(broken)?,
            key = keys.next() => match key {
                Some(Ok(Event::Key(key))) if is_control(key, 'z') => {
                    terminal.suspend(&mut continued).await.map_err(broken)?;
                }
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    if !obey(key, fleet, traffic, board, &mut selected).await? {
                        return Ok(());
                    }
                }
                // Terminals keep what they can of what was there, elsewhere.
                Some(Ok(Event::Resize(..))) => execute!(io::stdout(), CLEAR).map_err(broken)?,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broken(error)),
                None => return Ok(()),
            },
        }
    }
}

/// Does what a key says; `false` for quitting.
async fn obey(
    key: KeyEvent,
    fleet: &mut Fleet,
    traffic: &Traffic,
    board: &Arc<Mutex<Board>>,
    selected: &mut Selected,
) -> Result<bool, Failure> {
    match key.code {
        KeyCode::Char('c') if is_control(key, 'c') => return Ok(false),
        KeyCode::Char('q') | KeyCode::Esc => return Ok(false),
        KeyCode::Char('k') => match fleet.kill_master(selected.service) {
            Some(code) => {
                let how = if selected.service == 0 { "killed" } else { "stops, once it has answered what it has" };
                lock(board).add_event(format!("{} {code} {how}", SERVICES[selected.service]));
            }
            None => lock(board).add_event(format!("{} has no master to kill", SERVICES[selected.service])),
        },
        KeyCode::Char('n') => fleet.add(selected.service).await?,
        KeyCode::Char('d') => fleet.toggle_drain(selected.service, &selected.code).await?,
        KeyCode::Char('a') => {
            let algorithm = traffic.next_algorithm();
            let mut board = lock(board);
            board.forget_picks();
            board.add_event(format!("picks by {algorithm} from now on"));
        }
        KeyCode::Up => selected.step(fleet, -1),
        KeyCode::Down | KeyCode::Tab => selected.step(fleet, 1),
        KeyCode::PageUp => selected.step(fleet, -PAGE),
        KeyCode::PageDown => selected.step(fleet, PAGE),
        _ => {}
    }
    Ok(true)
}

fn is_control(key: KeyEvent, letter: char) -> bool {
    key.code == KeyCode::Char(letter) && key.modifiers.contains(KeyModifiers::CONTROL)
}

/// The instance that the keys are about.
struct Selected {
    service: usize,
    code: String,
}

impl Selected {
    /// Where the selected one is gone, another of its service takes its place.
    fn settle(&mut self, fleet: &Fleet) {
        let snapshot = fleet.services()[self.service].snapshot();
        if snapshot.find(&self.code).is_none()
            && let Some(next) = snapshot.normals().next().or(snapshot.master())
        {
            self.code = next.code.to_string();
        }
    }

    /// Goes on by so many instances, in the order in which they are shown; by one also from the last to the first.
    fn step(&mut self, fleet: &Fleet, by: isize) {
        let mut all = Vec::new();
        for (index, service) in fleet.services().iter().enumerate() {
            all.extend(picture::sorted(&service.snapshot()).map(|instance| (index, instance.code.to_string())));
        }
        if all.is_empty() {
            return;
        }
        let at = all.iter().position(|(service, code)| *service == self.service && *code == self.code).unwrap_or(0);
        let next = match by {
            -1 | 1 => (at + all.len()).saturating_add_signed(by) % all.len(),
            _ => at.saturating_add_signed(by).min(all.len() - 1),
        };
        (self.service, self.code) = all.swap_remove(next);
    }
}

fn scene<'a>(
    fleet: &Fleet,
    traffic: &Traffic,
    board: &Arc<Mutex<Board>>,
    selected: &Selected,
    doors: &'a Doors,
) -> Scene<'a> {
    let board = lock(board);
    let service = |(index, service): (usize, &pointsman::Service)| {
        let (snapshot, flights) = (service.snapshot(), fleet.in_flight(index));
        let row = |instance: &Arc<pointsman::ObservedInstance>| Row {
            in_flight: flights.iter().find(|(code, _)| *code == instance.code).map_or(0, |(_, count)| *count),
            picks: board.picks(&instance.service, &instance.code),
            selected: index == selected.service && *instance.code == *selected.code,
            instance: instance.clone(),
        };
        ServiceScene { rows: picture::sorted(&snapshot).map(row).collect(), snapshot }
    };
    Scene {
        dashboard: &doors.dashboard,
        doors: &doors.calls,
        algorithm: traffic.algorithm(),
        elapsed: board.elapsed(),
        totals: board.totals(),
        services: fleet.services().iter().enumerate().map(service).collect(),
        events: board.events().cloned().collect(),
        keys: KEYS,
    }
}

fn draw(scene: &Scene<'_>) -> io::Result<()> {
    let (width, height) = terminal::size()?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    queue!(out, terminal::BeginSynchronizedUpdate)?;
    for (row, line) in (0..).zip(picture::draw(scene, width.into(), height.into())) {
        queue!(out, cursor::MoveTo(0, row))?;
        write_line(&mut out, line)?;
        queue!(out, terminal::Clear(terminal::ClearType::UntilNewLine))?;
    }
    queue!(out, terminal::EndSynchronizedUpdate)?;
    out.flush()
}

fn write_line(out: &mut impl io::Write, line: Line) -> io::Result<()> {
    for (look, text) in line.0 {
        let styled = match look {
            Look::Plain => text.reset(),
            Look::Dim => text.dim(),
            Look::Bold => text.bold(),
            Look::Frame => text.reverse(),
            Look::Master => text.yellow().bold(),
            Look::Good => text.green(),
            Look::Warning => text.red(),
            Look::Bar => text.cyan(),
        };
        queue!(out, PrintStyledContent(styled))?;
    }
    Ok(())
}

/// The terminal, taken over; given back on drop, and on a panic before its message is written.
struct Terminal;

impl Terminal {
    fn take() -> io::Result<Self> {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            report(panic);
        }));
        let taken = Self;
        taken.enter()?;
        Ok(taken)
    }

    fn enter(&self) -> io::Result<()> {
        terminal::enable_raw_mode()?;
        execute!(io::stdout(), terminal::EnterAlternateScreen, terminal::DisableLineWrap, cursor::Hide, CLEAR)
    }

    /// Gives the terminal back to the shell, and stops this process as Ctrl-Z does elsewhere, until it is continued.
    async fn suspend(&self, continued: &mut Signals) -> io::Result<()> {
        give_back();
        kill_current_process_group(Signal::TSTP)?;
        let _ = tokio::time::timeout(STOPPING, continued.next()).await;
        self.enter()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    // Where the terminal is gone there is nothing to be given back.
    let _ = execute!(io::stdout(), cursor::Show, terminal::EnableLineWrap, terminal::LeaveAlternateScreen);
    let _ = terminal::disable_raw_mode();
}

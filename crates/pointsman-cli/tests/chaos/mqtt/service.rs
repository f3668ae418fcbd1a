//! A service behind the broker, in a process of its own.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pointsman::mqtt::{Reply, Request, Service};
use pointsman::{Instance, Registry, Role};
use serde_json::json;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use super::load::{MASTER, NORMAL};

/// The name that all services register under.
pub(super) const SERVICE: &str = "cfgs";

/// Where the process finds what it is to be.
const VARIABLE: &str = "CHAOS_SERVICE";

/// This very program again, as a service with this code, which writes the payload and the time of each message into a journal. By SIGUSR1
/// it resigns.
pub(super) fn command(code: &str, registry: &str, broker: &str, journal: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["service_behind_a_broker", "--exact", "--ignored", "--nocapture"]);
    let words = format!("{} {code} {registry} {broker} {}", std::process::id(), journal.display());
    command.env(VARIABLE, words);
    command
}

/// What the process does, if it is one. It tells its roles as `pointsman register -o json` does.
pub(crate) async fn run() {
    let Ok(told) = std::env::var(VARIABLE) else { return };
    let words: Vec<&str> = told.splitn(5, ' ').collect();
    let (run, code) = (words[0].parse::<i32>().unwrap(), words[1]);
    let journal = Arc::new(File::options().create(true).append(true).open(words[4]).unwrap());
    let mut term = signal(SignalKind::terminate()).unwrap();
    let mut resign = signal(SignalKind::user_defined1()).unwrap();
    // Like everything that a supervisor keeps running, it ends when it cannot start, and is started again.
    let registry = Registry::connect(words[2]).await.unwrap();
    let service = Service::builder(&registry, Instance::new(SERVICE).code(code)).broker(words[3].parse().unwrap());
    let own_code = Arc::<str>::from(code);
    let answer = move |request: Request| answer(journal.clone(), own_code.clone(), request);
    let service = service.on(format!("{NORMAL}/#"), answer.clone()).on(format!("{MASTER}/#"), answer);
    let service = service.start().await.unwrap();
    let mut roles = service.roles();
    loop {
        tokio::select! {
            _ = term.recv() => break,
            // One that is not master any more has nothing to hand over.
            _ = resign.recv() => drop(service.resign().await),
            role = roles.changed() => match role {
                Some(role) => tell(role),
                None => break,
            },
            () = sleep(Duration::from_secs(1)) => crate::origin::end_with(run),
        }
    }
    let _ = service.close().await;
    std::process::exit(0);
}

#[allow(clippy::print_stdout, reason = "for the process that has started this one")]
fn tell(role: Role) {
    let line = match role {
        Role::Master(term) => json!({ "role": "master", "term": term.0 }),
        Role::Normal => json!({ "role": "normal" }),
        _ => json!({ "role": "detached" }),
    };
    println!("{line}");
}

async fn answer(
    journal: Arc<File>,
    code: Arc<str>,
    request: Request,
) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
    let id = String::from_utf8_lossy(request.payload()).into_owned();
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
    (&*journal).write_all(format!("{id} {time}\n").as_bytes())?;
    sleep(Duration::from_millis(fastrand::u64(0..10))).await;
    Ok(Reply::new(format!("{id} {code}")))
}

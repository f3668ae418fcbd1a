//! Tells the build which commit it is of, for `pointsman version`. Without git, or from an archive, that is unknown.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=POINTSMAN_TARGET={}", std::env::var("TARGET").unwrap_or_default());
    // An archive that lies in another repository is not of its commits.
    let is_known = git(&["ls-files", "--error-unmatch", "Cargo.toml"]).is_some();
    let log = is_known.then(|| git(&["log", "-1", "--format=%H %cI"])).flatten();
    if let Some((commit, date)) = log.as_deref().and_then(|log| log.split_once(' ')) {
        println!("cargo::rustc-env=POINTSMAN_COMMIT={commit}");
        println!("cargo::rustc-env=POINTSMAN_COMMIT_DATE={date}");
        // It is written with every commit and checkout.
        if let Some(path) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

//! What the tests need besides Rust, and Debian's packages that have it.

use std::path::Path;
use std::process::Command;

use crate::run::{Failure, run};

/// A command in `PATH`, or a file by its whole path; and the package that has it.
const NEEDS: &[(&str, &str)] = &[
    ("java", "default-jre-headless"),
    ("/usr/share/java/zookeeper.jar", "libzookeeper-java"),
    ("/usr/share/java/slf4j-simple.jar", "libslf4j-java"),
    ("/usr/sbin/mosquitto", "mosquitto"),
    ("mosquitto_pub", "mosquitto-clients"),
    // By its path, as the tests start it: another Python would not find Debian's modules.
    ("/usr/bin/python3", "python3"),
    ("/usr/lib/python3/dist-packages/paho/mqtt/client.py", "python3-paho-mqtt"),
    ("curl", "curl"),
    // The proxy's origins, clients and load.
    ("/usr/sbin/nginx", "nginx"),
    ("h2load", "nghttp2-client"),
    ("varnishtest", "varnish"),
    ("wrk", "wrk"),
    // For schemathesis, websockets, grpcio, and the generators of clients with their Node.js, which come from PyPI. The files of the package itself have the version of Python in
    // their paths.
    ("/var/lib/dpkg/info/python3-venv.list", "python3-venv"),
    // Partitions of the network.
    ("ip", "iproute2"),
    ("nft", "nftables"),
    // The dashboard, as people see it.
    ("/usr/bin/chromium", "chromium"),
    ("/usr/bin/chromedriver", "chromium-driver"),
    ("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf", "fonts-dejavu-core"),
];

/// What is needed to build the benchmarks: a peer in them, pingora, builds zlib-ng.
const BUILDING_NEEDS: &[(&str, &str)] = &[("cmake", "cmake"), ("make", "make")];

/// What the benchmarks need beyond that: peers, and load.
const BENCHES_NEED: &[(&str, &str)] = &[
    ("/usr/sbin/nginx", "nginx"),
    ("/usr/sbin/haproxy", "haproxy"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("taskset", "util-linux"),
];

/// Installs what the tests need and is missing; does nothing when nothing is.
pub(crate) fn install_missing() -> Result<(), Failure> {
    install(NEEDS)
}

/// The same for a build of everything.
pub(crate) fn install_missing_to_build() -> Result<(), Failure> {
    install(BUILDING_NEEDS)
}

/// The same for the benchmarks.
pub(crate) fn install_missing_for_benches() -> Result<(), Failure> {
    install(&[NEEDS, BUILDING_NEEDS, BENCHES_NEED].concat())
}

fn install(needs: &[(&'static str, &'static str)]) -> Result<(), Failure> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|&(_, package)| package).collect();
    let what: Vec<&str> = missing.iter().map(|&(need, _)| need).collect();
    println!("xtask: {} is needed; installing {}", what.join(", "), packages.join(" "));
    run_script(&packages)?;
    match self::missing(needs).first() {
        None => Ok(()),
        Some((need, package)) => Err(Failure::new(format!("{package} is installed, and yet there is no {need}"))),
    }
}

fn missing(needs: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    needs.iter().copied().filter(|(need, _)| !is_there(need)).collect()
}

fn is_there(need: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Somebody who is not root may have no sbin in the path.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    // Joining a whole path leaves just that.
    folders.into_iter().any(|folder| folder.join(Path::new(need)).exists())
}

/// Installs packages. Nothing of them is started.
fn run_script(packages: &[&str]) -> Result<(), Failure> {
    if !is_there("apt-get") {
        return Err(Failure::new("there is no apt-get here: please install what is missing by hand"));
    }
    let sudo: &[&str] =
        if !is_root() && is_there("sudo") { &["sudo", "-n", "--preserve-env=DEBIAN_FRONTEND"] } else { &[] };
    let words = [sudo, &["sh", "-c", include_str!("install.sh"), "install"], packages].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive");
    let sudo = sudo.first().map_or("", |_| "sudo ");
    run(&format!("{sudo}sh install.sh {}", packages.join(" ")), &mut command)
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

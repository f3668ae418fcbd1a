//! Where things are.

use zookeeper_client::Stat;

use super::tree::Kind;
use crate::log::Log;

/// The paths under one prefix: go-micro-service's for what it reads too, and ours under a root of our own, `/pointsman`, for what it must
/// not see, because it takes every child of the prefix for a service and every child of a service for an instance.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    /// `/micro-service`
    pub(super) services: String,
    /// `/pointsman/micro-service/overrides`
    pub(super) overrides: String,
    /// `/pointsman/micro-service/left`
    pub(super) left: String,
    /// `/pointsman/micro-service/terms`
    pub(super) terms: String,
    /// `/pointsman/micro-service/peers`
    pub(super) peers: String,
    /// `/pointsman/micro-service/logs`
    logs: String,
}

/// The name of the master's node.
pub(super) const MASTER: &str = "master";
const NORMAL: &str = "normal";
/// What the names of observers' nodes begin with. go-micro-service takes every child of a service but `master` for a normal instance, and
/// whoever waits for the mastership, of whatever version, for one only that is named `normal` with a number.
const OBSERVER: &str = "observer";

impl Layout {
    pub(super) fn new(prefix: &str, root: &str) -> Self {
        let own = |folder| format!("{root}{prefix}/{folder}");
        Self {
            services: prefix.to_owned(),
            overrides: own("overrides"),
            left: own("left"),
            terms: own("terms"),
            peers: own("peers"),
            logs: own("logs"),
        }
    }

    /// The folders of what a directory follows; in each there is one for each service.
    pub(super) fn roots(&self) -> [&str; 3] {
        [&self.services, &self.overrides, &self.left]
    }

    /// The folders of what a directory follows of one service.
    pub(super) fn watched(&self, service: &str) -> [String; 3] {
        self.roots().map(|root| format!("{root}/{service}"))
    }

    pub(super) fn service(&self, service: &str) -> String {
        format!("{}/{service}", self.services)
    }

    pub(super) fn overrides_of(&self, service: &str) -> String {
        format!("{}/{service}", self.overrides)
    }

    pub(super) fn folder(&self, service: &str, kind: Kind) -> String {
        match kind {
            Kind::Nodes => self.service(service),
            Kind::Overrides => self.overrides_of(service),
        }
    }

    /// Where those who leave a service cleanly leave their markers.
    pub(super) fn left_of(&self, service: &str) -> String {
        format!("{}/{service}", self.left)
    }

    /// Where the entries of a log are.
    pub(super) fn log(&self, log: &Log) -> String {
        match log {
            Log::Audit => format!("{}/audit", self.logs),
            Log::Masters(service) => format!("{}/{service}", self.logs_of_masters()),
        }
    }

    /// Where the logs of the masters of all services are.
    pub(super) fn logs_of_masters(&self) -> String {
        format!("{}/masters", self.logs)
    }

    /// Where the highest term of a service is recorded.
    pub(super) fn terms_of(&self, service: &str) -> String {
        format!("{}/{service}", self.terms)
    }
}

/// Whether a node takes part in the election, and no session keeps it: it stays for ever. A persistent node has no owner, a container this
/// one. One with a time to live, which has 0xff in the first byte, goes by itself.
pub(super) fn is_in_the_way(name: &str, stat: &Stat) -> bool {
    (name == MASTER || name.starts_with(NORMAL)) && matches!(stat.ephemeral_owner, 0 | i64::MIN)
}

/// What is wrong with a node that [is in the way](is_in_the_way), and how to remove it.
pub(super) fn removal(path: &str, stat: &Stat) -> String {
    let command = if stat.num_children == 0 { "delete" } else { "deleteall" };
    format!(
        "is a persistent node, so it is not of a living instance, and it stays in the way of elections; remove it in zkCli.sh \
         with `{command} {path}`"
    )
}

/// The marker of the clean leave of the instance `code` whose node was created by transaction `czxid`. Several nodes may be of one transaction.
pub(super) fn marker(left: &str, czxid: i64, code: &str) -> String {
    format!("{left}/{czxid:x}-{code}")
}

/// The transaction and the code that a marker is about, by its name.
pub(super) fn marked(name: &str) -> Option<(i64, &str)> {
    let (czxid, code) = name.split_once('-')?;
    Some((i64::from_str_radix(czxid, 16).ok()?, code))
}

/// The path to create a normal node at; the server adds ten digits.
pub(super) fn normal_prefix(folder: &str) -> String {
    format!("{folder}/{NORMAL}")
}

/// The path to create an observer's node at; the server adds ten digits.
pub(super) fn observer_prefix(folder: &str) -> String {
    format!("{folder}/{OBSERVER}")
}

/// Whether a node is an observer's, by its name.
pub(super) fn is_of_observer(name: &str) -> bool {
    name.strip_prefix(OBSERVER).is_some_and(is_number)
}

/// Whether this is what the server adds to the name of a sequential node.
fn is_number(digits: &str) -> bool {
    digits.len() >= 10 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// The number of a normal node: its place in the queue for the mastership. `None` for any other node's name.
pub(super) fn number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(NORMAL)?;
    is_number(digits).then(|| digits.parse().ok())?
}

/// The normal nodes before `name` in the queue, the nearest first.
pub(super) fn before<'a>(names: &'a [String], name: &str) -> Vec<&'a str> {
    let own = number(name);
    let mut before: Vec<(u64, &str)> =
        names.iter().filter_map(|other| Some((number(other)?, &**other))).filter(|(n, _)| Some(*n) < own).collect();
    before.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
    before.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_in_order_of_numbers_and_ignores_other_names() {
        let names = ["master", "observer0000000001", "normal0000000010", "x", "normal0000000002", "normalx", "normal1"]
            .map(str::to_owned);
        assert_eq!(before(&names, "normal0000000010"), ["normal0000000002"]);
        assert_eq!(before(&names, "normal0000000002"), [""; 0]);
        assert_eq!(before(&names, "normal0000000011"), ["normal0000000010", "normal0000000002"]);
        assert_eq!(names.iter().filter(|name| is_of_observer(name)).collect::<Vec<_>>(), ["observer0000000001"]);
    }
}

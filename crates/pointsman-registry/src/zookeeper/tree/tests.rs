//! What nodes mean, and what is told of those that mean nothing.

use pointsman_core::Instance;

use super::*;
use crate::overrides::Override;
use crate::zookeeper::stat;

fn data(code: &str, weight: u32) -> Vec<u8> {
    wire::encode(&Instance::new("s").code(code).weight(weight), std::time::Duration::from_secs(1), None)
}

fn list(tree: &Tree) -> Vec<String> {
    let mut list: Vec<_> =
        tree.state("s").instances.iter().map(|i| format!("{} {} {}", i.code, i.weight, i.role)).collect();
    list.sort();
    list
}

fn left(tree: &mut Tree) -> Vec<String> {
    tree.take_state("s").left.iter().map(ToString::to_string).collect()
}

#[test]
fn an_instance_at_two_places_is_listed_once() {
    let mut tree = Tree::default();
    tree.put("s", "normal0000000001", &data("a", 1), &stat(5, 5));
    tree.put("s", "normal0000000002", &data("b", 1), &stat(6, 6));
    assert_eq!(list(&tree), ["a 1 normal", "b 1 normal"]);
    // go-micro-service promotes in two steps.
    tree.put("s", "master", &data("a", 2), &stat(9, 9));
    assert_eq!(list(&tree), ["a 2 master (term 9)", "b 1 normal"]);
    tree.remove("s", "normal0000000001");
    assert_eq!(list(&tree), ["a 2 master (term 9)", "b 1 normal"]);
    // It comes back by a new session while its old one's master node still stands.
    tree.put("s", "normal0000000007", &data("a", 3), &stat(12, 12));
    assert_eq!(list(&tree), ["a 3 master (term 9)", "b 1 normal"]);
    tree.remove("s", "master");
    assert_eq!(list(&tree), ["a 3 normal", "b 1 normal"]);
}

fn problems(tree: &Tree) -> Vec<(String, String, bool)> {
    tree.state("s").problems.into_iter().map(|p| (p.node, p.reason, p.skipped)).collect()
}

fn foreign(code: &str, port: u16) -> Vec<u8> {
    format!(r#"{{"serverip":"h","serverport":{port},"serveruniquecode":"{code}","weight":1}}"#).into_bytes()
}

#[test]
fn nodes_that_no_session_keeps_are_no_instances() {
    let mut tree = Tree::new(&Layout::new("/p", "/o"));
    for owner in [0, i64::MIN] {
        for (node, children) in [("master", 0), ("normal0000000001", 2)] {
            let persistent = Stat { ephemeral_owner: owner, num_children: children, ..stat(5, 5) };
            tree.put("s", node, &data("a", 1), &persistent);
        }
        assert_eq!(list(&tree), [""; 0]);
        let [(_, master, true), (_, normal, true)] = &problems(&tree)[..] else { panic!("{:?}", problems(&tree)) };
        assert!(master.contains("`delete /p/s/master`") && normal.contains("`deleteall /p/s/normal0000000001`"));
    }
    tree.put("s", "master", &data("a", 1), &stat(6, 6));
    tree.remove("s", "normal0000000001");
    assert_eq!((list(&tree), problems(&tree).len()), (vec!["a 1 master (term 6)".to_owned()], 0));
}

#[test]
fn two_foreign_nodes_with_one_code_are_both_told() {
    let mut tree = Tree::default();
    let owned = |czxid, owner| Stat { ephemeral_owner: owner, ..stat(czxid, czxid) };
    tree.put("s", "master", &foreign("a", 1), &owned(5, 1));
    tree.put("s", "normal0000000001", &foreign("a", 1), &owned(6, 1));
    assert_eq!(
        (list(&tree), problems(&tree)),
        (vec!["a 1 master (term 5)".to_owned()], vec![]),
        "a promotion in two steps"
    );
    tree.put("s", "normal0000000001", &foreign("a", 2), &owned(7, 2));
    assert_eq!(list(&tree), ["a 1 normal"], "whoever is not at the master's address is not master");
    let [(first, used_not, true), (second, used, false)] = &problems(&tree)[..] else {
        panic!("{:?}", problems(&tree))
    };
    assert_eq!((first.as_str(), second.as_str()), ("master", "normal0000000001"));
    assert!(used_not.contains("normal0000000001") && used_not.contains("only the newest"), "{used_not}");
    assert!(used.contains("master") && used.contains("this one"), "{used}");
    tree.put("s", "normal0000000002", &foreign("b", 2), &owned(8, 3));
    tree.put("s", "normal0000000003", &foreign("b", 2), &owned(9, 3));
    assert_eq!(problems(&tree).len(), 4, "both are normal, though of one session");
    tree.remove("s", "normal0000000001");
    tree.remove("s", "normal0000000003");
    assert_eq!((problems(&tree).len(), list(&tree).len()), (0, 2));
    tree.put("s", "normal0000000004", &data("c", 1), &owned(10, 4));
    tree.put("s", "normal0000000005", &data("c", 1), &owned(11, 5));
    assert_eq!(problems(&tree), [], "a ghost of Pointsman's own");
}

#[test]
fn what_cannot_be_read_is_told_kept_and_asked_for_again() {
    let mut tree = Tree::new(&Layout::new("/p", "/o"));
    let set = Override { drained: true, weight: None };
    tree.put("s", "master", &data("a", 1), &stat(5, 5));
    tree.set_override("s", "a", Some(br#"{"drained":true}"#));
    assert!(tree.unread().is_empty());
    let mut loaded = Tree::new(&tree.layout);
    loaded.put_folder("s", Kind::Nodes, Some(&ZkError::NoAuth));
    loaded.put_folder("s", Kind::Overrides, Some(&ZkError::NoAuth));
    loaded.put_unreadable_override("s", "a", &ZkError::NoAuth);
    loaded.put("s", "master", &data("a", 1), &stat(5, 5));
    loaded.put_unreadable("s", "normal0000000001", &ZkError::NoAuth);
    let services = ["s".into()];
    assert_eq!((tree.names(&services, Kind::Nodes).len(), tree.names(&services, Kind::Overrides).len()), (1, 1));
    assert!(tree.follow_on(loaded).is_empty());
    assert_eq!((list(&tree), tree.state("s").overrides["a"]), (vec!["a 1 master (term 5)".to_owned()], set));
    let told = problems(&tree);
    for (path, skipped) in [("/p/s", true), ("/o/p/overrides/s", false), ("/o/p/overrides/s/a", false)] {
        assert!(told.contains(&(path.to_owned(), format!("not authorized: {path}"), skipped)), "{told:?}");
    }
    assert!(told.contains(&("normal0000000001".into(), "not authorized: /p/s/normal0000000001".into(), true)));
    let unread = tree.unread();
    assert_eq!(
        [Kind::Nodes, Kind::Overrides].map(|kind| unread.folders_of(kind)),
        [services.to_vec(), services.to_vec()]
    );
    assert_eq!((unread.nodes.len(), unread.overrides.len()), (1, 1));
    tree.put_folder("s", Kind::Nodes, None);
    tree.put_folder("s", Kind::Overrides, None);
    tree.set_override("s", "a", None);
    tree.remove("s", "normal0000000001");
    assert!(tree.unread().is_empty() && problems(&tree).is_empty() && tree.state("s").overrides.is_empty());
    tree.set_override("s", "a", Some(b"{"));
    assert!(tree.unread().is_empty(), "an event tells when it is changed");
    assert!(matches!(&problems(&tree)[..], [(node, _, false)] if node == "/o/p/overrides/s/a"));
    tree.put_folder("t", Kind::Nodes, Some(&ZkError::NoAuth));
    tree.put_folder("t", Kind::Nodes, None);
    assert_eq!(tree.services.len(), 1, "nothing is left of a service that is gone");
}

#[test]
fn what_is_set_is_counted() {
    let mut tree = Tree::default();
    for code in ["a", "b", "a"] {
        tree.set_override("s", code, Some(b"{\"drained\":true}"));
    }
    tree.set_override("s", "a", None);
    assert!(tree.has_overrides());
    for code in ["b", "b"] {
        tree.set_override("s", code, None);
    }
    assert!(tree.services.is_empty() && !tree.has_overrides());
}

#[test]
fn what_is_older_than_what_is_known_is_refused() {
    let mut tree = Tree::default();
    tree.put("s", "master", &data("a", 2), &stat(5, 9));
    tree.put("s", "master", &data("a", 1), &stat(5, 7));
    assert_eq!(list(&tree), ["a 2 master (term 5)"]);
    tree.put("s", "master", &data("b", 1), &stat(4, 4));
    assert_eq!(list(&tree), ["b 1 master (term 4)"], "another node: a registry that was rebuilt may count anew");
}

#[test]
fn overrides_outlive_registrations() {
    let mut tree = Tree::default();
    tree.set_override("s", "a", Some(br#"{"drained":true,"weight":9}"#));
    tree.put("s", "master", &data("a", 2), &stat(5, 5));
    let set = Override { drained: true, weight: Some(9) };
    assert_eq!((tree.state("s").instances[0].weight, tree.state("s").overrides["a"]), (2, set));
    tree.set_override("s", "a", Some(b"nonsense"));
    assert_eq!(tree.state("s").overrides["a"], set);
    tree.set_override("s", "a", None);
    assert!(tree.state("s").overrides.is_empty());
    tree.remove("s", "master");
    tree.set_override("s", "a", None);
    assert_eq!(left(&mut tree), [""; 0]);
    assert!(tree.services.is_empty(), "nothing is left of a service that is gone");
}

#[test]
fn unreadable_nodes_are_problems_until_they_can_be_read_or_are_gone() {
    let mut tree = Tree::default();
    tree.put("s", "master", &data("a", 1), &stat(5, 5));
    tree.put_unreadable("s", "master", &ZkError::NoAuth);
    let state = tree.state("s");
    assert!(state.instances.is_empty() && state.problems[0].skipped, "{state:?}");
    tree.put("s", "master", &data("a", 1), &stat(5, 5));
    assert!(tree.state("s").problems.is_empty());
    tree.remove("s", "master");
    assert_eq!(left(&mut tree), [""; 0]);
    assert!(tree.services.is_empty(), "nothing is left of a service that is gone");
}

#[test]
fn who_leaves_is_told_from_who_is_lost() {
    let mut tree = Tree::default();
    tree.leaves("s", 5, "a");
    for (number, code) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let czxid = 5 + i64::try_from(number).unwrap();
        tree.put("s", &format!("normal000000000{number}"), &data(code, 1), &stat(czxid, czxid));
    }
    tree.leaves("s", 6, "b");
    assert_eq!(left(&mut tree), [""; 0], "it is still there");
    // One is lost, one has left, one moves, and one has left and comes back.
    tree.remove("s", "normal0000000000");
    tree.remove("s", "normal0000000001");
    tree.remove("s", "normal0000000002");
    tree.put("s", "master", &data("c", 1), &stat(9, 9));
    tree.leaves("s", 8, "d");
    tree.remove("s", "normal0000000003");
    tree.put("s", "normal0000000004", &data("d", 1), &stat(10, 10));
    assert_eq!(left(&mut tree), ["b"]);
    // And is lost afterwards.
    tree.remove("s", "normal0000000004");
    assert_eq!(left(&mut tree), [""; 0]);
    tree.leaves("s", 9, "c");
    tree.put("s", "master", &data("e", 1), &stat(11, 11));
    assert_eq!(left(&mut tree), ["c"], "another has the same place now");
}

#[test]
fn what_has_gone_while_nobody_watched_is_found_by_comparing() {
    let mut before = Tree::default();
    before.put("s", "master", &data("a", 1), &stat(5, 5));
    before.put("s", "normal0000000001", &data("b", 1), &stat(6, 6));
    before.put("t", "master", &data("a", 1), &stat(7, 7));
    before.put("u", "master", &data("a", 1), &stat(8, 8));
    let mut loaded = Tree::default();
    loaded.put("s", "master", &data("b", 1), &stat(9, 9));
    loaded.put("t", "master", &data("a", 1), &stat(7, 7));
    let mut tree = before;
    let mut concerned = tree.follow_on(loaded);
    concerned.sort();
    assert_eq!(concerned, ["s", "u"].map(Arc::from));
    tree.leaves("s", 5, "a");
    tree.leaves("u", 8, "a");
    let mut states = tree.take_states();
    states.sort_by(|a, b| a.service.cmp(&b.service));
    let told: Vec<_> = states.iter().map(|state| (&*state.service, state.instances.len(), state.left.len())).collect();
    assert_eq!(told, [("s", 1, 1), ("t", 1, 0), ("u", 0, 1)]);
}

#[test]
fn of_nodes_that_one_transaction_created_only_the_marked_one_has_left() {
    let mut tree = Tree::default();
    for code in ["a", "b"] {
        tree.put("s", &format!("normal000000000{code}"), &data(code, 1), &stat(5, 5));
    }
    tree.leaves("s", 5, "b");
    tree.remove("s", "normal000000000a");
    tree.remove("s", "normal000000000b");
    assert_eq!(left(&mut tree), ["b"]);
}

#[test]
fn who_moved_and_left_while_nobody_watched_has_left() {
    let mut before = Tree::default();
    for (czxid, code) in [(5, "a"), (6, "b"), (7, "c"), (8, "d")] {
        before.put("s", &format!("normal000000000{czxid}"), &data(code, 1), &stat(czxid, czxid));
    }
    let mut tree = before;
    assert_eq!(tree.follow_on(Tree::default()), [Arc::from("s")]);
    assert_eq!(tree.oldest_gone("s"), Some(5));
    // One has moved and left, one left before and came back, one has left, and one is lost.
    tree.leaves("s", 9, "a");
    tree.leaves("s", 4, "b");
    tree.leaves("s", 7, "c");
    let mut gone = left(&mut tree);
    gone.sort();
    assert_eq!(gone, ["a", "c"]);
    // What was read then says nothing of what is seen to go later.
    tree.leaves("s", 20, "e");
    tree.put("s", "master", &data("e", 1), &stat(11, 11));
    assert_eq!(left(&mut tree), [""; 0]);
    tree.remove("s", "master");
    assert_eq!(left(&mut tree), [""; 0]);
}

#[test]
fn broken_nodes_are_counted_and_harm_nobody() {
    let mut tree = Tree::default();
    tree.put("s", "normal0000000001", &data("a", 1), &stat(5, 5));
    tree.put("s", "normal0000000002", b"{", &stat(6, 6));
    tree.put("s", "whatever", br#"{"serverip":"h","serverport":1,"weight":-2}"#, &stat(7, 7));
    assert_eq!(list(&tree), ["a 1 normal", "h:1 0 normal"]);
    let problems = tree.state("s").problems;
    assert_eq!(problems.iter().filter(|problem| problem.skipped).count(), 1);
    assert_eq!(problems.len(), 2);
    tree.put("a#b", "master", &data("a", 1), &stat(5, 5));
    let state = tree.state("a#b");
    assert!(state.instances.is_empty() && state.problems[0].reason.contains('#'));
}

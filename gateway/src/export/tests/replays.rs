//! Dead letters that are sent again.

use super::backend::{Backend, Request, Say, items};
use super::node::{Node, count, grpc};
use crate::queue::Verdict;

fn refuse_poison(request: &Request) -> Say {
    if request.items.iter().any(|item| item.contains("poison")) { Say::Status(3, None) } else { Say::Ok }
}

fn sent(backend: &Backend, text: &str) -> usize {
    items(&backend.wait(|_| true)).iter().filter(|item| item.contains(text)).count()
}

/// A node with two dead letters at its first destination of two.
fn with_letters(dir: &std::path::Path, backends: [&Backend; 2]) -> Node {
    let node = Node::start(dir, backends.map(grpc).into());
    let id = node.tenant("a/a");
    node.commit(id, &["first"]);
    backends[0].wait_for(1);
    backends[0].now(refuse_poison);
    for name in ["poison-1", "poison-2", "second", "third", "fourth"] {
        node.commit(id, &[name]);
    }
    node.wait(|snapshot| count(&snapshot[0], |stats| &stats.dead_letters) == 2);
    backends[1].wait_for(6);
    // What was not saved yet is rightly repeated after a crash.
    node.wait(|_| node.names.iter().all(|name| node.has_saved_all(name)));
    node
}

/// Scenario: two letters are sent again while their destination still refuses them, then while it hangs; then the process dies,
/// starts again, and the destination has become lenient.
/// Guarantees: what is refused again stays a letter, without its mark; what was under way is one still after the crash, with its
/// mark, and is sent after the start; who had accepted the data before is never sent it again.
#[test]
fn a_letter_is_one_until_its_destination_has_accepted_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (strict, other) = (Backend::grpc(|_| Say::Ok), Backend::grpc(|_| Say::Ok));
    let node = with_letters(dir.path(), [&strict, &other]);
    node.decide(Verdict::Again);
    node.wait(|_| node.letters().iter().filter(|(.., again)| !again).count() == 2);
    assert_eq!(sent(&strict, "poison"), 0);

    let heard = strict.wait(|_| true).len();
    strict.now(|_| Say::Hang);
    node.decide(Verdict::Again);
    // It has decided not to answer them: so none of the two is accepted after the crash.
    strict.wait(|requests| requests.len() == heard + 2);
    node.abandon();
    strict.now(|_| Say::Ok);
    let node = Node::start(dir.path(), [&strict, &other].map(grpc).into());
    assert_eq!(node.letters().iter().filter(|(.., again)| *again).count(), 2);
    node.replay();
    node.wait(|_| node.letters().is_empty());
    assert_eq!(sent(&strict, "poison"), 2);
    assert_eq!(sent(&other, "poison"), 2, "once each, before");
    node.stop(false);
}

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

/// Scenario: four letters of pods that are gone are sent again to a destination that hangs; somebody purges them meanwhile, so that
/// their tenants are forgotten; then the destination answers, and a letter of another tenant is to be sent again.
/// Guarantees: it is sent: who is forgotten with a letter under way gives its place back.
#[test]
fn a_letter_that_is_purged_while_it_is_sent_gives_its_place_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let strict = Backend::grpc(|_| Say::Ok);
    let node = Node::start(dir.path(), vec![grpc(&strict)]);
    let stays = node.tenant("a/stays");
    node.commit(stays, &["first"]);
    strict.wait_for(1);
    strict.now(refuse_poison);
    let gone: Vec<_> = (0..4).map(|number| node.tenant(&format!("a/gone-{number}"))).collect();
    for (number, id) in gone.iter().chain([&stays]).enumerate() {
        node.commit(*id, &["fine-1"]);
        node.commit(*id, &["fine-2"]);
        node.commit(*id, &[&format!("poison-{number}")]);
        node.commit(stays, &["fine-3"]);
        node.wait(|snapshot| count(&snapshot[0], |stats| &stats.dead_letters) == number as u64 + 1);
    }
    node.wait(|snapshot| super::node::queued(snapshot) == 0 && node.has_saved_all(&node.names[0]));
    gone.iter().for_each(|id| node.detach(*id));
    let letters: Vec<_> =
        node.letters().into_iter().map(|(id, at, _)| (id, at)).filter(|(id, _)| gone.contains(id)).collect();
    assert_eq!(letters.len(), 4);
    let heard = strict.wait(|_| true).len();
    strict.now(|_| Say::Hang);
    let change = |verdict| crate::queue::LetterChange { letters: letters.clone(), verdict };
    node.queue.change_letters(change(Verdict::Again)).expect("there is room");
    node.replay();
    strict.wait(|requests| requests.len() == heard + 4);
    node.queue.change_letters(change(Verdict::Gone)).expect("there is room");
    node.wait(|snapshot| snapshot[0].tenants.len() == 1);
    strict.now(|_| Say::Ok);
    node.decide(Verdict::Again);
    node.wait(|_| node.letters().is_empty());
    node.stop(false);
}

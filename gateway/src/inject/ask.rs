//! Opting in and out.

use super::pod::Pod;
use super::{INJECT, Namespace, Reason};

/// Whether a shim is asked for: `disabled` anywhere is final; then the pod's words decide, and the namespace's where it has none.
pub(super) fn asked(pod: &Pod<'_>, namespace: &Namespace) -> Result<(), Reason> {
    let own: Vec<&str> = [pod.annotation(INJECT), pod.label(INJECT)].into_iter().flatten().collect();
    let inherited = namespace.labels.get(INJECT).map(String::as_str);
    if own.iter().copied().chain(inherited).any(|word| word == "disabled") {
        return Err(Reason::Disabled);
    }
    let deciding = if own.is_empty() { inherited.into_iter().collect() } else { own };
    if deciding.is_empty() {
        return Err(Reason::NotAsked);
    }
    match deciding.into_iter().find(|word| *word != "enabled") {
        Some(word) => Err(Reason::UnknownWord(word.to_owned())),
        None => Ok(()),
    }
}

//! Which dead letters are meant.

use super::Failed;
use super::place::Place;
use crate::admin::queue::LetterRow;
use crate::app::cli::queue::FilterArgs;

/// Those that fit the filter, in the order of their ids. An id that is not there is a mistake.
pub(super) fn choose(place: &Place, filter: &FilterArgs) -> Result<Vec<LetterRow>, Failed> {
    let all = place.letters()?;
    if let Some(id) = filter.ids.iter().find(|id| all.iter().all(|letter| letter.id != **id)) {
        return Err(Failed::new(format!(
            "there is no dead letter {id}: it was dropped, purged or replayed; `pillion queue inspect` shows those that are there"
        )));
    }
    Ok(all.into_iter().filter(|letter| fits(letter, filter)).collect())
}

fn fits(letter: &LetterRow, filter: &FilterArgs) -> bool {
    let age = filter.older_than.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    (filter.ids.is_empty() || filter.ids.contains(&letter.id))
        && filter.tenant.as_ref().is_none_or(|tenant| is_tenant(&letter.tenant, tenant))
        && filter.destination.as_ref().is_none_or(|destination| letter.destination == *destination)
        && filter.reason.as_ref().is_none_or(|text| letter.status.contains(text) || letter.message.contains(text))
        && filter.signal.is_none_or(|signal| letter.signal == signal.name())
        && letter.last_age_ms >= age
}

/// A name, or all of a namespace.
pub(super) fn is_tenant(name: &str, wanted: &str) -> bool {
    name == wanted || (wanted.ends_with('/') && name.starts_with(wanted))
}

/// Whether it means all there are.
pub(super) fn is_everything(filter: &FilterArgs) -> bool {
    let FilterArgs { ids, tenant, destination, reason, signal, older_than } = filter;
    ids.is_empty()
        && tenant.is_none()
        && destination.is_none()
        && reason.is_none()
        && signal.is_none()
        && older_than.is_none()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::Signal;

    fn letter() -> LetterRow {
        LetterRow {
            id: "3-17".parse().expect("an id"),
            tenant: "shop/cart-0".to_owned(),
            pod_uid: None,
            destination: "backend".to_owned(),
            signal: "traces".to_owned(),
            items: 4,
            bytes: 100,
            status: "gRPC 3".to_owned(),
            message: "INVALID_ARGUMENT (3): bad field".to_owned(),
            attempts: 2,
            first_age_ms: 70_000,
            last_age_ms: 60_000,
            data_age_ms: 80_000,
            replay: false,
        }
    }

    /// Scenario: a letter, and filters of each kind that fit it and that do not.
    /// Guarantees: a letter is chosen when it fits all that is asked, and no filter at all is told apart from one that fits all.
    #[test]
    fn every_filter_counts() {
        let with = |change: &dyn Fn(&mut FilterArgs)| {
            let mut filter = FilterArgs::default();
            change(&mut filter);
            (fits(&letter(), &filter), is_everything(&filter))
        };
        assert_eq!(with(&|_| {}), (true, true));
        for (fit, change) in [
            (true, &(|filter: &mut FilterArgs| filter.ids = vec![letter().id]) as &dyn Fn(&mut FilterArgs)),
            (false, &|filter| filter.ids = vec!["3-18".parse().expect("an id")]),
            (true, &|filter| filter.tenant = Some("shop/cart-0".to_owned())),
            (true, &|filter| filter.tenant = Some("shop/".to_owned())),
            (false, &|filter| filter.tenant = Some("shop/cart".to_owned())),
            (true, &|filter| filter.destination = Some("backend".to_owned())),
            (false, &|filter| filter.destination = Some("back".to_owned())),
            (true, &|filter| filter.reason = Some("gRPC 3".to_owned())),
            (true, &|filter| filter.reason = Some("bad field".to_owned())),
            (false, &|filter| filter.reason = Some("HTTP".to_owned())),
            (true, &|filter| filter.signal = Some(Signal::Traces)),
            (false, &|filter| filter.signal = Some(Signal::Logs)),
            (true, &|filter| filter.older_than = Some(Duration::from_secs(60))),
            (false, &|filter| filter.older_than = Some(Duration::from_secs(61))),
        ] {
            assert_eq!(with(change), (fit, false));
        }
    }
}

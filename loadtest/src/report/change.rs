//! Two comparisons beside each other: what became of each figure.

use super::FIGURES;
use crate::compare::Comparison;

/// The medians of both, an arm after the other; figures that neither has are left out.
pub fn change(old: &Comparison, new: &Comparison) -> String {
    let mut out = String::new();
    if old.scenario.shape() != new.scenario.shape() {
        out.push_str(&format!("NOT THE SAME LOAD\n  old: {}\n  new: {}\n", old.scenario.shape(), new.scenario.shape()));
    }
    if old.machine != new.machine {
        out.push_str(&format!("NOT THE SAME MACHINE\n  old: {}\n  new: {}\n", old.machine, new.machine));
    }
    for arm in &new.arms {
        if old.of(&arm.name).next().is_none() {
            out.push_str(&format!("\n{}: only in the new one\n", arm.name));
            continue;
        }
        out.push_str(&format!("\n{:36}{:>14}{:>14}{:>10}\n", arm.name, "old", "new", "new/old"));
        for figure in FIGURES {
            let (then, now) = (figure.of_arm(old, &arm.name), figure.of_arm(new, &arm.name));
            if then.is_none() && now.is_none() {
                continue;
            }
            let text = |value: Option<f64>| figure.told(value);
            let ratio = then
                .zip(now)
                .filter(|(then, now)| *then > 0.0 && then.max(*now).is_finite())
                .map(|(then, now)| now / then);
            let ratio = ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
            out.push_str(&format!("{:36}{:>14}{:>14}{ratio:>10}\n", figure.name, text(then), text(now)));
        }
    }
    for arm in old.arms.iter().filter(|arm| new.of(&arm.name).next().is_none()) {
        out.push_str(&format!("\n{}: only in the old one\n", arm.name));
    }
    out
}

//! One page that needs nothing else: verdict, charts, table, and how to make it again.

use super::targets::{Row, targets};
use super::words::{Ratios, findings, ratios};
use super::{Beside, FIGURES, Figure, cost, day};
use crate::compare::Comparison;

const CSS: &str = include_str!("page.css");

/// What is drawn; a figure that no arm has is left out.
const CHARTS: [&str; 10] = [
    "agent_cpu_s_per_million",
    "pss_after_kib_per_pod",
    "pss_idle_kib_per_pod",
    "ack_p50_ms",
    "ack_p99_ms",
    "delivery_p99_ms",
    "working_set_after_kib_per_pod",
    "pod_after_kib",
    "pod_ready_p50_ms",
    "startup_ms",
];

/// The page.
pub fn html(comparison: &Comparison, beside: &Beside) -> String {
    let scenario = &comparison.scenario;
    let title = format!("Load test: {}", comparison.name);
    let ratios = ratios(comparison);
    let lines = findings(comparison).into_iter().map(|line| {
        let class = match () {
            () if line.starts_with("FAULT") || line.starts_with("MISSING") => "bad",
            () if line.starts_with("VOID") || line.starts_with("NOISE") => "doubt",
            () if line.contains("arrived once, unchanged") => "good",
            () if line.starts_with("MEMORY") => "soft",
            () => "",
        };
        format!("<li class=\"{class}\">{}</li>", escaped(&line))
    });
    let charts = CHARTS.iter().filter_map(|key| FIGURES.iter().find(|figure| figure.key == *key));
    let charts: String = charts.filter_map(|figure| chart(comparison, figure)).collect();
    let arms =
        comparison.arms.iter().map(|arm| format!("<dt>{}</dt><dd>{}</dd>", escaped(&arm.name), escaped(&arm.about)));
    let file = toml::to_string(&comparison.scenario).unwrap_or_default();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{title}</title>\
         <style>{CSS}</style></head><body><main>\n<h1>{title}</h1>\n<p>{about}</p>\n\
         <p class=\"soft\">{shape}. {seconds} s a run, {rounds} rounds in shuffled order, seed {seed}. {date}, {machine}. {limits}.</p>\n\
         <h2>Verdict</h2>\n<ul class=\"verdict\">{lines}</ul>\n{ratios}\
         {promises}<h2>Figures</h2>\n<p class=\"soft\">Bars are medians of the rounds, dots are the rounds. Less is better.</p>\n\
         <div class=\"charts\">{charts}</div>\n<h2>All of them</h2>\n<div class=\"scroll\">{table}</div>\n\
         <h2>What a cluster would take</h2>\n{costs}\n<h2>What was compared</h2>\n<dl>{arms}</dl>\n\
         <h2>Make it again</h2>\n<pre>{command}</pre>\n<p class=\"soft\">comparison.json and runs.csv beside this page hold \
         every run, arms/ the configurations and logs of the first round. The scenario, as it was run, is a file for `run`:</p>\n<pre>{file}</pre>\n</main></body></html>\n",
        title = escaped(&title),
        about = escaped(&scenario.about),
        shape = escaped(&scenario.shape()),
        seconds = scenario.seconds,
        rounds = comparison.rounds,
        seed = comparison.seed,
        date = day(comparison.started),
        machine = escaped(&comparison.machine),
        limits = escaped(&comparison.limits),
        lines = lines.collect::<String>(),
        ratios = ratio_table(&ratios),
        promises = promises(comparison, beside),
        table = table(comparison),
        costs = cost::page(comparison),
        arms = arms.collect::<String>(),
        command = escaped(&comparison.command),
        file = escaped(&file),
    )
}

fn table(comparison: &Comparison) -> String {
    let head: String =
        comparison.arms.iter().map(|arm| format!("<th scope=\"col\">{}</th>", escaped(&arm.name))).collect();
    let rows = FIGURES.iter().map(|figure| {
        let values =
            comparison.arms.iter().map(|arm| format!("<td>{}</td>", figure.told(figure.of_arm(comparison, &arm.name))));
        format!("<tr><th scope=\"row\">{}</th>{}</tr>\n", escaped(figure.name), values.collect::<String>())
    });
    format!(
        "<table><thead><tr><th>median of the rounds</th>{head}</tr></thead><tbody>\n{}</tbody></table>",
        rows.collect::<String>()
    )
}

/// A promise a row; empty where the results tell of none.
fn promises(comparison: &Comparison, beside: &Beside) -> String {
    let (rows, missing) = targets(comparison, beside);
    if rows.is_empty() {
        return String::new();
    }
    let row = |row: Row| {
        let word = row.word();
        let class = match row.is_kept {
            Some(true) => "good",
            Some(false) => "bad",
            None => "doubt",
        };
        let [what, target, measured, peers] =
            [row.what, row.target, row.measured, row.peers].map(|text| escaped(&text));
        format!(
            "<tr><th scope=\"row\">{what}</th><td>{target}</td><td><b>{measured}</b></td><td class=\"{class}\">{word}</td>\
             <td>{peers}</td></tr>\n"
        )
    };
    let missing = missing.map(|text| format!("<p class=\"soft\">{}</p>\n", escaped(&text))).unwrap_or_default();
    format!(
        "<h2>Promises</h2>\n<div class=\"scroll promises\"><table><thead><tr><th>of Pillion</th><th scope=\"col\">promised</th>\
         <th scope=\"col\">measured</th><th scope=\"col\"></th><th scope=\"col\">beside others</th></tr></thead><tbody>\n{}\
         </tbody></table></div>\n{missing}",
        rows.into_iter().map(row).collect::<String>()
    )
}

/// A pair of arms a row, a figure a column. What is no verdict says why when pointed at, and below.
fn ratio_table(ratios: &Ratios) -> String {
    let mut figures: Vec<&str> = Vec::new();
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for told in &ratios.all {
        if !figures.contains(&told.what) {
            figures.push(told.what);
        }
        if !pairs.contains(&(&told.one, &told.other)) {
            pairs.push((&told.one, &told.other));
        }
    }
    let notes =
        ratios.notes.iter().map(|note| format!("<p class=\"soft\">{}</p>\n", escaped(note))).collect::<String>();
    if pairs.is_empty() {
        return notes;
    }
    let head: String = figures.iter().map(|what| format!("<th scope=\"col\">{}</th>", escaped(what))).collect();
    let cell = |one: &str, other: &str, what: &str| {
        let told =
            ratios.all.iter().find(|told| (told.one.as_str(), told.other.as_str(), told.what) == (one, other, what));
        let Some(told) = told else { return "<td>-</td>".to_owned() };
        match told.ratio.filter(|ratio| ratio.is_decided()) {
            Some(ratio) => {
                format!("<td><b>{:.2}x</b><br><small>{:.2} to {:.2}</small></td>", ratio.mean, ratio.low, ratio.high)
            }
            None => format!("<td title=\"{}\">no verdict</td>", escaped(&told.sentence)),
        }
    };
    let rows: String = pairs
        .iter()
        .map(|(one, other)| {
            let cells: String = figures.iter().map(|what| cell(one, other, what)).collect();
            format!("<tr><th scope=\"row\">{} / {}</th>{cells}</tr>\n", escaped(one), escaped(other))
        })
        .collect();
    let undecided = ratios.all.iter().filter(|told| told.ratio.is_none_or(|ratio| !ratio.is_decided()));
    let why: String = undecided.map(|told| format!("<p class=\"soft\">{}</p>\n", escaped(&told.sentence))).collect();
    format!(
        "<div class=\"scroll\"><table><thead><tr><th>taken, of what the other takes</th>{head}</tr></thead>\
         <tbody>\n{rows}</tbody></table></div>\n<p class=\"soft\">Below each its 95 % interval.</p>\n{why}{notes}"
    )
}

/// Horizontal bars, an arm each; `None`: no arm has the figure.
fn chart(comparison: &Comparison, figure: &Figure) -> Option<String> {
    const ROW: usize = 44;
    const WIDTH: f64 = 360.0;
    let items = comparison.items_per_request();
    let of = |arm: &str| -> Vec<f64> { comparison.of(arm).filter_map(|cell| figure.value(cell, items)).collect() };
    let finite = |value: &f64| value.is_finite();
    let most = comparison.arms.iter().flat_map(|arm| of(&arm.name)).filter(finite).fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let mut rows = String::new();
    for (index, arm) in comparison.arms.iter().enumerate() {
        let (top, values) = (index * ROW, of(&arm.name));
        let median = figure.of_arm(comparison, &arm.name);
        let told = median.map_or("not measured".to_owned(), |median| figure.told(Some(median)));
        let class = if arm.name.starts_with("pillion") { "own" } else { "other" };
        rows.push_str(&format!(
            "<text x=\"0\" y=\"{}\">{}</text><text x=\"{WIDTH}\" y=\"{}\" text-anchor=\"end\">{told}</text>\
             <rect class=\"track\" x=\"0\" y=\"{}\" width=\"{WIDTH}\" height=\"12\" rx=\"3\"/>\
             <rect class=\"{class}\" x=\"0\" y=\"{}\" width=\"{:.1}\" height=\"12\" rx=\"3\"/>",
            top + 14,
            escaped(&arm.name),
            top + 14,
            top + 20,
            top + 20,
            median.unwrap_or(0.0).min(most) / most * WIDTH
        ));
        for value in values {
            let x = (value.min(most) / most * WIDTH).clamp(3.0, WIDTH - 3.0);
            rows.push_str(&format!("<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{}\" r=\"2.5\"/>", top + 26));
        }
    }
    let height = comparison.arms.len() * ROW;
    Some(format!(
        "<figure><figcaption>{name}</figcaption><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{name}\">{rows}\
         </svg></figure>\n",
        name = escaped(figure.name)
    ))
}

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

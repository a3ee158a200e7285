use super::*;
use crate::cell::{Cell, Percentiles};
use crate::compare::About;
use crate::judge::Account;
use crate::scenario::Scenario;

/// Six rounds in which `pillion` takes half of what `otelcol` takes.
pub(crate) fn comparison() -> Comparison {
    let cell = |arm: &str, round: usize, cpu: f64| {
        let latency =
            Percentiles { p50: Some(0.4), p99: Some(1.2), p999: Some(2.0), max: Some(3.0), ..Percentiles::default() };
        let mut cell = Cell { arm: arm.to_owned(), round, pods: 5, latency, delivery: latency, ..Cell::default() };
        cell.cpu.arm = cpu * (1.0 + 0.01 * round as f64);
        cell.cpu.generator = 0.1;
        cell.memory.after.pss = if arm == "otelcol" { 60_000 } else { 5_000 };
        cell.account = Account { sent: 100, acknowledged: 100, delivered: 100, ..Account::default() };
        (cell.requests.due, cell.requests.acknowledged) = (10, 10);
        cell
    };
    let cells =
        (0..6).flat_map(|round| [cell("direct", round, 0.0), cell("pillion", round, 1.0), cell("otelcol", round, 2.0)]);
    let about = |name: &str| About { name: name.to_owned(), about: format!("<{name}>"), is_durable: false };
    Comparison {
        name: "quick".to_owned(),
        scenario: Scenario::load("quick").unwrap(),
        seed: 1,
        rounds: 6,
        started: 0,
        machine: "a machine".to_owned(),
        limits: "512 MiB".to_owned(),
        command: "pillion-loadtest compare --quick --seed 1".to_owned(),
        arms: ["direct", "pillion", "otelcol"].map(about).to_vec(),
        missing: Vec::new(),
        cells: cells.collect(),
    }
}

/// Scenario: six rounds with one arm at half the CPU of the other.
/// Guarantees: the verdict tells the ratio, what arrived, and what does not differ; a table and a CSV have every arm and run.
#[test]
fn the_verdict_tells_what_is_sure() {
    let comparison = comparison();
    let told = verdict(&comparison);
    let has = |words: &str| assert!(told.iter().any(|line| line.contains(words)), "{words}: {told:#?}");
    has("CPU of the agents: pillion takes 0.50x of what otelcol takes");
    has("ack latency p99: no verdict");
    has("pillion: all 600 acknowledged items arrived once");
    assert!(!told.iter().any(|line| line.contains("Nothing is said about full sidecars")), "{told:#?}");
    assert!(table(&comparison).contains("otelcol"));
    assert_eq!(csv(&comparison).lines().count(), 19);
}

/// Scenario: the kernel stamped all answers of an arm but the first, and none of another.
/// Guarantees: it is said where latencies are those of the reading, and nowhere else.
#[test]
fn answers_without_a_stamp_are_told() {
    let mut comparison = comparison();
    for cell in &mut comparison.cells {
        (cell.requests.due, cell.requests.acknowledged) = (1_000, 1_000);
        cell.requests.unstamped = if cell.arm == "otelcol" { 1_000 } else { 1 };
    }
    let told = verdict(&comparison);
    let told: Vec<_> = told.iter().filter(|line| line.starts_with("STAMPS")).collect();
    assert!(
        matches!(told[..], [line] if line.contains("otelcol: the kernel did not tell when 6000 of 6000")),
        "{told:#?}"
    );
}

/// Scenario: an arm lost items in one round, another arm is missing, and the Collector's is not in the run.
/// Guarantees: each of the three is said.
#[test]
fn the_verdict_hides_nothing() {
    let mut comparison = comparison();
    comparison.cells[1].account.lost = 7;
    comparison.cells.retain(|cell| cell.arm != "otelcol");
    comparison.arms.pop();
    let silent = cost(&comparison, &Cluster::default());
    assert!(silent.starts_with("Nothing is said about what a cluster saves"), "{silent}");
    assert!(html(&comparison, &Beside::default()).contains(&silent), "neither on the page");
    comparison.missing.push(crate::compare::Missing { arm: "otelcol".to_owned(), why: "no Go".to_owned() });
    let told = verdict(&comparison);
    for words in
        ["FAULT pillion: 7 items were acknowledged and lost", "MISSING otelcol: no Go", "Nothing is said about full"]
    {
        assert!(told.iter().any(|line| line.contains(words)), "{words}: {told:#?}");
    }
}

/// Scenario: the arm with twice the CPU acknowledges after the disk, the other one from memory.
/// Guarantees: no ratio of the two is told.
#[test]
fn promises_are_compared_with_their_like() {
    let mut comparison = comparison();
    comparison.arms[2].is_durable = true;
    let told = verdict(&comparison);
    assert!(!told.iter().any(|line| line.contains("of what otelcol takes")), "{told:#?}");
}

/// Scenario: an arm that refuses nineteen of twenty requests, one that loses items in one round of six, one that answers in half
/// of the rounds only.
/// Guarantees: none of them wins: no ratio is told, the table and an assertion see the loss and the missing answers.
#[test]
fn who_does_less_does_not_win() {
    use crate::assert::Assertions;
    let has = |comparison: &Comparison, words: &str| verdict(comparison).iter().any(|line| line.contains(words));
    let own = |comparison: &mut Comparison, change: &dyn Fn(&mut Cell)| {
        comparison.cells.iter_mut().filter(|cell| cell.arm == "pillion").for_each(change);
    };
    let broken = |comparison: &Comparison, figure: &str| {
        let text = format!("[[assert]]\nfigure = \"{figure}\"\narm = \"pillion\"\nat_most = 5.0\n");
        !Assertions::parse(&text).unwrap().check(comparison).1
    };
    let mut refusing = comparison();
    own(&mut refusing, &|cell| (cell.requests.due, cell.requests.acknowledged) = (200, 10));
    assert!(!has(&refusing, "pillion takes"), "{:#?}", verdict(&refusing));
    let mut losing = comparison();
    own(&mut losing, &|cell| cell.account.lost = if cell.round == 2 { 7 } else { 0 });
    assert!(has(&losing, "pillion and otelcol: no ratios, pillion has a fault"), "{:#?}", verdict(&losing));
    assert!(broken(&losing, "lost"));
    assert!(
        table(&losing).lines().any(|line| line.starts_with("items lost") && line.contains(" 7 ")),
        "{}",
        table(&losing)
    );
    let mut silent = comparison();
    own(&mut silent, &|cell| {
        if cell.round < 4 {
            cell.latency = Percentiles { count: 1_000, unanswered: 900, ..Percentiles::default() };
        }
    });
    assert!(has(&silent, "ack latency p99: no verdict, in 4 of 6 rounds too many requests of pillion had no answer"));
    assert!(broken(&silent, "ack_p99_ms") && table(&silent).contains("no answer"));
    assert!(html(&silent, &Beside::default()).contains("no answer"));
}

/// Scenario: two runs in which the generator was late, and a machine that was busy with something else.
/// Guarantees: it is said for how many runs latencies are void, that the rest holds, why, and what to do; only their latencies are
/// not compared.
#[test]
fn void_runs_say_why_and_what_holds() {
    let mut comparison = comparison();
    for cell in &mut comparison.cells[..2] {
        cell.void = Some("late".to_owned());
    }
    (comparison.cells[3].cpu.machine, comparison.cells[3].cpu.wall) = (8.0, 4.0);
    assert!(!verdict(&comparison).iter().any(|line| line.contains("hypervisor")), "there is none");
    (comparison.cells[4].cpu.machine, comparison.cells[4].cpu.stolen) = (1.0, 1.0);
    let told = verdict(&comparison).join("\n");
    for words in [
        "VOID latencies of 2 of 18 runs (CPU, memory and the account hold): in the first of them late",
        "NOISE up to 2.0",
        "NOISE a hypervisor gave up to 50 % of the CPU time",
        "ack latency p50: no verdict, pillion and otelcol do not differ by more than the noise (1.00 to 1.00, 5 rounds)",
        "CPU of the agents: pillion takes 0.50x of what otelcol takes (0.50 to 0.50, 6 rounds)",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
}

/// Scenario: an agent is killed, which makes repeats fair, and there were some.
/// Guarantees: they are no fault, and they are told: nobody reads that everything arrived once.
#[test]
fn what_is_fair_is_told_all_the_same() {
    let mut comparison = comparison();
    comparison.scenario.allow = vec![crate::scenario::Allowed::Duplicated];
    comparison.cells[1].account.duplicated = 30;
    let told: Vec<String> = verdict(&comparison).into_iter().filter(|line| line.starts_with("pillion:")).collect();
    assert!(told[0].contains("0 were lost and 30 arrived once more"), "{told:?}");
}

/// Scenario: an arm whose working set is near its PSS, and one whose is twice that.
/// Guarantees: only the second is told, with both figures.
#[test]
fn ways_of_counting_memory_that_disagree_are_told() {
    let mut comparison = comparison();
    for cell in comparison.cells.iter_mut().filter(|cell| cell.arm != "direct") {
        let pss = cell.memory.after.pss;
        cell.held_after.working_set = Some(if cell.arm == "otelcol" { pss * 2 } else { pss * 11 / 10 });
    }
    let told: Vec<String> = verdict(&comparison).into_iter().filter(|line| line.starts_with("MEMORY")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("otelcol") && told[0].contains("PSS 12000, working set 24000"), "{told:?}");
}

/// Scenario: assertions that hold, that do not, and of what was not measured; a figure that there is not.
/// Guarantees: each is told by figure and arm; one that does not hold fails the gate, and so does one without a figure; a mistake is
/// refused before anything is run.
#[test]
fn assertions_name_what_failed() {
    use crate::assert::Assertions;
    let check = |text: &str| Assertions::parse(text).unwrap().check(&comparison());
    let one = |rest: &str| format!("[[assert]]\nfigure = \"agent_cpu_s\"\narm = \"pillion\"\n{rest}\n");
    let (lines, holds) = check(&one("against = \"otelcol\"\nat_most = 0.6\nat_least = 0.4"));
    assert!(
        holds && lines[0].starts_with("HOLDS agent_cpu_s of pillion against otelcol: 0.5000, at most 0.6"),
        "{lines:?}"
    );
    let (lines, holds) = check(&format!("{}{}", one("at_most = 9.0"), one("at_most = 0.1")));
    assert!(
        !holds && lines[0].starts_with("HOLDS") && lines[1].starts_with("BROKEN agent_cpu_s of pillion"),
        "{lines:?}"
    );
    let (lines, holds) = check(&one("against = \"rotel\"\nat_most = 9.0"));
    assert!(!holds && lines[0].contains("rotel: not measured"), "{lines:?}");
    for (text, words) in [
        (one(""), "at_most"),
        (one("at_most = 1.0").replace("agent_cpu_s", "speed"), "no figure is called \"speed\""),
        (one("at_mots = 1.0"), "at_mots"),
    ] {
        let error = format!("{:#}", Assertions::parse(&text).unwrap_err());
        assert!(error.contains(words), "{words}: {error}");
    }
}

/// Scenario: the page of a comparison whose texts have markup in them.
/// Guarantees: it asks for nothing from anywhere, has every arm, a chart of what was measured, and the command.
#[test]
fn the_page_stands_alone() {
    let page = html(&comparison(), &Beside::default());
    for outside in ["http:", "https:", "src=", "@import", "url(", "fetch", "XMLHttp"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("&lt;pillion&gt;") && !page.contains("<pillion>"));
    assert!(page.contains("screen and (prefers-color-scheme: dark)") && page.contains("@media print"));
    assert!(
        page.contains("a node's gateway requests") && page.contains("\"arm\":\"otelcol\""),
        "what a cluster would take"
    );
    assert_eq!(page.matches("<figure>").count(), 5, "nothing was measured of memory at idle");
    assert!(page.contains("compare --quick --seed 1"));
    assert!(
        page.contains("pillion / otelcol</th><td><b>0.50x</b>")
            && page.contains("no verdict, pillion and otelcol do not")
    );
    let file = page.split("<pre>").nth(2).unwrap().split("</pre>").next().unwrap().replace("&quot;", "\"");
    assert_eq!(
        format!("{:?}", Scenario::parse(&file).unwrap()),
        format!("{:?}", comparison().scenario),
        "it can be run"
    );
}

/// Scenario: a sweep of two numbers of pods.
/// Guarantees: each number is a column, with what a pod costs there.
#[test]
fn a_sweep_is_told_by_pods() {
    let (five, mut twenty) = (comparison(), comparison());
    twenty.scenario.pods = 20;
    twenty.cells.iter_mut().for_each(|cell| cell.pods = 20);
    let told = by_pods(&[five, twenty]);
    let line = told.split("PSS after").nth(1).unwrap().lines().find(|line| line.starts_with("otelcol")).unwrap();
    assert_eq!(line.split_ascii_whitespace().collect::<Vec<_>>(), ["otelcol", "12000", "3000"]);
    assert!(told.starts_with("quick: ") && told.contains("seed 1"), "{told}");
}

/// Scenario: a sweep whose second number of pods is more than one of the agents could be started for.
/// Guarantees: it is named as missing, and what stands in its place is marked as not measured.
#[test]
fn what_does_not_fit_is_marked() {
    let (five, mut many) = (comparison(), comparison());
    many.scenario.pods = 5_000;
    many.cells.retain(|cell| cell.arm != "otelcol");
    many.missing.push(crate::compare::Missing { arm: "otelcol".to_owned(), why: "no room".to_owned() });
    let told = by_pods(&[five, many]);
    assert!(told.contains("MISSING otelcol with 5000 pods: no room"), "{told}");
    let line = told.split("PSS after").nth(1).unwrap().lines().find(|line| line.starts_with("otelcol")).unwrap();
    assert_eq!(line.split_ascii_whitespace().collect::<Vec<_>>(), ["otelcol", "12000", "~12000"]);
}

/// Scenario: days around leap days and centuries.
/// Guarantees: each is told as the calendar has it.
#[test]
fn days_are_those_of_the_calendar() {
    for (unix, day) in [
        (0, "1970-01-01"),
        (951_782_399, "2000-02-28"),
        (951_782_400, "2000-02-29"),
        (951_868_800, "2000-03-01"),
        (1_798_761_599, "2026-12-31"),
        (4_107_542_400, "2100-03-01"),
    ] {
        assert_eq!(super::day(unix), day);
    }
}

/// Scenario: a comparison is written, read, and set beside one with a dearer arm, another machine and an arm less.
/// Guarantees: nothing is lost on the way, and the change is told with what makes it doubtful.
#[test]
fn two_comparisons_can_be_set_beside_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let old = comparison();
    write(&old, &Beside::default(), dir.path()).unwrap();
    let read = read(dir.path()).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), serde_json::to_string(&old).unwrap());
    let mut new = comparison();
    new.machine = "another".to_owned();
    new.cells.iter_mut().for_each(|cell| cell.cpu.arm *= 3.0);
    new.cells.retain(|cell| cell.arm != "otelcol");
    new.arms.pop();
    let told = change(&read, &new);
    assert!(told.contains("NOT THE SAME MACHINE") && told.contains("otelcol: only in the old one"), "{told}");
    assert!(told.lines().any(|line| line.starts_with("agent CPU, s ") && line.ends_with("3.00")), "{told}");
}

/// Scenario: five rounds with a noisy pod, which is refused most of what it sends, and without; the others are as fast in both, or half
/// as fast beside the noise.
/// Guarantees: what the others notice is told for each arm beside its own calm runs, and runs without noise are compared with nothing
/// else.
#[test]
fn what_neighbours_notice_is_told() {
    let told = |factor: f64| {
        let mut comparison = comparison();
        comparison.cells.retain(|cell| cell.arm == "pillion");
        comparison.arms.truncate(2);
        let calm: Vec<Cell> =
            comparison.cells.iter().map(|cell| Cell { arm: "pillion-calm".to_owned(), ..cell.clone() }).collect();
        for cell in &mut comparison.cells {
            (cell.requests.due, cell.requests.acknowledged) = (1_000, 30);
            let slower = 1.0 + 0.001 * cell.round as f64;
            cell.latency.p50 = cell.latency.p50.map(|p50| p50 * factor * slower);
        }
        comparison.cells.extend(calm);
        comparison.cells.iter_mut().for_each(|cell| (cell.latency.count, cell.latency.unanswered) = (100, 0));
        comparison.arms.push(About { name: "pillion-calm".to_owned(), ..comparison.arms[1].clone() });
        verdict(&comparison).join("\n")
    };
    let (same, slower) = (told(1.0), told(2.0));
    assert!(same.contains("NEIGHBOURS pillion: 100.00 % of the other pods' requests"), "{same}");
    assert!(same.contains("the same within 5 %"), "{same}");
    assert!(
        slower.contains("NEIGHBOURS other pods' ack latency p50: pillion takes 2.00x of what pillion-calm takes"),
        "{slower}"
    );
    assert!(!slower.contains("CPU of the agents"), "{slower}");
}

/// Scenario: a comparison that was made on a cluster, where nobody reads processes; then one whose pods were on two nodes.
/// Guarantees: what was not measured is not told as nothing, neither in the table nor as a ratio; memory is the working set; each container
/// is told, with what is shared divided by the pods; what a cluster would take is not reckoned from several nodes.
#[test]
fn a_cluster_tells_what_it_can_and_no_more() {
    use crate::kubernetes::{OnCluster, Used};
    let mut comparison = comparison();
    for cell in &mut comparison.cells {
        let used = Used { count: 1, is_shared: cell.arm == "pillion", cpu: 0.5, idle_kib: 1_000, after_kib: 2_000 };
        let containers = [("gateway".to_owned(), used)].into();
        cell.on_cluster = Some(OnCluster { nodes: 1, ready_ms: (1_200.0, 3_400.0), containers, whole: used });
        cell.held_after.working_set = Some(if cell.arm == "otelcol" { 50_000 } else { 10_000 });
        cell.held_idle.working_set = cell.held_after.working_set;
        cell.memory.after.pss = 0;
    }
    let (told, words) = (table(&comparison), verdict(&comparison).join("\n"));
    let line = |start: &str| {
        let line = told.lines().find(|line| line.starts_with(start)).unwrap_or_default();
        line.split_ascii_whitespace().rev().take(3).collect::<Vec<_>>()
    };
    assert_eq!(line("PSS after"), ["-"; 3], "{told}");
    assert_eq!(line("threads"), ["-"; 3], "{told}");
    assert_eq!(line("pod Ready p50"), ["1200"; 3], "{told}");
    assert_eq!(line("pillion gateway"), ["400", "200", "100.0"], "a fifth of each: {told}");
    assert!(words.contains("working set after the load: pillion takes 0.20x") && !words.contains("PSS"), "{words}");
    let memory = |comparison: &Comparison| {
        Measured::all(comparison).iter().map(|arm| arm.memory_kib_per_pod).collect::<Vec<_>>()
    };
    assert_eq!(memory(&comparison), [2_000.0, 10_000.0]);
    comparison.cells[4].on_cluster.as_mut().unwrap().nodes = 2;
    let silent = cost(&comparison, &Cluster::default());
    assert!(silent.contains("pods were on 2 nodes"), "{silent}");
}

// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The tables of a report, and what is worse than its goal.

use super::record::{Record, error, median, quartiles, slices};

/// System calls a request at most, of ours.
const CALLS: [(&str, f64); 2] = [("busy", 1.05), ("sleeping", 4.0)];
/// Uses of vector registers a request at most, of ours: the first one after a wake-up is a trap where the hypervisor restores them
/// lazily. The library's and the system's clock may use them.
const VECTORS: f64 = 0.3;
/// How many times as fast as the C stack ours is at least, with a processor each for dom0 and the guest.
pub(super) const TWO: [(&str, f64); 2] = [("busy", 1.3), ("sleeping", 0.98)];
/// The same with one processor for both.
pub(super) const ONE: [(&str, f64); 2] = [("busy", 0.98), ("sleeping", 0.98)];

/// Of ours, what calls too much.
pub(super) fn over(records: &[Record]) -> Vec<String> {
    let ours = records
        .iter()
        .filter(|record| record.about == "calls" && record.text("stack") == "ours");
    let mut missed = Vec::new();
    for record in ours {
        let each = record.number("calls") / record.number("requests");
        let goal = CALLS.iter().find(|(mode, _)| *mode == record.text("mode"));
        let posted = record.text("load") == "vga-write";
        let Some((mode, most)) = goal.filter(|_| !posted) else {
            continue;
        };
        let vectors = record.number("vectors") / record.number("requests");
        if vectors.is_nan() || vectors > VECTORS {
            missed.push(format!(
                "{vectors:.2} uses of vector registers a {} when {mode}, not {VECTORS}",
                record.text("load")
            ));
        }
        // Nothing that is no number is good.
        if each.is_nan() || each > *most {
            missed.push(format!(
                "{each:.2} system calls a {} when {mode}, not {most}: {}",
                record.text("load"),
                record.text("of")
            ));
        }
    }
    missed
}

pub(super) fn calls_table(records: &[Record]) -> Vec<String> {
    println!(
        "\n| system calls a request | | C | ours | of which | beside | vector registers: C | ours |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    );
    let find = |stack: &str, like: &Record| {
        records.iter().find(|record| {
            record.about == "calls"
                && record.text("stack") == stack
                && ["mode", "load"]
                    .iter()
                    .all(|key| record.text(key) == like.text(key))
        })
    };
    let mut pairs = 0;
    for c in records.iter().filter(|record| record.text("stack") == "c") {
        let Some(ours) = find("ours", c) else {
            continue;
        };
        pairs += 1;
        let each = |record: &Record| record.number("calls") / record.number("requests");
        println!(
            "| {} | {} | {:.2} | {:.2} | {} | {} | {:.2} | {:.2} |",
            c.text("load"),
            c.text("mode"),
            each(c),
            each(ours),
            ours.text("of"),
            ours.text("others"),
            c.number("vectors") / c.number("requests"),
            ours.number("vectors") / ours.number("requests"),
        );
    }
    let mut missed = over(records);
    if pairs < 11 {
        missed.push(format!("system calls: {pairs} figures, not 11"));
    }
    missed
}

pub(super) fn times_table(name: &str, records: &[Record], goals: [(&str, f64); 2]) -> Vec<String> {
    println!(
        "\n| {name}: µs a request | | C | quartiles | ours | quartiles | C / ours, of pairs | quartiles | known to | pairs | goal |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut missed = Vec::new();
    for (mode, goal) in goals {
        // The logarithms of the ratios, and the squares of how well they are known.
        let mut together: Vec<(f64, f64)> = Vec::new();
        for load in [
            "port-write",
            "port-read",
            "mmio-write",
            "mmio-read",
            "page-write",
            "vga-write",
        ] {
            let (c, ours) = (
                slices(records, "c", mode, load),
                slices(records, "ours", mode, load),
            );
            // Sleeping, nobody waits for a posted write.
            if load == "vga-write" && mode == "sleeping" {
                continue;
            }
            let ratios: Vec<f64> = c.iter().zip(&ours).map(|(c, ours)| c / ours).collect();
            let ratio = median(ratios.clone());
            let has_goal = load != "vga-write";
            let micros = |values: Vec<f64>| {
                let (low, high) = quartiles(values.clone());
                format!("{:.0} | {low:.0}–{high:.0}", median(values))
            };
            let (low, high) = quartiles(ratios.clone());
            println!(
                "| {load} | {mode} | {} | {} | {ratio:.3} | {low:.2}–{high:.2} | ±{:.1} % | {} | {} |",
                micros(c),
                micros(ours),
                error(&ratios) * 100.0,
                ratios.len(),
                if has_goal {
                    goal.to_string()
                } else {
                    "–".into()
                }
            );
            if has_goal {
                together.push((ratio.ln(), error(&ratios).powi(2)));
            }
            if has_goal && (ratio.is_nan() || ratio < goal) {
                missed.push(format!("{name}: {load} {mode}: {ratio:.3}, not {goal}"));
            }
        }
        // All together is known better than a load by itself.
        #[allow(clippy::cast_precision_loss, reason = "five")]
        let count = together.len() as f64;
        let sum = together.iter().fold((0.0, 0.0), |(ratios, errors), one| {
            (ratios + one.0, errors + one.1)
        });
        let (ratio, error) = ((sum.0 / count).exp(), sum.1.sqrt() / count);
        println!(
            "| all that have a goal | {mode} | | | | | {ratio:.3} | | ±{:.1} % | | – |",
            error * 100.0
        );
    }
    let stalls = records
        .iter()
        .filter(|record| record.about == "stall")
        .count();
    let kept = records
        .iter()
        .filter(|record| record.text("stalled") == "1")
        .count();
    for record in records.iter().filter(|record| record.about == "twice") {
        println!(
            "{} took {} posted writes twice: an advance of the ring was lost (ring-lost-advance)",
            record.text("stack"),
            record.text("entries")
        );
    }
    println!("{stalls} slices repeated for a stall of the emulator, {kept} kept with one");
    missed
}

pub(super) fn marks_table(records: &[Record]) {
    println!(
        "\n| changing page types | batch | C: pages/s | ours: pages/s | C / ours | C: DMOPs a page | ours |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut keys: Vec<(&str, &str)> = Vec::new();
    for record in records.iter().filter(|record| record.about == "dmops") {
        let key = (record.text("step"), record.text("batch"));
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    for (step, batch) in keys {
        let of = |about: &str, stack: &str, value: &str| {
            let wanted = records.iter().filter(|record| {
                record.about == about
                    && record.text("stack") == stack
                    && record.text("step") == step
                    && record.text("batch") == batch
            });
            let each = |record: &Record| record.number(value) / record.number("pages");
            median(wanted.map(each).collect())
        };
        let (c, ours) = (of("marks", "c", "seconds"), of("marks", "ours", "seconds"));
        println!(
            "| {step} | {batch} | {:.0} | {:.0} | {:.2} | {:.4} | {:.4} |",
            1.0 / c,
            1.0 / ours,
            c / ours,
            of("dmops", "c", "dmops"),
            of("dmops", "ours", "dmops")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(stack: &str, mode: &str, load: &str, calls: u32) -> Record {
        traced(stack, mode, load, (calls, 0))
    }

    fn traced(stack: &str, mode: &str, load: &str, (calls, vectors): (u32, u32)) -> Record {
        let line = format!(
            "BENCH calls stack={stack} mode={mode} load={load} requests=100 calls={calls} vectors={vectors} of=x:1"
        );
        Record::parse(&line).expect("a record")
    }

    #[test]
    fn other_lines_are_no_records() {
        assert_eq!(Record::parse("(XEN) BENCH x"), None);
        assert_eq!(Record::parse("BENCH"), None);
        let record = Record::parse("BENCH clock ticks=30 micros=10").expect("a record");
        assert_eq!(
            (record.number("ticks"), record.number("x").is_nan()),
            (30.0, true)
        );
    }

    #[test]
    fn too_many_calls_are_seen_and_none_of_the_c_stack() {
        let all = [
            calls("ours", "busy", "port-read", 105),
            calls("ours", "sleeping", "port-read", 400),
            calls("ours", "busy", "vga-write", 900),
            calls("c", "busy", "port-read", 400),
        ];
        assert!(over(&all).is_empty());
        assert_eq!(over(&[calls("ours", "busy", "port-read", 106)]).len(), 1);
        assert_eq!(
            over(&[calls("ours", "sleeping", "port-read", 401)]).len(),
            1
        );
        assert!(!calls_table(&all).is_empty(), "figures are missing");
        let vectors = |vectors| over(&[traced("ours", "busy", "port-read", (100, vectors))]).len();
        assert_eq!((vectors(30), vectors(31)), (0, 1));
    }

    #[test]
    fn a_ratio_below_its_goal_is_missed_and_so_is_a_missing_one() {
        let of = |stack: &str, ticks: u32| {
            let line = format!(
                "BENCH times stack={stack} mode=busy load=port-read requests=1 ticks={ticks}"
            );
            Record::parse(&line).expect("a record")
        };
        let clock = Record::parse("BENCH clock ticks=10 micros=10").expect("a record");
        let missed = |ours| {
            let pair = |c, ours| [of("c", c), of("ours", ours)];
            let pairs = [pair(140, ours), pair(70, ours / 2), pair(1400, 1)];
            let records = [std::slice::from_ref(&clock), pairs.as_flattened()].concat();
            let missed = times_table("t", &records, TWO);
            missed.iter().any(|what| what.contains("port-read busy"))
        };
        assert!(!missed(107));
        assert!(missed(108));
        assert_eq!(
            times_table("t", std::slice::from_ref(&clock), TWO).len(),
            10
        );
    }

    #[test]
    fn medians() {
        assert!(median(Vec::new()).is_nan());
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}

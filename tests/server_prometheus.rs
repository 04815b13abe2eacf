// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The page for Prometheus, read as strictly as its format is written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ioreq::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
use ioreq::server::IoreqServer;
use ioreq::sim::{DomainConfig, Machine, SimHypervisor};
use ioreq::stats::prometheus;
use ioreq::{PortRange, VcpuId};

/// Refuses what is written.
struct Register;

impl Handler for Register {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        1.into()
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Refused("it is read-only")
    }
}

/// A sample: its name, its labels, its value as it is written.
type Sample = (String, BTreeMap<String, String>, String);

#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: String,
    samples: Vec<Sample>,
}

fn is_name(name: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
}

/// `name="value",…`, and what follows the closing brace.
fn labels(mut text: &str) -> (BTreeMap<String, String>, &str) {
    let mut labels = BTreeMap::new();
    loop {
        let (name, rest) = text.split_once("=\"").expect("a label");
        assert!(is_name(name) && !name.contains(':'), "{name:?}");
        let (mut value, mut chars) = (String::new(), rest.char_indices());
        let end = loop {
            match chars.next().expect("a label's value ends") {
                (_, '\\') => value.push(match chars.next().unwrap().1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    c => panic!("\\{c} is no escape"),
                }),
                (at, '"') => break at,
                (_, '\n') => panic!("a bare line feed"),
                (_, c) => value.push(c),
            }
        };
        assert!(
            labels.insert(name.to_owned(), value).is_none(),
            "{name} twice"
        );
        let rest = &rest[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => text = more,
            None => return (labels, rest.strip_prefix('}').expect("a brace")),
        }
    }
}

/// Reads a page: families one after the other, each with its help and type first, no sample twice.
fn parse(page: &str) -> BTreeMap<String, Family> {
    assert!(page.ends_with('\n') && !page.contains("\n\n"));
    let mut families = BTreeMap::<String, Family>::new();
    let (mut current, mut seen) = (String::new(), BTreeSet::new());
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && !help.trim().is_empty() && help.trim() == help);
            let family = Family {
                help: help.to_owned(),
                ..Family::default()
            };
            assert!(
                families.insert(name.to_owned(), family).is_none(),
                "{name} twice"
            );
            current = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current);
            assert!(["counter", "gauge", "histogram"].contains(&kind));
            let family = families.get_mut(name).unwrap();
            assert!(family.kind.is_empty() && family.samples.is_empty());
            family.kind = kind.to_owned();
        } else {
            let (name, rest) = line.split_once('{').unwrap();
            let (labels, rest) = labels(rest);
            let value = rest.strip_prefix(' ').unwrap();
            assert!(value.parse::<f64>().unwrap() >= 0.0, "{line}");
            let family = families.get_mut(&current).unwrap();
            let suffix = name
                .strip_prefix(&*current)
                .expect("a sample of its family");
            match &*family.kind {
                "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix)),
                _ => assert_eq!(suffix, ""),
            }
            assert_eq!(family.kind == "counter", name.ends_with("_total"), "{name}");
            assert!(
                seen.insert((name.to_owned(), labels.clone())),
                "twice: {line}"
            );
            family
                .samples
                .push((name.to_owned(), labels, value.to_owned()));
        }
    }
    families
}

impl Family {
    /// The value of the sample that has these labels.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &&Sample| {
            let mine =
                |(name, value): &(&str, &str)| sample.1.get(*name).is_some_and(|it| it == value);
            sample.0 == name && labels.iter().all(mine)
        };
        let found: Vec<_> = self.samples.iter().filter(has).collect();
        assert_eq!(found.len(), 1, "{name} {labels:?} in {self:?}");
        found[0].2.parse().unwrap()
    }
}

#[test]
fn the_page_is_as_the_format_wants_it_and_true() {
    let domain = Machine::new().create_domain(DomainConfig::new(2)).unwrap();
    let hv = Arc::new(domain.hypervisor());
    let server = || {
        let builder = IoreqServer::<SimHypervisor>::builder(Arc::clone(&hv));
        builder.sample_latency(1).build().unwrap()
    };
    let (first, second) = (server(), server());
    // Names that a page must escape, and one that is there twice.
    let odd = "a \"route\" \\ of\ntwo lines";
    for (name, port) in [(odd, 0x500), ("twice", 0x510), ("twice", 0x520)] {
        let range = PortRange::sized(port, 16).unwrap();
        first.route(name, range, Register).unwrap();
    }
    let running = first.start().unwrap();
    let guest = domain.spawn(VcpuId(1), |cpu| {
        for port in [0x500, 0x510, 0x520, 0x520] {
            cpu.inb(port)?;
        }
        cpu.outb(0x520, 1)
    });
    guest.unwrap().join().unwrap();
    let reports = (first.report(), second.report());
    let page = prometheus(&[("first", &reports.0), ("se\"cond\\", &reports.1)]);
    let families = parse(&page);
    let of = |family: &str, labels: &[(&str, &str)]| families[family].value(family, labels);

    let mine = ("server", "first");
    assert_eq!(
        of("ioreq_requests_total", &[mine, ("kind", "port_read")]),
        4.0
    );
    assert_eq!(
        of("ioreq_requests_total", &[mine, ("kind", "port_write")]),
        1.0
    );
    let other = ("server", "se\"cond\\");
    assert_eq!(
        of("ioreq_requests_total", &[other, ("kind", "port_read")]),
        0.0
    );
    assert_eq!(of("ioreq_refused_total", &[mine]), 1.0);
    assert_eq!(of("ioreq_vcpus", &[mine]), 2.0);
    assert_eq!(of("ioreq_vcpus_waiting", &[mine]), 0.0);
    assert_eq!(of("ioreq_tracked_pages", &[other]), 0.0);
    let accesses = |route, direction| {
        let labels = [mine, ("route", route), ("direction", direction)];
        of("ioreq_route_accesses_total", &labels)
    };
    assert_eq!((accesses(odd, "read"), accesses(odd, "write")), (1.0, 0.0));
    assert_eq!(
        (accesses("twice", "read"), accesses("twice", "write")),
        (3.0, 1.0)
    );
    assert_eq!(
        of("ioreq_route_refused_total", &[mine, ("route", "twice")]),
        1.0
    );

    let latency = &families["ioreq_request_latency_seconds"];
    let name = |suffix| format!("ioreq_request_latency_seconds{suffix}");
    let buckets = latency
        .samples
        .iter()
        .filter(|sample| sample.0.ends_with("_bucket") && sample.1["server"] == "first");
    let buckets: Vec<(f64, f64)> = buckets
        .map(|(_, labels, value)| (labels["le"].parse().unwrap(), value.parse().unwrap()))
        .collect();
    assert!(
        buckets.is_sorted() && buckets.is_sorted_by_key(|(_, count)| *count),
        "{buckets:?}"
    );
    assert_eq!(buckets.last(), Some(&(f64::INFINITY, 5.0)));
    assert_eq!(latency.value(&name("_count"), &[mine]), 5.0);
    assert!(latency.value(&name("_sum"), &[mine]) > 0.0);
    assert_eq!(latency.value(&name("_sum"), &[other]), 0.0);
    running.stop().unwrap();
}

#[test]
fn every_count_is_on_the_page_and_no_server_makes_an_empty_one() {
    let domain = Machine::new().create_domain(DomainConfig::new(1)).unwrap();
    let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
    let report = server.report();
    let families = parse(&prometheus(&[("server", &report)]));
    let counts: Vec<_> = report.stats.others().collect();
    for count in &counts {
        let family = &families[&format!("ioreq_{}_total", count.name)];
        assert_eq!(family.help, count.help.trim());
        assert_eq!(family.samples.len(), 1);
    }
    let names: BTreeSet<_> = counts.iter().map(|count| count.name).collect();
    assert_eq!(names.len(), counts.len());
    assert!(names.contains("overlooked") && names.contains("panics"));
    // All fields of the statistics but those that are kinds, and the latency.
    let fields = format!("{:?}", report.stats).matches(": ").count();
    assert!(counts.len() + 10 < fields);
    let none = parse(&prometheus(&[]));
    assert!(none.values().all(|family| family.samples.is_empty()) && none.len() == families.len());
}

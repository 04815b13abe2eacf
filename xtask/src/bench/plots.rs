// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Plots of a run, as SVG: cost over the number of ranges, throughput over the number of threads.

use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use super::figures::{Figures, Row};

const SIZE: (u32, u32) = (760, 420);
/// Of it, for the plot itself; the rest says which line is whose.
const PLOT: u32 = 580;

/// A plot: its file, its title, the SVG.
type Drawn = (&'static str, &'static str, String);

/// A line of a plot.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// How a contender is drawn in every plot, wherever it takes part.
fn color(name: &str) -> RGBColor {
    match name {
        "ours" => RGBColor(200, 30, 30),
        "direct call" => RGBColor(150, 150, 150),
        "vm-device" => RGBColor(30, 90, 200),
        "vm-device + RwLock" => RGBColor(20, 40, 110),
        "vm-device + Mutex" => RGBColor(0, 150, 160),
        "ours, look-up alone" => RGBColor(230, 130, 130),
        "vm-device's tree" => RGBColor(90, 160, 230),
        "papaya" => RGBColor(240, 150, 20),
        "RwLock<BTreeMap>" => RGBColor(40, 140, 60),
        "RwLock<HashMap>" => RGBColor(130, 60, 160),
        _ => BLACK,
    }
}

/// The contenders of a group, one line each, in the order of the run.
fn lines(rows: &[&Row], point: impl Fn(&Row) -> (f64, f64)) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for row in rows {
        let at = lines.iter().position(|line| line.name == row.contender);
        let at = at.unwrap_or_else(|| {
            lines.push(Line {
                name: row.contender.clone(),
                points: Vec::new(),
            });
            lines.len() - 1
        });
        lines[at].points.push(point(row));
    }
    lines
}

/// From a little below the least to a little above the most.
fn span(values: impl Iterator<Item = f64> + Clone, margin: f64) -> Range<f64> {
    let least = values.clone().fold(f64::INFINITY, f64::min);
    let most = values.fold(0.0, f64::max);
    least / margin..most * margin
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// Says which line is whose.
fn legend(area: &Area<'_>, lines: &[Line]) -> Result<()> {
    for (at, line) in (0..).zip(lines) {
        let (y, style) = (50 + 20 * at, color(&line.name).stroke_width(2));
        let path = PathElement::new([(0, y), (18, y)], style);
        area.draw(&path).map_err(wrong)?;
        let text = Text::new(line.name.clone(), (24, y - 6), ("sans-serif", 13));
        area.draw(&text).map_err(wrong)?;
    }
    Ok(())
}

/// One of a plot's two directions.
struct Axis<'a, C> {
    range: C,
    name: &'a str,
    labels: usize,
    label: &'a dyn Fn(&f64) -> String,
}

fn plot<X, Y>(title: &str, lines: &[Line], across: Axis<'_, X>, up: Axis<'_, Y>) -> Result<String>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut svg = String::new();
    {
        let whole = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        whole.fill(&WHITE).map_err(wrong)?;
        let (area, names) = whole.split_horizontally(PLOT);
        legend(&names, lines)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(across.range, up.range)
            .map_err(wrong)?;
        chart
            .configure_mesh()
            .x_desc(across.name)
            .x_labels(across.labels)
            .x_label_formatter(across.label)
            .y_desc(up.name)
            .y_labels(up.labels)
            .y_label_formatter(up.label)
            .light_line_style(WHITE)
            .draw()
            .map_err(wrong)?;
        for line in lines {
            let style = color(&line.name).stroke_width(2);
            let drawn = LineSeries::new(line.points.iter().copied(), style).point_size(3);
            chart.draw_series(drawn).map_err(wrong)?;
        }
        whole.present().map_err(wrong)?;
    }
    Ok(svg)
}

/// Nanoseconds over the number of ranges, both logarithmic.
fn cost(title: &str, lines: &[Line]) -> Result<String> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let across = Axis {
        range: span(points().map(|(n, _)| *n), 1.5).log_scale(),
        name: "ranges or pages",
        labels: 11,
        label: &|n| format!("{n:.0}"),
    };
    let up = Axis {
        range: span(points().map(|(_, ns)| *ns), 1.5).log_scale(),
        name: "ns per write",
        labels: 11,
        label: &|ns| format!("{ns}"),
    };
    plot(title, lines, across, up)
}

/// Million writes a second over the number of threads.
fn throughput(title: &str, lines: &[Line]) -> Result<String> {
    let points = lines.iter().flat_map(|line| &line.points);
    let most = points.map(|(_, rate)| *rate).fold(0.0, f64::max);
    let across = Axis {
        range: 0.8..2.2,
        name: "threads",
        labels: 3,
        label: &|threads| match threads.fract() {
            0.0 => format!("{threads:.0}"),
            _ => String::new(),
        },
    };
    let up = Axis {
        range: 0.0..most * 1.1,
        name: "million writes a second",
        labels: 11,
        label: &|rate| format!("{rate:.0}"),
    };
    plot(title, lines, across, up)
}

fn wrong(err: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {err}")
}

/// All of them. A run without their rows has none.
#[allow(clippy::cast_precision_loss, reason = "a million at most")]
pub(super) fn draw(figures: &Figures) -> Result<Vec<Drawn>> {
    let by_count = |name: &str| {
        let rows = figures
            .all()
            .filter(move |row| row.name == name && row.pattern == "random" && row.threads == 1);
        lines(&rows.collect::<Vec<_>>(), |row| {
            (row.n as f64, row.median())
        })
    };
    let by_threads = |name: &str, n: u64| {
        let is_with_two = |row: &Row| {
            let mut all = figures.all();
            all.any(|two| two.is_beside(row) || two.threads == 2 && two.name == row.name)
        };
        let rows = figures.all().filter(|row| {
            row.name == name && row.pattern == "random" && row.n == n && is_with_two(row)
        });
        lines(&rows.collect::<Vec<_>>(), |row| {
            (f64::from(row.threads), 1e3 / row.median())
        })
    };
    let mut all = Vec::new();
    let costs = [
        (
            "cost-ranges.svg",
            "Page-aligned ranges, random: cost over N",
            "ranges, page-aligned",
        ),
        (
            "cost-pages.svg",
            "Tracked pages of 8 handlers, random: cost over N",
            "tracked pages, 8 handlers",
        ),
        (
            "cost-pages-each.svg",
            "Tracked pages, a handler each, random: cost over N",
            "tracked pages, a handler each",
        ),
    ];
    for (file, title, name) in costs {
        let lines = by_count(name);
        if !lines.is_empty() {
            all.push((file, title, cost(title, &lines)?));
        }
    }
    let threads = [
        (
            "threads-ranges.svg",
            "256 page-aligned ranges, random: throughput over threads",
            "ranges, page-aligned",
            256,
        ),
        (
            "threads-pages.svg",
            "A million tracked pages, random: throughput over threads",
            "tracked pages, 8 handlers",
            1_000_000,
        ),
    ];
    for (file, title, name, n) in threads {
        let lines = by_threads(name, n);
        if !lines.is_empty() {
            all.push((file, title, throughput(title, &lines)?));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: u64, threads: u32, contender: &str, ns: f64) -> String {
        format!(
            r#"{{"name":"ranges, page-aligned","n":{n},"pattern":"random","threads":{threads},"contender":"{contender}","rounds":[{ns}],"disturbed":0}}"#
        )
    }

    #[test]
    fn a_run_is_drawn_with_every_contender() {
        let rows = [
            line(8, 1, "ours", 8.0),
            line(256, 1, "ours", 9.0),
            line(256, 2, "ours", 4.6),
            line(8, 1, "vm-device", 17.0),
            line(256, 1, "vm-device", 40.0),
            line(256, 2, "vm-device", 20.0),
        ];
        let drawn = draw(&Figures::parse(&rows.join("\n")).unwrap()).unwrap();
        let files: Vec<_> = drawn.iter().map(|(file, ..)| *file).collect();
        assert_eq!(files, ["cost-ranges.svg", "threads-ranges.svg"]);
        for (_, _, svg) in drawn {
            assert!(svg.contains("ours") && svg.contains("vm-device"));
            assert!(svg.trim_end().ends_with("</svg>"));
        }
    }

    #[test]
    fn a_run_without_them_has_no_plots() {
        let row = line(8, 1, "ours", 8.0).replace("random", "hot");
        assert!(draw(&Figures::parse(&row).unwrap()).unwrap().is_empty());
    }
}

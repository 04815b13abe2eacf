// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What servers do, in a terminal: vCPUs, requests by kind and by route, rates, latency, tracked pages, what is deferred, and what ought not to
//! happen.

mod moment;

use std::collections::VecDeque;
use std::time::Duration;

use ioreq::stats::Report;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table};

use moment::{Moment, Rates};

/// Lines that are kept of what is said.
const LINES: usize = 200;
/// Counts that are no more than work; all others ought to stay 0.
const WORK: [&str; 7] = [
    "page_writes",
    "buffered",
    "unclaimed",
    "deferred",
    "parked",
    "notifies",
    "sleeps",
];

/// What is shown.
#[derive(Debug, Default)]
pub struct View {
    before: Option<Moment>,
    now: Option<Moment>,
    lines: VecDeque<String>,
}

impl View {
    /// How the servers are now, `at` this time since the beginning. Rates are those since the last time.
    pub fn take(&mut self, at: Duration, servers: Vec<(&'static str, Report)>) {
        self.before = self.now.replace(Moment { at, servers });
    }

    /// Somebody says something; control characters are left out.
    pub fn say(&mut self, line: &str) {
        if self.lines.len() >= LINES {
            self.lines.pop_front();
        }
        // A guest's words must not move the terminal's cursor.
        let plain = line.chars().filter(|c| !c.is_control());
        self.lines.push_back(plain.collect());
    }

    /// What was said, to say it elsewhere.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    /// Draws it into all of the frame.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let Some(now) = &self.now else {
            frame.render_widget("nothing is served yet", frame.area());
            return;
        };
        let rates = Rates::between(self.before.as_ref(), now);
        let routes = now.routes();
        let room = u16::try_from(routes.len() + 3).unwrap_or(u16::MAX);
        let rows = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(13),
            Constraint::Max(room),
            Constraint::Min(3),
        ]);
        let [head, middle, below, rest] = rows.areas(frame.area());
        let columns = Layout::horizontal([Constraint::Length(38), Constraint::Min(20)]);
        let [left, right] = columns.areas(middle);
        frame.render_widget(heading(now), head);
        frame.render_widget(requests(now, &rates), left);
        frame.render_widget(state(now, &rates), right);
        frame.render_widget(route_table(now, &rates), below);
        self.draw_lines(frame, rest);
    }

    fn draw_lines(&self, frame: &mut Frame<'_>, area: Rect) {
        let block = Block::bordered().title("said");
        let room = usize::from(block.inner(area).height);
        let skipped = self.lines.len().saturating_sub(room);
        let lines = self
            .lines
            .iter()
            .skip(skipped)
            .map(|line| Line::raw(line.as_str()));
        let lines: Vec<Line<'_>> = lines.collect();
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }
}

fn heading(now: &Moment) -> Paragraph<'static> {
    let mut spans = vec![
        format!("domain {} ", now.domid()).bold(),
        format!("{} s  vCPUs ", now.at.as_secs()).into(),
    ];
    for (vcpu, waits) in now.vcpus().into_iter().enumerate() {
        let (text, style) = match waits {
            true => (format!("{vcpu}*"), Style::new().reversed()),
            false => (format!("{vcpu}"), Style::new()),
        };
        spans.extend([Span::styled(text, style), " ".into()]);
    }
    spans.push(" (*: waits for an answer)".dim());
    Paragraph::new(Line::from(spans))
}

fn number(value: impl ToString) -> Cell<'static> {
    Cell::from(Line::from(value.to_string()).right_aligned())
}

fn requests(now: &Moment, rates: &Rates) -> Table<'static> {
    let kinds = now.kinds().into_iter();
    let rows = kinds.map(|(kind, count)| {
        let rate = rates.of(count, |before| before.kind(kind));
        Row::new([
            Cell::from(kind.replace('_', " ")),
            number(count),
            number(rate),
        ])
    });
    let widths = [
        Constraint::Length(12),
        Constraint::Length(12),
        Constraint::Length(9),
    ];
    let head = Row::new([Cell::from(""), number("requests"), number("a second")]).bold();
    Table::new(rows, widths)
        .header(head)
        .block(Block::bordered().title("requests"))
}

fn state(now: &Moment, rates: &Rates) -> Paragraph<'static> {
    let latency = |share| match now.latency(share) {
        Some(nanos) => format!("{}.{:03} us", nanos / 1000, nanos % 1000),
        None => "-".into(),
    };
    let deferred = now.count("deferred");
    let traps = now.count("page_writes");
    let mut lines = vec![
        Line::from(format!("half of them within   {}", latency(0.5))),
        Line::from(format!("99 of 100 within      {}", latency(0.99))),
        Line::from(format!("all within            {}", latency(1.0))),
        Line::from(format!("tracked pages         {}", now.tracked_pages())),
        Line::from(format!(
            "writes that trapped   {traps} ({}/s)",
            rates.of(traps, |before| before.count("page_writes"))
        )),
        Line::from(format!(
            "deferred              {deferred} ({}/s)",
            rates.of(deferred, |before| before.count("deferred"))
        )),
        Line::from(format!("of nobody             {}", now.count("unclaimed"))),
    ];
    let wrong = now.others().into_iter();
    let wrong = wrong.filter(|(name, value)| *value > 0 && !WORK.contains(name));
    let wrong = wrong.map(|(name, value)| format!("{} {value}", name.replace('_', " ")));
    lines.push(match wrong.collect::<Vec<_>>() {
        none if none.is_empty() => Line::from("nothing is wrong").dim(),
        some => Line::from(some.join(", ")).bold(),
    });
    Paragraph::new(lines)
        .wrap(ratatui::widgets::Wrap { trim: true })
        .block(Block::bordered().title("latency and state"))
}

fn route_table(now: &Moment, rates: &Rates) -> Table<'static> {
    let routes = now.routes().into_iter();
    let rows = routes.map(|(name, stats)| {
        let rate = rates.of(stats.reads + stats.writes, |before| before.accesses(&name));
        let wrong = stats.refused + stats.panics;
        Row::new([
            Cell::from(name),
            number(stats.reads),
            number(stats.writes),
            number(rate),
            number(wrong),
        ])
    });
    let widths = [
        Constraint::Min(16),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(9),
        Constraint::Length(8),
    ];
    let head = ["", "reads", "writes", "a second", "refused"].map(number);
    Table::new(rows, widths)
        .header(Row::new(head).bold())
        .block(Block::bordered().title("routes"))
}

#[cfg(test)]
mod tests;

//! Results as one table for people, or one JSON object per line for programs.

use std::collections::BTreeMap;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::cli::{Transport, word};
use crate::client::test_of;
use crate::medium::RunsOn;
use crate::workload::{Sample, Work};

/// One test over one transport: medians of its rounds.
pub(crate) struct Row {
    work: Work,
    transport: Transport,
    sample: Sample,
}

/// What stands below the table.
pub(crate) struct Setup {
    pub(crate) machine: String,
    /// Runtime and busy-poll setting of this process.
    pub(crate) own: (String, String),
    /// The same of the server process.
    pub(crate) server: (String, String),
    pub(crate) variables: Option<String>,
    pub(crate) rounds: u32,
    /// Of one round.
    pub(crate) seconds: f64,
}

fn median(samples: &[Sample], figure: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
    let mut figures: Vec<f64> = samples.iter().filter_map(figure).collect();
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(figures[middle]),
        _ => Some(f64::midpoint(figures[middle - 1], figures[middle])),
    }
}

impl Row {
    pub(crate) fn new(work: Work, transport: Transport, samples: &[Sample]) -> Self {
        let mut ran_on: BTreeMap<RunsOn, u64> = BTreeMap::new();
        for (on, count) in samples.iter().flat_map(|sample| &sample.ran_on) {
            *ran_on.entry(on.clone()).or_default() += count;
        }
        let sample = Sample {
            rtt_p50_us: median(samples, |sample| sample.rtt_p50_us),
            rtt_p99_us: median(samples, |sample| sample.rtt_p99_us),
            msgs_per_s: median(samples, |sample| sample.msgs_per_s),
            bytes_per_s: median(samples, |sample| sample.bytes_per_s),
            connects_per_s: median(samples, |sample| sample.connects_per_s),
            ran_on,
        };
        Self { work, transport, sample }
    }

    /// What all connections ran on; with one exception among them it is the exception that is
    /// named.
    fn runs_on(&self) -> &'static str {
        let wanted = self.transport.runs_on();
        self.sample.ran_on.keys().map(|on| on.name).find(|&name| name != wanted).unwrap_or(wanted)
    }

    pub(crate) fn json(&self) -> String {
        // Three digits behind the point are more than any of these figures is good for.
        let figure =
            |value: Option<f64>| value.map_or(Value::Null, |value| json!((value * 1e3).round() / 1e3));
        let members = [
            ("test", json!(word(test_of(self.work)))),
            ("transport", json!(word(self.transport))),
            ("runs_on", json!(self.runs_on())),
            ("msg_bytes", json!(self.work.message_bytes())),
            ("connections", json!(self.work.connections())),
            ("rtt_p50_us", figure(self.sample.rtt_p50_us)),
            ("rtt_p99_us", figure(self.sample.rtt_p99_us)),
            ("msgs_per_s", figure(self.sample.msgs_per_s)),
            ("bytes_per_s", figure(self.sample.bytes_per_s)),
            ("connects_per_s", figure(self.sample.connects_per_s)),
        ];
        let members: Vec<String> = members.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
        format!("{{{}}}", members.join(", "))
    }
}

/// One figure of a test: its name, how to find and to show it, and whether more is better.
struct Figure {
    name: &'static str,
    of: fn(&Sample) -> Option<f64>,
    show: fn(f64) -> String,
    more_is_better: bool,
}

/// The figures of a test, the one that its ratio is judged by first.
fn figures(work: Work) -> Vec<Figure> {
    let time = |name, of| Figure { name, of, show: microseconds, more_is_better: false };
    let rate = |name, of| Figure { name, of, show: per_second, more_is_better: true };
    let p50: fn(&Sample) -> Option<f64> = |sample| sample.rtt_p50_us;
    let p99: fn(&Sample) -> Option<f64> = |sample| sample.rtt_p99_us;
    let messages: fn(&Sample) -> Option<f64> = |sample| sample.msgs_per_s;
    match work {
        Work::PingPong => vec![time("RTT p50", p50), time("RTT p99", p99), rate("round trips", messages)],
        Work::Connections(_) => {
            vec![rate("round trips", messages), time("RTT p50", p50), time("RTT p99", p99)]
        }
        Work::Blocks => vec![Figure {
            name: "data",
            of: |sample| sample.bytes_per_s,
            show: |value| format!("{:.2} GB/s", value / 1e9),
            more_is_better: true,
        }],
        Work::Messages => vec![rate("messages", messages)],
        Work::Connect => {
            vec![
                rate("connects", |sample| sample.connects_per_s),
                time("cycle p50", p50),
                time("cycle p99", p99),
            ]
        }
    }
}

fn microseconds(value: f64) -> String {
    if value >= 1e3 {
        return format!("{:.2} ms", value / 1e3);
    }
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} µs")
}

fn per_second(value: f64) -> String {
    match value {
        1e6.. => format!("{:.2} M/s", value / 1e6),
        1e3.. => format!("{:.1} k/s", value / 1e3),
        _ => format!("{value:.0} /s"),
    }
}

fn size(bytes: usize) -> String {
    if bytes % 1024 == 0 { format!("{} KiB", bytes / 1024) } else { format!("{bytes} B") }
}

/// The table with its setup; `rows` come test by test, each with the same transports.
pub(crate) fn table(rows: &[Row], setup: &Setup) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let cases: Vec<&[Row]> = rows.chunk_by(|row, next| row.work == next.work).collect();
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    let mut header = vec!["test".to_owned(), String::new()];
    for row in rows.iter().filter(|row| row.work == first.work) {
        header.push(word(row.transport));
        if row.transport != Transport::Tcp && first.transport == Transport::Tcp {
            header.push("vs tcp".to_owned());
        }
        if row.transport == Transport::Smc {
            header.push("smc ran on".to_owned());
        }
    }
    table.set_header(header);
    for case in &cases {
        table.add_row(cells(case));
    }
    format!("{table}\n{}", footer(rows, setup))
}

fn cells(case: &[Row]) -> Vec<Cell> {
    let work = case[0].work;
    let figures = figures(work);
    let lines = |line: &dyn Fn(&Figure) -> String| figures.iter().map(line).collect::<Vec<_>>().join("\n");
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    let name = format!("{}\n{} × {}", word(test_of(work)), work.connections(), size(work.message_bytes()));
    let mut cells = vec![Cell::new(name), Cell::new(lines(&|figure| figure.name.to_owned()))];
    let tcp = case.iter().find(|row| row.transport == Transport::Tcp);
    for row in case {
        cells.push(right(lines(&|figure| (figure.of)(&row.sample).map_or("–".to_owned(), figure.show))));
        if let (Some(tcp), true) = (tcp, row.transport != Transport::Tcp) {
            cells.push(right(lines(&|figure| {
                let (Some(own), Some(base)) = ((figure.of)(&row.sample), (figure.of)(&tcp.sample)) else {
                    return "–".to_owned();
                };
                let better = if figure.more_is_better { own / base } else { base / own };
                let digits = if better < 10.0 { 2 } else { 1 };
                format!("{better:.digits$}×")
            })));
        }
        if row.transport == Transport::Smc {
            cells.push(Cell::new(ran_on(&row.sample)));
        }
    }
    cells
}

/// How many connections ran on what.
fn ran_on(sample: &Sample) -> String {
    let mut names: BTreeMap<&str, u64> = BTreeMap::new();
    for (on, count) in &sample.ran_on {
        *names.entry(on.name).or_default() += count;
    }
    match names.len() {
        0 => "–".to_owned(),
        1 => names.keys().copied().collect(),
        _ => names.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join("\n"),
    }
}

fn footer(rows: &[Row], setup: &Setup) -> String {
    let mut lines = vec![
        "vs tcp: how many times better than TCP in the same run, for times and for rates alike.".to_owned(),
    ];
    let smc: Vec<&Row> = rows.iter().filter(|row| row.transport == Transport::Smc).collect();
    let stayed = reasons(&smc);
    if !smc.is_empty() && stayed.is_empty() {
        lines.push("Every SMC connection ran on loopback-ism.".to_owned());
    }
    lines.extend(stayed);
    lines.push(format!("machine: {}; two processes", setup.machine));
    if setup.own == setup.server {
        lines.push(format!("runtime: {}; busy-poll: {} (both processes)", setup.own.0, setup.own.1));
    } else {
        lines.push(format!("client runtime: {}; busy-poll: {}", setup.own.0, setup.own.1));
        lines.push(format!("server runtime: {}; busy-poll: {}", setup.server.0, setup.server.1));
    }
    lines.extend(setup.variables.as_ref().map(|variables| format!("environment: {variables}")));
    lines.push(format!("medians of {} interleaved rounds of {:.2} s each", setup.rounds, setup.seconds));
    if cfg!(debug_assertions) {
        lines.push("This is a debug build: its figures say little. Use `cargo run --release`.".to_owned());
    }
    lines.join("\n")
}

/// Why SMC connections were not on loopback-ism: one line for each reason, with the tests that met
/// it.
fn reasons(rows: &[&Row]) -> Vec<String> {
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for row in rows {
        let all: u64 = row.sample.ran_on.values().sum();
        for (on, count) in row.sample.ran_on.iter().filter(|(on, _)| !on.is_ism()) {
            let why = on.why.as_deref().unwrap_or("no reason given");
            let (test, connections) = (word(test_of(row.work)), row.work.connections());
            reasons.entry(why).or_default().push(format!("{test} × {connections} ({count} of {all})"));
        }
    }
    reasons
        .iter()
        .map(|(why, tests)| format!("SMC connections on tcp: {why}: {}", tests.join(", ")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(name: &'static str) -> RunsOn {
        RunsOn { name, why: None }
    }

    fn row(ran_on: &[(&'static str, u64)]) -> Row {
        let ran_on = ran_on.iter().map(|&(name, count)| (on(name), count)).collect();
        let sample = Sample { msgs_per_s: Some(3.0), ran_on, ..Sample::default() };
        Row::new(Work::Connections(8), Transport::Smc, &[sample])
    }

    #[test]
    fn one_connection_on_tcp_is_enough_to_say_so() {
        assert_eq!(row(&[(RunsOn::ISM, 8)]).runs_on(), "loopback-ism");
        assert_eq!(row(&[(RunsOn::ISM, 7), (RunsOn::TCP, 1)]).runs_on(), "tcp");
    }

    #[test]
    fn medians_ignore_what_does_not_apply() {
        let sample = |value| Sample { msgs_per_s: value, ..Sample::default() };
        let of = |sample: &Sample| sample.msgs_per_s;
        assert_eq!(median(&[sample(Some(9.0)), sample(Some(1.0)), sample(Some(2.0))], of), Some(2.0));
        assert_eq!(median(&[sample(Some(1.0)), sample(Some(2.0))], of), Some(1.5));
        assert_eq!(median(&[sample(None)], of), None);
    }

    #[test]
    fn json_has_the_keys_in_their_order() {
        assert_eq!(
            row(&[(RunsOn::ISM, 8)]).json(),
            "{\"test\": \"conns\", \"transport\": \"smc\", \"runs_on\": \"loopback-ism\", \"msg_bytes\": 100, \
             \"connections\": 8, \"rtt_p50_us\": null, \"rtt_p99_us\": null, \"msgs_per_s\": 3.0, \
             \"bytes_per_s\": null, \"connects_per_s\": null}"
        );
    }
}

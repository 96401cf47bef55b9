//! The results as one table for people.

use std::collections::BTreeMap;

use comfy_table::{Cell, CellAlignment, Table, presets};

use crate::cli::{Transport, word};
use crate::limit::Limit;
use crate::report::{Row, Side, name};
use crate::workload::{Sample, Unit, Work};

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
    /// What there is to say about limits.
    pub(crate) notes: Vec<String>,
}

/// One figure of a test: its name, how to find and to show it, and whether more is better.
struct Figure {
    name: &'static str,
    of: fn(&Sample) -> Option<f64>,
    show: fn(f64) -> String,
    more_is_better: bool,
    /// What limits it.
    limit: Option<Limit>,
    /// Whether it is that limit alone that has it.
    only_limit: bool,
}

impl Figure {
    fn limited(self, limit: Limit) -> Self {
        Self { limit: Some(limit), ..self }
    }

    fn in_words(&self, row: &Row) -> String {
        (self.of)(&row.sample).map_or("–".to_owned(), self.show)
    }
}

/// The figures of a test, the one that its ratio is judged by first.
fn figures(work: Work) -> Vec<Figure> {
    let figure = |name, of, show, more_is_better| Figure {
        name,
        of,
        show,
        more_is_better,
        limit: None,
        only_limit: false,
    };
    let time = |name, of| figure(name, of, microseconds, false);
    let rate = |name, of| figure(name, of, per_second, true);
    let data = |name| {
        let show: fn(f64) -> String = |value| format!("{:.2} GB/s", value / 1e9);
        figure(name, |sample| sample.bytes_per_s, show, true)
    };
    let p50: fn(&Sample) -> Option<f64> = |sample| sample.rtt_p50_us;
    let p99: fn(&Sample) -> Option<f64> = |sample| sample.rtt_p99_us;
    let messages: fn(&Sample) -> Option<f64> = |sample| sample.msgs_per_s;
    let cpu = time(
        match work.unit() {
            Unit::Message => "CPU / msg",
            Unit::Mebibyte => "CPU / MiB",
            Unit::Connect => "CPU / connect",
            Unit::Second => "CPU / s",
        },
        |sample| sample.cpu_us,
    );
    match work {
        Work::PingPong(_) => {
            vec![
                time("RTT p50", p50).limited(Limit::Spin),
                time("RTT p99", p99),
                rate("round trips", messages),
                cpu,
            ]
        }
        Work::Connections(number) => {
            let trips = rate("round trips", messages).limited(Limit::Pages(number));
            vec![trips, time("RTT p50", p50), time("RTT p99", p99), cpu]
        }
        Work::Blocks(_) => vec![
            data("data").limited(Limit::VerifiedCopy),
            Figure { only_limit: true, ..data("two cores").limited(Limit::HandedOver) },
            Figure { only_limit: true, ..data("unverified").limited(Limit::Copy) },
            cpu,
        ],
        Work::Messages => vec![rate("messages", messages), cpu],
        Work::Connect => {
            vec![
                rate("connects", |sample| sample.connects_per_s),
                time("cycle p50", p50),
                time("cycle p99", p99),
                cpu,
            ]
        }
        Work::Paced(_) => vec![
            time("p50", p50),
            time("p99", p99),
            rate("answers", messages),
            cpu,
            time("of it pacing", |sample| sample.pacing_us),
        ],
        Work::Idle(_) => vec![cpu],
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
    match bytes {
        0 => "0 B".to_owned(),
        _ if bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        _ if bytes % 1024 == 0 => format!("{} KiB", bytes / 1024),
        _ => format!("{bytes} B"),
    }
}

/// The table with its setup; `rows` come test by test, each with the same transports, and with its
/// limits behind them.
pub(crate) fn table(rows: &[Row], setup: &Setup) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let limits = rows.iter().any(|row| row.transport().is_none());
    let cases: Vec<&[Row]> = rows.chunk_by(|row, next| row.work == next.work).collect();
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    let mut header = vec!["test".to_owned(), String::new()];
    let transports = rows.iter().filter(|row| row.work == first.work).filter_map(Row::transport);
    for transport in transports {
        header.push(word(transport));
        if transport != Transport::Tcp && first.transport() == Some(Transport::Tcp) {
            header.push("vs tcp".to_owned());
        }
        if transport == Transport::Smc {
            header.push("smc ran on".to_owned());
        }
    }
    header.extend(limits.then(|| "limit".to_owned()));
    table.set_header(header);
    for case in &cases {
        table.add_row(cells(case, limits));
    }
    format!("{table}\n{}", footer(rows, setup))
}

/// Below the name of a test: how much of what.
fn amount(work: Work) -> String {
    match work {
        Work::Idle(connections) => format!("{connections} silent"),
        Work::Paced(per_s) => format!("{per_s} /s × {}", size(work.message_bytes())),
        _ => format!("{} × {}", work.connections(), size(work.message_bytes())),
    }
}

fn cells(case: &[Row], limits: bool) -> Vec<Cell> {
    let work = case[0].work;
    let figures = figures(work);
    let lines = |line: &dyn Fn(&Figure) -> String| figures.iter().map(line).collect::<Vec<_>>().join("\n");
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    let mut cells = vec![
        Cell::new(format!("{}\n{}", name(work), amount(work))),
        Cell::new(lines(&|figure| figure.name.to_owned())),
    ];
    let row_of = |side: Side| case.iter().find(|row| row.side == side);
    let tcp = row_of(Side::Over(Transport::Tcp));
    for row in case {
        let Some(transport) = row.transport() else { continue };
        cells.push(right(lines(&|figure| {
            if figure.only_limit { String::new() } else { figure.in_words(row) }
        })));
        if let (Some(tcp), true) = (tcp, transport != Transport::Tcp) {
            cells.push(right(lines(&|figure| {
                if figure.only_limit { String::new() } else { ratio(figure, row, tcp) }
            })));
        }
        if transport == Transport::Smc {
            cells.push(Cell::new(ran_on(&row.sample)));
        }
    }
    if limits {
        cells.push(right(lines(&|figure| {
            let row = figure.limit.and_then(|limit| row_of(Side::Limit(limit)));
            row.map_or(String::new(), |row| figure.in_words(row))
        })));
    }
    cells
}

/// How many times better than TCP.
fn ratio(figure: &Figure, row: &Row, tcp: &Row) -> String {
    let (Some(own), Some(base)) = ((figure.of)(&row.sample), (figure.of)(&tcp.sample)) else {
        return "–".to_owned();
    };
    let better = if figure.more_is_better { own / base } else { base / own };
    if !better.is_finite() {
        // Nothing at all at one end of it, or at both: the CPU time of those who wait.
        return "–".to_owned();
    }
    let digits = if better < 10.0 { 2 } else { 1 };
    format!("{better:.digits$}×")
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
    lines.push(
        "CPU: processor time of both processes while it was measured; of connects with their round trip."
            .to_owned(),
    );
    if rows.iter().any(|row| row.transport().is_none()) {
        lines.push(
            "limit: two pinned threads that bounce a cache line; one that copies blocks, and compares them; two of\n\
             which one copies them to the other, who compares; one that copies and does not compare; and two that do\n\
             nothing but write and compare in a page for each way of each connection."
                .to_owned(),
        );
    }
    lines.extend(setup.notes.iter().cloned());
    let smc: Vec<&Row> = rows.iter().filter(|row| row.transport() == Some(Transport::Smc)).collect();
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
            let (test, connections) = (name(row.work), row.work.connections());
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

    fn row(work: Work, side: Side, sample: Sample) -> Row {
        Row::new(work, side, &[sample])
    }

    fn setup() -> Setup {
        Setup {
            machine: "machine".to_owned(),
            own: (String::new(), String::new()),
            server: (String::new(), String::new()),
            variables: None,
            rounds: 1,
            seconds: 1.0,
            notes: vec!["a note".to_owned()],
        }
    }

    #[test]
    fn a_limit_stands_beside_what_it_limits() {
        let data = |rate| Sample { bytes_per_s: Some(rate), cpu_us: Some(100.0), ..Sample::default() };
        let rows = [
            row(Work::Blocks(65536), Side::Over(Transport::Tcp), data(2e9)),
            row(Work::Blocks(65536), Side::Over(Transport::Smc), data(8e9)),
            row(Work::Blocks(65536), Side::Limit(Limit::VerifiedCopy), data(11e9)),
            row(Work::Blocks(65536), Side::Limit(Limit::HandedOver), data(9e9)),
            row(Work::Blocks(65536), Side::Limit(Limit::Copy), data(16e9)),
            row(Work::Idle(9), Side::Over(Transport::Tcp), Sample { cpu_us: Some(0.0), ..Sample::default() }),
            row(Work::Idle(9), Side::Over(Transport::Smc), Sample { cpu_us: Some(0.0), ..Sample::default() }),
        ];
        let table = table(&rows, &setup());
        let line = |word: &str| {
            let line = table.lines().find(|line| line.contains(word));
            line.unwrap_or_else(|| panic!("{word} is missing in\n{table}"))
                .split_whitespace()
                .collect::<Vec<_>>()
        };
        assert_eq!(line("vs tcp  "), ["test", "tcp", "smc", "vs", "tcp", "smc", "ran", "on", "limit"]);
        assert_eq!(
            line("data"),
            ["tp", "data", "2.00", "GB/s", "8.00", "GB/s", "4.00×", "–", "11.00", "GB/s"]
        );
        assert_eq!(line("two cores"), ["1", "×", "64", "KiB", "two", "cores", "9.00", "GB/s"]);
        assert_eq!(line("unverified"), ["unverified", "16.00", "GB/s"]);
        assert_eq!(line("CPU / MiB"), ["CPU", "/", "MiB", "100", "µs", "100", "µs", "1.00×"]);
        assert_eq!(line("idle"), ["idle", "CPU", "/", "s", "0.00", "µs", "0.00", "µs", "–", "–"]);
        assert!(line("9 silent").len() == 2 && line("a note").len() == 2);
        assert!(table.contains("limit: two pinned"));
    }

    #[test]
    fn without_limits_there_is_no_column_for_them() {
        let sample = Sample { rtt_p50_us: Some(20.0), ..Sample::default() };
        let rows = [row(Work::Paced(5000), Side::Over(Transport::Tcp), sample)];
        let table = table(&rows, &setup());
        assert!(!table.contains("limit") && table.contains("5000 /s × 100 B"), "{table}");
    }
}

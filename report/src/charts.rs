//! The charts of the report, and what of the data each shows.

use anyhow::{Context, Result};

use crate::axis::{Spacing, Unit};
use crate::chart::{
    Bars, Chart, DUPLEX, ICEORYX2, ICEORYX2_EVENTS, Kind, Lines, Panel, SHMIPC, SMC, SMC_UPGRADED, Subject,
    TCP, UDS,
};
use crate::cli::Section;
use crate::data::{Data, Measured};

/// One chart: the file it is in, and the section whose rows it shows.
pub(crate) struct Sheet {
    pub(crate) file: &'static str,
    pub(crate) section: Section,
    draw: fn(&Measured) -> Result<Chart>,
}

impl Sheet {
    /// The chart, if its section was measured.
    pub(crate) fn chart(&self, data: &Data) -> Result<Option<Chart>> {
        let name = self.section.name();
        let Some(measured) = data.sections.get(&name) else { return Ok(None) };
        let lacks =
            || format!("the data of section {name} are not whole: measure it again with --only={name}");
        (self.draw)(measured).with_context(lacks).map(Some)
    }

    /// The same as SVG.
    pub(crate) fn svg(&self, data: &Data) -> Result<Option<String>> {
        let Some(chart) = self.chart(data)? else { return Ok(None) };
        let name = self.section.name();
        let lacks =
            || format!("the data of section {name} are not whole: measure it again with --only={name}");
        chart.svg().with_context(lacks).map(Some)
    }
}

pub(crate) const SHEETS: [Sheet; 12] = [
    Sheet { file: "latency-load.svg", section: Section::Load, draw: latency_load },
    Sheet { file: "cpu-load.svg", section: Section::Load, draw: cpu_load },
    Sheet { file: "latency-size.svg", section: Section::Sizes, draw: latency_size },
    Sheet { file: "throughput-size.svg", section: Section::Sizes, draw: throughput_size },
    Sheet { file: "connections.svg", section: Section::Connections, draw: connections },
    Sheet { file: "peers.svg", section: Section::Peers, draw: peers },
    Sheet { file: "connects.svg", section: Section::Connects, draw: connects },
    Sheet { file: "memory.svg", section: Section::Memory, draw: memory },
    Sheet { file: "runtimes.svg", section: Section::Runtimes, draw: runtimes },
    Sheet { file: "blocking.svg", section: Section::Blocking, draw: blocking },
    Sheet { file: "inside.svg", section: Section::Inside, draw: inside },
    Sheet { file: "others.svg", section: Section::Others, draw: others },
];

/// The transports, as the rows have them.
const TRANSPORTS: [(&str, Subject); 3] = [("tcp", TCP), ("uds", UDS), ("smc", SMC)];

type Axes = ((&'static str, &'static str, Unit), (&'static str, Spacing, Unit));

/// A line for each transport; `axes` are key, name and unit of x, and key, spacing and unit of y.
fn lines(measured: &Measured, title: &str, case: &[(&str, &str)], axes: Axes) -> Panel {
    let ((x_key, x_name, x_unit), (y_key, spacing, y_unit)) = axes;
    let line = |(word, subject): (&str, Subject)| {
        let mut conditions = case.to_vec();
        conditions.push(("transport", word));
        (subject, measured.points(&conditions, x_key, y_key))
    };
    let lines = Lines {
        x: (x_name, x_unit),
        y: (spacing, y_unit),
        lines: TRANSPORTS.map(line).to_vec(),
        limit: None,
    };
    Panel { title: title.to_owned(), kind: Kind::Lines(lines) }
}

fn with_limit(mut panel: Panel, name: &str, value: Option<f64>) -> Panel {
    if let (Kind::Lines(lines), Some(value)) = (&mut panel.kind, value) {
        lines.limit = Some((name.to_owned(), value));
    }
    panel
}

fn chart(title: &str, panels: Vec<Panel>) -> Result<Chart> {
    Ok(Chart { title: title.to_owned(), panels })
}

const RATE: (&str, &str, Unit) = ("paced_per_s", "requests a second", Unit::Count);
const SIZE: (&str, &str, Unit) = ("msg_bytes", "bytes of a message", Unit::Bytes);
const CONNECTIONS: (&str, &str, Unit) = ("connections", "connections", Unit::Count);
const PROCESSES: (&str, &str, Unit) = ("processes", "client processes", Unit::Count);

const P50: (&str, Spacing, Unit) = ("rtt_p50_us", Spacing::Log, Unit::Micros);
const P99: (&str, Spacing, Unit) = ("rtt_p99_us", Spacing::Log, Unit::Micros);
const MESSAGES: (&str, Spacing, Unit) = ("msgs_per_s", Spacing::Log, Unit::Count);
const CPU: (&str, Spacing, Unit) = ("cpu_us_per_msg", Spacing::Log, Unit::Micros);

fn latency_load(measured: &Measured) -> Result<Chart> {
    let paced = [("test", "paced")];
    chart(
        "Latency against load: 100 bytes there and back, at a fixed rate",
        vec![
            lines(measured, "median", &paced, (RATE, P50)),
            lines(measured, "99th percentile", &paced, (RATE, P99)),
        ],
    )
}

fn cpu_load(measured: &Measured) -> Result<Chart> {
    let linear = ("cpu_us_per_msg", Spacing::Linear, Unit::Micros);
    chart(
        "CPU time of a request against load, both processes",
        vec![lines(measured, "user and system time of each request", &[("test", "paced")], (RATE, linear))],
    )
}

fn latency_size(measured: &Measured) -> Result<Chart> {
    let trips = [("test", "pp")];
    let spin = measured.figure(&[("transport", "limit"), ("runs_on", "bare spin")], "rtt_p50_us");
    let median = lines(measured, "median", &trips, (SIZE, P50));
    chart(
        "Round trip against message size, one connection",
        vec![
            with_limit(median, "limit: two threads that bounce a cache line", spin),
            lines(measured, "99th percentile", &trips, (SIZE, P99)),
        ],
    )
}

fn throughput_size(measured: &Measured) -> Result<Chart> {
    let stream = [("test", "tp")];
    let data = ("bytes_per_s", Spacing::Log, Unit::BytesPerSecond);
    let copies = measured.figure(&[("transport", "limit"), ("runs_on", "memcpy, verified")], "bytes_per_s");
    let data = lines(measured, "bytes received and compared", &stream, (SIZE, data));
    let mut cpu = lines(
        measured,
        "CPU time of a write, both processes",
        &stream,
        (SIZE, ("cpu_us_per_mib", P50.1, P50.2)),
    );
    if let Kind::Lines(lines) = &mut cpu.kind {
        // The rows have it for a MiB.
        for (_, points) in &mut lines.lines {
            points.iter_mut().for_each(|(bytes, cpu)| *cpu *= *bytes / f64::from(1 << 20));
        }
    }
    chart(
        "Throughput against the size of a write, one connection",
        vec![with_limit(data, "limit: one core that copies and compares", copies), cpu],
    )
}

fn connections(measured: &Measured) -> Result<Chart> {
    let rate = lines(measured, "round trips a second, all together", &[], (CONNECTIONS, MESSAGES));
    chart(
        "Many connections between two processes: 100 bytes there and back",
        vec![
            rate,
            lines(measured, "99th percentile", &[], (CONNECTIONS, P99)),
            lines(measured, "CPU time of a round trip", &[], (CONNECTIONS, CPU)),
        ],
    )
}

fn peers(measured: &Measured) -> Result<Chart> {
    chart(
        "Many client processes of one server, a connection each",
        vec![
            lines(measured, "round trips a second, all together", &[], (PROCESSES, MESSAGES)),
            lines(measured, "99th percentile", &[], (PROCESSES, P99)),
            lines(measured, "CPU time of a round trip", &[], (PROCESSES, CPU)),
        ],
    )
}

/// A bar of one figure.
fn bar(measured: &Measured, subject: Subject, case: &[(&str, &str)], key: &str) -> Result<(Subject, f64)> {
    let value = measured.figure(case, key);
    Ok((subject, value.with_context(|| format!("{} has no {key} where {case:?}", subject.name))?))
}

/// Bars in groups with names.
type Groups = Vec<(&'static str, Vec<(Subject, f64)>)>;

fn bars(title: &str, unit: Unit, groups: Groups) -> Panel {
    let groups = groups.into_iter().map(|(name, bars)| (name.to_owned(), bars)).collect();
    Panel { title: title.to_owned(), kind: Kind::Bars(Bars { unit, groups }) }
}

/// One line alone, of connections.
fn lines_of(title: &str, subject: Subject, points: Vec<(f64, f64)>) -> Panel {
    let lines = Lines {
        x: (CONNECTIONS.1, CONNECTIONS.2),
        y: (Spacing::Linear, Unit::Count),
        lines: vec![(subject, points)],
        limit: None,
    };
    Panel { title: title.to_owned(), kind: Kind::Lines(lines) }
}

fn connects(measured: &Measured) -> Result<Chart> {
    let rate =
        |subject, way, case| bar(measured, subject, &[("transport", way), ("case", case)], "connects_per_s");
    let rates = vec![
        rate(TCP, "tcp", "connect")?,
        rate(UDS, "uds", "connect")?,
        rate(SMC, "smc", "connect")?,
        rate(SMC_UPGRADED, "smc", "upgrade")?,
    ];
    let cost = |case| bar(measured, SMC_UPGRADED, &[("transport", "smc"), ("case", case)], "upgrade_us");
    let costs =
        vec![("first contact", vec![cost("first contact")?]), ("each further one", vec![cost("upgrade")?])];
    let storm = lines_of(
        "upgrades a second, many at once",
        SMC_UPGRADED,
        measured.points(&[("case", "all at once")], "connections", "upgrades_per_s"),
    );
    chart(
        "Short connections: connect, a round trip, close",
        vec![
            bars("connections a second, in a row", Unit::Count, vec![("", rates)]),
            bars("the upgrade alone", Unit::Micros, costs),
            storm,
        ],
    )
}

fn memory(measured: &Measured) -> Result<Chart> {
    let kib = |key| (key, Spacing::Linear, Unit::Kib);
    chart(
        "Memory of an idle connection, both ends together",
        vec![
            lines(measured, "of the processes", &[], (CONNECTIONS, kib("process_kib"))),
            lines(measured, "sockets and files in the kernel", &[], (CONNECTIONS, kib("kernel_kib"))),
        ],
    )
}

fn runtimes(measured: &Measured) -> Result<Chart> {
    let of = |test: &str, key: &str| -> Result<Groups> {
        ["multi_thread", "current_thread"]
            .into_iter()
            .map(|runtime| {
                let one = |(word, subject): (&'static str, Subject)| {
                    bar(measured, subject, &[("runtime", runtime), ("test", test), ("transport", word)], key)
                };
                Ok((runtime, TRANSPORTS.into_iter().map(one).collect::<Result<_>>()?))
            })
            .collect()
    };
    chart(
        "Both flavours of tokio's runtime",
        vec![
            bars("round trip of 14 bytes, median", Unit::Micros, of("pp", "rtt_p50_us")?),
            bars("writes of 64 KiB", Unit::BytesPerSecond, of("tp", "bytes_per_s")?),
            bars("trips a second, 100 connections", Unit::Count, of("conns", "msgs_per_s")?),
        ],
    )
}

fn blocking(measured: &Measured) -> Result<Chart> {
    let of = |key: &str, factor: f64| -> Result<Groups> {
        let one = |(word, subject): (&'static str, Subject)| {
            let (subject, value) = bar(measured, subject, &[("row", word)], key)?;
            Ok((subject, value * factor))
        };
        let rows = [("std", TCP), ("uds", UDS), ("smc", SMC)];
        Ok(vec![("", rows.into_iter().map(one).collect::<Result<_>>()?)])
    };
    chart(
        "Without a runtime: tokio_smc::blocking beside std's sockets",
        vec![
            bars("round trip of 64 bytes, median", Unit::Micros, of("trip_us", 1.0)?),
            bars("writes of 64 KiB", Unit::BytesPerSecond, of("gb_per_s", 1e9)?),
            bars("connect, ask, close (upgraded)", Unit::Micros, of("connect_us", 1.0)?),
        ],
    )
}

fn inside(measured: &Measured) -> Result<Chart> {
    let of = |key: &str| -> Result<Groups> {
        let one =
            |(word, subject): (&'static str, Subject)| bar(measured, subject, &[("transport", word)], key);
        let all = [("duplex", DUPLEX)].into_iter().chain(TRANSPORTS);
        Ok(vec![("", all.map(one).collect::<Result<_>>()?)])
    };
    chart(
        "Both ends in one process",
        vec![
            bars("round trip of 100 bytes, median", Unit::Micros, of("rtt_p50_us")?),
            bars("writes of 64 KiB", Unit::BytesPerSecond, of("bytes_per_s")?),
        ],
    )
}

fn others(measured: &Measured) -> Result<Chart> {
    let subjects = [
        ("uds", UDS),
        ("smc", SMC),
        ("shmipc", SHMIPC),
        ("iceoryx2", ICEORYX2),
        ("iceoryx2-events", ICEORYX2_EVENTS),
    ];
    let of = |bytes: &str, key: &str| -> Result<Groups> {
        let one = |(word, subject): (&'static str, Subject)| {
            bar(measured, subject, &[("transport", word), ("msg_bytes", bytes)], key)
        };
        Ok(vec![("", subjects.into_iter().map(one).collect::<Result<_>>()?)])
    };
    chart(
        "What else moves bytes through shared memory: round trips between two processes",
        vec![
            bars("100 bytes, median", Unit::Micros, of("100", "rtt_p50_us")?),
            bars("64 KiB, median", Unit::Micros, of("65536", "rtt_p50_us")?),
            bars("CPU time of one of 100 bytes", Unit::Micros, of("100", "cpu_us_per_msg")?),
        ],
    )
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;
    use crate::data::{Row, parse_lines};

    fn data(section: Section, rows: Vec<Row>) -> Data {
        let mut data = Data::default();
        data.sections.insert(section.name(), Measured { how: String::new(), quick: true, rows });
        data
    }

    #[test]
    fn every_section_has_a_chart_and_no_two_a_file() {
        for section in Section::value_variants() {
            assert!(SHEETS.iter().any(|sheet| sheet.section == *section), "{section:?}");
        }
        let mut files = SHEETS.map(|sheet| sheet.file).to_vec();
        files.sort_unstable();
        files.dedup();
        assert_eq!(files.len(), SHEETS.len());
    }

    #[test]
    fn a_section_that_was_not_measured_has_no_chart_and_half_of_one_is_an_error() {
        for sheet in &SHEETS {
            assert!(sheet.svg(&Data::default()).unwrap().is_none());
            let rows = parse_lines("{\"transport\": \"tcp\", \"test\": \"pp\", \"row\": \"std\"}").unwrap();
            let error = format!("{:#}", sheet.svg(&data(sheet.section, rows)).unwrap_err());
            assert!(error.contains(&format!("--only={}", sheet.section.name())), "{error}");
        }
    }

    #[test]
    fn cpu_time_of_a_mebibyte_becomes_that_of_a_write() {
        let text = ["tcp", "uds", "smc"]
            .map(|transport| {
                format!(
                    "{{\"test\": \"tp\", \"transport\": \"{transport}\", \"msg_bytes\": 524288, \
                     \"bytes_per_s\": 1e9, \"cpu_us_per_mib\": 100}}"
                )
            })
            .join("\n");
        let data = data(Section::Sizes, parse_lines(&text).unwrap());
        let chart = throughput_size(&data.sections["sizes"]).unwrap();
        let Kind::Lines(lines) = &chart.panels[1].kind else { panic!("no lines") };
        assert!(lines.lines.iter().all(|(_, points)| points[..] == [(524_288.0, 50.0)]));
    }
}

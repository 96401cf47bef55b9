//! The report itself, in Markdown.

use std::fmt::Write as _;

use anyhow::Result;

use crate::axis::Unit;
use crate::charts::{SHEETS, Sheet};
use crate::cli::Section;
use crate::data::{Data, Row};

/// What is said about a section beside its charts.
fn words(section: Section) -> (&'static str, &'static str) {
    match section {
        Section::Load => (
            "Latency and CPU time against load",
            "Requests come at a fixed rate, whether the last one was answered or not, and their times count
from when they were due: so a pause shows in all requests that fall into it. At low rates both ends
sleep between two requests, and what is measured is mostly the kernel waking them. Where a line goes steeply
up, requests come faster than they can be handed over and answered here; a thread that hands them over
takes a part of it, the same for all.",
        ),
        Section::Sizes => (
            "Message size",
            "One connection. Round trips of a message there and back; and a stream of writes, of which the
receiver compares every byte with what must be there. The dashed lines are what this machine can do
at best: two threads that bounce a cache line, and one core that copies 64 KiB at a time and compares
the copy.",
        ),
        Section::Connections => (
            "Many connections",
            "Each connection has one message of 100 bytes in flight, all in one client process and one server
process: for tokio-smc they are rings of one link. With so many, what a connection waits for is mostly
the others.",
        ),
        Section::Peers => (
            "Many processes",
            "Client processes with one connection each to one server process; for tokio-smc each has an
endpoint and a link of its own. There are more processes than CPUs: what is compared is also how
often they have to be switched.",
        ),
        Section::Connects => (
            "Connecting, and what an upgrade costs",
            "By default a connection of one round trip stays on TCP; the third bar is what that costs. The
fourth waits for its upgrade first, as a connection that lives longer does in the background. The first
upgrade between two processes makes the link between them, which all further ones use. `all at once`
among the figures are connections that are upgraded at the same time; `left on TCP` are those that had
no answer after five seconds, when `upgrade()` waits no longer.",
        ),
        Section::Memory => (
            "Memory",
            "Connections that have made a round trip and are silent. The left side is what a process is billed
for (proportional set size: what two processes share is counted once); the right side is what the
kernel has allocated meanwhile for sockets and files, on the whole machine, and so is rough. An upgraded
connection keeps its TCP socket.",
        ),
        Section::Runtimes => (
            "Runtimes",
            "The same tests on tokio's multi-threaded runtime, with as many workers as CPUs, and on the
current-thread one, in both processes.",
        ),
        Section::Blocking => (
            "The blocking front end",
            "`tokio_smc::blocking` beside `std::net` and `std::os::unix::net`, a thread for the connection at
each end.",
        ),
        Section::Inside => (
            "Within one process",
            "`tokio::io::duplex` needs no kernel and copies through a buffer under a lock; it can not leave its
process. The sockets and tokio-smc do not know that their other end is so near.",
        ),
        Section::Others => (
            "Other crates",
            "What a Rust program could use instead, where it needs no TCP: volo's
[shmipc](https://crates.io/crates/shmipc), streams over shared memory with a unix socket beside, in its
mode for low latency (V4, eventfd); and [iceoryx2](https://crates.io/crates/iceoryx2), whose requests
and responses are loans of shared memory. iceoryx2 has no future to wait for: `looking` is both sides
asking again without a pause, which takes a CPU each, always; `events` is both waiting in a thread for
its listener. All are measured by the same program, tokio-smc with its defaults; each message is
written into what is sent and compared when it comes back.",
        ),
    }
}

/// The whole text; `charts` is the directory of the charts, seen from it.
pub(crate) fn text(data: &Data, charts: &str) -> Result<String> {
    let mut page = String::from("# Performance\n\n");
    page.push_str(
        "<!-- Written by `cargo run --release -p smc-report`; what is changed here by hand does not stay. -->\n\n",
    );
    page.push_str(&paragraph(&format!(
        "tokio-smc beside TCP and unix sockets on one machine: two processes, the transports in turns, \
         medians of the rounds. The raw figures are in [data.json]({charts}/data.json). This writes all of \
         it again, in less than ten minutes:"
    )));
    page.push_str(
        "```text
cargo run --release -p smc-report                    # all but the other crates
cargo run --release -p smc-report -- --only=others   # needs libclang; --help has the rest
```

| | |
|---|---|
",
    );
    for (name, value) in &data.setup {
        let _ = writeln!(page, "| {name} | {value} |");
    }
    page.push('\n');
    page.push_str(&paragraph(
        "**How to read it.** Compare within a chart, not between charts: what neighbours of a shared machine \
         do changes all figures of a section alike. Most axes are logarithmic: a step of the grid is ten times \
         as much. CPU time is that of both processes, user and system. What the tests of `smcperf` do is in \
         `docs/benchmarks.md`, which has web and RPC libraries on top, too.",
    ));
    page.push_str(&worse_in_words(data));
    let mut last = None;
    for sheet in &SHEETS {
        let Some(chart) = sheet.chart(data)? else {
            if last != Some(sheet.section) {
                let (title, _) = words(sheet.section);
                let _ = write!(
                    page,
                    "## {title}\n\nNot measured: `cargo run --release -p smc-report -- --only={}` does.\n\n",
                    sheet.section.name()
                );
            }
            last = Some(sheet.section);
            continue;
        };
        if last != Some(sheet.section) {
            let (title, about) = words(sheet.section);
            let _ = write!(page, "## {title}\n\n{}", paragraph(about));
        }
        last = Some(sheet.section);
        let _ = write!(page, "![{}]({charts}/{})\n\n", chart.title, sheet.file);
        if is_last_of_section(sheet) {
            let section = &data.sections[&sheet.section.name()];
            page.push_str(&table(sheet.section, &section.rows));
            let quick = if section.quick { "With `--quick`: the times say nothing.\n\n" } else { "" };
            let _ = write!(page, "\n```text\n{}\n```\n\n{quick}", section.how);
        }
    }
    while page.ends_with("\n\n") {
        page.pop();
    }
    Ok(page)
}

/// A paragraph, in lines of at most 100 columns.
fn paragraph(text: &str) -> String {
    let mut lines = String::new();
    let mut columns = 0;
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if columns > 0 {
            let fits = columns + 1 + width <= 100;
            lines.push(if fits { ' ' } else { '\n' });
            columns = if fits { columns + 1 } else { 0 };
        }
        lines.push_str(word);
        columns += width;
    }
    lines.push_str("\n\n");
    lines
}

fn is_last_of_section(sheet: &Sheet) -> bool {
    SHEETS.iter().rfind(|other| other.section == sheet.section).is_some_and(|other| other.file == sheet.file)
}

/// What makes a row the same case as that of another transport.
const CASE: [&str; 8] =
    ["test", "msg_bytes", "connections", "paced_per_s", "processes", "runtime", "case", "row"];

/// Figures: key, name, unit, and whether more is better.
const FIGURES: [(&str, &str, Unit, bool); 18] = [
    ("rtt_p50_us", "p50", Unit::Micros, false),
    ("rtt_p99_us", "p99", Unit::Micros, false),
    ("msgs_per_s", "a second", Unit::Count, true),
    ("bytes_per_s", "bytes a second", Unit::BytesPerSecond, true),
    ("connects_per_s", "connects a second", Unit::Count, true),
    ("upgrade_us", "upgrade", Unit::Micros, false),
    ("upgrades_per_s", "upgrades a second", Unit::Count, true),
    ("left_on_tcp", "left on TCP", Unit::Count, false),
    ("cpu_us_per_msg", "CPU", Unit::Micros, false),
    ("cpu_us_per_mib", "CPU per MiB", Unit::Micros, false),
    ("cpu_us_per_s", "CPU in a second", Unit::Micros, false),
    ("process_kib", "memory of processes", Unit::Kib, false),
    ("kernel_kib", "memory of the kernel", Unit::Kib, false),
    ("trip_us", "p50", Unit::Micros, false),
    ("trip_p99_us", "p99", Unit::Micros, false),
    ("trip_cpu_us", "CPU", Unit::Micros, false),
    ("gb_per_s", "GB/s", Unit::Count, true),
    ("connect_us", "connect, ask, close; smc upgrades", Unit::Micros, false),
];

fn case(row: &Row) -> Vec<String> {
    CASE.iter()
        .filter_map(|&key| {
            let number = row.number(key);
            match key {
                "row" => None,
                "msg_bytes" => number.map(|bytes| Unit::Bytes.label(bytes)),
                "connections" => {
                    number.filter(|&number| number != 1.0).map(|number| format!("{number} connections"))
                }
                "paced_per_s" => number.filter(|&rate| rate > 0.0).map(|rate| format!("{rate} a second")),
                "processes" => number.map(|number| format!("{number} processes")),
                _ => row.text(key).map(str::to_owned),
            }
        })
        .collect()
}

/// What a row is about: one of its transport, or that of its own program.
fn subject(row: &Row) -> Option<&str> {
    row.text("transport").or_else(|| row.text("row").map(|row| if row == "std" { "tcp" } else { row }))
}

/// All figures of a section, a line for each case and figure.
fn table(section: Section, rows: &[Row]) -> String {
    let mut subjects: Vec<&str> = Vec::new();
    for subject in rows.iter().filter_map(subject).filter(|&subject| subject != "limit") {
        if !subjects.contains(&subject) {
            subjects.push(subject);
        }
    }
    let mut text = String::from("<details><summary>All figures</summary>\n\n| | |");
    let _ = writeln!(text, " {} |", subjects.join(" | "));
    let _ = writeln!(text, "|---|---|{}", "---:|".repeat(subjects.len()));
    let mut told: Vec<Vec<String>> = Vec::new();
    for row in rows {
        let case_of = case(row);
        if told.contains(&case_of) || subject(row) == Some("limit") {
            continue;
        }
        let same = |name: &str| rows.iter().find(|row| subject(row) == Some(name) && case(row) == case_of);
        for (key, name, unit, _) in FIGURES {
            // Of requests at a given rate the rate is given.
            if section == Section::Load && key == "msgs_per_s" {
                continue;
            }
            let figures: Vec<Option<f64>> =
                subjects.iter().map(|subject| same(subject).and_then(|row| row.number(key))).collect();
            if figures.iter().any(Option::is_some) {
                let cells: Vec<String> = figures
                    .iter()
                    .map(|figure| figure.map_or("–".to_owned(), |value| unit.label(value)))
                    .collect();
                let _ = writeln!(text, "| {} | {name} | {} |", case_of.join(", "), cells.join(" | "));
            }
        }
        told.push(case_of);
    }
    text.push_str("\n</details>\n");
    text
}

/// A figure in which tokio-smc is worse than another transport.
#[derive(Debug, PartialEq)]
pub(crate) struct Worse {
    section: String,
    case: String,
    figure: &'static str,
    than: &'static str,
    unit: Unit,
    own: f64,
    other: f64,
}

/// Where tokio-smc is worse than TCP or unix sockets, by more than a tenth.
pub(crate) fn worse(data: &Data) -> Vec<Worse> {
    let mut all = Vec::new();
    for (section, measured) in &data.sections {
        for own in measured.rows.iter().filter(|row| subject(row) == Some("smc")) {
            for than in ["tcp", "uds"] {
                // Nothing else can be upgraded.
                let own_case = case(own).join(", ").replace("upgrade", "connect");
                let same = |row: &&Row| subject(row) == Some(than) && case(row).join(", ") == own_case;
                let Some(other) = measured.rows.iter().find(same) else { continue };
                for (key, figure, unit, more_is_better) in FIGURES {
                    let Some((own_value, other_value)) = own.number(key).zip(other.number(key)) else {
                        continue;
                    };
                    let (less, more) =
                        if more_is_better { (own_value, other_value) } else { (other_value, own_value) };
                    if more > less * 1.1 && !(section == "load" && key == "msgs_per_s") {
                        let case = case(own);
                        let case = if case.is_empty() { "–".to_owned() } else { case.join(", ") };
                        let (section, own, other) = (section.clone(), own_value, other_value);
                        all.push(Worse { section, case, figure, than, unit, own, other });
                    }
                }
            }
        }
    }
    all
}

fn worse_in_words(data: &Data) -> String {
    let mut text = String::from("## Where tokio-smc is worse\n\n");
    let all = worse(data);
    if all.is_empty() {
        text.push_str("Nowhere here, by more than a tenth.\n\n");
        return text;
    }
    text.push_str(&paragraph(
        "Every figure of the charts below in which tokio-smc is worse than TCP, or than a unix socket, by \
         more than a tenth. Which way percentiles of a few microseconds fall is also luck.",
    ));
    text.push_str(
        "| section | case | figure | tokio-smc | the other |
|---|---|---|---:|---:|
",
    );
    for worse in all {
        let Worse { section, case, figure, than, unit, own, other } = worse;
        let _ = writeln!(
            text,
            "| {section} | {case} | {figure} | {} | {than} {} |",
            unit.label(own),
            unit.label(other)
        );
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Measured, parse_lines};

    fn data(section: &str, lines: &str) -> Data {
        let mut data = Data::default();
        let rows = parse_lines(lines).unwrap();
        data.sections.insert(section.to_owned(), Measured { how: "so".to_owned(), quick: false, rows });
        data
    }

    #[test]
    fn what_is_worse_is_said_and_by_whom() {
        let data = data(
            "sizes",
            "{\"transport\": \"tcp\", \"test\": \"pp\", \"msg_bytes\": 14, \"rtt_p50_us\": 10, \"msgs_per_s\": 100}
             {\"transport\": \"uds\", \"test\": \"pp\", \"msg_bytes\": 14, \"rtt_p50_us\": 10, \"msgs_per_s\": 10}
             {\"transport\": \"smc\", \"test\": \"pp\", \"msg_bytes\": 14, \"rtt_p50_us\": 10.5, \"msgs_per_s\": 50}
             {\"transport\": \"tcp\", \"test\": \"tp\", \"msg_bytes\": 14, \"msgs_per_s\": null}
             {\"transport\": \"smc\", \"test\": \"tp\", \"msg_bytes\": 14, \"msgs_per_s\": 1}
             {\"transport\": \"smc\", \"test\": \"pp\", \"msg_bytes\": 99, \"msgs_per_s\": 1}",
        );
        let all = worse(&data);
        assert_eq!(all.len(), 1, "{all:?}");
        assert!(
            (all[0].than, all[0].own, all[0].other) == ("tcp", 50.0, 100.0) && all[0].figure == "a second"
        );
        let text = text(&data, "performance").unwrap();
        assert!(text.contains("| sizes | pp, 14 B | a second | 50 | tcp 100 |"), "{text}");
        assert!(text.contains("| pp, 14 B | p50 | 10 µs | 10 µs | 10.5 µs |"), "{text}");
    }

    #[test]
    fn lines_are_not_too_long_and_no_word_is_lost() {
        let words = "word ".repeat(99) + &"long".repeat(40) + " end";
        let text = paragraph(&words);
        assert!(text.lines().all(|line| line.len() <= 100 || !line.contains(' ')), "{text}");
        assert_eq!(text.split_whitespace().collect::<Vec<_>>(), words.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn an_upgraded_connect_is_compared_with_a_plain_one() {
        let data = data(
            "connects",
            "{\"transport\": \"tcp\", \"case\": \"connect\", \"connects_per_s\": 100}
             {\"transport\": \"smc\", \"case\": \"connect\", \"connects_per_s\": 99}
             {\"transport\": \"smc\", \"case\": \"upgrade\", \"connects_per_s\": 30}",
        );
        let all = worse(&data);
        assert!(all.len() == 1 && all[0].case == "upgrade", "{all:?}");
    }

    #[test]
    fn without_data_the_page_says_how_to_get_them() {
        let text = text(&Data::default(), "performance").unwrap();
        for section in ["load", "others", "memory"] {
            assert!(text.contains(&format!("--only={section}")), "{text}");
        }
        assert!(
            text.contains("Nowhere")
                && !text.contains("svg")
                && text.ends_with("\n")
                && !text.ends_with("\n\n")
        );
    }
}

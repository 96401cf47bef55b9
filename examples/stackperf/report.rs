//! Results as one table for people, or one JSON object per line for programs.

use std::collections::BTreeMap;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::json;

use crate::load::{Load, Sample};
use crate::transport::Transport;

/// One test over one transport: medians of its rounds.
pub(crate) struct Row {
    load: Load,
    transport: Transport,
    requests_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
    ran_on: BTreeMap<String, u64>,
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Row {
    pub(crate) fn new(load: Load, transport: Transport, samples: &[Sample]) -> Row {
        let mut ran_on = BTreeMap::new();
        for (on, count) in samples.iter().flat_map(|sample| &sample.ran_on) {
            *ran_on.entry(on.clone()).or_default() += count;
        }
        Row {
            load,
            transport,
            requests_per_s: median(samples.iter().map(|sample| sample.requests_per_s)),
            p50_us: median(samples.iter().filter_map(|sample| sample.p50_us)),
            p99_us: median(samples.iter().filter_map(|sample| sample.p99_us)),
            cpu_us: median(samples.iter().filter_map(|sample| sample.cpu_us)),
            ran_on,
        }
    }

    pub(crate) fn json(&self) -> String {
        json!({
            "test": self.load.name(),
            "in_flight": self.load.in_flight(),
            "transport": self.transport.name(),
            "requests_per_s": self.requests_per_s.round(),
            "p50_us": (self.p50_us * 10.0).round() / 10.0,
            "p99_us": (self.p99_us * 10.0).round() / 10.0,
            "cpu_us_per_request": (self.cpu_us * 100.0).round() / 100.0,
            "smc_ran_on": self.ran_on,
        })
        .to_string()
    }
}

fn rate(value: f64) -> String {
    if value >= 1e6 { format!("{:.2} M/s", value / 1e6) } else { format!("{:.1} k/s", value / 1e3) }
}

fn time(us: f64) -> String {
    if us >= 1e3 { format!("{:.2} ms", us / 1e3) } else { format!("{us:.1} µs") }
}

/// The table; `rows` come test by test, each with the same transports.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    let mut header = vec!["test".to_owned(), String::new()];
    let cases: Vec<&[Row]> = rows.chunk_by(|row, next| row.load == next.load).collect();
    for row in cases.first().copied().unwrap_or_default() {
        header.push(row.transport.name().to_owned());
        if row.transport != Transport::Tcp {
            header.push("vs tcp".to_owned());
        }
    }
    header.push("smc ran on".to_owned());
    table.set_header(header);
    for case in cases {
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        let mut cells =
            vec![Cell::new(case[0].load.describe()), Cell::new("requests\np50\np99\nCPU / request")];
        let tcp = case.iter().find(|row| row.transport == Transport::Tcp);
        let mut ran_on = String::new();
        for row in case {
            cells.push(right(format!(
                "{}\n{}\n{}\n{}",
                rate(row.requests_per_s),
                time(row.p50_us),
                time(row.p99_us),
                time(row.cpu_us)
            )));
            if row.transport != Transport::Tcp {
                cells.push(right(tcp.map_or_else(String::new, |tcp| {
                    format!(
                        "{:.2}×\n{:.2}×\n{:.2}×\n{:.2}×",
                        row.requests_per_s / tcp.requests_per_s,
                        tcp.p50_us / row.p50_us,
                        tcp.p99_us / row.p99_us,
                        tcp.cpu_us / row.cpu_us
                    )
                })));
            }
            if row.transport == Transport::Smc {
                let named: Vec<String> =
                    row.ran_on.iter().map(|(on, count)| format!("{count} {on}")).collect();
                ran_on = if row.ran_on.len() == 1 {
                    row.ran_on.keys().cloned().collect()
                } else {
                    named.join("\n")
                };
            }
        }
        cells.push(Cell::new(ran_on));
        table.add_row(cells);
    }
    format!(
        "{table}\nvs tcp: how many times better than TCP in the same run, for times and for rates alike.\n\
         duplex: client and server in one process, with nothing between them; what the stack itself takes."
    )
}

//! The rows of the result: one test over one transport, or the limit of this machine for it; and a
//! row as a JSON object for programs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::cli::{Transport, word};
use crate::client::test_of;
use crate::limit::Limit;
use crate::medium::RunsOn;
use crate::workload::{Sample, Unit, Work};

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Over(Transport),
    Limit(Limit),
}

/// One test over one transport, or its limit: medians of its rounds.
pub(crate) struct Row {
    pub(crate) work: Work,
    pub(crate) side: Side,
    pub(crate) sample: Sample,
}

/// The name of a test; what has no requests is no longer one at a rate.
pub(crate) fn name(work: Work) -> String {
    if let Work::Idle(_) = work { "idle".to_owned() } else { word(test_of(work)) }
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
    pub(crate) fn new(work: Work, side: Side, samples: &[Sample]) -> Self {
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
            cpu_us: median(samples, |sample| sample.cpu_us),
            pacing_us: median(samples, |sample| sample.pacing_us),
            ran_on,
        };
        Self { work, side, sample }
    }

    /// What all connections ran on; with one exception among them it is the exception that is
    /// named.
    fn runs_on(&self) -> &'static str {
        let wanted = match self.side {
            Side::Over(transport) => transport.runs_on(),
            Side::Limit(limit) => return limit.name(),
        };
        self.sample.ran_on.keys().map(|on| on.name).find(|&name| name != wanted).unwrap_or(wanted)
    }

    pub(crate) fn json(&self) -> String {
        // Three digits behind the point are more than any of these figures is good for.
        let figure =
            |value: Option<f64>| value.map_or(Value::Null, |value| json!((value * 1e3).round() / 1e3));
        let transport = match self.side {
            Side::Over(transport) => word(transport),
            Side::Limit(_) => "limit".to_owned(),
        };
        let cpu = |unit| figure(self.sample.cpu_us.filter(|_| self.work.unit() == unit));
        let members = [
            ("test", json!(name(self.work))),
            ("transport", json!(transport)),
            ("runs_on", json!(self.runs_on())),
            ("msg_bytes", json!(self.work.message_bytes())),
            ("connections", json!(self.work.connections())),
            ("paced_per_s", json!(self.work.pace())),
            ("rtt_p50_us", figure(self.sample.rtt_p50_us)),
            ("rtt_p99_us", figure(self.sample.rtt_p99_us)),
            ("msgs_per_s", figure(self.sample.msgs_per_s)),
            ("bytes_per_s", figure(self.sample.bytes_per_s)),
            ("connects_per_s", figure(self.sample.connects_per_s)),
            ("cpu_us_per_msg", cpu(Unit::Message)),
            ("cpu_us_per_mib", cpu(Unit::Mebibyte)),
            ("cpu_us_per_connect", cpu(Unit::Connect)),
            ("cpu_us_per_s", cpu(Unit::Second)),
            ("pacing_us_per_msg", figure(self.sample.pacing_us)),
        ];
        let members: Vec<String> = members.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
        format!("{{{}}}", members.join(", "))
    }

    /// The transport, if it is not the row of a limit.
    pub(crate) fn transport(&self) -> Option<Transport> {
        match self.side {
            Side::Over(transport) => Some(transport),
            Side::Limit(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(name: &'static str) -> RunsOn {
        RunsOn { name, why: None }
    }

    fn row(ran_on: &[(&'static str, u64)]) -> Row {
        let ran_on = ran_on.iter().map(|&(name, count)| (on(name), count)).collect();
        let sample = Sample { msgs_per_s: Some(3.0), cpu_us: Some(2.5), ran_on, ..Sample::default() };
        Row::new(Work::Connections(8), Side::Over(Transport::Smc), &[sample])
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
             \"connections\": 8, \"paced_per_s\": null, \"rtt_p50_us\": null, \"rtt_p99_us\": null, \
             \"msgs_per_s\": 3.0, \"bytes_per_s\": null, \"connects_per_s\": null, \"cpu_us_per_msg\": 2.5, \
             \"cpu_us_per_mib\": null, \"cpu_us_per_connect\": null, \"cpu_us_per_s\": null, \
             \"pacing_us_per_msg\": null}"
        );
    }

    #[test]
    fn limits_and_idle_rows_are_named() {
        let row =
            |work, side| Row::new(work, side, &[Sample { cpu_us: Some(0.0), ..Sample::default() }]).json();
        let limit = row(Work::Blocks(65536), Side::Limit(Limit::Copy));
        assert!(
            limit.contains("\"test\": \"tp\", \"transport\": \"limit\", \"runs_on\": \"memcpy\""),
            "{limit}"
        );
        let idle = row(Work::Idle(9), Side::Over(Transport::Uds));
        for part in ["\"test\": \"idle\"", "\"connections\": 9, \"paced_per_s\": 0", "\"cpu_us_per_s\": 0.0"]
        {
            assert!(idle.contains(part), "{idle}");
        }
    }
}

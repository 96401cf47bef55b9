//! `smcperf` as a user runs it: results of every test, the exact keys, clear errors, and no
//! hanging.

mod program;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use program::{Running, example, text};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(90);

const KEYS: [&str; 6] = ["test", "transport", "runs_on", "msg_bytes", "connections", "paced_per_s"];

const FIGURES: [&str; 10] = [
    "rtt_p50_us",
    "rtt_p99_us",
    "msgs_per_s",
    "bytes_per_s",
    "connects_per_s",
    "cpu_us_per_msg",
    "cpu_us_per_mib",
    "cpu_us_per_connect",
    "cpu_us_per_s",
    "pacing_us_per_msg",
];

/// The figures that a row of a test has; all others are null.
fn figures(test: &str, is_limit: bool) -> &'static [&'static str] {
    match (test, is_limit) {
        ("pp", true) => &["rtt_p50_us"],
        ("tp", true) => &["bytes_per_s"],
        ("conns", true) => &["msgs_per_s"],
        ("pp" | "conns", false) => &["rtt_p50_us", "rtt_p99_us", "msgs_per_s", "cpu_us_per_msg"],
        ("tp", false) => &["bytes_per_s", "cpu_us_per_mib"],
        ("rate", false) => &["msgs_per_s", "bytes_per_s", "cpu_us_per_msg"],
        ("connect", false) => &["rtt_p50_us", "rtt_p99_us", "connects_per_s", "cpu_us_per_connect"],
        ("paced", false) => {
            &["rtt_p50_us", "rtt_p99_us", "msgs_per_s", "cpu_us_per_msg", "pacing_us_per_msg"]
        }
        ("idle", false) => &["cpu_us_per_s"],
        other => panic!("a row that is not known: {other:?}"),
    }
}

/// Figures that may come out as nothing: a short span may end before anybody looked.
fn may_be_zero(figure: &str) -> bool {
    figure.starts_with("cpu_us") || figure.starts_with("pacing_us")
}

fn one_cpu() -> bool {
    rustix::thread::sched_getaffinity(None).unwrap().count() == 1
}

/// The rows of limits that stand behind those of a test here.
fn limits(test: &str) -> &'static [&'static str] {
    match test {
        "pp" | "conns" if one_cpu() => &[],
        "conns" => &["bare pages"],
        "pp" => &["bare spin"],
        "tp" if one_cpu() => &["memcpy, verified", "memcpy"],
        "tp" => &["memcpy, verified", "memcpy from another core, verified", "memcpy"],
        _ => &[],
    }
}

fn rows(arguments: &[&str]) -> Vec<Value> {
    let output = Running::start(example("smcperf").args(arguments).arg("--json")).finish(LIMIT);
    let (stdout, stderr) = text(&output);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

fn check(row: &Value) {
    let object = row.as_object().expect("each line is an object");
    let keys: BTreeSet<&str> = object.keys().map(String::as_str).collect();
    assert_eq!(keys, KEYS.into_iter().chain(FIGURES).collect(), "{row}");
    let test = row["test"].as_str().expect("test is a string");
    let is_limit = row["transport"] == "limit";
    for figure in FIGURES {
        if figures(test, is_limit).contains(&figure) {
            let sound = |value| value > 0.0 || (may_be_zero(figure) && value == 0.0);
            assert!(row[figure].as_f64().is_some_and(sound), "{figure} in {row}");
        } else {
            assert!(row[figure].is_null(), "{figure} in {row}");
        }
    }
    let allowed: &[&str] = match row["transport"].as_str() {
        Some("tcp") => &["tcp"],
        Some("uds") => &["uds"],
        Some("smc") => &["loopback-ism", "tcp"],
        Some("limit") => limits(test),
        _ => panic!("a transport that is not known: {row}"),
    };
    assert!(row["runs_on"].as_str().is_some_and(|on| allowed.contains(&on)), "{row}");
}

#[test]
fn every_test_over_every_transport_in_both_runtimes() {
    for runtime in ["multi_thread", "current_thread"] {
        let runtime = format!("--runtime={runtime}");
        let rows = rows(&["--test", "pp,tp,rate,connect", "--seconds=0.1", "--rounds=2", &runtime]);
        let cases: Vec<(&str, &str)> = rows
            .iter()
            .map(|row| (row["test"].as_str().unwrap(), row["transport"].as_str().unwrap()))
            .collect();
        let expected: Vec<(&str, &str)> = ["pp", "tp", "rate", "connect"]
            .into_iter()
            .flat_map(|test| {
                let limits = limits(test).iter().map(|_| "limit");
                ["tcp", "uds", "smc"].into_iter().chain(limits).map(move |side| (test, side))
            })
            .collect();
        assert_eq!(cases, expected);
        rows.iter().for_each(check);
        let sizes: BTreeSet<u64> = rows.iter().map(|row| row["msg_bytes"].as_u64().unwrap()).collect();
        assert_eq!(sizes, BTreeSet::from([14, 100, 65536]));
    }
}

#[test]
fn up_to_a_thousand_connections() {
    let rows = rows(&["--test=conns", "--seconds=0.2", "--rounds=1", "--busy-poll=20"]);
    rows.iter().for_each(check);
    let connections: Vec<u64> = rows.iter().map(|row| row["connections"].as_u64().unwrap()).collect();
    // Three transports, and the limit beside them.
    let sides = 3 + limits("conns").len();
    let expected = [1, 8, 100, 1000].into_iter().flat_map(|number| std::iter::repeat_n(number, sides));
    assert_eq!(connections, Vec::from_iter(expected));
}

/// Also with everything that changes how the two processes wait.
#[test]
fn requests_at_a_fixed_rate_and_none_at_all() {
    let settings =
        [["--runtime=multi_thread", "--busy-poll=0"], ["--runtime=current_thread", "--busy-poll=40"]];
    for setting in settings {
        let rows = rows(&[&["--test=paced", "--seconds=0.1", "--rounds=1"], &setting[..]].concat());
        rows.iter().for_each(check);
        let cases: Vec<(&str, u64, u64, &str)> = rows
            .iter()
            .map(|row| {
                let (pace, connections) = (row["paced_per_s"].as_u64(), row["connections"].as_u64());
                let (test, transport) = (row["test"].as_str(), row["transport"].as_str());
                (test.unwrap(), pace.unwrap(), connections.unwrap(), transport.unwrap())
            })
            .collect();
        let kinds =
            [100, 1000, 5000, 20_000].map(|pace| ("paced", pace, 1)).into_iter().chain([("idle", 0, 100)]);
        let expected: Vec<(&str, u64, u64, &str)> = kinds
            .flat_map(|(test, pace, connections)| {
                ["tcp", "uds", "smc"].map(|transport| (test, pace, connections, transport))
            })
            .collect();
        assert_eq!(cases, expected);
    }
}

/// With one CPU two threads can only take turns: no figure is better than that one.
#[test]
fn with_one_cpu_the_limit_of_two_is_left_out_and_the_report_says_so() {
    // The process inherits the CPUs of the thread that starts it, which ends with the test.
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu)).unwrap();
    let mut one = rustix::thread::CpuSet::new();
    one.set(first);
    rustix::thread::sched_setaffinity(None, &one).unwrap();
    let run = ["--test=pp,tp", "--transport=uds", "--seconds=0.1", "--rounds=1"];
    let output = Running::start(example("smcperf").args(run)).finish(LIMIT);
    let (table, stderr) = text(&output);
    assert!(output.status.success(), "{stderr}");
    assert!(table.contains("limit: bare spin is left out") && table.contains("unverified"), "{table}");
    let output = Running::start(example("smcperf").args(run).arg("--json")).finish(LIMIT);
    let (rows, stderr) = text(&output);
    assert!(output.status.success(), "{stderr}");
    assert!(
        rows.contains("memcpy, verified") && !rows.contains("bare spin") && !rows.contains("another core"),
        "{rows}"
    );
    assert!(stderr.contains("limit: bare spin is left out"), "{stderr}");
}

#[test]
fn by_hand_in_two_terminals_with_a_table() {
    let mut server = Running::start(example("smcperf").args(["serve", "127.0.0.1:0", "--busy-poll=0"]));
    let line = server.line(LIMIT);
    let addr =
        line.strip_prefix("listening on ").and_then(|rest| rest.split(' ').next()).expect("an address");
    let run = ["run", addr, "--test=pp", "--transport=smc,tcp", "--seconds=0.1", "--busy-poll=30"];
    let output = Running::start(example("smcperf").args(run)).finish(LIMIT);
    let (stdout, stderr) = text(&output);
    assert!(output.status.success(), "{stderr}");
    for expected in [
        "RTT p50",
        "CPU / msg",
        "vs tcp",
        "smc ran on",
        "machine: ",
        "Linux",
        "busy-poll: 30 µs",
        "busy-poll: 0 µs",
    ] {
        assert!(stdout.contains(expected), "{expected} is missing in\n{stdout}");
    }
    assert!(!stdout.contains("uds"), "only what was asked for:\n{stdout}");
}

#[test]
fn errors_are_said_and_do_not_hang() {
    let failing = |arguments: &[&str], expected: &str| {
        let output = Running::start(example("smcperf").args(arguments)).finish(LIMIT);
        let (_, stderr) = text(&output);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(stderr.contains(expected), "{arguments:?}: {expected} is missing in {stderr}");
    };
    // Nobody listens there.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    failing(&["run", &closed], "refused");
    // Somebody does, but never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    failing(&["run", &silent.local_addr().unwrap().to_string()], "does not answer");
    failing(&["--test=nonsense"], "nonsense");
    failing(&["--seconds=0"], "from 0.01");
    failing(&["serve", &silent.local_addr().unwrap().to_string()], "in use");
}

#[test]
fn a_server_that_dies_in_the_middle_ends_the_client_with_a_message() {
    let mut said = Vec::new();
    // On a busy machine the client may not be in the middle yet; then it has not seen a server at
    // all.
    for patience in [1, 3, 9] {
        let mut server = Running::start(example("smcperf").args(["serve", "127.0.0.1:0"]));
        let line = server.line(LIMIT);
        let addr =
            line.strip_prefix("listening on ").and_then(|rest| rest.split(' ').next()).expect("an address");
        let run = ["run", addr, "--test=pp", "--transport=tcp", "--seconds=20", "--rounds=1", "--json"];
        let client = Running::start(example("smcperf").args(run));
        std::thread::sleep(Duration::from_secs(patience));
        drop(server);
        let output = client.finish(Duration::from_secs(60));
        let (stdout, stderr) = text(&output);
        assert!(!output.status.success() && stdout.is_empty(), "{stdout}");
        if stderr.contains("pp over tcp") {
            return;
        }
        said.push(stderr);
    }
    panic!("{said:?}");
}

/// The verification itself is tested beside its code; this is about what becomes of its verdict.
#[test]
fn a_server_that_receives_damaged_data_says_so_and_goes_on() {
    let mut server = Running::start(example("smcperf").args(["serve", "127.0.0.1:0"]));
    let line = server.line(LIMIT);
    let addr =
        line.strip_prefix("listening on ").and_then(|rest| rest.split(' ').next()).expect("an address");
    for (kind, complaint) in [(4, "byte 0 of the stream"), (5, "message 0 is lost")] {
        let mut request = [b'.'; 100];
        request[..8].copy_from_slice(b"smcperf1");
        (request[8], request[9]) = (kind, 0);
        request[12..16].fill(0);
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(&request).unwrap();
        // More than fits into one read: the report must not be lost to a reset.
        stream.write_all(&vec![0; 1_000_000]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let report: Value =
            serde_json::from_slice(&answer[104..]).expect("a report behind the answer and its length");
        assert!(report["error"].as_str().is_some_and(|error| error.contains(complaint)), "{report}");
    }
    let output =
        Running::start(example("smcperf").args(["run", addr, "--test=tp", "--seconds=0.1"])).finish(LIMIT);
    assert!(output.status.success(), "{:?}", text(&output));
}

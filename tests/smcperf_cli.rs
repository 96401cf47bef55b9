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

const KEYS: [&str; 10] = [
    "test",
    "transport",
    "runs_on",
    "msg_bytes",
    "connections",
    "rtt_p50_us",
    "rtt_p99_us",
    "msgs_per_s",
    "bytes_per_s",
    "connects_per_s",
];

/// The figures that a test has; all others are null.
fn figures(test: &str) -> &'static [&'static str] {
    match test {
        "pp" | "conns" => &["rtt_p50_us", "rtt_p99_us", "msgs_per_s"],
        "tp" => &["bytes_per_s"],
        "rate" => &["msgs_per_s", "bytes_per_s"],
        "connect" => &["rtt_p50_us", "rtt_p99_us", "connects_per_s"],
        other => panic!("a test that is not known: {other}"),
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
    assert_eq!(keys, BTreeSet::from(KEYS), "{row}");
    let test = row["test"].as_str().expect("test is a string");
    for figure in ["rtt_p50_us", "rtt_p99_us", "msgs_per_s", "bytes_per_s", "connects_per_s"] {
        if figures(test).contains(&figure) {
            assert!(row[figure].as_f64().is_some_and(|value| value > 0.0), "{figure} in {row}");
        } else {
            assert!(row[figure].is_null(), "{figure} in {row}");
        }
    }
    let allowed: &[&str] = match row["transport"].as_str() {
        Some("tcp") => &["tcp"],
        Some("uds") => &["uds"],
        Some("smc") => &["loopback-ism", "tcp"],
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
            .flat_map(|test| ["tcp", "uds", "smc"].map(|transport| (test, transport)))
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
    assert_eq!(connections, [1, 1, 1, 8, 8, 8, 100, 100, 100, 1000, 1000, 1000]);
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
    for expected in
        ["RTT p50", "vs tcp", "smc ran on", "machine: ", "Linux", "busy-poll: 30 µs", "busy-poll: 0 µs"]
    {
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

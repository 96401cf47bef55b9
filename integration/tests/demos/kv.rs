//! `kv` with redis-cli, redis-benchmark, the redis crate, and what happens when one side dies.

use std::io::Read;
use std::net::SocketAddr;

use crate::demo::{Demo, Device, ask, closed, plain, tool, until};

fn server(device: &Device, options: &[&str]) -> (Demo, SocketAddr) {
    device.serve("kv", &[&["serve", "127.0.0.1:0"], options].concat())
}

/// What redis-cli prints for a command.
fn cli(addr: SocketAddr, command: &[&str]) -> String {
    let port = addr.port().to_string();
    let output = tool("redis-cli", "redis-tools", &[&["--no-raw", "-p", &port], command].concat());
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

#[test]
fn redis_cli_speaks_to_it_over_tcp() {
    let device = Device::new();
    let (server, addr) = server(&device, &[]);
    let expected = [
        (&["PING"][..], "PONG"),
        (&["SET", "key", "a value"], "OK"),
        (&["GET", "key"], "\"a value\""),
        (&["GET", "nothing"], "(nil)"),
        (&["SET", "key", "other", "NX"], "(nil)"),
        (&["SET", "short", "1", "EX", "1000"], "OK"),
        (&["INCRBY", "short", "41"], "(integer) 42"),
        (&["TTL", "short"], "(integer) 1000"),
        (&["MSET", "a", "1", "b", "2"], "OK"),
        (&["MGET", "a", "b", "c"], "1) \"1\"\n2) \"2\"\n3) (nil)"),
        (&["DEL", "a", "b", "c"], "(integer) 2"),
        (&["DBSIZE"], "(integer) 2"),
        (&["INCR", "key"], "(error) ERR value is not an integer or out of range"),
        (&["FOO"], "(error) ERR unknown command 'foo'"),
        (&["GET"], "(error) ERR wrong number of arguments for 'get' command"),
        (&["FLUSHDB"], "OK"),
        (&["DBSIZE"], "(integer) 0"),
    ];
    for (command, answer) in expected {
        assert_eq!(cli(addr, command), answer, "{command:?}");
    }
    assert!(cli(addr, &["CLIENT", "INFO"]).contains("transport=tcp"));
    assert!(cli(addr, &["INFO"]).contains("clients_on_tcp:1"));
    let said = server.terminate();
    assert!(said.contains("ended: "), "{said}");
}

#[test]
fn redis_benchmark_runs_through() {
    let device = Device::new();
    let (_server, addr) = server(&device, &[]);
    let port = addr.port().to_string();
    let options = ["-p", &port, "-n", "4000", "-c", "50", "-P", "8", "-d", "1024", "-q"];
    let tests = ["-t", "ping,set,get,incr,mset"];
    let output = tool("redis-benchmark", "redis-tools", &[&options[..], &tests].concat());
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for test in ["PING_INLINE", "PING_MBULK", "SET", "GET", "INCR", "MSET (10 keys)"] {
        let result = said.split(['\r', '\n']).any(|line| {
            line.trim_start().starts_with(&format!("{test}: ")) && line.contains("requests per second")
        });
        assert!(result, "no result of {test} in\n{said}");
    }
    assert!(!said.contains("WARN") && !said.to_lowercase().contains("error"), "{said}");
}

#[test]
fn the_redis_crate_speaks_to_it_over_smc() {
    let device = Device::new();
    let (_server, addr) = server(&device, &[]);
    let (success, said) = device.run("kv", &["demo", &addr.to_string()]);
    assert!(success, "{said}");
    for words in [
        "SET demo:greeting: OK",
        "GET demo:greeting: hello over shared memory",
        "1000 times: 1000",
        "[0, 50, 99]",
        "transport=loopback-ism",
        "the connection runs on loopback-ism (device ",
    ] {
        assert!(said.contains(words), "{words} is missing in\n{said}");
    }
    // What went over SMC is there for a client on TCP.
    assert_eq!(cli(addr, &["GET", "demo:greeting"]), "\"hello over shared memory\"");
    // Through another device there is no way but TCP, and it says so.
    let (success, said) = Device::new().run("kv", &["demo", &addr.to_string()]);
    assert!(success && said.contains("runs on tcp (the peer does not speak SMC on this host"), "{said}");
}

#[test]
fn the_bench_compares_tcp_and_smc_in_one_run() {
    let device = Device::new();
    let options = ["--connections=1,8", "--size=1024", "--seconds=0.1", "--rounds=2"];
    for pipeline in ["--pipeline=1", "--pipeline=16"] {
        let (success, said) = device.run("kv", &[&["bench", pipeline], &options[..]].concat());
        assert!(success, "{said}");
        for (test, connections) in [("SET", "1"), ("GET", "1"), ("SET", "8"), ("GET", "8")] {
            let row = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let row = row.into_iter().find(|row| row.starts_with(&[test, connections]));
            let row = row.unwrap_or_else(|| panic!("no row {test} {connections} in\n{said}"));
            assert_eq!(row.last(), Some(&"loopback-ism"), "{said}");
            assert!(row[2].parse::<f64>().unwrap() > 0.0 && row[3].parse::<f64>().unwrap() > 0.0, "{said}");
        }
    }
}

#[test]
fn a_server_that_is_gone_is_said() {
    let device = Device::new();
    let nobody = closed();
    for command in ["demo", "bench"] {
        let said = device.fails("kv", &[command, &nobody]);
        assert!(said.contains("refused") && said.contains("is `kv serve"), "{said}");
    }
    let (victim, addr) = server(&device, &[]);
    let mut bench =
        device.start("kv", &["bench", &addr.to_string(), "--connections=4", "--seconds=0.2", "--rounds=200"]);
    bench.line("smc ran on");
    // It is at work when the server has many requests of it.
    until("four keys", || ask(addr, b"DBSIZE\r\n") == b":4\r\n");
    victim.kill();
    let (success, said) = bench.finish();
    assert!(!success && said.contains("the server is gone"), "{said}");
    assert!(device.fails("kv", &["bench", "--connections=0"]).contains("--connections"));
    assert!(device.fails("kv", &["serve", "nonsense"]).contains("nonsense"));
}

#[test]
fn it_ends_at_sigterm_although_clients_are_connected() {
    let device = Device::new();
    let (first, addr) = server(&device, &[]);
    assert!(device.fails("kv", &["serve", &addr.to_string()]).contains("in use"));
    let (mut idle, mut buffer) = (plain(addr), Vec::new());
    assert_eq!(ask(addr, b"PING\r\n"), b"+PONG\r\n");
    let said = first.terminate();
    assert!(said.contains("1 requests over 2 connections, 1 were still open, 0 cut off"), "{said}");
    idle.read_to_end(&mut buffer).unwrap();
    assert!(buffer.is_empty());
}

//! tokio-postgres over SMC: straight to a PostgreSQL server, which speaks TCP, and through a relay
//! on loopback-ism.

#[path = "support/ends.rs"]
mod ends;
#[path = "../../tests/support/lab.rs"]
mod lab;
#[path = "support/program.rs"]
mod program;
#[path = "support/relay.rs"]
mod relay;
#[path = "../../tests/support/watchdog.rs"]
mod watchdog;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::process::Command;

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, TryStreamExt};
use tempfile::TempDir;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};
use tokio_smc::{Config, SmcStream, TransportWatch, UpgradePolicy};

use ends::{until_loopback_ism, until_plain};
use lab::Lab;
use program::Program;
use relay::Relay;
use watchdog::{on_both_schedulers, step};

/// The user of Debian's package; PostgreSQL refuses to run as root.
const USER: &str = "postgres";
const PACKAGE: &str = "postgresql";
const ROWS: i64 = 100_000;
/// Bytes of a row's text: 6 MiB in all.
const WIDTH: usize = 60;

/// A server of PostgreSQL with an empty cluster of its own.
struct Postgres {
    program: Program,
    _dir: TempDir,
}

impl Postgres {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("smc-postgres-").tempdir().unwrap();
        let user = (output(Command::new("id").arg("-u")) == "0").then(|| {
            let owner = output(Command::new("id").args(["-u", USER]));
            let owner = owner.parse().unwrap_or_else(|_| {
                panic!("no user {USER}: install Debian's package `{PACKAGE}` (ci/setup.sh does), this test needs it")
            });
            std::os::unix::fs::chown(dir.path(), Some(owner), None).unwrap();
            USER
        });
        let bin = newest_bin();
        let data = dir.path().join("data");
        let mut initdb = program::command(&program::find("initdb", bin.as_deref(), PACKAGE), user);
        initdb.args(["--no-sync", "--no-locale", "--encoding=UTF8", "--auth=trust"]);
        output(initdb.args(["--username", USER]).arg("--pgdata").arg(&data).current_dir(dir.path()));
        let server = program::find("postgres", bin.as_deref(), PACKAGE);
        let program = Program::start("database system is ready to accept connections", |port| {
            let mut command = program::command(&server, user);
            let port = format!("port={port}");
            for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", &port] {
                command.args(["-c", setting]);
            }
            command.arg("-D").arg(&data).current_dir(dir.path());
            command
        });
        Postgres { program, _dir: dir }
    }
}

/// Where Debian puts the newest version's programs.
fn newest_bin() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.filter_map(|version| version.file_name().to_str()?.parse::<u32>().ok()).max()?;
    Some(format!("/usr/lib/postgresql/{newest}/bin").into())
}

/// What a command prints.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Hands a stream to tokio-postgres.
async fn connect(addr: SocketAddr, config: &Config) -> (Client, TransportWatch) {
    let stream = SmcStream::connect_with(addr, config).await.unwrap();
    let watch = stream.watch();
    let mut database = tokio_postgres::Config::new();
    let (client, connection) = database.user(USER).dbname(USER).connect_raw(stream, NoTls).await.unwrap();
    tokio::spawn(async move { connection.await.unwrap() });
    (client, watch)
}

async fn turn(client: &Client) {
    let row = client.query_one("SELECT $1::INT8 + 1", &[&41_i64]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 42);
}

fn row(number: i64) -> String {
    let text: String = (0..WIDTH).map(|at| char::from(b'a' + ((number as usize + at) % 26) as u8)).collect();
    format!("{number}\t{text}\n")
}

/// Pipelined queries, COPY in and out, an error, a transaction.
async fn work(client: &mut Client) {
    step("pipelined queries");
    let statement = client.prepare("SELECT $1::INT8 * 2").await.unwrap();
    let queries = (0..1_000_i64).map(async |number| {
        let row = client.query_one(&statement, &[&number]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), number * 2);
    });
    futures::future::join_all(queries).await;

    step("COPY in");
    client.batch_execute("CREATE TABLE numbers (number INT8 PRIMARY KEY, text TEXT NOT NULL)").await.unwrap();
    let mut sent = BytesMut::new();
    (0..ROWS).for_each(|number| sent.extend_from_slice(row(number).as_bytes()));
    let sent = sent.freeze();
    let mut sink = pin!(client.copy_in::<_, Bytes>("COPY numbers FROM STDIN").await.unwrap());
    for start in (0..sent.len()).step_by(64 << 10) {
        sink.send(sent.slice(start..sent.len().min(start + (64 << 10)))).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), ROWS as u64);

    step("COPY out");
    let stream = client.copy_out("COPY (SELECT * FROM numbers ORDER BY number) TO STDOUT").await.unwrap();
    let got: BytesMut = stream.try_collect::<Vec<Bytes>>().await.unwrap().into_iter().flatten().collect();
    assert!(got == sent, "{} bytes came back of {}, or they differ", got.len(), sent.len());

    step("many rows");
    let rows = client.query("SELECT number FROM numbers ORDER BY number DESC", &[]).await.unwrap();
    assert!(rows.iter().map(|row| row.get::<_, i64>(0)).eq((0..ROWS).rev()));

    step("a value of 1 MiB");
    let large = "x".repeat(1 << 20);
    let got = client.query_one("SELECT $1::TEXT", &[&large]).await.unwrap();
    assert!(got.get::<_, &str>(0) == large, "the value differs");

    step("an error");
    let error = client.query_one("SELECT 1 / $1::INT8", &[&0_i64]).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::DIVISION_BY_ZERO));

    step("a transaction that is rolled back");
    let transaction = client.transaction().await.unwrap();
    assert_eq!(transaction.execute("DELETE FROM numbers", &[]).await.unwrap(), ROWS as u64);
    transaction.rollback().await.unwrap();
    let count = client.query_one("SELECT count(*) FROM numbers", &[]).await.unwrap();
    assert_eq!(count.get::<_, i64>(0), ROWS);
}

/// A query that never ends by itself is cancelled over a connection of its own; then the first one
/// goes on.
async fn cancel(client: &Client, addr: SocketAddr, config: &Config) {
    step("a query that is cancelled");
    let (observer, _) = connect(addr, config).await;
    let token = client.cancel_token();
    let cancelling = async {
        let running = "SELECT FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%FOREVER%' \
                       AND pid <> pg_backend_pid()";
        while observer.query(running, &[]).await.unwrap().is_empty() {}
        let stream = SmcStream::connect_with(addr, config).await.unwrap();
        token.cancel_query_raw(stream, NoTls).await.unwrap();
    };
    let (answer, ()) = tokio::join!(client.batch_execute("SELECT pg_sleep(1e6) /* FOREVER */"), cancelling);
    assert_eq!(answer.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    turn(client).await;

    step("a query whose answer nobody waits for");
    {
        let no_parameters: [&str; 0] = [];
        let rows = client.query_raw("SELECT generate_series(1, 100000)", no_parameters).await.unwrap();
        let first = pin!(rows).try_next().await.unwrap().unwrap();
        assert_eq!(first.get::<_, i32>(0), 1);
    }
    // The other rows come all the same, before this answer.
    turn(client).await;
}

#[test]
fn postgres_itself() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        step("the server");
        let server = Postgres::start();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let (mut client, watch) = connect(server.program.addr, &config).await;
        step("turns until it is decided");
        until_plain(&watch, async || turn(&client).await).await;
        work(&mut client).await;
        cancel(&client, server.program.addr, &config).await;
    });
}

#[test]
fn postgres_through_a_relay() {
    on_both_schedulers(async || {
        let lab = Lab::new();
        step("the server");
        let server = Postgres::start();
        let config = lab.config(UpgradePolicy::FirstTurn);
        let mut relay = Relay::start(&config, server.program.addr).await;
        let (mut client, here) = connect(relay.addr, &config).await;
        let there = relay.accepted().await;
        step("turns until loopback-ism");
        until_loopback_ism([&here, &there], async || turn(&client).await).await;
        work(&mut client).await;
        cancel(&client, relay.addr, &config).await;
        assert!(here.transport().is_loopback_ism());
    });
}

//! The redis crate over SMC: straight to a redis-server, which speaks TCP, and through a relay on
//! loopback-ism.

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

use futures::StreamExt;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncCommands, AsyncConnectionConfig, RedisConnectionInfo};
use tempfile::TempDir;
use tokio_smc::{SmcStream, UpgradePolicy};

use ends::{until_loopback_ism, until_plain};
use lab::Lab;
use program::Program;
use relay::Relay;
use watchdog::{on_both_schedulers, step};

const PIPELINED: usize = 2_000;
const LARGE: usize = 1 << 20;
const LARGE_VALUES: usize = 16;
const MESSAGES: usize = 1_000;

/// A redis-server that keeps nothing.
fn redis_server(dir: &TempDir) -> Program {
    let server = program::find("redis-server", None, "redis-server");
    Program::start("Ready to accept connections", |port| {
        let mut command = program::command(&server, None);
        command.args([
            "--bind",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        command.arg("--dir").arg(dir.path());
        command
    })
}

/// Hands the stream to the redis crate. No deadline of its own: the watchdog is the test's.
async fn client(stream: SmcStream) -> MultiplexedConnection {
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let info = RedisConnectionInfo::default();
    let (connection, driver) = MultiplexedConnection::new_with_config(&info, stream, config).await.unwrap();
    tokio::spawn(driver);
    connection
}

async fn turn(connection: &mut MultiplexedConnection) {
    let answer: String = redis::cmd("PING").arg("are you there").query_async(connection).await.unwrap();
    assert_eq!(answer, "are you there");
}

fn large(number: usize) -> Vec<u8> {
    (0..LARGE).map(|at| (at % 251) as u8 ^ number as u8).collect()
}

/// Pipelines, 1 MiB values of several tasks at once, a transaction, an error.
async fn work(mut connection: MultiplexedConnection) {
    step("a pipeline");
    let mut pipeline = redis::pipe();
    for number in 0..PIPELINED {
        pipeline.set(format!("key {number}"), format!("value {number}")).ignore();
    }
    for number in 0..PIPELINED {
        pipeline.get(format!("key {number}"));
    }
    let values: Vec<String> = pipeline.query_async(&mut connection).await.unwrap();
    assert_eq!(values.len(), PIPELINED);
    assert!(values.iter().enumerate().all(|(number, value)| *value == format!("value {number}")));

    step("large values");
    let tasks = (0..LARGE_VALUES).map(|number| {
        let mut connection = connection.clone();
        tokio::spawn(async move {
            let key = format!("large {number}");
            let () = connection.set(&key, large(number)).await.unwrap();
            let got: Vec<u8> = connection.get(&key).await.unwrap();
            assert!(got == large(number), "value {number} differs");
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }

    step("a transaction");
    let sums: (i64, i64) =
        redis::pipe().atomic().incr("sum", 2).incr("sum", 3).query_async(&mut connection).await.unwrap();
    assert_eq!(sums, (2, 5));

    step("an error");
    let error = connection.lpush::<_, _, i64>("key 1", "not a list").await.unwrap_err();
    assert_eq!(error.code(), Some("WRONGTYPE"));
    turn(&mut connection).await;
}

#[test]
fn redis_server_itself() {
    on_both_schedulers(async || {
        let (lab, dir) = (Lab::new(), TempDir::new().unwrap());
        step("the server");
        let server = redis_server(&dir);
        let config = lab.config(UpgradePolicy::FirstTurn);
        let stream = SmcStream::connect_with(server.addr, &config).await.unwrap();
        let watch = stream.watch();
        let mut connection = client(stream).await;
        step("turns until it is decided");
        until_plain(&watch, async || turn(&mut connection).await).await;
        work(connection.clone()).await;
    });
}

#[test]
fn redis_through_a_relay() {
    on_both_schedulers(async || {
        let (lab, dir) = (Lab::new(), TempDir::new().unwrap());
        step("the server");
        let server = redis_server(&dir);
        let config = lab.config(UpgradePolicy::FirstTurn);
        let mut relay = Relay::start(&config, server.addr).await;
        let stream = SmcStream::connect_with(relay.addr, &config).await.unwrap();
        let (here, there) = (stream.watch(), relay.accepted().await);
        let mut connection = client(stream).await;
        step("turns until loopback-ism");
        until_loopback_ism([&here, &there], async || turn(&mut connection).await).await;
        work(connection.clone()).await;
        assert!(here.transport().is_loopback_ism());
    });
}

/// Messages that come unasked, to a stream that mostly reads.
#[test]
fn messages_through_a_relay() {
    on_both_schedulers(async || {
        let (lab, dir) = (Lab::new(), TempDir::new().unwrap());
        step("the server");
        let server = redis_server(&dir);
        let config = lab.config(UpgradePolicy::FirstTurn);
        let mut relay = Relay::start(&config, server.addr).await;
        let stream = SmcStream::connect_with(relay.addr, &config).await.unwrap();
        let (here, there) = (stream.watch(), relay.accepted().await);
        let mut subscriber = PubSub::new(&RedisConnectionInfo::default(), stream).await.unwrap();
        subscriber.subscribe("news").await.unwrap();
        step("turns until loopback-ism");
        until_loopback_ism([&here, &there], async || {
            let _: redis::Value = subscriber.ping().await.unwrap();
        })
        .await;
        step("the messages");
        let mut publisher = client(SmcStream::connect_with(relay.addr, &config).await.unwrap()).await;
        let publish = async {
            for number in 0..MESSAGES {
                let receivers: usize = publisher.publish("news", format!("{number}")).await.unwrap();
                assert_eq!(receivers, 1);
            }
        };
        let receive = async {
            let mut messages = subscriber.on_message();
            for number in 0..MESSAGES {
                let message = messages.next().await.expect("a message");
                assert_eq!(message.get_payload::<String>().unwrap(), number.to_string());
            }
        };
        tokio::join!(publish, receive);
        assert!(there.transport().is_loopback_ism());
    });
}

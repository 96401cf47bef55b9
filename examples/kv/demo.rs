//! The `redis` crate on an `SmcStream`.

use std::time::Duration;

use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_smc::{SmcStream, Transport};

use crate::Outcome;

const PATIENCE: Duration = Duration::from_secs(10);

/// The `redis` crate speaks over any stream; what drives the connection ends with its last handle.
pub(crate) async fn client<S>(stream: S) -> Outcome<MultiplexedConnection>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
    let info = RedisConnectionInfo::default();
    let opening = MultiplexedConnection::new_with_config(&info, stream, config);
    let (connection, driver) = tokio::time::timeout(PATIENCE, opening)
        .await
        .map_err(|_| "the server does not answer: is it a server of the Redis protocol?")?
        .map_err(lost)?;
    tokio::spawn(driver);
    Ok(connection)
}

/// The words of the `redis` crate, and what to look for.
pub(crate) fn lost(error: redis::RedisError) -> String {
    if error.is_io_error() || error.is_connection_dropped() || error.is_timeout() {
        format!("the server is gone or does not answer ({error})")
    } else {
        error.to_string()
    }
}

/// Adds what to do to the error of a connect.
pub(crate) fn unreachable(addr: &str, error: std::io::Error) -> String {
    format!("cannot connect to {addr}: {error} (is `kv serve {addr}` running?)")
}

fn words(transport: Transport) -> String {
    match transport {
        Transport::LoopbackIsm(ism) => format!("loopback-ism ({ism})"),
        Transport::Tcp(reason) => format!("tcp ({reason})"),
        other => other.to_string(),
    }
}

pub(crate) async fn demo(addr: &str) -> Outcome<()> {
    let stream = SmcStream::connect(addr).await.map_err(|error| unreachable(addr, error))?;
    let mut watch = stream.watch();
    println!("connected to {addr} on {}", words(watch.transport()));
    let mut redis = client(stream).await?;
    commands(&mut redis).await.map_err(lost)?;
    // There were turns enough to begin the upgrade; some more see it done.
    let turns = async {
        while tokio::time::timeout(Duration::from_millis(1), watch.settled()).await.is_err() {
            redis::cmd("PING").query_async::<()>(&mut redis).await?;
        }
        redis::cmd("CLIENT").arg("INFO").query_async::<String>(&mut redis).await
    };
    let me = tokio::time::timeout(PATIENCE, turns).await.map_err(|_| "the upgrade came to no end in time")?;
    println!("CLIENT INFO: {}", me.map_err(lost)?.trim_end());
    println!("the connection runs on {}", words(watch.transport()));
    Ok(())
}

async fn commands(redis: &mut MultiplexedConnection) -> redis::RedisResult<()> {
    let done: String = redis.set("demo:greeting", "hello over shared memory").await?;
    println!("SET demo:greeting: {done}");
    let greeting: String = redis.get("demo:greeting").await?;
    println!("GET demo:greeting: {greeting}");
    let _: () = redis.set_ex("demo:short", "lived", 60).await?;
    let seconds: i64 = redis.ttl("demo:short").await?;
    println!("SET demo:short EX 60, TTL: {seconds}");
    let _: i64 = redis.del("demo:counter").await?;
    let mut counter = 0;
    for _ in 0..1000 {
        counter = redis.incr("demo:counter", 1).await?;
    }
    println!("INCR demo:counter, 1000 times: {counter}");
    let mut pipeline = redis::pipe();
    for index in 0..100 {
        pipeline.set(format!("demo:{index}"), index).ignore();
    }
    pipeline.mget(&["demo:0", "demo:50", "demo:99"]);
    let (values,): (Vec<i64>,) = pipeline.query_async(redis).await?;
    println!("100 SET and an MGET in one pipeline: {values:?}");
    Ok(())
}

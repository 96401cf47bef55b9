//! Both ends in one process: sockets and SMC beside `tokio::io::duplex`, which is made for that.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_smc::{SmcListener, SmcStream};

use crate::actor::{Stream, echo, percentiles, runtime, trips};
use crate::data::Row;

const BLOCK: usize = 64 << 10;

/// What is measured, in its order.
pub(crate) const WAYS: [&str; 4] = ["duplex", "tcp", "uds", "smc"];

/// Round trips and a stream over `way`.
pub(crate) fn measure(way: &str, time: Duration) -> Result<Row> {
    let limit = Duration::from_secs(30) + 4 * time;
    let runtime = runtime()?;
    let measured = runtime.block_on(async {
        tokio::time::timeout(limit, tokio::spawn(both(way.to_owned(), time))).await.context("it hangs")??
    });
    runtime.shutdown_background();
    measured.with_context(|| format!("{way} within one process"))
}

async fn both(way: String, time: Duration) -> Result<Row> {
    let (mut here, there) = pair(&way).await?;
    tokio::spawn(echo(there));
    let begin = Instant::now() + time / 5;
    let times = trips(&mut *here, begin, begin + time).await?;
    let mut figures = percentiles(&times);
    figures["transport"] = json!(way);
    figures["bytes_per_s"] = json!(stream(&way, time).await?);
    Row::parse(figures)
}

/// Bytes a second of writes of 64 KiB.
async fn stream(way: &str, time: Duration) -> Result<f64> {
    let (mut here, mut there) = pair(way).await?;
    let receiving = tokio::spawn(async move {
        let mut block = vec![0; BLOCK];
        let mut bytes = 0;
        loop {
            match there.read(&mut block).await? {
                0 => return Ok::<_, std::io::Error>((bytes, Instant::now())),
                more => bytes += more,
            }
        }
    });
    let block = vec![7; BLOCK];
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < time {
        here.write_all(&block).await?;
        sent += BLOCK;
    }
    here.shutdown().await?;
    let (received, ended) = receiving.await??;
    if received != sent {
        bail!("{sent} bytes were sent, {received} received");
    }
    Ok(received as f64 / (ended - began).as_secs_f64())
}

/// Both ends of a connection.
async fn pair(way: &str) -> Result<(Stream, Stream)> {
    Ok(match way {
        "duplex" => {
            let (here, there) = tokio::io::duplex(BLOCK);
            (Box::new(here), Box::new(there))
        }
        "uds" => {
            let (here, there) = UnixStream::pair()?;
            (Box::new(here), Box::new(there))
        }
        "tcp" => {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let (here, there) = tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
            let (here, (there, _)) = (here?, there?);
            here.set_nodelay(true)?;
            there.set_nodelay(true)?;
            (Box::new(here), Box::new(there))
        }
        "smc" => {
            let listener = SmcListener::bind("127.0.0.1:0").await?;
            let (here, there) = tokio::join!(SmcStream::connect(listener.local_addr()?), listener.accept());
            let (here, (there, _)) = (here?, there?);
            let transport = here.upgrade().await;
            if !transport.is_loopback_ism() {
                bail!("it was not upgraded: {:?}", transport.fallback_reason());
            }
            (Box::new(here), Box::new(there))
        }
        _ => bail!("there is no such way"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_gives_both_figures_and_another_none() {
        for way in WAYS {
            let row = measure(way, Duration::from_millis(20)).unwrap();
            for key in ["rtt_p50_us", "rtt_p99_us", "bytes_per_s"] {
                assert!(row.number(key).is_some_and(|figure| figure > 0.0), "{way}: {key}");
            }
        }
        assert!(measure("pigeon", Duration::from_millis(1)).is_err());
    }
}

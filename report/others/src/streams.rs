//! Streams on tokio: a unix socket, tokio-smc, shmipc.

use std::os::unix::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use shmipc::config::{Config, SizePercentPair};
use shmipc::session::{SessionManager, SessionManagerConfig};
use shmipc::transport::{DefaultUnixConnect, DefaultUnixListen};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_smc::{SmcListener, SmcStream};

use crate::{Meter, ready, stamp};

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")
}

pub(crate) fn serve(kind: &str, place: &Path, size: usize) -> Result<()> {
    runtime()?.block_on(async {
        match kind {
            "uds" => {
                let listener = UnixListener::bind(place.join("socket"))?;
                ready()?;
                tokio::spawn(echo(listener.accept().await?.0, size)).await?
            }
            "smc" => {
                let listener = SmcListener::bind("127.0.0.1:0").await?;
                std::fs::write(place.join("address"), listener.local_addr()?.to_string())?;
                ready()?;
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                tokio::spawn(echo(stream, size)).await?
            }
            "shmipc" => {
                let address = SocketAddr::from_pathname(place.join("socket"))?;
                let mut listener = shmipc::Listener::new(DefaultUnixListen, address, config(size)).await?;
                ready()?;
                let mut stream = listener.accept().await?;
                tokio::spawn(async move {
                    loop {
                        let message = match stream.read_exact_bytes(size).await {
                            Ok(message) => message.to_vec(),
                            // The client is done.
                            Err(_) => return Ok(()),
                        };
                        stream.release_read_and_reuse();
                        stream.write_bytes(&message).context("writing")?;
                        stream.flush(false).await.context("flushing")?;
                    }
                })
                .await?
            }
            _ => bail!("there is no {kind}"),
        }
    })
}

/// Room for a few messages of `size`, as the crate's own benches have it.
fn config(size: usize) -> Config {
    let mut config = Config::default().with_v4_eventfd();
    config.share_memory_buffer_cap = 64 << 20;
    config.buffer_slice_sizes = vec![
        SizePercentPair { size: size as u32 + 256, percent: 70 },
        SizePercentPair { size: (16 << 10) + 256, percent: 20 },
        SizePercentPair { size: (128 << 10) + 256, percent: 10 },
    ];
    config
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin, size: usize) -> Result<()> {
    let mut message = vec![0; size];
    while stream.read_exact(&mut message).await.is_ok() {
        stream.write_all(&message).await?;
    }
    Ok(())
}

pub(crate) fn run(kind: &str, place: &Path, meter: Meter) -> Result<()> {
    let (kind, place) = (kind.to_owned(), place.to_owned());
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        // On a worker, as the server's part.
        tokio::spawn(async move {
            match kind.as_str() {
                "uds" => play(UnixStream::connect(place.join("socket")).await?, meter).await,
                "smc" => {
                    let address = std::fs::read_to_string(place.join("address"))?;
                    let stream = SmcStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    let transport = stream.upgrade().await;
                    if !transport.is_loopback_ism() {
                        bail!("it was not upgraded: {:?}", transport.fallback_reason());
                    }
                    play(stream, meter).await
                }
                "shmipc" => {
                    let address = SocketAddr::from_pathname(place.join("socket"))?;
                    let settings =
                        SessionManagerConfig::new().with_config(config(meter.size)).with_session_num(1);
                    let sessions = SessionManager::new(settings, DefaultUnixConnect, address).await?;
                    play_shmipc(sessions.get_stream()?, meter).await
                }
                _ => bail!("there is no {kind}"),
            }
        })
        .await?
    });
    runtime.shutdown_background();
    outcome
}

async fn play(mut stream: impl AsyncRead + AsyncWrite + Unpin, mut meter: Meter) -> Result<()> {
    let (mut message, mut answer) = (vec![7; meter.size], vec![0; meter.size]);
    meter.start();
    for number in 0.. {
        stamp(&mut message, number);
        stream.write_all(&message).await?;
        stream.read_exact(&mut answer).await?;
        if answer != message {
            bail!("a message came back changed");
        }
        if !meter.lap()? {
            break;
        }
    }
    meter.finish()
}

async fn play_shmipc(mut stream: shmipc::stream::Stream, mut meter: Meter) -> Result<()> {
    let mut message = vec![7; meter.size];
    meter.start();
    for number in 0.. {
        stamp(&mut message, number);
        stream.write_bytes(&message)?;
        stream.flush(false).await?;
        if *stream.read_exact_bytes(message.len()).await? != *message {
            bail!("a message came back changed");
        }
        stream.release_read_and_reuse();
        if !meter.lap()? {
            break;
        }
    }
    meter.finish()
}

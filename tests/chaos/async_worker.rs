//! A worker with tokio's runtime: streams are tasks.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio_smc::{Config, SmcListener, SmcSocket, SmcStream, UpgradePolicy};

use crate::child::tell;
use crate::plan::{Pattern, Plan, Side};
use crate::report::Report;
use crate::talk::{Break, Pace, halves, hear_name, turns};
use crate::watchdog::Flavour;
use crate::worker::{Current, Order, Seat, tell_warm};

/// How long a listener may want for its port: a forked child may hold it for a while.
const PORT: Duration = Duration::from_secs(20);

pub(crate) fn run(flavour: Flavour, mut seat: Seat, mut inbox: UnboundedReceiver<Order>, current: &Current) {
    loop {
        let runtime = flavour.runtime();
        *current.lock().expect("no panic here") = Some(runtime.handle().clone());
        let order = runtime.block_on(serve(&mut seat, &mut inbox));
        *current.lock().expect("no panic here") = None;
        match order {
            Order::DropInBackground => runtime.shutdown_background(),
            _ => drop(runtime),
        }
        if matches!(order, Order::Quit) {
            return;
        }
    }
}

/// Serves until an order ends the runtime.
async fn serve(seat: &mut Seat, inbox: &mut UnboundedReceiver<Order>) -> Order {
    loop {
        let listener = listen(seat).await;
        seat.address = listener.local_addr().expect("an address");
        tell(&format!("listening {}", seat.address));
        loop {
            let order = tokio::select! {
                accepted = listener.accept() => {
                    match accepted {
                        Ok((stream, _)) => drop(tokio::spawn(answer(stream, seat.seed))),
                        Err(error) => {
                            tell(&format!("accept {:?} ({error})", error.kind()));
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                    continue;
                }
                order = inbox.recv() => order.unwrap_or(Order::Quit),
            };
            match order {
                Order::Connect(id, address) => {
                    // Here, for a task whose runtime is dropped may never have had a turn.
                    let report = Report::begin(id, Side::Client);
                    drop(tokio::spawn(connect(report, address, seat.seed)));
                }
                Order::WarmUp => {
                    tell_warm(warm_up().await);
                }
                Order::Restart => break,
                Order::Drop | Order::DropInBackground | Order::Quit => return order,
            }
        }
    }
}

async fn listen(seat: &Seat) -> SmcListener {
    let began = tokio::time::Instant::now();
    loop {
        let listener = async {
            if !seat.shared {
                return SmcListener::bind(seat.address).await;
            }
            let socket = SmcSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.set_reuseport(true)?;
            socket.bind(seat.address)?;
            socket.listen(1024)
        };
        match listener.await {
            Ok(listener) => return listener,
            Err(error) => assert!(began.elapsed() < PORT, "{}: {error}", seat.address),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn warm_up() -> io::Result<()> {
    let config = Config::from_env().upgrade_policy(UpgradePolicy::Require);
    let listener = SmcListener::bind("127.0.0.1:0").await?;
    let (client, server) =
        tokio::join!(SmcStream::connect_with(listener.local_addr()?, &config), listener.accept());
    let (mut client, mut server) = (client?, server?.0);
    client.write_all(&[7; 100]).await?;
    server.read_exact(&mut [0; 100]).await?;
    Ok(())
}

async fn connect(report: Report, address: SocketAddr, seed: u64) {
    let plan = Plan::new(seed, report.entry.id());
    let config = Config::from_env().upgrade_policy(plan.policy);
    report.entry.does("connecting");
    match SmcStream::connect_with(address, &config).await {
        Ok(stream) => talk(stream, plan, Side::Client, report).await,
        Err(error) => report.no_begin(&error),
    }
}

async fn answer(mut stream: SmcStream, seed: u64) {
    match hear_name(&mut stream).await {
        Ok(name) => match Plan::named(seed, &name) {
            Some(plan) => {
                let report = Report::begin(plan.id, Side::Server);
                talk(stream, plan, Side::Server, report).await;
            }
            None => tell(&format!("foreign {name:?}")),
        },
        Err(error) => tell(&format!("nameless {error}")),
    }
}

async fn talk(mut stream: SmcStream, plan: Plan, side: Side, report: Report) {
    let entry = Arc::clone(&report.entry);
    let _ = entry.info.set(stream.info());
    if let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) {
        let _ = entry.addresses.set((local, peer));
    }
    // The peer may have gone by now.
    let _ = stream.set_nodelay(true);
    if side == Side::Client {
        entry.does("saying its name");
        if let Err(error) = stream.write_all(&plan.name()).await {
            return report.end(Err(Break::Failed("saying its name", error)));
        }
        if plan.policy == UpgradePolicy::Manual {
            entry.does("upgrading");
            stream.upgrade().await;
        }
    }
    let result = match plan.pattern {
        Pattern::Turns(_) => {
            let result = turns(&mut stream, &plan, side, &entry, Pace::Task).await;
            drop(stream);
            result
        }
        Pattern::Duplex => {
            let (mut ear, mut mouth) = halves(&plan, side, &entry, Pace::Task);
            let (reader, writer) = stream.split();
            let both = async {
                let hearing = ear.hear(reader, plan.length(side.other()));
                let saying = mouth.say(writer, plan.length(side));
                tokio::try_join!(hearing, saying).map(drop)
            };
            let result = both.await;
            drop(stream);
            result
        }
        Pattern::Halves => two_tasks(stream, plan, side, &report).await,
    };
    report.end(result);
}

async fn two_tasks(stream: SmcStream, plan: Plan, side: Side, report: &Report) -> Result<(), Break> {
    let (reader, writer) = stream.into_split();
    let plan = Arc::new(plan);
    let mut tasks = JoinSet::new();
    {
        let (plan, entry) = (Arc::clone(&plan), Arc::clone(&report.entry));
        tasks.spawn(async move {
            let (_, mut mouth) = halves(&plan, side, &entry, Pace::Task);
            mouth.say(writer, plan.length(side)).await
        });
    }
    let (mut ear, _) = halves(&plan, side, &report.entry, Pace::Task);
    ear.hear(reader, plan.length(side.other())).await?;
    match tasks.join_next().await.expect("one task") {
        Ok(result) => result,
        Err(error) if error.is_cancelled() => Err(Break::Cancelled),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

//! The sections: how each is measured.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::actor::{Crowd, MESSAGE, Way, kib};
use crate::cli::{Scale, Section};
use crate::data::{Measured, Row, medians};
use crate::inside;
use crate::tools::{self, Tools};

/// Measures one section; `tell` takes what a person is told meanwhile.
pub(crate) fn measure(
    section: Section,
    scale: &Scale,
    quick: bool,
    tools: &Tools,
    tell: &dyn Fn(&str),
) -> Result<Measured> {
    let (how, rows) = match section {
        // Of a hundred requests a second it takes some to have percentiles.
        Section::Load => {
            smcperf(tools, scale, 2.0, &["--test=paced".to_owned(), list("--pace", scale.paces)])?
        }
        Section::Sizes => {
            smcperf(tools, scale, 1.0, &["--test=pp,tp".to_owned(), list("--size", scale.sizes)])?
        }
        Section::Connections => {
            let arguments = ["--test=conns".to_owned(), list("--connections", scale.connections)];
            smcperf(tools, scale, 2.0, &arguments)?
        }
        Section::Runtimes => runtimes(tools, scale)?,
        Section::Blocking => {
            let arguments = vec![
                "--json".to_owned(),
                "--row=std,uds,smc".to_owned(),
                format!("--rounds={}", scale.rounds),
                format!("--seconds={}", scale.seconds),
            ];
            (format!("blockingperf {}", arguments.join(" ")), tools.blockingperf(&arguments)?)
        }
        Section::Peers => peers(scale, tell)?,
        Section::Connects => connects(scale)?,
        Section::Memory => memory(scale, tell)?,
        Section::Inside => inside(scale)?,
        Section::Others => others(scale)?,
    };
    Ok(Measured { how, quick, rows })
}

fn list(option: &str, numbers: &[u32]) -> String {
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    format!("{option}={}", numbers.join(","))
}

type Rows = (String, Vec<Row>);

fn smcperf(tools: &Tools, scale: &Scale, longer: f64, arguments: &[String]) -> Result<Rows> {
    let seconds = scale.seconds * longer * f64::from(scale.rounds);
    let mut all = arguments.to_vec();
    all.extend(["--json".to_owned(), format!("--rounds={}", scale.rounds), format!("--seconds={seconds}")]);
    Ok((format!("smcperf {}", all.join(" ")), tools.smcperf(&all)?))
}

/// The flavours take turns, a round each.
fn runtimes(tools: &Tools, scale: &Scale) -> Result<Rows> {
    let arguments = |flavour: &str| {
        vec![
            "--test=pp,tp,rate,conns".to_owned(),
            "--connections=100".to_owned(),
            format!("--runtime={flavour}"),
            "--json".to_owned(),
            "--rounds=1".to_owned(),
            format!("--seconds={}", scale.seconds),
        ]
    };
    let mut rows = Vec::new();
    for _ in 0..scale.rounds {
        for flavour in ["multi_thread", "current_thread"] {
            let measured = tools.smcperf(&arguments(flavour))?;
            rows.extend(measured.into_iter().map(|row| row.with("runtime", flavour)));
        }
    }
    let keys = ["runtime", "test", "transport", "runs_on", "connections", "msg_bytes"];
    let how = format!("smcperf {}, and the other runtime, in turns", arguments("multi_thread").join(" "));
    Ok((how, medians(rows, &keys)))
}

/// One that can be merged with others of its case.
fn row(way: Way, figures: Value) -> Result<Row> {
    Ok(Row::parse(figures)?.with("transport", way.word()))
}

fn peers(scale: &Scale, tell: &dyn Fn(&str)) -> Result<Rows> {
    let mut rows = Vec::new();
    for &processes in scale.processes {
        tell(&format!("{processes} client processes"));
        for round in 0..scale.rounds as usize {
            for step in 0..Way::ALL.len() {
                let way = Way::ALL[(round + step) % Way::ALL.len()];
                let name = || format!("{processes} client processes over {}", way.word());
                rows.push(peers_once(way, processes, scale.seconds).with_context(name)?);
            }
        }
    }
    let how = format!(
        "1 server process, many clients with a connection each: {MESSAGE} bytes there and back, \
         {} rounds of {} s; percentiles are those of the middle client",
        scale.rounds, scale.seconds
    );
    Ok((how, medians(rows, &["transport", "processes"])))
}

fn peers_once(way: Way, processes: u32, seconds: f64) -> Result<Row> {
    let mut crowd = Crowd::start(way)?;
    for _ in 0..processes {
        crowd.add_client()?;
    }
    crowd.all("open 1")?;
    let before = crowd.cpu()?;
    let answers = crowd.all(&format!("ping {seconds}"))?;
    let cpu = crowd.cpu()? - before;
    let rows: Vec<Row> = answers.into_iter().map(|answer| row(way, answer)).collect::<Result<_>>()?;
    let sum: f64 = rows.iter().filter_map(|row| row.number("msgs_per_s")).sum();
    let Some(middle) = medians(rows, &["transport"]).pop() else { bail!("no client has answered") };
    // A fifth more than is counted was played: the warm-up.
    let cpu_us = (sum > 0.0).then(|| cpu * 1e6 / (sum * seconds * 1.2));
    Ok(middle.with("processes", processes).with("msgs_per_s", sum).with("cpu_us_per_msg", cpu_us))
}

fn connects(scale: &Scale) -> Result<Rows> {
    let mut rows = Vec::new();
    let cases = [(Way::Tcp, "connect"), (Way::Uds, "connect"), (Way::Smc, "connect"), (Way::Smc, "upgrade")];
    let mut crowds = Vec::new();
    for (way, _) in cases {
        crowds.push(Crowd::start(way)?);
    }
    for round in 0..scale.rounds as usize {
        for step in 0..cases.len() {
            let at = (round + step) % cases.len();
            let ((way, word), crowd) = (cases[at], &mut crowds[at]);
            crowd.add_client()?;
            if word == "upgrade" {
                // The first contact of a process with that server: the link is made.
                let first = crowd.all("upgrade 1")?.into_iter().map(|answer| row(way, answer));
                for first in first {
                    rows.push(first?.with("case", "first contact").with("connects_per_s", Value::Null));
                }
            }
            for answer in crowd.all(&format!("{word} {}", scale.connects))? {
                rows.push(row(way, answer)?.with("case", word));
            }
            crowd.drop_clients();
        }
    }
    for &connections in scale.storm {
        for _ in 0..scale.rounds {
            let mut crowd = Crowd::start(Way::Smc)?;
            crowd.add_client()?;
            for answer in crowd.all(&format!("storm {connections}"))? {
                rows.push(
                    row(Way::Smc, answer)?.with("case", "all at once").with("connections", connections),
                );
            }
        }
    }
    let how = format!(
        "a new client process in each of {} rounds, {} times connect, a round trip of {MESSAGE} bytes, \
         close; `upgrade` waits for the upgrade before its round trip; `all at once`: connections that are \
         there and are all upgraded at the same time",
        scale.rounds, scale.connects
    );
    Ok((how, medians(rows, &["transport", "case", "connections"])))
}

fn memory(scale: &Scale, tell: &dyn Fn(&str)) -> Result<Rows> {
    let mut rows = Vec::new();
    for way in Way::ALL {
        tell(&format!("memory of connections over {}", way.word()));
        let mut crowd = Crowd::start(way)?;
        crowd.add_client()?;
        // What the first connection brings with it is no matter of the others.
        crowd.all("open 1")?;
        let (own, kernel) = (settled(&crowd)?, slab()?);
        let mut open = 0;
        for &connections in scale.idle {
            crowd.all(&format!("open {}", connections - open))?;
            open = connections;
            let each = |kib: f64| (kib / f64::from(connections)).max(0.0);
            let told = connections >= 1000 || Some(&connections) == scale.idle.last();
            let kernel_kib = each(slab()? - kernel);
            rows.push(
                row(way, Value::Object(serde_json::Map::new()))?
                    .with("connections", connections)
                    .with("process_kib", each(settled(&crowd)? - own))
                    // Everybody's, so it takes many connections to see what they take.
                    .with("kernel_kib", told.then_some(kernel_kib)),
            );
        }
    }
    let how = "Pss of server and client process together, and growth of the kernel's slabs \
               (/proc/meminfo, the whole machine's), per idle connection that has made a round trip"
        .to_owned();
    Ok((how, rows))
}

/// Memory of the processes when it does not change any more, in KiB.
fn settled(crowd: &Crowd) -> Result<f64> {
    let began = Instant::now();
    let mut before = crowd.memory()?;
    loop {
        sleep(Duration::from_millis(200));
        let now = crowd.memory()?;
        if (now - before).abs() < 8.0 || began.elapsed() > Duration::from_secs(5) {
            return Ok(now);
        }
        before = now;
    }
}

/// Memory that the kernel's slabs take, in KiB.
fn slab() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    kib(&text, "Slab").context("/proc/meminfo has no Slab")
}

fn inside(scale: &Scale) -> Result<Rows> {
    let mut rows = Vec::new();
    for round in 0..scale.rounds as usize {
        for step in 0..inside::WAYS.len() {
            let way = inside::WAYS[(round + step) % inside::WAYS.len()];
            rows.push(inside::measure(way, Duration::from_secs_f64(scale.seconds))?);
        }
    }
    let how = format!(
        "two tasks of one process, on a runtime of its own: {MESSAGE} bytes there and back, and writes of \
         64 KiB; {} rounds of {} s",
        scale.rounds, scale.seconds
    );
    Ok((how, medians(rows, &["transport"])))
}

/// The programs of report/others, which have a lock file of their own.
fn others(scale: &Scale) -> Result<Rows> {
    let own = std::env::current_exe().context("finding this program")?;
    let target = own.parent().and_then(Path::parent).context("this program lies in no target directory")?;
    tools::cargo(&[
        "build",
        "--locked",
        "--quiet",
        "--release",
        "--manifest-path=report/others/Cargo.toml",
        &format!("--target-dir={}", target.join("others").display()),
    ])
    .context("building what tokio-smc is compared with, which needs libclang")?;
    let program = target.join("others/release/others");
    let arguments = vec![format!("--rounds={}", scale.rounds), format!("--seconds={}", scale.seconds)];
    Ok((format!("report/others {}", arguments.join(" ")), tools::run(&program, &arguments)?))
}

//! Measures tokio-smc beside TCP and unix sockets, and writes a report with charts.
//!
//! `cargo run --release -p smc-report` measures everything and writes `docs/performance.md`. What
//! tests of `smcperf` and `blockingperf` measure is measured by these, in processes of their own;
//! the rest by further processes of this program ([`actor`]).

mod actor;
mod axis;
mod chart;
mod charts;
mod cli;
mod data;
mod inside;
mod measure;
mod page;
mod tools;

use std::fs;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser as _;

use crate::cli::{Cli, Options, Role, Scale};
use crate::data::Data;
use crate::tools::Tools;

fn main() -> ExitCode {
    let cli = Cli::parse();
    raise_file_limit();
    let outcome = match cli.role {
        Some(Role::Serve { way }) => actor::serve(way),
        Some(Role::Hold { way, addr }) => actor::hold(way, &addr),
        None => report(&cli.options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("smc-report: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Nobody is left to tell when standard error is gone.
fn tell(words: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{words}");
}

fn report(options: &Options) -> Result<()> {
    let place = options.out.join("performance");
    fs::create_dir_all(&place).with_context(|| format!("making the directory {}", place.display()))?;
    let file = place.join("data.json");
    let mut data = Data::load(&file)?;
    let sections = options.sections();
    if !sections.is_empty() {
        let machine = machine()?;
        if let Some(known) = data.setup.get("machine").filter(|known| **known != machine) {
            bail!(
                "{} has figures of another machine ({known}), this is {machine}: figures of two machines \
                 can not stand in one report. Give another --out, or remove the file",
                file.display()
            );
        }
        data.setup = setup(machine);
        tell("building what measures");
        let tools = Tools::build()?;
        let scale = Scale::new(options.quick);
        for (number, &section) in (1..).zip(&sections) {
            let began = Instant::now();
            tell(&format!("{number} of {}: {}", sections.len(), section.name()));
            let measured = measure::measure(section, &scale, options.quick, &tools, &|words| {
                tell(&format!("    {words}"));
            });
            let measured = measured.with_context(|| {
                format!(
                    "measuring {0} (what was measured before is kept; --only={0} tries again)",
                    section.name()
                )
            })?;
            data.sections.insert(section.name(), measured);
            // At once: what follows may fail.
            data.save(&file)?;
            tell(&format!("    {:.0} s", began.elapsed().as_secs_f64()));
        }
    }
    if data.sections.is_empty() {
        bail!("{} has no data to draw: run it without --redraw first", file.display());
    }
    for sheet in &charts::SHEETS {
        if let Some(svg) = sheet.svg(&data)? {
            let path = place.join(sheet.file);
            fs::write(&path, svg).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    let path = options.out.join("performance.md");
    fs::write(&path, page::text(&data, "performance")?)
        .with_context(|| format!("writing {}", path.display()))?;
    tell(&format!("written: {} and {}", path.display(), place.display()));
    Ok(())
}

/// Processor, number of usable CPUs, memory and kernel.
fn machine() -> Result<String> {
    let cpus = std::thread::available_parallelism().context("counting the CPUs")?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or(std::env::consts::ARCH, |(_, model)| model.trim());
    let meminfo = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let memory = actor::kib(&meminfo, "MemTotal").context("/proc/meminfo has no MemTotal")?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the kernel's release")?;
    // The release up to what a distribution, or a provider, has added.
    let kernel = kernel.trim().split('-').next().unwrap_or_default();
    Ok(format!("{model}, {cpus} usable CPUs, {:.0} GiB, Linux {kernel}", memory / f64::from(1 << 20)))
}

fn setup(machine: String) -> std::collections::BTreeMap<String, String> {
    let mut variables: Vec<String> = std::env::vars()
        .filter(|(name, _)| name == "SMC_LO" || name.starts_with("SMC_LO_"))
        .map(|(name, value)| format!("`{name}={value}`"))
        .collect();
    variables.sort();
    let settings = if variables.is_empty() { "the defaults".to_owned() } else { variables.join(", ") };
    let build = if cfg!(debug_assertions) { "debug: the figures say little" } else { "release" };
    [
        ("machine", machine),
        ("settings of tokio-smc", settings),
        ("sockets", "`TCP_NODELAY`, buffers of the kernel's own choice".to_owned()),
        (
            "runtime",
            "tokio's multi-threaded one with its defaults, where a section does not say another".to_owned(),
        ),
        ("build", build.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Lets this process, and those it starts, open as many files as they may.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Without it the section with most connections fails later and says so itself.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

//! iceoryx2: requests and responses that lie in shared memory. It has no futures: who waits looks
//! again and again, or sleeps in a listener that the other side notifies.

use std::path::Path;

use anyhow::{Context, Result, bail};
use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::request_response::PortFactory;

use crate::{Meter, ready, stamp};

type Service = ipc::Service;

/// Makes the ends of a service whose requests and responses are bytes.
type Echoes = PortFactory<Service, [u8], (), [u8], ()>;

/// Names of services: the place is a new one for each pair of processes.
fn name(place: &Path, part: &str) -> Result<ServiceName> {
    let place = place.file_name().unwrap_or_default().to_string_lossy();
    format!("others/{place}/{part}").as_str().try_into().context("the name of a service")
}

/// The way to notify the other side, and to wait for it.
struct Bells {
    other: Notifier<Service>,
    own: Listener<Service>,
}

impl Bells {
    fn new(node: &Node<Service>, place: &Path, own: &str, other: &str) -> Result<Self> {
        let open = |part| -> Result<_> {
            node.service_builder(&name(place, part)?).event().open_or_create().context("an event service")
        };
        Ok(Self {
            own: open(own)?.listener_builder().create().context("a listener")?,
            other: open(other)?.notifier_builder().create().context("a notifier")?,
        })
    }

    fn ring(&self) -> Result<()> {
        self.other.notify().context("notifying")?;
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        self.own.blocking_wait_one().context("waiting")?;
        Ok(())
    }
}

fn node() -> Result<Node<Service>> {
    // That it has no file of settings is nothing to report, nor that the other side has ended.
    set_log_level(LogLevel::Error);
    NodeBuilder::new().create::<Service>().context("a node of iceoryx2")
}

fn open(node: &Node<Service>, place: &Path) -> Result<Echoes> {
    node.service_builder(&name(place, "echo")?)
        .request_response::<[u8], [u8]>()
        .open_or_create()
        .context("a service of requests and responses")
}

pub(crate) fn serve(events: bool, place: &Path, size: usize) -> Result<()> {
    let node = node()?;
    let service = open(&node, place)?;
    let server = service.server_builder().initial_max_slice_len(size).create().context("a server")?;
    let bells = if events { Some(Bells::new(&node, place, "ask", "answer")?) } else { None };
    ready()?;
    loop {
        if let Some(bells) = &bells {
            bells.wait()?;
        }
        while let Some(request) = server.receive().context("receiving")? {
            let response = request.loan_slice_uninit(size).context("a loan")?;
            response.write_from_slice(request.payload()).send().context("responding")?;
            if let Some(bells) = &bells {
                bells.ring()?;
            }
        }
        if bells.is_none() {
            std::hint::spin_loop();
        }
    }
}

pub(crate) fn run(events: bool, place: &Path, mut meter: Meter) -> Result<()> {
    let node = node()?;
    let service = open(&node, place)?;
    let client = service.client_builder().initial_max_slice_len(meter.size).create().context("a client")?;
    let bells = if events { Some(Bells::new(&node, place, "answer", "ask")?) } else { None };
    let mut message = vec![7; meter.size];
    meter.start();
    for number in 0.. {
        stamp(&mut message, number);
        let request = client.loan_slice_uninit(message.len()).context("a loan")?;
        let pending = request.write_from_slice(&message).send().context("asking")?;
        if let Some(bells) = &bells {
            bells.ring()?;
        }
        let response = loop {
            if let Some(response) = pending.receive().context("receiving")? {
                break response;
            }
            match &bells {
                Some(bells) => bells.wait()?,
                None => std::hint::spin_loop(),
            }
        };
        if response.payload() != message {
            bail!("a message came back changed");
        }
        if !meter.lap()? {
            break;
        }
    }
    meter.finish()
}

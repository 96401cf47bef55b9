//! Connections across the walls of containers: what must be upgraded is, what must not never is,
//! and every byte is right either way.
//!
//! Each test runs this binary once more in network and mount namespaces of its own, so that nothing
//! of it is seen outside or outlives it. That takes root, and the programs `unshare`, `ip`,
//! `setpriv`, `nft` and `socat`.

mod actor;
mod busy;
mod crowd;
mod inside;
mod networks;
mod place;
mod proxies;
mod rows;
mod sequence;
mod talk;
mod users;
mod walls;
mod wire;

#[path = "../support/deny.rs"]
#[allow(dead_code, reason = "here only system calls are taken away")]
mod deny;

use std::net::SocketAddr;
use std::path::Path;

/// Plays the part it was started for.
#[test]
fn actor() {
    let Some(role) = actor::role() else { return };
    if let Ok(denied) = std::env::var(place::DENY) {
        let (call, errno) = denied.split_once(':').expect("a call and its error");
        assert_eq!(errno, "EPERM", "the error of a filter");
        deny::deny(deny::call(call), libc::EPERM);
    }
    let words: Vec<&str> = role.split(' ').collect();
    let address = |word: &str| word.parse::<SocketAddr>().expect("an address");
    let number = |word: &str| word.parse::<u64>().expect("a number");
    let network = |word: &str| u8::try_from(number(word)).expect("a network");
    let port = |word: &str| u16::try_from(number(word)).expect("a port");
    let runtime = || tokio::runtime::Runtime::new().expect("a runtime");
    match words[..] {
        ["server", at, of] => runtime().block_on(talk::server(address(at), network(of))),
        ["client", from, to, of, policy] => {
            runtime().block_on(talk::client(port(from), address(to), network(of), policy));
        }
        ["client-that-requires", to] => runtime().block_on(users::client_that_requires(address(to))),
        ["comes-again", to] => runtime().block_on(busy::client_that_comes_again(address(to))),
        ["plain-server", at, of] => proxies::plain_server(address(at), network(of)),
        ["forward", at, to] => proxies::forward(address(at), address(to)),
        ["front", at, relay] => proxies::front(address(at), Path::new(relay)),
        ["back", from, to, relay] => proxies::back(from, address(to), Path::new(relay)),
        ["capture"] => wire::capture(),
        ["crowd-server", at, of] => runtime().block_on(crowd::server(address(at), network(of))),
        ["crowd", of, seed, count, ref to @ ..] => {
            let goal = |to: &&str| {
                let (kind, to) = to.split_once('@').expect("a kind and an address");
                (kind.to_owned(), address(to))
            };
            let to = to.iter().map(goal).collect();
            runtime().block_on(crowd::clients(network(of), number(seed), number(count), to));
        }
        _ => panic!("no such role: {role}"),
    }
}

//! A server that is too busy to answer, behind a translated address.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio_smc::{Config, FallbackReason, Transport, UpgradePolicy};

use crate::actor::{Actor, next_word, tell};
use crate::inside::isolated;
use crate::networks;
use crate::talk::{Asking, Report, client, connect};

/// Meets a server that does not answer in time, says so, and comes again.
pub(crate) async fn client_that_comes_again(to: SocketAddr) {
    let config =
        Config::from_env().upgrade_policy(UpgradePolicy::Eager).peer_timeout(Duration::from_millis(500));
    let mut stream = connect(0, to, &config).await.expect("connect");
    let info = stream.info();
    let comes_to = async |reason| {
        while info.transport() != Transport::Tcp(reason) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Its only write shall be the one that shows the number.
    comes_to(FallbackReason::NextWrite).await;
    tell("connected");
    tokio::task::spawn_blocking(next_word).await.expect("the director's word");
    let mut asking = Asking::new(0, 1);
    let unanswered = async {
        comes_to(FallbackReason::NoAnswer).await;
        tell("no answer");
    };
    let (round, ()) = tokio::join!(asking.round(&mut stream, 1000), unanswered);
    round.expect("a round");
    drop(stream);
    client(0, to, 0, "eager").await;
}

/// Nobody has said that the address leads elsewhere.
#[test]
fn who_was_too_busy_to_answer_is_asked_again() {
    isolated("busy::who_was_too_busy_to_answer_is_asked_again", || {
        let network = networks::service();
        let pair = &network.pairs[0];
        let mut server = Actor::start(&pair.server.words(), &format!("server {} 0", pair.at));
        server.hear();
        let mut client = Actor::start(&pair.client.words(), &format!("comes-again {}", pair.to));
        assert_eq!(client.hear(), "connected");
        let stopped = Pid::from_child(server.process());
        kill_process(stopped, Signal::STOP).expect("stop");
        client.say("go");
        assert_eq!(client.hear(), "no answer");
        kill_process(stopped, Signal::CONT).expect("go on");
        assert_eq!(client.hear(), "connected");
        client.say("go");
        Report::heard(&client.hear()).upgraded();
    });
}

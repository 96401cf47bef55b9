//! `chat` and `tonic_chat`: rooms of people with SMC, and of people with a plain socket.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;

use rustix::process::Signal;

use crate::demo::{Demo, Device, closed, plain, until};

const BOTH: [&str; 2] = ["chat", "tonic_chat"];

fn room(device: &Device, name: &str) -> (Demo, SocketAddr) {
    device.serve(name, &["serve", "127.0.0.1:0"])
}

fn join(device: &Device, demo: &str, name: &str, addr: SocketAddr) -> Demo {
    let mut person = device.start(demo, &["join", name, &addr.to_string()]);
    person.line(&format!("* welcome {name}; "));
    person
}

/// Lines go from each of two to the other one, until the room says that both are on shared memory.
fn talk_until_both_are_on_smc(alice: &mut Demo, bob: &mut Demo) {
    let mut number = 0;
    until("both are on loopback-ism", || {
        number += 1;
        alice.say(&format!("hello {number}"));
        bob.line(&format!("alice: hello {number}"));
        bob.say(&format!("hi {number}"));
        alice.line(&format!("bob: hi {number}"));
        alice.say("/who");
        let who = alice.line(" here: ");
        assert!(who.contains("alice on ") && who.contains("bob on "), "{who}");
        who.contains("alice on loopback-ism") && who.contains("bob on loopback-ism")
    });
}

#[test]
fn people_talk_over_smc_and_leave() {
    for demo in BOTH {
        let device = Device::new();
        let (mut server, addr) = room(&device, demo);
        let mut alice = join(&device, demo, "alice", addr);
        let mut bob = join(&device, demo, "bob", addr);
        alice.line("bob joins");
        talk_until_both_are_on_smc(&mut alice, &mut bob);
        // Control characters would be obeyed by the terminals of the others.
        alice.say("\u{1b}[31mred\u{7}");
        assert_eq!(bob.line("red"), "alice: [31mred");
        bob.say("/quit");
        let (success, said) = bob.finish();
        assert!(success && said.contains("the connection ran on loopback-ism"), "{said}");
        alice.line("bob leaves; the connection ran on loopback-ism");
        // The end of the input is a way to leave, too.
        let (success, said) = alice.finish();
        assert!(success && said.contains("the connection ran on loopback-ism"), "{said}");
        server.line("alice leaves");
        assert!(server.terminate().contains("the room is closed"));
    }
}

#[test]
fn who_is_killed_is_missed() {
    for demo in BOTH {
        let device = Device::new();
        let (_server, addr) = room(&device, demo);
        let mut alice = join(&device, demo, "alice", addr);
        let mut bob = join(&device, demo, "bob", addr);
        talk_until_both_are_on_smc(&mut alice, &mut bob);
        bob.kill();
        alice.line("bob is gone (");
        // The name is free again.
        drop(join(&device, demo, "bob", addr));
        alice.line("bob is gone (");
    }
}

#[test]
fn a_room_that_ends_is_said() {
    for demo in BOTH {
        let device = Device::new();
        for signal in [Signal::TERM, Signal::INT] {
            let (server, addr) = room(&device, demo);
            let mut alice = join(&device, demo, "alice", addr);
            server.signal(signal);
            alice.line("* the room closes");
            let (success, said) = server.finish();
            assert!(success && said.contains("the room is closed"), "{said}");
            assert!(!alice.finish().0);
        }
        let (server, addr) = room(&device, demo);
        let mut alice = join(&device, demo, "alice", addr);
        let mut bob = join(&device, demo, "bob", addr);
        talk_until_both_are_on_smc(&mut alice, &mut bob);
        server.kill();
        // Their own input goes on: it is the room that is missed.
        for mut person in [alice, bob] {
            person.line("the server is gone (");
            let (success, said) = person.finish();
            assert!(!success, "{said}");
        }
    }
}

#[test]
fn errors_say_what_to_do() {
    for demo in BOTH {
        let device = Device::new();
        let (_server, addr) = room(&device, demo);
        let _alice = join(&device, demo, "alice", addr);
        let addr = addr.to_string();
        for (arguments, words) in [
            (&["serve", &addr][..], "in use"),
            (&["serve", "nonsense"], "nonsense"),
            (&["join", "alice", &addr], "not let in: there is a alice here already: take another name"),
            (&["join", "two words", &addr], "not let in: a name has 1 to 24 letters"),
            (&["join", "alice", &closed()], &format!("is `{demo} serve")),
            (&["join"], "<NAME>"),
        ] {
            let said = device.fails(demo, arguments);
            assert!(said.contains(words), "{demo} {arguments:?}: {words} is missing in\n{said}");
        }
    }
}

#[test]
fn a_plain_socket_is_in_the_same_room() {
    let device = Device::new();
    let (_server, addr) = room(&device, "chat");
    let mut alice = join(&device, "chat", "alice", addr);
    let mut carol = plain(addr);
    let mut heard = BufReader::new(carol.try_clone().unwrap()).lines().map(Result::unwrap);
    assert_eq!(heard.next().unwrap(), "* your name?");
    // As telnet ends its lines.
    carol.write_all(b"carol\r\n").unwrap();
    assert!(heard.next().unwrap().starts_with("* welcome carol; "));
    alice.line("* carol joins from 127.0.0.1:");
    carol.write_all(b"from a plain socket\n/who\n").unwrap();
    alice.line("carol: from a plain socket");
    let who = heard.find(|line| line.contains(" here: ")).unwrap();
    assert!(who.contains("carol on tcp"), "{who}");
    alice.say("hello carol");
    assert!(heard.any(|line| line == "alice: hello carol"));
    // Nobody types such a line.
    carol.write_all(&[b'x'; 10_000]).unwrap();
    alice.line("carol is gone (");
}

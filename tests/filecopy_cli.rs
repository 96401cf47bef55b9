//! `filecopy` as a user runs it: whole trees arrive as they were, and nothing is overwritten or
//! escapes.

mod program;

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use program::{Running, example, text};

const LIMIT: Duration = Duration::from_secs(60);

/// A receiver into `dir`, and its address.
fn receiver(dir: &Path) -> (Running, String) {
    let mut receiver = Running::start(example("filecopy").arg("recv").arg(dir).arg("127.0.0.1:0"));
    let line = receiver.line(LIMIT);
    let addr = line.rsplit(' ').next().expect("an address").to_owned();
    assert!(line.starts_with("receiving into "), "{line}");
    (receiver, addr)
}

/// Sends `path` into `dir`; what the sender and the receiver said.
fn copy(path: &Path, dir: &Path) -> (Output, Output) {
    let (receiver, addr) = receiver(dir);
    let sender = Running::start(example("filecopy").arg("send").arg(path).arg(addr)).finish(LIMIT);
    (sender, receiver.finish(LIMIT))
}

/// All paths below `dir` with their modes and, for files, contents.
fn listing(dir: &Path) -> Vec<(String, u32, Option<Vec<u8>>)> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            found.push((name, metadata.permissions().mode() & 0o7777, None));
        } else {
            let content = metadata.is_file().then(|| fs::read(&path).unwrap());
            found.push((name, metadata.permissions().mode() & 0o7777, content));
        }
    }
    found.sort();
    found
}

#[test]
fn a_tree_arrives_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let tree = home.path().join("tree");
    fs::create_dir_all(tree.join("a/b/empty")).unwrap();
    let large: Vec<u8> =
        (0..5_000_011_u32).map(|index| (index ^ (index >> 8) ^ (index >> 16)) as u8).collect();
    fs::write(tree.join("a/large"), &large).unwrap();
    fs::write(tree.join("a/b/nothing"), b"").unwrap();
    fs::write(tree.join("a/b/script"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.join("a/b/script"), Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(tree.join("a/b"), Permissions::from_mode(0o555)).unwrap();

    let inbox = home.path().join("in/box");
    let (sender, receiver) = copy(&tree, &inbox);
    let ((sent, sender_errors), (received, receiver_errors)) = (text(&sender), text(&receiver));
    assert!(sender.status.success() && receiver.status.success(), "{sender_errors} {receiver_errors}");
    assert_eq!(listing(&inbox.join("tree")), listing(&tree));
    for (words, who) in [(&sent, "sent"), (&received, "received")] {
        assert!(words.contains(&format!("{who} 3 files, 4 directories, 5000021 bytes")), "{words}");
        assert!(words.contains("over loopback-ism") || words.contains("over tcp ("), "{words}");
    }
    let hash = |words: &str| words.split("blake3 ").nth(1).map(|rest| rest[..64].to_owned());
    assert!(hash(&sent).is_some() && hash(&sent) == hash(&received), "{sent} {received}");
}

#[test]
fn a_single_file_arrives_and_is_never_overwritten() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, b"first").unwrap();
    let inbox = home.path().join("inbox");
    let (sender, receiver) = copy(&file, &inbox);
    assert!(
        sender.status.success() && receiver.status.success(),
        "{:?} {:?}",
        text(&sender),
        text(&receiver)
    );
    assert_eq!(fs::read(inbox.join("file")).unwrap(), b"first");

    // Large, so that the refusal meets a sender in the middle of its writing.
    fs::write(&file, vec![7; 20_000_000]).unwrap();
    let (sender, receiver) = copy(&file, &inbox);
    assert!(!sender.status.success() && !receiver.status.success());
    assert!(text(&sender).1.contains("exists"), "{:?}", text(&sender));
    assert!(text(&receiver).1.contains("exists"), "{:?}", text(&receiver));
    assert_eq!(fs::read(inbox.join("file")).unwrap(), b"first");
}

#[test]
fn links_are_left_out_and_said() {
    let home = tempfile::tempdir().unwrap();
    let tree = home.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), b"content").unwrap();
    symlink("file", tree.join("link")).unwrap();
    let (sender, receiver) = copy(&tree, &home.path().join("inbox"));
    assert!(
        sender.status.success() && receiver.status.success(),
        "{:?} {:?}",
        text(&sender),
        text(&receiver)
    );
    assert!(
        text(&sender).1.contains("left out") && text(&sender).1.contains("tree/link"),
        "{:?}",
        text(&sender)
    );
    assert!(fs::symlink_metadata(home.path().join("inbox/tree/link")).is_err());
}

/// What a hostile sender would put on the wire for one file, up to its content's hash.
fn wire(name: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = b"filecpy1\x02".to_vec();
    bytes.extend_from_slice(&0o644_u32.to_le_bytes());
    bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
    bytes.extend_from_slice(content);
    bytes
}

/// Sends raw bytes to a receiver into `dir` and returns what it complains of.
fn hostile(dir: &Path, bytes: &[u8]) -> String {
    let (receiver, addr) = receiver(dir);
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!((&answer[..8], answer[8]), (b"filecpy1".as_slice(), 0), "greeted, and refused");
    let output = receiver.finish(LIMIT);
    assert!(!output.status.success());
    text(&output).1
}

#[test]
fn paths_that_leave_the_directory_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let inbox = home.path().join("inbox");
    fs::create_dir(&inbox).unwrap();
    fs::create_dir(home.path().join("outside")).unwrap();
    symlink("../outside", inbox.join("link")).unwrap();
    let absolute = home.path().join("outside/evil").to_str().unwrap().to_owned();
    let names = [
        "../evil",
        "/evil",
        &absolute,
        "a/../../evil",
        ".",
        "..",
        "",
        "./evil",
        "link/evil",
        "evil/",
        "e\0vil",
    ];
    for name in names {
        let complaint = hostile(&inbox, &wire(name, b"evil"));
        assert!(complaint.contains("refused"), "{name:?}: {complaint}");
    }
    let found: Vec<String> = listing(&inbox.join(".."))
        .into_iter()
        .map(|(name, ..)| name)
        .filter(|name| name.contains("vil"))
        .collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn damaged_and_broken_transfers_leave_no_file() {
    let home = tempfile::tempdir().unwrap();
    let mut damaged = wire("file", b"content");
    damaged.extend_from_slice(&[0; 32]);
    assert!(hostile(home.path(), &damaged).contains("hash"));
    let broken = wire("file", b"content");
    assert!(hostile(home.path(), &broken[..broken.len() - 3]).contains("ended within the file"));
    assert!(hostile(home.path(), b"GET / HTTP/1.1\r\n\r\n").contains("not a filecopy sender"));
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_sent_is_said_at_both_ends() {
    let home = tempfile::tempdir().unwrap();
    let (sender, receiver) = copy(&home.path().join("missing"), &home.path().join("inbox"));
    assert!(!sender.status.success() && !receiver.status.success());
    assert!(text(&sender).1.contains("missing"), "{:?}", text(&sender));
}

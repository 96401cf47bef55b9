//! Users that the victim does not admit, where the directory is one that all users share.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::blocking::{LONG, Lingering};
use super::callers::Endpoints;
use crate::target::Target;
use crate::wire;

/// A user that is nobody's.
const USER: u32 = 65_533;
const WHILE: Duration = Duration::from_millis(1500);

/// This thread is that user's from now on.
pub(crate) fn become_one() {
    let (user, group) = (Uid::from_raw(USER), Gid::from_raw(USER));
    set_thread_groups(&[]).expect("root");
    set_thread_res_gid(group, group, group).expect("root");
    set_thread_res_uid(user, user, user).expect("root");
}

pub(crate) fn close(target: &Target) {
    for message in [b"junk".to_vec(), wire::link().0] {
        for copies in [1, 200] {
            let socket = target.knock();
            Lingering::new().give(&socket, &message, copies);
            Lingering::new().give(&socket, &message, copies);
        }
    }
    std::thread::sleep(LONG + LONG / 5);
}

/// As fast as it can: it is let in nowhere, and what it says is not even read.
pub(crate) fn junk(target: &Target) {
    let started = Instant::now();
    while started.elapsed() < WHILE {
        let socket = target.knock();
        for message in [&wire::link().0[..], &[200; 4000], b"junk"] {
            let _ = send(&socket, message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
    }
}

/// Says nothing, and holds what it gets.
pub(crate) fn connections(target: &Target) {
    let kept: Vec<_> = (0..1000).map(|_| target.knock()).collect();
    for socket in kept {
        let started = Instant::now();
        loop {
            match rustix::net::recv(&socket, &mut [0; 8], rustix::net::RecvFlags::DONTWAIT) {
                Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET) => break,
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
            assert!(started.elapsed() < Duration::from_secs(60), "the victim holds on to a stranger");
        }
    }
}

/// Endpoints on a port that the victim connects to: whatever a stranger plants is not asked.
pub(crate) fn endpoints(target: &Target) {
    let room = target.directory.join(format!("u{USER}"));
    fs::create_dir_all(&room).expect("the directory is everybody's");
    fs::set_permissions(&room, fs::Permissions::from_mode(0o755)).expect("chmod");
    let endpoints = Endpoints::in_room(&room, 40);
    let asked = endpoints.answer(4, LONG, |who| {
        Lingering::new().give(&who, b"junk", 1);
        std::mem::forget(who);
    });
    assert_eq!(asked, 0, "nobody asks a stranger");
}

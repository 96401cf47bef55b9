//! Names that others have planted: they are read up to a number, and lead nowhere.

use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::thread;

use super::*;

/// A name of an endpoint that there never was.
fn id(number: u32) -> EndpointId {
    EndpointId(u128::from(number).to_be_bytes())
}

fn names_read(work: impl FnOnce()) -> usize {
    let before = NAMES_READ.get();
    work();
    NAMES_READ.get() - before
}

/// Plants so many names in `dir`, each of an endpoint.
fn plant(dir: &Path, range: std::ops::Range<u32>, suffix: &str) {
    fs::create_dir_all(dir).unwrap();
    for number in range {
        File::create(dir.join(format!("{}{suffix}", id(number)))).unwrap();
    }
}

#[test]
fn a_look_reads_so_many_names_and_no_more() {
    let place = Place::new();
    let device = place.open();
    plant(&place.path.join("port/80"), 0..3000, "");
    let read = names_read(|| {
        assert_eq!(device.endpoints_on_port(80).unwrap().endpoints.len(), port::MOST_ENDPOINTS);
    });
    assert!((port::MOST_ENDPOINTS..=port::MOST_NAMES).contains(&read), "{read}");
    plant(&place.path.join("port/81"), 0..3000, ".junk");
    let read = names_read(|| assert_eq!(device.endpoints_on_port(81).unwrap().endpoints, []));
    assert_eq!(read, port::MOST_NAMES);
}

#[test]
fn a_new_endpoint_reads_few_names_and_tidying_up_so_many_and_no_more() {
    let place = Place::new();
    let device = place.open();
    plant(&place.path.join("ep"), 0..5000, ".lock");
    for port in 1..200 {
        plant(&place.path.join(format!("port/{port}")), 0..30, "");
    }
    let read = names_read(|| {
        let entry = device.create_endpoint().unwrap();
        drop(device.publish_port(7, entry.id()).unwrap());
        device.tidy_later(entry.id());
    });
    assert!(read <= 64, "{read}");
    // That has a thread begin, which is none of ours.
    soon(|| place.names("ep").len() <= 5000 - tidy::MOST_NAMES + 3);
    let place = Place::new();
    let device = place.open();
    plant(&place.path.join("ep"), 0..5000, ".lock");
    for port in 1..200 {
        plant(&place.path.join(format!("port/{port}")), 0..30, "");
    }
    let read = names_read(|| device.tidy());
    assert!(read <= 3 * tidy::MOST_NAMES, "{read}");
    // And in the end it is all gone.
    (0..3).for_each(|_| device.tidy());
    assert_eq!(place.names("ep"), [""; 0]);
}

#[test]
fn what_is_no_socket_of_ours_is_not_connected_to() {
    let place = Place::new();
    let device = place.open();
    let elsewhere = place.dir.path().join("elsewhere");
    let listener = sys::seqpacket_listen(&elsewhere).unwrap();
    let at = |number: u32, suffix: &str| place.path.join(format!("ep/{}{suffix}", id(number)));
    symlink(&elsewhere, at(1, ".sock")).unwrap();
    File::create(at(2, ".sock")).unwrap();
    fs::create_dir(at(3, ".sock")).unwrap();
    let fifo = |path: &Path| {
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    };
    fifo(&at(4, ".sock"));
    let foreign = sys::effective_uid() == 0 && {
        let theirs = sys::seqpacket_listen(&at(5, ".sock")).unwrap();
        std::mem::forget(theirs);
        chown(at(5, ".sock"), Some(4242), None).is_ok()
    };
    for number in 1..=4 + u32::from(foreign) {
        let refused = device.connect(id(number)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{number}: {refused}");
    }
    assert!(sys::accept(listener.as_fd()).unwrap().is_none(), "the link was followed");

    // Neither do locks and port entries that are none keep anybody.
    symlink(&elsewhere, at(6, ".lock")).unwrap();
    fifo(&at(7, ".lock"));
    fs::create_dir_all(place.path.join("port/80")).unwrap();
    let entry = place.path.join(format!("port/80/{}", id(8)));
    fifo(&entry);
    symlink(place.path.join("gid"), place.path.join(format!("port/80/{}", id(9)))).unwrap();
    let work = thread::spawn(move || {
        device.tidy();
        [8, 9].map(|number| device.publish_port(80, id(number)).is_err())
    });
    soon(|| work.is_finished());
    assert!(work.is_finished(), "something is waited for");
    assert_eq!(work.join().unwrap(), [true, true]);
    assert!(elsewhere.exists() && entry.exists());
}

/// A directory that all users write to, as `me` and a stranger do.
fn shared() -> Option<Place> {
    if sys::effective_uid() != 0 {
        return None;
    }
    let place = Place::new();
    fs::set_permissions(place.dir.path(), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(&place.path).unwrap();
    fs::set_permissions(&place.path, Permissions::from_mode(0o1777)).unwrap();
    Some(place)
}

fn give_away(path: &Path) {
    chown(path, Some(4242), Some(4242)).unwrap();
}

#[test]
fn in_a_shared_directory_the_names_of_others_are_in_nobodys_way() {
    let Some(place) = shared() else { return };
    // What a stranger who comes first can plant: the directories of old, and any number of names.
    for part in ["ep", "port", "u4242", "u4242/ep", "u4242/net", "u4242/port", "u4242/port/80"] {
        fs::create_dir(place.path.join(part)).unwrap();
        give_away(&place.path.join(part));
    }
    for number in 0..2000 {
        File::create(place.path.join(format!("junk{number}"))).unwrap();
    }
    plant(&place.path.join("u4242/port/80"), 0..2000, "");
    let (ours, other) = (place.open(), place.open());
    let read = names_read(|| {
        let entry = ours.create_endpoint().unwrap();
        let port = ours.publish_port(80, entry.id()).unwrap();
        let found = other.endpoints_on_port(80).unwrap();
        assert_eq!((found.endpoints, found.others), (vec![entry.id()], false));
        other.connect(entry.id()).unwrap();
        assert!(other.connect(id(7)).is_err(), "a stranger's");
        drop(port);
    });
    assert!(read <= 8, "{read}");
    // Nobody who could be admitted, but somebody: that is told, if it is to be seen at all.
    let read = names_read(|| assert_eq!(other.endpoints_on_port(80).unwrap().endpoints, []));
    assert!(read <= 64, "{read}");
}

#[test]
fn a_room_that_somebody_else_has_made_is_none_of_ours() {
    let Some(place) = shared() else { return };
    fs::create_dir(place.path.join("u0")).unwrap();
    give_away(&place.path.join("u0"));
    let error = Device::open(Some(&place.path)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    assert!(error.to_string().contains("u0 belongs to user 4242"), "{error}");
    fs::remove_dir(place.path.join("u0")).unwrap();
    fs::create_dir(place.path.join("elsewhere")).unwrap();
    symlink(place.path.join("elsewhere"), place.path.join("u0")).unwrap();
    Device::open(Some(&place.path)).unwrap_err();
    assert!(place.names("elsewhere").is_empty());
}

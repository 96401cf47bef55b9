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

/// A room of that user's, as that one makes it.
fn room_of(place: &Place, user: u32) -> PathBuf {
    let room = place.path.join(format!("u{user}"));
    for part in ["", "ep", "net", "port", "port/80"] {
        fs::create_dir(room.join(part)).unwrap();
        fs::set_permissions(room.join(part), Permissions::from_mode(0o755)).unwrap();
        chown(room.join(part), Some(user), None).unwrap();
    }
    room
}

/// A name that can be an endpoint's in that room.
fn name_in(room: &Path, number: u32) -> EndpointId {
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(room.join("ep")).unwrap());
    EndpointId((u128::from(number) << 64 | u128::from(inode)).to_be_bytes())
}

/// Somebody listens under that name, and says that it is on port 80.
fn listen_in(room: &Path, id: EndpointId, user: u32) -> std::os::fd::OwnedFd {
    File::create(room.join(format!("port/80/{id}"))).unwrap();
    let socket = room.join(format!("ep/{id}.sock"));
    let listener = sys::seqpacket_listen(&socket).unwrap();
    chown(socket, Some(user), None).unwrap();
    listener
}

#[test]
fn the_rooms_of_others_are_visited_and_who_has_many_names_is_in_nobodys_way() {
    let Some(place) = shared() else { return };
    let [greedy, modest] = [4242, 4243].map(|user| room_of(&place, user));
    for number in 0..500 {
        File::create(greedy.join(format!("port/80/{}", name_in(&greedy, number)))).unwrap();
    }
    let theirs = name_in(&modest, 1);
    let listener = listen_in(&modest, theirs, 4243);
    let device = place.open();
    let found = device.endpoints_on_port(80).unwrap();
    assert_eq!((found.endpoints.len(), found.others), (0, true), "nobody is to be visited");
    assert!(device.connect(theirs).is_err());
    for visits in [Visits::Those(vec![4242, 4243]), Visits::Those(vec![4243, 4242]), Visits::Everybody] {
        let device = place.open();
        device.visit(visits.clone());
        let mut found = Vec::new();
        let read = names_read(|| found = device.endpoints_on_port(80).unwrap().endpoints);
        assert!(found[..2].contains(&theirs), "{visits:?}");
        assert!(found.len() <= port::MOST_NAMES_OF_OTHERS + 1 && read <= 100, "{visits:?}: {read}");
        device.connect(theirs).unwrap();
        assert!(sys::accept(listener.as_fd()).unwrap().is_some());
    }
}

#[test]
fn so_many_rooms_are_visited_and_no_more() {
    let Some(place) = shared() else { return };
    for user in 0..room::MOST_ROOMS as u32 + 30 {
        let room = room_of(&place, 10_000 + user);
        drop(listen_in(&room, name_in(&room, 1), 10_000 + user));
    }
    for junk in 0..3000 {
        File::create(place.path.join(format!("x{junk}"))).unwrap();
    }
    let device = place.open();
    device.visit(Visits::Everybody);
    let read = names_read(|| {
        assert!(device.endpoints_on_port(80).unwrap().endpoints.len() <= room::MOST_ROOMS);
    });
    assert!(read <= 2 * room::MOST_NAMES, "{read}");
    // Who is named is found, whatever else is there.
    let device = place.open();
    device.visit(Visits::Those(vec![10_000 + room::MOST_ROOMS as u32]));
    assert_eq!(device.endpoints_on_port(80).unwrap().endpoints.len(), 1);
}

#[test]
fn a_name_counts_in_the_room_only_in_which_it_was_made() {
    let Some(place) = shared() else { return };
    let [true_home, other] = [4243, 4242].map(|user| room_of(&place, user));
    let name = name_in(&true_home, 1);
    // Who listens under it could pass on what is proved to its owner under that name.
    let impostor = listen_in(&other, name, 4242);
    let own = name_in(&other, 1);
    let honest = listen_in(&other, own, 4242);
    let device = place.open();
    device.visit(Visits::Those(vec![4242]));
    assert_eq!(device.endpoints_on_port(80).unwrap().endpoints, [own]);
    assert!(device.connect(name).is_err());
    device.connect(own).unwrap();
    assert!(sys::accept(honest.as_fd()).unwrap().is_some());
    assert!(sys::accept(impostor.as_fd()).unwrap().is_none(), "it was reached under another's name");
    // Ours are made so, too.
    let ours = device.create_endpoint().unwrap();
    assert_eq!(ours.id().0[8..], name_in(&place.path.join("u0"), 0).0[8..]);
}

#[test]
fn rooms_that_are_none_are_not_visited() {
    let Some(place) = shared() else { return };
    let room = room_of(&place, 4242);
    let own = name_in(&room, 1);
    let _listener = listen_in(&room, own, 4242);
    let finds = |expected: &[EndpointId], what: &str| {
        let device = place.open();
        device.visit(Visits::Those(vec![4242, 4243]));
        assert_eq!(device.endpoints_on_port(80).unwrap().endpoints, expected, "{what}");
    };
    finds(&[own], "as it should be");
    symlink(&room, place.path.join("u4243")).unwrap();
    finds(&[own], "a link to another room");
    chown(room.join("port"), Some(4244), None).unwrap();
    finds(&[], "a part is somebody else's");
    chown(room.join("port"), Some(4242), None).unwrap();
    fs::set_permissions(room.join("ep"), Permissions::from_mode(0o777)).unwrap();
    finds(&[], "others write to it");
    fs::set_permissions(room.join("ep"), Permissions::from_mode(0o755)).unwrap();
    fs::rename(room.join("port/80"), place.path.join("80")).unwrap();
    symlink(place.path.join("80"), room.join("port/80")).unwrap();
    finds(&[], "its port is a link");
}

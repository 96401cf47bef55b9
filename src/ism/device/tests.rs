mod planted;

use std::cell::Cell;
use std::fs::{self, File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::{Device, EndpointEntry, EndpointId, format_gid, io, parse_gid, port, sys, tidy};
use sys::tests::nursery::spawn;

thread_local! {
    /// Names of directories that this thread has read.
    pub(super) static NAMES_READ: Cell<usize> = const { Cell::new(0) };
}

struct Place {
    dir: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        // The directory for temporary files may itself be reached through a link.
        let path = dir.path().canonicalize().unwrap().join("device");
        Place { dir, path }
    }

    fn open(&self) -> Device {
        Device::open(Some(&self.path)).unwrap()
    }

    fn names(&self, part: &str) -> Vec<String> {
        let names = fs::read_dir(self.path.join(part)).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn opening_creates_everything_privately() {
    let place = Place::new();
    let device = place.open();
    assert_eq!(device.path(), place.path);
    assert_eq!(place.names(""), ["ep", "gid", "net", "port"]);
    for (part, mode) in [("", 0o700), ("ep", 0o700), ("net", 0o700), ("port", 0o700), ("gid", 0o644)] {
        let found = fs::metadata(place.path.join(part)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(found, mode, "{part}");
    }
    let gid = device.gid();
    assert_eq!((gid[6] >> 4, gid[8] >> 6), (4, 2), "a UUIDv4");
    assert_eq!(place.open().gid(), gid, "the same device");
    assert_ne!(Place::new().open().gid(), gid, "another directory is another device");
}

#[test]
fn the_default_directory_is_the_users_own() {
    let device = Device::open(None).unwrap();
    assert_eq!(
        device.path().file_name().unwrap().to_str(),
        Some(&*format!("smc-lo-{}", sys::effective_uid()))
    );
}

#[test]
fn a_gid_is_text() {
    let gid = [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0x4d, 0xef, 0x80, 1, 2, 3, 4, 5, 6, 7];
    assert_eq!(format_gid(gid), "12345678-9abc-4def-8001-020304050607\n");
    assert_eq!(parse_gid(b"12345678-9abc-4def-8001-020304050607\n"), Some(gid));
    for bad in
        ["", "\n", "12345678-9abc-4def-8001-020304050607", "123456789abc4def8001020304050607\n", "\u{ff}"]
    {
        assert_eq!(parse_gid(bad.as_bytes()), None, "{bad:?}");
    }
    let place = Place::new();
    place.open();
    fs::write(place.path.join("gid"), "nonsense").unwrap();
    let error = Device::open(Some(&place.path)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("/device/gid does not hold a GID"), "{error}");
}

#[test]
fn a_gid_that_is_a_link_is_refused() {
    let place = Place::new();
    place.open();
    fs::rename(place.path.join("gid"), place.path.join("real")).unwrap();
    std::os::unix::fs::symlink("real", place.path.join("gid")).unwrap();
    assert!(Device::open(Some(&place.path)).unwrap_err().to_string().contains("cannot open"));
}

#[test]
fn threads_that_open_at_once_agree() {
    for _ in 0..20 {
        let place = Place::new();
        let barrier = std::sync::Barrier::new(8);
        let gids: Vec<_> = std::thread::scope(|scope| {
            let open = || {
                barrier.wait();
                place.open().gid()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(gids.iter().all(|gid| *gid == gids[0]));
        assert_eq!(place.names(""), ["ep", "gid", "net", "port"], "no drafts are left");
    }
}

#[test]
fn endpoints_can_be_reached_until_they_go() {
    let place = Place::new();
    let (device, other) = (place.open(), place.open());
    let mut entry = device.create_endpoint().unwrap();
    let id = entry.id();
    assert_eq!(place.names("ep"), [format!("{id}.lock"), format!("{id}.sock")]);
    let client = other.connect(id).unwrap();
    let server = sys::accept(entry.listener().unwrap()).unwrap().unwrap();
    sys::send(client.as_fd(), b"hello", &[]).unwrap();
    assert_eq!(sys::recv(server.as_fd(), &mut [0; 8], 0).unwrap().len, 5);

    let listener = entry.take_listener().unwrap();
    assert!(entry.take_listener().is_none() && entry.listener().is_none());
    drop(other.connect(id).unwrap());
    drop(listener);
    assert_eq!(other.connect(id).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(place.names("ep").len(), 2, "its lock is held: it may be on its way");
    drop(entry);
    assert_eq!(other.connect(id).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(place.names("ep").is_empty());
}

#[test]
fn a_long_path_fits() {
    let place = Place::new();
    let mut path = place.dir.path().canonicalize().unwrap();
    for _ in 0..5 {
        path.push("x".repeat(60));
    }
    fs::create_dir_all(&path).unwrap();
    let device = Device::open(Some(&path)).unwrap();
    let entry = device.create_endpoint().unwrap();
    device.connect(entry.id()).unwrap();
}

/// Waits for a thread's work; the test fails by what it asserts then.
fn soon(done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a crashed endpoint leaves: a lock nobody holds, and perhaps a socket nobody listens on.
fn remains(place: &Place, socket: bool) -> EndpointId {
    let id = EndpointId(sys::random_bytes().unwrap());
    File::create(place.path.join(format!("ep/{id}.lock"))).unwrap();
    if socket {
        drop(sys::seqpacket_listen(&place.path.join(format!("ep/{id}.sock"))).unwrap());
    }
    id
}

#[test]
fn the_dead_are_swept_and_the_living_are_not() {
    let place = Place::new();
    let device = place.open();
    let living: Vec<_> = (0..3).map(|_| device.create_endpoint().unwrap()).collect();
    let mut ports: Vec<_> = living.iter().map(|entry| device.publish_port(80, entry.id()).unwrap()).collect();

    // Locked, not listening yet: being created.
    let unborn = remains(&place, true);
    let lock = File::open(place.path.join(format!("ep/{unborn}.lock"))).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    // Listening, but its lock was lost: alive as well.
    let unlocked = remains(&place, false);
    let listener = sys::seqpacket_listen(&place.path.join(format!("ep/{unlocked}.sock"))).unwrap();

    let dead = [remains(&place, true), remains(&place, false)];
    for id in dead {
        fs::create_dir_all(place.path.join("port/81")).unwrap();
        File::create(place.path.join(format!("port/80/{id}"))).unwrap();
        File::create(place.path.join(format!("port/81/{id}"))).unwrap();
    }
    // A socket that lost its lock file, and names that are none of ours.
    let orphan = remains(&place, true);
    fs::remove_file(place.path.join(format!("ep/{orphan}.lock"))).unwrap();
    File::create(place.path.join("ep/README.lock")).unwrap();

    let newest = device.create_endpoint().unwrap();
    device.tidy();
    let stems: std::collections::BTreeSet<_> =
        place.names("ep").iter().map(|name| name.split('.').next().unwrap().to_owned()).collect();
    let expected = living.iter().map(EndpointEntry::id).chain([unborn, unlocked, newest.id()]);
    assert_eq!(stems, expected.map(|id| id.to_string()).chain(["README".to_owned()]).collect());
    let mut on_port = device.endpoints_on_port(80).unwrap().endpoints;
    on_port.sort_unstable();
    let mut expected: Vec<_> = living.iter().map(EndpointEntry::id).collect();
    expected.sort_unstable();
    assert_eq!(on_port, expected);
    assert_eq!(place.names("port"), ["80"], "an empty port directory goes as well");
    for entry in &living {
        device.connect(entry.id()).unwrap();
    }

    drop((lock, listener));
    device.tidy();
    assert_eq!(place.names("ep").len(), 2 * 4 + 1, "now these two are dead, too");
    ports.clear();
    assert!(place.names("port").is_empty());
}

#[test]
fn a_lock_counts_only_while_its_file_has_the_name() {
    let place = Place::new();
    let device = place.open();
    let id = remains(&place, false);
    let path = place.path.join(format!("ep/{id}.lock"));
    let open = || File::open(&path).unwrap().into();
    let (ours, theirs) = (open(), open());
    assert!(device.inner.acquire(id, &theirs).unwrap());
    assert!(!device.inner.acquire(id, &ours).unwrap(), "theirs");
    // They sweep it, between our creating it and our locking it.
    fs::remove_file(&path).unwrap();
    drop(theirs);
    assert!(!device.inner.acquire(id, &ours).unwrap(), "the file has no name");
    File::create(&path).unwrap();
    assert!(!device.inner.acquire(id, &ours).unwrap(), "the name has another file");
    assert!(device.inner.acquire(id, &open()).unwrap());
}

#[test]
fn whoever_finds_a_dead_endpoint_removes_it() {
    let place = Place::new();
    let device = place.open();
    for (socket, kind) in [(true, io::ErrorKind::ConnectionRefused), (false, io::ErrorKind::NotFound)] {
        let id = remains(&place, socket);
        fs::create_dir_all(place.path.join("port/443")).unwrap();
        File::create(place.path.join(format!("port/443/{id}"))).unwrap();
        assert_eq!(device.endpoints_on_port(443).unwrap().endpoints, [id]);
        assert_eq!(device.connect(id).unwrap_err().kind(), kind);
        device.bury_later();
        soon(|| place.names("ep").is_empty() && place.names("port").is_empty());
        assert!(place.names("ep").is_empty() && place.names("port").is_empty());
        assert!(device.endpoints_on_port(443).unwrap().endpoints.is_empty());
    }
}

#[test]
fn what_is_found_dead_while_another_is_buried_is_buried_too() {
    let place = Place::new();
    let device = place.open();
    for _ in 0..100 {
        let id = remains(&place, true);
        assert_eq!(device.connect(id).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        device.bury_later();
        soon(|| place.names("ep").is_empty());
        // The thread that did it may not have ended yet.
        assert!(place.names("ep").is_empty());
    }
}

#[test]
fn listeners_of_one_endpoint_share_a_port_entry() {
    let place = Place::new();
    let device = place.open();
    let id = EndpointId([7; 16]);
    let (one, two) = (device.publish_port(8080, id).unwrap(), device.clone().publish_port(8080, id).unwrap());
    let other = device.publish_port(8080, EndpointId([8; 16])).unwrap();
    assert_eq!((one.port(), one.id()), (8080, id));
    drop(one);
    assert!(
        device.endpoints_on_port(8080).unwrap().endpoints.contains(&id),
        "the second listener is still there"
    );
    drop(two);
    assert_eq!(device.endpoints_on_port(8080).unwrap().endpoints, [other.id()]);
    drop(other);
    assert!(place.names("port").is_empty());
    // Names of others are passed over.
    fs::create_dir(place.path.join("port/9")).unwrap();
    for name in ["x", "0123456789ABCDEF0123456789ABCDEF", "../x", "+1"] {
        let _ = File::create(place.path.join("port/9").join(name.replace('/', "_")));
    }
    assert!(device.endpoints_on_port(9).unwrap().endpoints.is_empty());
}

#[test]
fn publishing_races_with_the_last_one_leaving() {
    let place = Place::new();
    place.open();
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            // One for each thread, as if they were processes: a device orders its own.
            let device = place.open();
            scope.spawn(move || {
                for round in 0..500 {
                    let id = EndpointId([thread; 16]);
                    let entry = device.publish_port(round % 2, id).unwrap();
                    assert!(device.endpoints_on_port(round % 2).unwrap().endpoints.contains(&id));
                    drop(entry);
                    assert!(!device.endpoints_on_port(round % 2).unwrap().endpoints.contains(&id));
                }
            });
        }
    });
    assert!(place.names("port").is_empty());
}

/// Where a child process finds its device, and what it is to do there; unset when the tests run.
const CHILD: &str = "SMC_LO_TEST_CHILD";

/// This test again, in a process of its own.
fn child(place: &Place, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "ism::device::tests::child_process", "--nocapture"]);
    command.env(CHILD, role).env("SMC_LO_DIR", &place.path).stdout(Stdio::null());
    command
}

/// The other processes of the tests below; by itself it does nothing.
#[test]
fn child_process() {
    let Ok(role) = std::env::var(CHILD) else { return };
    let path = PathBuf::from(std::env::var_os("SMC_LO_DIR").unwrap());
    let device = Device::open(Some(&path)).unwrap();
    match &*role {
        "crash" => {
            let entry = device.create_endpoint().unwrap();
            let port = device.publish_port(5000, entry.id()).unwrap();
            // Neither is dropped.
            std::process::exit(if port.id() == entry.id() { 42 } else { 1 });
        }
        "stranger" => {
            let id = device.endpoints_on_port(5001).unwrap().endpoints[0];
            drop(device.connect(id).unwrap());
            let own = device.create_endpoint().unwrap();
            let entry = device.publish_port(5001, own.id()).unwrap();
            assert_eq!(device.endpoints_on_port(5001).unwrap().endpoints.len(), 2);
            drop(entry);
            drop(own);
        }
        _ => {
            let gid = device.gid();
            for round in 0..60u16 {
                let device = Device::open(Some(&path)).unwrap();
                assert_eq!(device.gid(), gid);
                let entry = device.create_endpoint().unwrap();
                let port = device.publish_port(round % 3, entry.id()).unwrap();
                assert!(device.endpoints_on_port(round % 3).unwrap().endpoints.contains(&entry.id()));
                device.connect(entry.id()).unwrap();
                for other in device.endpoints_on_port(round % 3).unwrap().endpoints {
                    // Others come and go while we look.
                    let _ = device.connect(other);
                }
                device.connect(entry.id()).unwrap();
                drop(port);
            }
        }
    }
}

/// Waits for children, and ends those that hang.
fn finish(children: Vec<std::process::Child>) -> Vec<Option<i32>> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let wait = |mut child: std::process::Child| {
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                child.wait().unwrap();
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    children.into_iter().map(wait).collect()
}

#[test]
fn processes_race_for_everything() {
    let place = Place::new();
    let children: Vec<_> = (0..6).map(|_| spawn(child(&place, "race")).unwrap()).collect();
    assert_eq!(finish(children), vec![Some(0); 6]);
    assert_eq!(place.names(""), ["ep", "gid", "net", "port"]);
    assert!(place.names("ep").is_empty(), "{:?}", place.names("ep"));
    assert!(place.names("port").is_empty(), "{:?}", place.names("port"));
}

#[test]
fn crashed_processes_are_swept_while_others_live() {
    let place = Place::new();
    let device = place.open();
    let living = device.create_endpoint().unwrap();
    let _port = device.publish_port(5000, living.id()).unwrap();
    let children: Vec<_> = (0..4).map(|_| spawn(child(&place, "crash")).unwrap()).collect();
    assert_eq!(finish(children), vec![Some(42); 4]);
    assert!(
        device.endpoints_on_port(5000).unwrap().endpoints.len() >= 2,
        "the last one to die is still there"
    );
    device.tidy();
    assert_eq!(device.endpoints_on_port(5000).unwrap().endpoints, [living.id()]);
    assert_eq!(place.names("ep").len(), 2);
    device.connect(living.id()).unwrap();
}

#[test]
fn users_meet_in_a_shared_directory() {
    let place = Place::new();
    fs::set_permissions(place.dir.path(), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(&place.path).unwrap();
    fs::set_permissions(&place.path, Permissions::from_mode(0o1777)).unwrap();
    let device = place.open();
    let entry = device.create_endpoint().unwrap();
    let _port = device.publish_port(5001, entry.id()).unwrap();
    let room = place.path.join(format!("u{}", sys::effective_uid()));
    let socket = room.join(format!("ep/{}.sock", entry.id()));
    assert_eq!(fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o666);
    for part in ["", "ep", "net", "port", "port/5001"] {
        let mode = fs::metadata(room.join(part)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o755, "{part}");
    }
    // Being somebody else needs root, and that they may run the test at all.
    if sys::effective_uid() == 0 {
        let mut stranger = child(&place, "stranger");
        stranger.uid(4242).gid(4242);
        match spawn(stranger) {
            Ok(stranger) => assert_eq!(finish(vec![stranger]), [Some(0)]),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
        assert_eq!(device.endpoints_on_port(5001).unwrap().endpoints, [entry.id()]);
    }
}

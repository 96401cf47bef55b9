//! Connections across the walls of containers: what must be upgraded is, what must not never is,
//! and every byte is right either way.
//!
//! Each test runs this binary once more in network and mount namespaces of its own, so that nothing
//! of it is seen outside or outlives it. That takes root, and the programs `unshare`, `ip` and
//! `setpriv`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_smc::{SmcListener, SmcStream, Transport, UpgradePolicy};

/// Names the test whose body shall run here.
const BODY: &str = "SMC_TEST_NAMESPACE_BODY";
/// What an actor shall be.
const ROLE: &str = "SMC_TEST_NAMESPACE_ROLE";
/// What an actor says begins with this; libtest writes to the same pipe.
const MARK: char = '@';
const DEADLINE: Duration = Duration::from_secs(120);
/// An upgrade takes microseconds; a refusal, too.
const PATIENCE: Duration = Duration::from_secs(20);

const ROUNDS: usize = 40;
const CHUNK: usize = 5000;

/// Runs `body` in namespaces of its own.
fn isolated(name: &str, body: fn()) {
    if std::env::var(BODY).is_ok_and(|running| running == name) {
        sh("mount -t tmpfs none /run && ip link set lo up");
        return body();
    }
    if let Some(lacks) = lacking() {
        let words = format!(
            "{name}: not run, {lacks}. Run it as root with util-linux and iproute2 installed:\n    sudo -E cargo test \
             --test namespaces"
        );
        assert!(std::env::var_os("CI").is_none(), "{words}");
        let _ = writeln!(std::io::stderr(), "{words}");
        return;
    }
    let exe = std::env::current_exe().expect("the test binary");
    let mut inside = Command::new("unshare")
        .args(["--net", "--mount", "--fork", "--kill-child", "--"])
        .arg(exe)
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(BODY, name)
        .spawn()
        .expect("unshare");
    let started = Instant::now();
    loop {
        if let Some(status) = inside.try_wait().expect("wait") {
            assert!(status.success(), "{name} failed inside its namespaces: {status} (its panic is above)");
            return;
        }
        if started.elapsed() > DEADLINE {
            let _ = inside.kill();
            let _ = inside.wait();
            panic!("{name} hangs: no end after {DEADLINE:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What is missing to run these tests.
fn lacking() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root may make namespaces".to_owned());
    }
    let programs = [("unshare", "--version"), ("ip", "-V"), ("setpriv", "--version")];
    for (program, flag) in programs {
        let found = Command::new(program).arg(flag).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            return Some(format!("the program {program} is missing"));
        }
    }
    let allowed = Command::new("unshare").args(["--net", "--mount", "true"]).stderr(Stdio::null()).status();
    (!allowed.is_ok_and(|status| status.success())).then(|| "this root may not make namespaces".to_owned())
}

#[track_caller]
fn sh(script: &str) {
    let status = Command::new("sh").args(["-e", "-c", script]).status().expect("sh");
    assert!(status.success(), "{script}: {status}");
}

/// A network namespace with its loopback interface.
fn add_namespace(name: &str) {
    sh(&format!("ip netns add {name} && ip -n {name} link set lo up"));
}

/// A wire between two namespaces: name, namespace and address of either end.
fn join(wire: &str, [a, b]: [(&str, &str); 2]) {
    sh(&format!("ip link add {wire}a type veth peer name {wire}b"));
    for (end, (namespace, address)) in [("a", a), ("b", b)] {
        sh(&format!(
            "ip link set {wire}{end} netns {namespace} && ip -n {namespace} addr add {address} dev {wire}{end} && \
             ip -n {namespace} link set {wire}{end} up"
        ));
    }
}

/// Another process, in whatever namespaces the words before it put it.
struct Actor {
    process: Child,
    answers: BufReader<ChildStdout>,
}

impl Actor {
    fn start(before: &[&str], role: &str, device: &Path) -> Self {
        let exe = std::env::current_exe().expect("the test binary");
        let exe = exe.to_str().expect("a path in UTF-8");
        let words: Vec<&str> = before
            .iter()
            .copied()
            .chain([exe, "actor", "--exact", "--nocapture", "--test-threads=1"])
            .collect();
        let mut process = Command::new(words[0])
            .args(&words[1..])
            .env(ROLE, role)
            .env("SMC_LO_DIR", device)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("an actor");
        let answers = BufReader::new(process.stdout.take().expect("piped"));
        Actor { process, answers }
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let length = self.answers.read_line(&mut line).expect("an answer");
            assert_ne!(length, 0, "the actor ended without an answer (its panic is above)");
            if let Some((_, said)) = line.trim_end().split_once(MARK) {
                return said.to_owned();
            }
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn tell(answer: &str) {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{MARK}{answer}").expect("the director listens");
    stdout.flush().expect("the director listens");
}

fn describe(transport: Transport) -> String {
    let reason = transport.fallback_reason().map(|reason| reason.to_string());
    format!("{transport}|{}", reason.unwrap_or_default())
}

fn pattern(round: usize) -> Vec<u8> {
    (0..CHUNK).map(|place| (place * 7 + round * 31) as u8).collect()
}

/// Plays the part it was started for.
#[test]
fn actor() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words: Vec<&str> = role.split(' ').collect();
    let address = |word: &str| word.parse::<SocketAddr>().expect("an address");
    let runtime = || tokio::runtime::Runtime::new().expect("a runtime");
    match words[..] {
        ["server", at] => runtime().block_on(server(address(at))),
        ["client", to] => runtime().block_on(client(address(to))),
        ["client-that-requires", to] => runtime().block_on(client_that_requires(address(to))),
        ["plain-server", at] => plain_server(address(at)),
        ["front", at, relay] => front(address(at), Path::new(relay)),
        ["back", from, to, relay] => back(from, address(to), Path::new(relay)),
        _ => panic!("no such role: {role}"),
    }
}

/// Echoes one connection, then tells what it ran on.
async fn server(at: SocketAddr) {
    let listener = SmcListener::bind(at).await.expect("bind");
    tell(&listener.local_addr().expect("an address").to_string());
    loop {
        let (mut stream, _) = listener.accept().await.expect("accept");
        tokio::spawn(async move {
            let mut buffer = vec![0; 3000];
            loop {
                let length = stream.read(&mut buffer).await.expect("read");
                if length == 0 {
                    break;
                }
                stream.write_all(&buffer[..length]).await.expect("write");
            }
            tell(&describe(stream.transport()));
            stream.shutdown().await.expect("shutdown");
        });
    }
}

/// Has its bytes echoed before, during and after the attempt to upgrade, then tells what it ran on.
async fn client(to: SocketAddr) {
    let config = tokio_smc::Config::from_env().upgrade_policy(UpgradePolicy::Eager);
    let mut stream = SmcStream::connect_with(to, &config).await.expect("connect");
    tell("connected");
    for round in 0..ROUNDS {
        if round == ROUNDS / 2 {
            let decided = tokio::time::timeout(PATIENCE, stream.upgrade()).await;
            assert!(decided.is_ok(), "neither upgraded nor refused: {:?}", stream.transport());
        }
        let sent = pattern(round);
        stream.write_all(&sent).await.expect("write");
        let mut got = vec![0; CHUNK];
        stream.read_exact(&mut got).await.expect("read");
        assert!(got == sent, "other bytes in round {round}");
    }
    tell(&describe(stream.transport()));
    stream.shutdown().await.expect("shutdown");
    assert_eq!(stream.read(&mut [0; 10]).await.expect("read"), 0, "a clean end");
}

/// Tells why it gets no stream without an upgrade.
async fn client_that_requires(to: SocketAddr) {
    let config = tokio_smc::Config::from_env().upgrade_policy(UpgradePolicy::Require);
    match SmcStream::connect_with(to, &config).await {
        Ok(stream) => tell(&describe(stream.transport())),
        Err(error) => tell(&format!("error|{error}")),
    }
}

/// Echoes without this crate; any foreign byte is echoed as well and fails the client.
fn plain_server(at: SocketAddr) {
    let listener = TcpListener::bind(at).expect("bind");
    tell("listening");
    loop {
        let (stream, _) = listener.accept().expect("accept");
        std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
    }
}

/// The side of a proxy that clients connect to.
fn front(at: SocketAddr, relay: &Path) {
    let listener = TcpListener::bind(at).expect("bind");
    tell("listening");
    loop {
        let (tcp, client) = listener.accept().expect("accept");
        let mut unix = UnixStream::connect(relay).expect("the back");
        unix.write_all(&client.port().to_be_bytes()).expect("the client's port");
        splice(tcp, unix);
    }
}

/// The side of a proxy that connects on, from the client's very address and port.
fn back(from: &str, to: SocketAddr, relay: &Path) {
    let listener = UnixListener::bind(relay).expect("bind");
    tell("listening");
    loop {
        let (mut unix, _) = listener.accept().expect("accept");
        let mut port = [0; 2];
        unix.read_exact(&mut port).expect("the client's port");
        let from = SocketAddr::new(from.parse().expect("an address"), u16::from_be_bytes(port));
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.bind(&from.into()).expect("the client's address");
        socket.connect(&to.into()).expect("the server");
        splice(socket.into(), unix);
    }
}

fn splice(tcp: TcpStream, unix: UnixStream) {
    let (tcp2, unix2) = (tcp.try_clone().expect("clone"), unix.try_clone().expect("clone"));
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut &tcp, &mut &unix);
        let _ = unix.shutdown(std::net::Shutdown::Write);
    });
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut &unix2, &mut &tcp2);
        let _ = tcp2.shutdown(std::net::Shutdown::Write);
    });
}

/// A client and a server that are both done; what they ran on.
fn play(server_before: &[&str], client_before: &[&str], at: &str, device: &Path) -> [String; 2] {
    let mut server = Actor::start(server_before, &format!("server {at}"), device);
    let address = server.hear();
    let mut client = Actor::start(client_before, &format!("client {address}"), device);
    assert_eq!(client.hear(), "connected");
    [client.hear(), server.hear()]
}

#[track_caller]
fn stayed_on_tcp(said: &str, words: &[&str]) {
    let (transport, reason) = said.split_once('|').expect("transport and reason");
    assert_eq!(transport, "tcp");
    assert!(
        words.iter().any(|words| reason.contains(words)),
        "the reason was {reason:?}, not one of {words:?}"
    );
}

/// What a client says whose connection leads to nobody of its device.
const NOBODY: &[&str] = &["on another host, or behind a proxy"];
/// What a server says of a stream that nobody could prove to hold the other end of.
const UNTOUCHED: &[&str] = &["no upgrade was asked for yet", "could not be proved"];

#[test]
fn other_network_namespaces_are_upgraded() {
    isolated("other_network_namespaces_are_upgraded", || {
        let lab = tempfile::tempdir().expect("a device directory");
        add_namespace("left");
        add_namespace("right");
        join("w", [("left", "10.77.1.1/24"), ("right", "10.77.1.2/24")]);
        let said = play(
            &["ip", "netns", "exec", "right"],
            &["ip", "netns", "exec", "left"],
            "10.77.1.2:0",
            lab.path(),
        );
        assert_eq!(said, ["loopback-ism|", "loopback-ism|"]);
    });
}

/// A Service address: the server sees another one than the client has dialled.
#[test]
fn translated_destinations_are_found() {
    isolated("translated_destinations_are_found", || {
        let lab = tempfile::tempdir().expect("a device directory");
        add_namespace("left");
        add_namespace("right");
        join("w", [("left", "10.77.1.1/24"), ("right", "10.77.1.2/24")]);
        sh("ip -n left route add 10.96.0.10/32 via 10.77.1.2 && ip netns exec left nft -f - <<'END'
table ip nat {
    chain output {
        type nat hook output priority -100;
        ip daddr 10.96.0.10 tcp dport 80 dnat to 10.77.1.2:8080
    }
}
END");
        let mut server = Actor::start(&["ip", "netns", "exec", "right"], "server 10.77.1.2:8080", lab.path());
        server.hear();
        let mut client = Actor::start(&["ip", "netns", "exec", "left"], "client 10.96.0.10:80", lab.path());
        assert_eq!(client.hear(), "connected");
        assert_eq!([client.hear(), server.hear()], ["loopback-ism|", "loopback-ism|"]);
    });
}

#[test]
fn hazard_h5_a_proxy_that_keeps_the_source_is_never_bypassed() {
    isolated("hazard_h5_a_proxy_that_keeps_the_source_is_never_bypassed", || {
        let lab = tempfile::tempdir().expect("a device directory");
        for namespace in ["near", "front", "back", "far"] {
            add_namespace(namespace);
        }
        // The proxy has the server's address on one side and the client's on the other.
        join("n", [("near", "10.77.1.2/16"), ("front", "10.77.2.2/16")]);
        join("f", [("back", "10.77.1.2/16"), ("far", "10.77.2.2/16")]);
        let relay = tempfile::tempdir().expect("a temp dir");
        let relay = relay.path().join("relay");
        let relay = relay.to_str().expect("UTF-8");
        let mut server = Actor::start(&["ip", "netns", "exec", "far"], "server 10.77.2.2:8080", lab.path());
        server.hear();
        let role = format!("back 10.77.1.2 10.77.2.2:8080 {relay}");
        let mut back = Actor::start(&["ip", "netns", "exec", "back"], &role, lab.path());
        back.hear();
        let role = format!("front 10.77.2.2:8080 {relay}");
        let mut front = Actor::start(&["ip", "netns", "exec", "front"], &role, lab.path());
        front.hear();
        let mut client = Actor::start(&["ip", "netns", "exec", "near"], "client 10.77.2.2:8080", lab.path());
        assert_eq!(client.hear(), "connected");
        stayed_on_tcp(&client.hear(), NOBODY);
        stayed_on_tcp(&server.hear(), UNTOUCHED);
    });
}

#[test]
fn hazard_h6_addresses_that_exist_twice_never_meet() {
    isolated("hazard_h6_addresses_that_exist_twice_never_meet", || {
        let lab = tempfile::tempdir().expect("a device directory");
        // Two networks with the same addresses; in the first one the server does not know this
        // crate.
        for network in ["1", "2"] {
            let (client, server) = (format!("c{network}"), format!("s{network}"));
            add_namespace(&client);
            add_namespace(&server);
            join(&format!("w{network}"), [(&client, "172.30.0.2/24"), (&server, "172.30.0.3/24")]);
            // One port only: both connections get the same addresses at both ends.
            let range = "echo 41000 41000 > /proc/sys/net/ipv4/ip_local_port_range";
            sh(&format!("ip netns exec {client} sh -c '{range}'"));
        }
        let mut foreign =
            Actor::start(&["ip", "netns", "exec", "s1"], "plain-server 172.30.0.3:8080", lab.path());
        foreign.hear();
        let mut server = Actor::start(&["ip", "netns", "exec", "s2"], "server 172.30.0.3:8080", lab.path());
        server.hear();
        let [mut right, mut other] = ["c2", "c1"]
            .map(|at| Actor::start(&["ip", "netns", "exec", at], "client 172.30.0.3:8080", lab.path()));
        for client in [&mut right, &mut other] {
            assert_eq!(client.hear(), "connected");
        }
        assert_eq!(right.hear(), "loopback-ism|");
        stayed_on_tcp(&other.hear(), NOBODY);
    });
}

#[test]
fn other_mount_and_pid_namespaces_are_upgraded() {
    isolated("other_mount_and_pid_namespaces_are_upgraded", || {
        let lab = tempfile::tempdir().expect("a device directory");
        let walls: [&[&str]; 4] = [
            &["unshare", "--mount", "--fork", "--kill-child"],
            &["unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"],
            &["unshare", "--ipc", "--uts", "--fork", "--kill-child"],
            &["env"],
        ];
        for (server, client) in
            walls.iter().flat_map(|server| walls.iter().map(move |client| (server, client)))
        {
            let said = play(server, client, "127.0.0.1:0", lab.path());
            assert_eq!(said, ["loopback-ism|", "loopback-ism|"], "{server:?} and {client:?}");
        }
    });
}

/// Users that are nobody's.
fn user(id: &str) -> [String; 4] {
    ["setpriv".to_owned(), format!("--reuid={id}"), format!("--regid={id}"), "--clear-groups".to_owned()]
}

#[test]
fn other_users_stay_on_tcp_and_say_why() {
    isolated("other_users_stay_on_tcp_and_say_why", || {
        // A directory that all users may use, as of a shared volume.
        let shared = tempfile::tempdir().expect("a device directory");
        fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o1777)).expect("chmod");
        let users = [user("64001"), user("64002")];
        let [one, other] = users.each_ref().map(|words| words.each_ref().map(String::as_str));
        let root: &[&str] = &["env"];
        for (server, client) in [(root, &one[..]), (&one[..], root), (&one[..], &other[..])] {
            let [client_said, server_said] = play(server, client, "127.0.0.1:0", shared.path());
            let words = &["the peer policy does not admit", "the peer declined", "no upgrade was asked for"];
            stayed_on_tcp(&server_said, words);
            stayed_on_tcp(&client_said, &words[..2]);
        }
        // Two servers on that port, which are both asked for the stream.
        let mut server = Actor::start(root, "server 127.0.0.1:0", shared.path());
        let address = server.hear();
        let second = address.replace("127.0.0.1", "127.0.0.2");
        let mut second = Actor::start(root, &format!("server {second}"), shared.path());
        second.hear();
        let mut client = Actor::start(&one, &format!("client {address}"), shared.path());
        assert_eq!(client.hear(), "connected");
        stayed_on_tcp(&client.hear(), &["the peer policy does not admit"]);
        // A user is at home with itself.
        let said = play(&one, &one, "127.0.0.1:0", shared.path());
        assert_eq!(said, ["loopback-ism|", "loopback-ism|"]);
        // A directory of root's alone is none for others.
        let private = tempfile::tempdir().expect("a device directory");
        let [client_said, _] = play(root, &one, "127.0.0.1:0", private.path());
        stayed_on_tcp(&client_said, &["the device directory can not be used"]);
    });
}

#[test]
fn hazard_m2_users_without_a_name_are_never_the_same() {
    isolated("hazard_m2_users_without_a_name_are_never_the_same", || {
        let shared = tempfile::tempdir().expect("a device directory");
        fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o1777)).expect("chmod");
        let nobody = user("65534");
        let nobody = nobody.each_ref().map(String::as_str);
        // In a user namespace without a map everybody looks like the overflow user.
        let unmapped: &[&str] = &["unshare", "--user", "--fork", "--kill-child"];
        for (server, client) in [(&nobody[..], unmapped), (unmapped, &nobody[..]), (&nobody[..], &nobody[..])]
        {
            let said = play(server, client, "127.0.0.1:0", shared.path());
            for said in said {
                assert!(said.starts_with("tcp|"), "{server:?} and {client:?}: {said}");
            }
        }
    });
}

/// A process of that user, with that group and others, which admits those peers.
fn of(user: &str, groups: &str, peers: &str) -> Vec<String> {
    let (group, others) = groups.split_once('+').unwrap_or((groups, ""));
    let others = if others.is_empty() { "--clear-groups".to_owned() } else { format!("--groups={others}") };
    let words = ["setpriv", &format!("--reuid={user}"), &format!("--regid={group}"), &others, "env"];
    words.into_iter().map(str::to_owned).chain([format!("SMC_LO_PEERS={peers}")]).collect()
}

fn words(of: &[String]) -> Vec<&str> {
    of.iter().map(String::as_str).collect()
}

#[test]
fn users_are_upgraded_with_those_who_admit_them_and_whom_they_admit() {
    isolated("users_are_upgraded_with_those_who_admit_them_and_whom_they_admit", || {
        let shared = tempfile::tempdir().expect("a device directory");
        fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o1777)).expect("chmod");
        // Server and client: user, groups, whom it admits.
        let meetings = [
            (("64001", "64001", "any"), ("64002", "64002", "any")),
            (("64001", "64001", "uid:64002"), ("64002", "64002", "uid:64001")),
            (("64001", "64001", "uid:64001,64002"), ("64002", "64002", "uid:64001,64002")),
            (("64001", "64100", "gid:64100"), ("64002", "64002+64009,64100", "gid:64100")),
            (("64001", "64001+64100", "gid:64100"), ("64002", "64100", "any")),
            (("0", "0", "any"), ("64002", "64002", "same")),
            (("0", "0", "uid:64002"), ("64002", "64002", "root")),
            (("64001", "64001", "root"), ("0", "0", "gid:64001")),
        ];
        for (server, client) in meetings {
            let [one, other] = [server, client].map(|(user, groups, peers)| of(user, groups, peers));
            let said = play(&words(&one), &words(&other), "127.0.0.1:0", shared.path());
            assert_eq!(said, ["loopback-ism|", "loopback-ism|"], "{server:?} and {client:?}");
        }
        // One end alone does not make it, and nobody knows who nobody is.
        let strangers = [
            (("64001", "64001", "any"), ("64002", "64002", "same")),
            (("64001", "64001", "same"), ("64002", "64002", "any")),
            (("64001", "64001", "uid:64003"), ("64002", "64002", "any")),
            (("64001", "64001", "any"), ("64002", "64002", "uid:64002,64003")),
            (("64001", "64100", "gid:64100"), ("64002", "64002+64009", "gid:64100")),
            (("0", "0", "same"), ("64002", "64002", "any")),
            (("65534", "64001", "any"), ("64002", "64002", "any")),
            (("64001", "64001", "any"), ("65534", "64002", "any")),
            (("64001", "64001", "uid:64002"), ("64001", "64001", "uid:64002")),
            // A word that is not understood counts as none.
            (("64001", "64001", "everybody"), ("64002", "64002", "any")),
        ];
        for (server, client) in strangers {
            let [one, other] = [server, client].map(|(user, groups, peers)| of(user, groups, peers));
            let [client_said, server_said] = play(&words(&one), &words(&other), "127.0.0.1:0", shared.path());
            let reasons = [
                "the peer policy does not admit",
                "the peer declined",
                // A user without a name has no room that could be trusted.
                "the device directory can not be used",
                "the peer does not speak SMC on this host",
                "no upgrade was asked for",
            ];
            stayed_on_tcp(&server_said, &reasons);
            let named = ![server.0, client.0].contains(&"65534");
            stayed_on_tcp(&client_said, if named { &reasons[..2] } else { &reasons[..4] });
        }
        // The number that proves it is seen in the first write: who wants it before says so.
        let [one, other] = [of("64001", "64001", "any"), of("64002", "64002", "any")];
        let mut server = Actor::start(&words(&one), "server 127.0.0.1:0", shared.path());
        let role = format!("client-that-requires {}", server.hear());
        let mut client = Actor::start(&words(&other), &role, shared.path());
        let said = client.hear();
        assert!(said.starts_with("error|") && said.contains("the next write goes on"), "{said}");
    });
}

#[test]
fn a_group_meets_in_a_directory_of_its_own() {
    isolated("a_group_meets_in_a_directory_of_its_own", || {
        let shared = tempfile::tempdir().expect("a device directory");
        std::os::unix::fs::chown(shared.path(), Some(0), Some(64100)).expect("chown");
        fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o3770)).expect("chmod");
        let one = of("64001", "64001+64100", "gid:64100");
        let other = of("64002", "64100", "gid:64100");
        let said = play(&words(&one), &words(&other), "127.0.0.1:0", shared.path());
        assert_eq!(said, ["loopback-ism|", "loopback-ism|"]);
        let outside = of("64003", "64003", "any");
        let [client, _] = play(&words(&one), &words(&outside), "127.0.0.1:0", shared.path());
        stayed_on_tcp(&client, &["the device directory can not be used"]);
    });
}

#[test]
fn a_room_that_is_mounted_is_not_visited() {
    isolated("a_room_that_is_mounted_is_not_visited", || {
        let shared = tempfile::tempdir().expect("a device directory");
        fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o1777)).expect("chmod");
        let room = shared.path().join("u64001");
        fs::create_dir(&room).expect("a room");
        sh(&format!("mount -t tmpfs -o mode=755,uid=64001,gid=64001 none {}", room.display()));
        let [one, other] = [of("64001", "64001", "any"), of("64002", "64002", "any")];
        let [client, _] = play(&words(&one), &words(&other), "127.0.0.1:0", shared.path());
        stayed_on_tcp(&client, &["the peer does not speak SMC on this host"]);
        // Its owner is at home there.
        let said = play(&words(&one), &words(&one), "127.0.0.1:0", shared.path());
        assert!(said.iter().all(|said| said.starts_with("loopback-ism")), "{said:?}");
    });
}

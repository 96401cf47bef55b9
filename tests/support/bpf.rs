//! The little of bpf(2) that a sockmap needs: maps of sockets, and programs of a few instructions
//! written by hand.
#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper")]
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::c_long;

const MAP_CREATE: c_long = 0;
const MAP_UPDATE_ELEM: c_long = 2;
const PROG_LOAD: c_long = 5;
const PROG_ATTACH: c_long = 8;
const SOCKHASH: u32 = 18;

/// What a program is, and where in a map it is attached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// A filter of one socket (`SO_ATTACH_BPF`).
    Socket,
    /// Sees what is sent.
    Message,
    /// Sees what is received.
    Verdict,
}

impl Kind {
    fn program_type(self) -> u32 {
        match self {
            Self::Socket => 1,
            Self::Message => 16,
            Self::Verdict => 14,
        }
    }

    fn attach_type(self) -> u32 {
        match self {
            Self::Socket => 0,
            Self::Message => 7,
            Self::Verdict => 38,
        }
    }
}

/// One bpf(2) with the attributes of `attributes`.
fn bpf<const N: usize>(command: c_long, attributes: &[u64; N]) -> io::Result<i32> {
    // SAFETY: the kernel reads `attributes`, whose size is given, and the memory that its pointers
    // name, which the callers keep alive.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as i32) }
}

fn made(fd: i32) -> OwnedFd {
    // SAFETY: bpf(2) has just made it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Two 32-bit fields next to each other.
fn pair(first: u32, second: u32) -> u64 {
    let (first, second) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([first[0], first[1], first[2], first[3], second[0], second[1], second[2], second[3]])
}

/// A socket's key: its local port and its remote port.
type Key = [u32; 2];

/// Sockets by their two ports.
#[derive(Debug)]
pub(crate) struct SockHash(OwnedFd);

impl SockHash {
    pub(crate) fn new(entries: u32) -> io::Result<Self> {
        // map_type, key_size, value_size, max_entries
        let fd = bpf(MAP_CREATE, &[pair(SOCKHASH, 8), pair(4, entries), 0, 0, 0, 0, 0, 0])?;
        Ok(SockHash(made(fd)))
    }

    pub(crate) fn insert(&self, key: Key, socket: RawFd) -> io::Result<()> {
        let value = socket as u32;
        let (key, value) = (&raw const key as u64, &raw const value as u64);
        bpf(MAP_UPDATE_ELEM, &[pair(self.0.as_raw_fd() as u32, 0), key, value, 0]).map(drop)
    }

    pub(crate) fn attach(&self, kind: Kind, program: &OwnedFd) -> io::Result<()> {
        // target_fd, attach_bpf_fd, attach_type, flags
        let fds = pair(self.0.as_raw_fd() as u32, program.as_raw_fd() as u32);
        bpf(PROG_ATTACH, &[fds, pair(kind.attach_type(), 0)]).map(drop)
    }

    /// Sends what is written to a socket straight into the receive queue of the other end, if that
    /// is in the map: what Cilium and others do on one host.
    pub(crate) fn redirect(&self) -> io::Result<OwnedFd> {
        let map = self.0.as_raw_fd();
        load(
            Kind::Message,
            &[
                op(0x61, 2, 1, 60, 0), // r2 = msg->remote_port, big-endian in 32 bits
                op(0xdc, 2, 0, 0, 32), // r2 = be32(r2)
                op(0x61, 3, 1, 64, 0), // r3 = msg->local_port
                op(0x63, 10, 2, -8, 0),
                op(0x63, 10, 3, -4, 0), // key = {r2, r3}: this socket as the other end sees it
                op(0x18, 2, 1, 0, map), // r2 = map
                op(0, 0, 0, 0, 0),
                op(0xbf, 3, 10, 0, 0),
                op(0x07, 3, 0, 0, -8), // r3 = &key
                op(0xb7, 4, 0, 0, 1),  // r4 = BPF_F_INGRESS
                op(0x85, 0, 0, 0, 71), // bpf_msg_redirect_hash
                op(0xb7, 0, 0, 0, 1),  // SK_PASS, redirected or not
                op(0x95, 0, 0, 0, 0),
            ],
        )
    }
}

/// Passes on everything that is received.
pub(crate) fn pass() -> io::Result<OwnedFd> {
    load(Kind::Verdict, &[op(0xb7, 0, 0, 0, 1), op(0x95, 0, 0, 0, 0)])
}

/// Lets all of what a socket receives pass.
pub(crate) fn socket_filter() -> io::Result<OwnedFd> {
    load(Kind::Socket, &[op(0xb7, 0, 0, 0, -1), op(0x95, 0, 0, 0, 0)])
}

/// One instruction: code, destination, source, offset, immediate value.
fn op(code: u8, destination: u8, source: u8, offset: i16, value: i32) -> [u8; 8] {
    let (offset, value) = (offset.to_ne_bytes(), value.to_ne_bytes());
    let registers =
        if cfg!(target_endian = "little") { source << 4 | destination } else { destination << 4 | source };
    [code, registers, offset[0], offset[1], value[0], value[1], value[2], value[3]]
}

fn load(kind: Kind, program: &[[u8; 8]]) -> io::Result<OwnedFd> {
    let license = c"MIT";
    // prog_type, insn_cnt, insns, license, and what the verifier has to say: nothing
    let fd = bpf(
        PROG_LOAD,
        &[
            pair(kind.program_type(), program.len() as u32),
            program.as_ptr() as u64,
            license.as_ptr() as u64,
            0,
            0,
            0,
            0,
            0,
            pair(0, kind.attach_type()),
        ],
    )?;
    Ok(made(fd))
}

/// One setsockopt(2).
pub(crate) fn set_option(socket: RawFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let size = value.len() as libc::socklen_t;
    // SAFETY: the pointer and the size describe `value`, and the memory that its pointers name is
    // kept by the callers.
    let status = unsafe { libc::setsockopt(socket, level, name, value.as_ptr().cast(), size) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A filter in the old language, as `SO_ATTACH_FILTER` takes it, that lets everything pass; sets
/// it.
pub(crate) fn set_filter(socket: RawFd, name: i32) -> io::Result<()> {
    // One instruction: return the largest length.
    let program = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: u32::MAX };
    let program = libc::sock_fprog { len: 1, filter: (&raw const program).cast_mut() };
    let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the pointer is to a program, whose size is given, and whose instruction lives as long
    // as the call.
    let status =
        unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, name, (&raw const program).cast(), size) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts a socket under repair (`TCP_REPAIR`), or takes it out.
pub(crate) fn repair(socket: RawFd, on: bool) -> io::Result<()> {
    // Off without the probe of the window, which the other end would answer.
    let value: i32 = if on { 1 } else { -1 };
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &value.to_ne_bytes())
}

//! Questions to the sidecar: one connection per process, one question at a time.
//!
//! A question returns when it is answered; `Retry` is obeyed here, so the caller sees final answers only. Postgres
//! panics on an error inside a critical section, so a tier that is away means waiting, with a line in the log every
//! ten seconds. A connection that breaks means the sidecar is gone, hence the end of this process.

use core::ffi::CStr;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use lakebed_shim_abi::frame::{HEADER_BYTES, Header, MAX_BODY_BYTES};
use lakebed_shim_abi::message::{Answer, Outcome, Question};
use lakebed_shim_abi::region::SlotRef;
use lakebed_shim_abi::{MAGIC, VERSION};
use libc::{c_int, c_void};

use crate::{death, errno, log, real};

/// How often a wait looks whether the sidecar still lives.
const CHECK_MS: i64 = 200;
/// How often a long wait is logged.
const COMPLAIN_MS: i64 = 10_000;

static FD: AtomicI32 = AtomicI32::new(-1);
/// Who made the connection.
static OWNER: AtomicU32 = AtomicU32::new(0);
static NUMBER: AtomicU64 = AtomicU64::new(0);
static mut ADDRESS: libc::sockaddr_un = libc::sockaddr_un {
    sun_family: libc::AF_UNIX as libc::sa_family_t,
    sun_path: [0; 108],
};

/// A final answer, without borrowed text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Done,
    Opened(Outcome, SlotRef),
    Removed { existed: bool },
    Refused,
}

/// In the constructor. False if too long.
pub(crate) fn set_path(path: &CStr) -> bool {
    let bytes = path.to_bytes();
    let address = &raw mut ADDRESS;
    // SAFETY: the process has one thread and no connection yet.
    let address = unsafe { &mut *address };
    if bytes.len() >= address.sun_path.len() {
        return false;
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    true
}

/// After a fork: the connection is the parent's.
pub(crate) fn forget() {
    let fd = FD.swap(-1, Ordering::Relaxed);
    if fd >= 0 {
        // SAFETY: our own copy of the descriptor.
        unsafe { real::close()(fd) };
    }
}

/// Asks and waits for the final answer.
pub(crate) fn ask(question: &Question<'_>) -> Reply {
    let _kept = errno::Kept::now();
    loop {
        match ask_once(question) {
            Ok(reply) => return reply,
            Err(after_ms) => {
                death::check();
                sleep_ms(after_ms.clamp(1, 1000));
            }
        }
    }
}

/// Sends a question that has no answer, unless the sidecar is behind: then it is dropped.
pub(crate) fn tell(question: &Question<'_>) {
    let _kept = errno::Kept::now();
    let frame = question.encode(0);
    let fd = connection();
    // A short frame is sent whole or not at all, for the kernel puts it into one buffer.
    // SAFETY: the frame's bytes.
    unsafe {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        libc::send(fd, frame.bytes().as_ptr().cast(), frame.bytes().len(), flags);
    }
}

/// Whether the sidecar has closed the connection (made now if there was none).
pub(crate) fn is_closed() -> bool {
    let fd = connection();
    let mut byte = 0u8;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: one byte of room.
    unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, flags) == 0 }
}

fn ask_once(question: &Question<'_>) -> Result<Reply, u32> {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed) + 1;
    let fd = connection();
    send_all(fd, question.encode(number).bytes());
    let mut header = [0; HEADER_BYTES];
    receive(fd, &mut header);
    let header = match Header::decode(&header) {
        Ok(header) if header.number == number => header,
        _ => death::end(format_args!("the sidecar sent a frame that is no answer")),
    };
    let mut body = [0; MAX_BODY_BYTES];
    let body = &mut body[..header.body_bytes];
    receive(fd, body);
    match Answer::decode(header.kind, body) {
        Ok(Answer::Done) => Ok(Reply::Done),
        Ok(Answer::Opened { outcome, of }) => Ok(Reply::Opened(outcome, of)),
        Ok(Answer::Removed { existed }) => Ok(Reply::Removed { existed }),
        Ok(Answer::Retry { after_ms }) => Err(after_ms),
        Ok(Answer::Refused { text }) => {
            log::line(format_args!(
                "the sidecar refused {question:?}: {}",
                log::Text(text)
            ));
            Ok(Reply::Refused)
        }
        Err(_) => death::end(format_args!("the sidecar sent an answer that cannot be read")),
    }
}

fn connection() -> c_int {
    let fd = FD.load(Ordering::Relaxed);
    if fd >= 0 && OWNER.load(Ordering::Relaxed) == death::pid() {
        return fd;
    }
    forget();
    let fd = connect();
    OWNER.store(death::pid(), Ordering::Relaxed);
    FD.store(fd, Ordering::Relaxed);
    let hello = Question::Hello {
        magic: MAGIC,
        version: VERSION,
        pid: death::pid(),
    };
    send_all(fd, hello.encode(0).bytes());
    fd
}

fn connect() -> c_int {
    // SAFETY: a socket of our own, an address that was written before, a timeout on the stack.
    unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            death::end(format_args!("no socket: errno {}", errno::get()));
        }
        // With a timeout every wait comes back now and then to see whether the sidecar lives.
        let timeout = libc::timeval {
            tv_sec: 0,
            tv_usec: CHECK_MS * 1000,
        };
        let size = size_of::<libc::timeval>() as libc::socklen_t;
        for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
            libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const timeout).cast(), size);
        }
        let address = (&raw const ADDRESS).cast();
        let size = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        while libc::connect(fd, address, size) != 0 {
            match errno::get() {
                // The sidecar's queue of connections is full, or a signal came.
                libc::EAGAIN | libc::EINTR => sleep_ms(1),
                error => death::end(format_args!("cannot reach the sidecar: errno {error}")),
            }
        }
        fd
    }
}

fn send_all(fd: c_int, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the slice.
        let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        match sent {
            1.. => bytes = &bytes[sent as usize..],
            _ => interrupted_or_end(),
        }
    }
}

fn receive(fd: c_int, mut room: &mut [u8]) {
    let begin = now_us();
    let mut complained_ms = 0;
    while !room.is_empty() {
        // SAFETY: the slice.
        let got = unsafe { libc::recv(fd, room.as_mut_ptr().cast::<c_void>(), room.len(), 0) };
        match got {
            1.. => room = &mut room[got as usize..],
            0 => death::end(format_args!("the sidecar is gone")),
            _ => {
                interrupted_or_end();
                let waited_ms = (now_us() - begin) as i64 / 1000;
                if waited_ms >= complained_ms + COMPLAIN_MS {
                    complained_ms = waited_ms;
                    log::line(format_args!("waiting for the sidecar since {waited_ms} ms"));
                }
            }
        }
    }
}

/// After a failed send or receive.
fn interrupted_or_end() {
    match errno::get() {
        libc::EINTR => {}
        libc::EAGAIN => death::check(),
        error => death::end(format_args!("lost the sidecar: errno {error}")),
    }
}

/// Microseconds of the monotonic clock.
pub(crate) fn now_us() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid structure.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// Sleeps, or less if a signal comes.
pub(crate) fn sleep_ms(ms: u32) {
    let time = libc::timespec {
        tv_sec: i64::from(ms / 1000),
        tv_nsec: i64::from(ms % 1000) * 1_000_000,
    };
    // SAFETY: a valid structure.
    unsafe { libc::nanosleep(&raw const time, core::ptr::null_mut()) };
}

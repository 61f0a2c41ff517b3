//! A Postgres that has lost its sidecar, or whose timeline belongs to another, must stop and acknowledge nothing.
//!
//! * The postmaster is told by the kernel when the sidecar dies (SIGQUIT), each of its children when the postmaster
//!   dies (SIGKILL). The sidecar sets the first before `exec`, and so does the constructor, for the time after it.
//! * Every wait of the shim has a timeout and then calls [`check`].
//! * [`end`] stops the process and the postmaster. It leaves with status 2, which the postmaster takes for a crash,
//!   so everything stops even when its own signal got lost; restarting after a crash must be off.

use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use lakebed_shim_abi::region::{Life, Region};
use libc::c_int;

use crate::{log, socket, start};

static POSTMASTER: AtomicI32 = AtomicI32::new(0);
/// This process, known without a system call: it marks blocks as busy.
static SELF: AtomicU32 = AtomicU32::new(0);

/// This process's id.
pub(crate) fn pid() -> u32 {
    SELF.load(Ordering::Relaxed)
}

/// Whether this process is the postmaster.
pub(crate) fn is_postmaster() -> bool {
    pid() as c_int == POSTMASTER.load(Ordering::Relaxed)
}

/// In the constructor: this process is the postmaster.
pub(crate) fn tie_to_sidecar(region: &Region) {
    // SAFETY: plain system calls, and a handler that only makes such.
    unsafe {
        let pid = libc::getpid();
        POSTMASTER.store(pid, Ordering::Relaxed);
        SELF.store(pid as u32, Ordering::Relaxed);
        // Under a wrapper (a debugger) the parent is another: then the signal would come from its end.
        if libc::getppid() as u32 == region.control().sidecar_pid.load(Ordering::Relaxed) {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT);
        }
        libc::pthread_atfork(None, None, Some(after_fork));
    }
}

unsafe extern "C" fn after_fork() {
    let parent = SELF.load(Ordering::Relaxed);
    // SAFETY: plain system calls.
    unsafe {
        SELF.store(libc::getpid() as u32, Ordering::Relaxed);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // Died between the fork and the line above: no signal will come.
        if libc::getppid() as u32 != parent {
            libc::_exit(2);
        }
    }
    socket::forget();
}

/// Returns if Postgres may go on, else ends it. Asks the kernel, not only the region: a sidecar that was killed could
/// write nothing.
pub(crate) fn check() {
    let Some(region) = start::region() else {
        return;
    };
    match region.life() {
        Life::Serving => {}
        Life::Fenced => end(format_args!("another compute has this timeline")),
        Life::Stopped => end(format_args!("the sidecar has stopped")),
    }
    if !process_lives(region.control().sidecar_pid.load(Ordering::Relaxed)) || socket::is_closed() {
        end(format_args!("the sidecar is gone"));
    }
}

/// Whether there is such a process; a zombie counts as one.
pub(crate) fn process_lives(pid: u32) -> bool {
    let _kept = crate::errno::Kept::now();
    // SAFETY: signal 0 only asks.
    let asked = unsafe { libc::kill(pid as c_int, 0) };
    asked == 0 || crate::errno::get() != libc::ESRCH
}

/// Stops this process and the postmaster, without returning to what was waited for.
pub(crate) fn end(why: core::fmt::Arguments<'_>) -> ! {
    log::line(format_args!("{why}; stopping"));
    let postmaster = POSTMASTER.load(Ordering::Relaxed);
    // SAFETY: a signal to our own postmaster; `_exit` runs no handlers of Postgres.
    unsafe {
        if !is_postmaster() && postmaster > 0 {
            libc::kill(postmaster, libc::SIGQUIT);
        }
        libc::_exit(2)
    }
}

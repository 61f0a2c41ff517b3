//! The caller's `errno`. The shim makes system calls of its own inside a call that succeeds, and Postgres looks at
//! `errno` also after successes (it sets 0 before and reads it after a short write).

use libc::c_int;

/// The value now.
pub(crate) fn get() -> c_int {
    // SAFETY: libc returns a valid pointer to this thread's value.
    unsafe { *libc::__errno_location() }
}

/// Sets it.
pub(crate) fn set(value: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

/// Sets it and returns what a failed call returns.
pub(crate) fn fail(value: c_int) -> c_int {
    set(value);
    -1
}

/// Puts the value of its creation back at the end of its scope.
pub(crate) struct Kept(c_int);

impl Kept {
    pub(crate) fn now() -> Kept {
        Kept(get())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        set(self.0);
    }
}

//! The state of one block of a local file, in one atomic 64-bit word.
//!
//! | bits | holds |
//! |---|---|
//! | 0–1 | [`State`] |
//! | 2–31 | version, raised with every change of state |
//! | 32–63 | the epoch of the last local write; while BUSY or EVICTING the pid of the owner |
//!
//! PRESENT is 0 on purpose: the arena is a sparse file, so a block that nobody has told anything about, such as one
//! that Postgres has just extended a relation by, is local and valid.
//!
//! * **Reader**: load each word. PRESENT: remember it. ABSENT: exchange for BUSY, have the sidecar fill it, store
//!   PRESENT with the *old epoch* (a fill is no write). BUSY, EVICTING: wait. Read the file. Then, after a full
//!   fence, load every word again; if one changed, the file may have had a hole meanwhile: do it all again.
//! * **Writer**: ascending, exchange PRESENT or ABSENT for BUSY (a partial write of an ABSENT block fills first),
//!   write, store PRESENT with the epoch read *after* the write.
//! * **Evictor** (sidecar): from PRESENT with an epoch that is safe, exchange *exactly that word* for EVICTING, which
//!   proves that nothing was written since it looked; punch the hole; store ABSENT.
//! * **Prefetcher** (sidecar): as a reader, with its own pid.

/// Whether a block's bytes are in the local file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum State {
    /// The local file has the block.
    Present = 0,
    /// The tier has the block; the local file has a hole.
    Absent = 1,
    /// A process fills or writes it.
    Busy = 2,
    /// The sidecar is making it absent.
    Evicting = 3,
}

/// A decoded view of a state word; [`Word::bits`] is what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word(u64);

const VERSION_MASK: u64 = (1 << 30) - 1;

impl Word {
    /// From what was loaded.
    pub const fn from_bits(bits: u64) -> Word {
        Word(bits)
    }

    /// A block that the tier has and that nobody touched here.
    pub const ABSENT: Word = Word::new(State::Absent, 0, 0);

    const fn new(state: State, version: u64, high: u32) -> Word {
        Word(state as u64 | (version & VERSION_MASK) << 2 | (high as u64) << 32)
    }

    /// What to store.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The state.
    pub const fn state(self) -> State {
        match self.0 & 3 {
            0 => State::Present,
            1 => State::Absent,
            2 => State::Busy,
            _ => State::Evicting,
        }
    }

    /// The version, modulo 2^30.
    pub const fn version(self) -> u64 {
        self.0 >> 2 & VERSION_MASK
    }

    /// The epoch of the last write; meaningless while [`Word::owner`] has a value.
    pub const fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Who holds the block.
    pub const fn owner(self) -> Option<u32> {
        match self.state() {
            State::Busy | State::Evicting => Some(self.epoch()),
            State::Present | State::Absent => None,
        }
    }

    /// The next word, in this state, with this epoch or owner.
    pub const fn next(self, state: State, epoch_or_owner: u32) -> Word {
        Word::new(state, self.version() + 1, epoch_or_owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_present_and_every_step_is_a_new_word() {
        let fresh = Word::from_bits(0);
        assert_eq!(
            (fresh.state(), fresh.version(), fresh.epoch()),
            (State::Present, 0, 0)
        );
        let busy = Word::ABSENT.next(State::Busy, 4711);
        assert_eq!(
            (busy.state(), busy.owner(), busy.version()),
            (State::Busy, Some(4711), 1)
        );
        let filled = busy.next(State::Present, Word::ABSENT.epoch());
        assert_eq!((filled.owner(), filled.version()), (None, 2));
        assert_ne!(
            filled.bits(),
            fresh.bits(),
            "a reader must see that the block was away"
        );
    }

    #[test]
    fn the_version_wraps_without_touching_its_neighbours() {
        let last = Word::new(State::Evicting, VERSION_MASK, u32::MAX);
        let next = last.next(State::Absent, 7);
        assert_eq!(
            (next.state(), next.version(), next.epoch()),
            (State::Absent, 0, 7)
        );
    }
}

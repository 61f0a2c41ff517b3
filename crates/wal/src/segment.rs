//! Names of WAL segment files (`XLogFileName` in `access/xlog_internal.h`).
//!
//! WAL is kept in files of equal size, numbered from the start of the WAL address space. A name is three numbers of
//! eight hexadecimal digits each: the Postgres timeline, and the segment's number split where a position's upper 32
//! bits begin.

/// Name of segment `number` on a Postgres timeline. `segment_bytes` is a power of two up to 1 GiB, as control files and
/// cluster identities tell; of a number that is none, as a damaged one may be, no file has the name.
pub fn file_name(timeline: u32, number: u64, segment_bytes: u64) -> String {
    let per_upper_half = (1_u64 << 32).checked_div(segment_bytes).unwrap_or(0).max(1);
    format!(
        "{timeline:08X}{:08X}{:08X}",
        number / per_upper_half,
        number % per_upper_half
    )
}

#[cfg(test)]
mod tests {
    use super::file_name;

    #[test]
    fn names_are_those_of_postgres() {
        const MIB: u64 = 1 << 20;
        let table = [
            (1, 1, 16 * MIB, "000000010000000000000001"),
            (1, 0xFF, 16 * MIB, "0000000100000000000000FF"),
            (1, 0x100, 16 * MIB, "000000010000000100000000"),
            (2, 0x1_0000_0000, 16 * MIB, "000000020100000000000000"),
            (1, 0xFFF, MIB, "000000010000000000000FFF"),
            (1, 0x1000, MIB, "000000010000000100000000"),
            (0x1A, 7, 1024 * MIB, "0000001A0000000100000003"),
        ];
        for (timeline, number, segment_bytes, name) in table {
            assert_eq!(file_name(timeline, number, segment_bytes), name);
        }
    }
}

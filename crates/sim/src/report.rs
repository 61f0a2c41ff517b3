//! How often things happened in a run.

/// Declares the counters once: their fields, their sum and their names.
macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// How often things happened; added up over seeds, all must be above zero.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each name says what is counted")]
        pub struct Report {
            $(pub $name: u64,)*
        }

        impl Report {
            /// Adds another seed's counts.
            pub fn add(&mut self, one: &Report) {
                $(self.$name += one.$name;)*
            }

            /// Every counter with its name.
            pub fn counters(&self) -> Vec<(String, u64)> {
                vec![$((stringify!($name).replace('_', " "), self.$name),)*]
            }
        }
    };
}

counters! {
    events,
    elections,
    appends,
    commits,
    truncations,
    crashes,
    power_cuts,
    torn_tails,
    failed_flushes,
    full_disks,
    slow_disks,
    clock_jumps,
    lost_disks,
    rotten_bytes,
    rotten_uncommitted,
    healed_records,
    damage_cut,
    partitions,
    one_way_partitions,
    losses,
    duplicates,
    fenced,
    leases_expired,
    fetches,
    uploads,
    removals,
    joined_after_catching_up,
    catch_ups_given_up,
    reconfigurations,
    repeated_steps,
    aborts_before_settled,
    aborts_after_settled,
    decommissions,
}

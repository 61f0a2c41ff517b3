//! SQL that makes the record types of Postgres, shared by the tests of redo, of the pageserver, of `verify-wal` and of
//! the whole tier. The files are in `tests/workloads`.

/// Heap, B-tree and sequence records, partitions, rewrites of tables, `VACUUM (FREEZE)`.
pub const DDL: &str = concat!(
    include_str!("../../../tests/workloads/heap.sql"),
    include_str!("../../../tests/workloads/partitions.sql"),
    include_str!("../../../tests/workloads/maintenance.sql"),
);

/// Every page record that ordinary SQL can make but those of [`GIST_DEAD`]: [`DDL`], and all index access methods.
/// Generic records are of `bloom` and of pgvector (ivfflat, hnsw), whichever of the two there is; one has to be. For psql.
pub const EVERYTHING: &str = concat!(
    include_str!("../../../tests/workloads/heap.sql"),
    include_str!("../../../tests/workloads/hash_brin_generic.sql"),
    include_str!("../../../tests/workloads/partitions.sql"),
    include_str!("../../../tests/workloads/gin.sql"),
    include_str!("../../../tests/workloads/maintenance.sql"),
    include_str!("../../../tests/workloads/gist_spgist.sql"),
);

/// Gist/DELETE records. Stock recovery refuses their checking images: redo sets a flag that the server does not set.
pub const GIST_DEAD: &str = include_str!("../../../tests/workloads/gist_dead.sql");

/// One transaction of pgbench on the tables of [`EVERYTHING`].
pub const CONCURRENT: &str = include_str!("../../../tests/workloads/concurrent.sql");

/// Records that only special circumstances make: of logical decoding, about the log itself, truncations of SLRUs. For
/// psql; the file tells what the server must be like.
pub const RARE: &str = include_str!("../../../tests/workloads/rare.sql");

/// Databases by both strategies, moved to the tablespace `ts`, which must exist; leaves one transaction prepared.
pub const DATABASES: &str = include_str!("../../../tests/workloads/databases.sql");

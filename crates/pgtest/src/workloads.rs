//! SQL that makes the record types of Postgres, shared by the tests of redo, of the pageserver, of `verify-wal` and of
//! the whole tier. The files are in `tests/workloads`.

/// Heap, B-tree and sequence records, partitions, rewrites of tables, `VACUUM (FREEZE)`.
pub const DDL: &str = concat!(
    include_str!("../../../tests/workloads/heap.sql"),
    include_str!("../../../tests/workloads/partitions.sql"),
    include_str!("../../../tests/workloads/maintenance.sql"),
);

/// Every page record that ordinary SQL can make: [`DDL`], and all index access methods. Needs `bloom` of contrib, or
/// pgvector. For psql.
pub const EVERYTHING: &str = concat!(
    include_str!("../../../tests/workloads/heap.sql"),
    include_str!("../../../tests/workloads/hash_brin_generic.sql"),
    include_str!("../../../tests/workloads/partitions.sql"),
    include_str!("../../../tests/workloads/gin.sql"),
    include_str!("../../../tests/workloads/maintenance.sql"),
    include_str!("../../../tests/workloads/gist_spgist.sql"),
);

/// One transaction of pgbench on the tables of [`EVERYTHING`].
pub const CONCURRENT: &str = include_str!("../../../tests/workloads/concurrent.sql");

/// Databases by both strategies, moved to the tablespace `ts`, which must exist; leaves one transaction prepared.
pub const DATABASES: &str = include_str!("../../../tests/workloads/databases.sql");

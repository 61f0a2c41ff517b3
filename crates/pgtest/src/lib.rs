//! lakebed-pgtest

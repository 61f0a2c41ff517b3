//! lakebed-quorum

//! lakebed-compute-shim

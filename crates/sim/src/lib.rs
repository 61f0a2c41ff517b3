//! lakebed-sim

//! lakebed-layer

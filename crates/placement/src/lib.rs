//! lakebed-placement

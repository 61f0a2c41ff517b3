//! lakebed-redo

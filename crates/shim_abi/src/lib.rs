//! lakebed-shim-abi

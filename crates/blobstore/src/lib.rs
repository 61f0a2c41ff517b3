//! lakebed-blobstore

//! Generates the gRPC code from `proto/`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // protox compiles the schema in pure Rust, so that no protoc has to be installed.
    let dir = "../../proto";
    let files = ["common", "safekeeper", "pageserver", "controller", "supervisor"]
        .map(|n| format!("{dir}/{n}.proto"));
    println!("cargo:rerun-if-changed={dir}");
    let fds = protox::compile(&files, [dir])?;
    tonic_prost_build::configure().bytes(".").compile_fds(fds)?;
    Ok(())
}

//! Tells the program which profile it is built with, for `lakebed bench`: Cargo itself tells only whether that is like `dev` or like
//! `release`, and `dist` is another program.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // target/PROFILE/build/lakebed-HASH/out
    let out = std::env::var_os("OUT_DIR").unwrap_or_default();
    let directory = Path::new(&out).ancestors().nth(3).and_then(Path::file_name);
    let profile = match directory.and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => "unknown",
    };
    // `deploy/build`: the same profile, and yet another program.
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let how = match () {
        () if flags.contains("profile-use") => ", guided by a profile",
        () if flags.contains("profile-generate") => ", instrumented",
        () => "",
    };
    println!("cargo:rustc-env=LAKEBED_PROFILE={profile}{how}");
}

//! What a number was measured on.

use std::fs;

use serde_json::{Value, json};

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim())
}

/// The machine.
pub fn describe() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let kib = field(&memory, "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    json!({
        "cpu": field(&cpu, "model name"),
        "cores": std::thread::available_parallelism().map(usize::from).ok(),
        "memory_mib": kib.map(|kib| kib / 1024),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}

/// Load averages of the last 1, 5 and 15 minutes.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Version and profile.
pub fn build() -> Value {
    json!({ "version": env!("CARGO_PKG_VERSION"), "profile": env!("LAKEBED_PROFILE") })
}

/// How to repeat it: the arguments, without the path of the program.
pub fn command() -> String {
    let arguments = std::env::args().skip(1);
    std::iter::once("lakebed".to_owned())
        .chain(arguments)
        .collect::<Vec<_>>()
        .join(" ")
}

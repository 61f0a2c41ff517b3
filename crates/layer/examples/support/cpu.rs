//! Time that this thread was on a processor, so that other work on the machine does not count.

/// Seconds since the thread's start; Linux only.
///
/// # Errors
/// There is no `/proc`.
pub fn seconds() -> Result<f64, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split_whitespace().next().ok_or("schedstat is empty")?;
    Ok(nanoseconds.parse::<f64>()? / 1e9)
}

//! The memory that this process has used, as the kernel counts it.

/// The largest resident set of this process so far, in bytes (`VmHWM`); `None` off Linux.
pub(crate) fn peak_resident() -> Option<u64> {
    status_field("VmHWM:")
}

/// Lets the peak count from now on, where the system can: then [`peak_resident`] is that of what follows.
pub(crate) fn reset_peak() {
    // "5" resets the peak resident set, see proc(5). Without it the peak includes what came before.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn status_field(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    parse(&text, key)
}

fn parse(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find(|l| l.starts_with(key))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_table() {
        let text = "Name:\trarefy\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n";
        assert_eq!(parse(text, "VmHWM:"), Some(2048 * 1024));
        assert_eq!(parse(text, "VmRSS:"), Some(1024 * 1024));
        assert_eq!(parse("", "VmRSS:"), None);
    }
}

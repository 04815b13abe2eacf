// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What this process has: memory, descriptors, threads. And how steeply memory rose.
//!
//! UNSAFETY: a call of the C library that takes a number.

use std::fs;
use std::io;

/// A look at a quiet point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gauge {
    /// Resident memory in KiB, once what is free was given back.
    pub(crate) rss_kib: u64,
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
}

impl Gauge {
    /// Looks.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn look() -> io::Result<Self> {
        give_back();
        let status = fs::read_to_string("/proc/self/status")?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.and_then(|word| word.parse().ok())
                .ok_or_else(|| io::Error::other(format!("no {name} in /proc/self/status")))
        };
        Ok(Gauge {
            rss_kib: number("VmRSS:")?,
            // One of them is that of this look.
            descriptors: fs::read_dir("/proc/self/fd")?.count() as u64,
            threads: number("Threads:")?,
        })
    }
}

/// What the allocator keeps free is not what is measured: how much that is depends on which threads came after which.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and changes nothing that anybody can see.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The rise over the last half of these looks, by the straight line that fits them best, as a share of their mean; 0 for less than
/// three.
pub(crate) fn slope(rss_kib: &[u64]) -> f64 {
    let half = &rss_kib[rss_kib.len() / 2..];
    if half.len() < 3 {
        return 0.0;
    }
    let count = half.len() as f64;
    let points = || (0..).map(f64::from).zip(half.iter().map(|kib| *kib as f64));
    let (mean_x, mean_y) =
        points().fold((0.0, 0.0), |(x, y), (a, b)| (x + a / count, y + b / count));
    let along = points()
        .map(|(x, y)| (x - mean_x) * (y - mean_y))
        .sum::<f64>();
    let wide = points().map(|(x, _)| (x - mean_x).powi(2)).sum::<f64>();
    along / wide * (count - 1.0) / mean_y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_sees_a_thread_and_a_descriptor_more() {
        // Other tests have threads and files, too: more than before is all that can be said.
        let (_reader, _writer) = io::pipe().unwrap();
        let (tell, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv().is_err());
        let now = Gauge::look().unwrap();
        assert!(
            now.rss_kib > 100 && now.descriptors >= 5 && now.threads >= 2,
            "{now:?}"
        );
        drop(tell);
        assert!(thread.join().unwrap());
    }

    #[test]
    fn the_slope_is_of_the_last_half_alone() {
        assert_eq!(slope(&[]), 0.0);
        assert_eq!(slope(&[1, 2, 3]), 0.0, "two points say nothing");
        assert_eq!(slope(&[10, 900, 40, 100, 100, 100]), 0.0);
        // From 99 to 101, and noise that cancels out.
        let rise = slope(&[0, 0, 0, 99, 100, 101]);
        assert!((rise - 0.02).abs() < 1e-9, "{rise}");
        assert!(slope(&[1000, 1000, 1000, 1000, 1000, 1010, 1020, 1030]) > 0.025);
        assert!(slope(&[0, 0, 0, 0, 101, 100, 100, 99]) < 0.0);
    }
}

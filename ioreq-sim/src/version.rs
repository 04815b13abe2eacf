// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which Xen the model is.

use std::fmt;

/// A release of Xen whose behaviour the model shows, where releases differ.
///
/// * Re-execution of a plain store (`emulate.c`, Xen commit 672894a11f): 4.17 consumes the answer whatever the page's type is
///   by then; 4.20 looks at the type again first, so that a page that became `ram_rw` leaves the answer behind.
/// * `get_ioreq_server_info` with gfns while the HVM parameters are unset: 4.17 gives gfn 0, 4.20 ENOMEM.
///
/// ```
/// use ioreq_sim::XenVersion;
/// assert_eq!(XenVersion::default(), XenVersion::V4_20);
/// assert_eq!(XenVersion::V4_17.to_string(), "Xen 4.17");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[non_exhaustive]
pub enum XenVersion {
    /// Xen 4.17.7
    V4_17,
    /// Xen 4.20
    #[default]
    V4_20,
}

impl XenVersion {
    /// All that the model knows, oldest first: a test that must hold on each of them iterates over this.
    pub const ALL: [XenVersion; 2] = [XenVersion::V4_17, XenVersion::V4_20];

    /// Whether a re-executed store looks at the page's type before it looks for its answer (since 672894a11f).
    pub(crate) const fn rechecks_type(self) -> bool {
        matches!(self, XenVersion::V4_20)
    }
}

impl fmt::Display for XenVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            XenVersion::V4_17 => "Xen 4.17",
            XenVersion::V4_20 => "Xen 4.20",
        })
    }
}

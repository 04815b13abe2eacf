// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Keeps the routes of a function's BARs in step with its registers.

use std::fmt;
use std::sync::Arc;

use ioreq_core::handler::Handler;
use ioreq_core::routes::{RouteId, Routes};
use ioreq_core::{Error, IoRange, Sbdf};

use super::failures::Failures;

/// How a BAR stands.
///
/// ```
/// use ioreq_backends::pci::BarStatus;
/// use ioreq_core::{Error, ErrorKind, MmioRange, Op};
/// let stuck = BarStatus {
///     index: 0,
///     range: Some(MmioRange::sized(0xfe00_0000, 0x1000)?.into()),
///     error: Some(Error::new(Op::Route, ErrorKind::RouteConflict)),
/// };
/// assert!(!stuck.is_decoded());
/// # Ok::<(), ioreq_core::RangeError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BarStatus {
    /// Its number, 0 to 5.
    pub index: u8,
    /// Where the guest has placed it; `None` if nowhere, or if it does not have it decoded.
    pub range: Option<IoRange>,
    /// Why it is not decoded there all the same.
    pub error: Option<Error>,
}

impl BarStatus {
    /// Whether accesses to it reach its handler.
    #[must_use]
    pub fn is_decoded(&self) -> bool {
        self.range.is_some() && self.error.is_none()
    }
}

/// One BAR: what was asked for last, and what is routed.
struct Place {
    index: u8,
    name: String,
    handler: Arc<dyn Handler>,
    wanted: Option<IoRange>,
    routed: Option<(IoRange, RouteId)>,
    error: Option<Error>,
}

pub(super) struct Routing {
    function: Sbdf,
    routes: Arc<dyn Routes>,
    places: Vec<Place>,
}

impl Routing {
    pub(super) fn new(function: Sbdf, routes: Arc<dyn Routes>) -> Self {
        Routing {
            function,
            routes,
            places: Vec::new(),
        }
    }

    pub(super) fn bar(&mut self, index: u8, handler: Arc<dyn Handler>) {
        self.places.push(Place {
            index,
            name: format!("{} bar{index}", self.function),
            handler,
            wanted: None,
            routed: None,
            error: None,
        });
    }

    /// Makes the routes what `wanted` says of each BAR. What has to go goes first, so that BARs can swap places; then what is
    /// missing is added, in ascending order, also what failed before.
    pub(super) fn follow(&mut self, wanted: impl Fn(u8) -> Option<IoRange>, failures: &Failures) {
        for place in &mut self.places {
            place.wanted = wanted(place.index);
            place.error = None;
            let Some((range, route)) = place.routed else {
                continue;
            };
            if place.wanted == Some(range) {
                continue;
            }
            // Whatever the hypervisor says to it: the route is gone when this returns.
            place.routed = None;
            if let Err(err) = self.routes.retract(route) {
                failures.note(self.function, format_args!("retract {}", place.name), &err);
            }
        }
        for place in &mut self.places {
            let (Some(range), None) = (place.wanted, place.routed) else {
                continue;
            };
            match self
                .routes
                .add(&place.name, range, Arc::clone(&place.handler))
            {
                Ok(route) => place.routed = Some((range, route)),
                Err(err) => {
                    failures.note(self.function, format_args!("route {}", place.name), &err);
                    place.error = Some(err);
                }
            }
        }
    }

    pub(super) fn status(&self) -> Vec<BarStatus> {
        let places = self.places.iter();
        places
            .map(|place| BarStatus {
                index: place.index,
                range: place.wanted,
                error: place.error.clone(),
            })
            .collect()
    }
}

impl fmt::Debug for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.status()).finish()
    }
}

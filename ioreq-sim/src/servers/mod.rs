// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Ioreq servers: their state, and the table of them that vCPUs read without a lock.

pub(crate) mod pages;
pub(crate) mod ranges;
mod table;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use ioreq_core::abi::{HVM_IOREQSRV_BUFIOREQ_ATOMIC, HVM_IOREQSRV_BUFIOREQ_OFF};
use ioreq_core::{DomId, ServerId};

use crate::evtchn::Channel;
use pages::{BufferedPage, IoreqPage};

pub(crate) use table::{CachedTable, Entry, Published};

/// Servers that a domain may have (`MAX_NR_IOREQ_SERVERS`).
pub(crate) const MAX_SERVERS: usize = 8;

/// What stays the same of a server from its creation to its end, and the pages once they are allocated.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) id: ServerId,
    /// The domain that created it, and whose it is.
    pub(crate) emulator: DomId,
    /// `handle_bufioreq`.
    pub(crate) bufioreq: u8,
    /// The ioreq page, once acquired.
    pub(crate) page: OnceLock<Arc<IoreqPage>>,
    /// The buffered page, once acquired.
    pub(crate) buffered: OnceLock<Arc<BufferedPage>>,
    /// Pages were mapped by guest frame number instead, which rules acquiring out.
    pub(crate) legacy: AtomicBool,
    /// A channel for each vCPU.
    pub(crate) channels: Vec<Arc<Channel>>,
    /// The ring's channel, if it has one.
    pub(crate) buffered_channel: Option<Arc<Channel>>,
    /// `bufioreq_lock`.
    pub(crate) ring_lock: Mutex<()>,
    destroyed: AtomicBool,
}

impl Server {
    pub(crate) fn new(
        id: ServerId,
        emulator: DomId,
        bufioreq: u8,
        channels: Vec<Arc<Channel>>,
        buffered_channel: Option<Arc<Channel>>,
    ) -> Self {
        Server {
            id,
            emulator,
            bufioreq,
            page: OnceLock::new(),
            buffered: OnceLock::new(),
            legacy: AtomicBool::new(false),
            channels,
            buffered_channel,
            ring_lock: Mutex::new(()),
            destroyed: AtomicBool::new(false),
        }
    }

    pub(crate) fn has_ring(&self) -> bool {
        self.bufioreq != HVM_IOREQSRV_BUFIOREQ_OFF
    }

    pub(crate) fn rewinds(&self) -> bool {
        self.bufioreq == HVM_IOREQSRV_BUFIOREQ_ATOMIC
    }

    /// Marks it as gone for vCPUs that wait for it. Called while the domain is paused.
    pub(crate) fn destroy(&self) {
        // Release: pairs with `is_destroyed`.
        self.destroyed.store(true, Ordering::Release);
    }

    pub(crate) fn is_destroyed(&self) -> bool {
        self.destroyed.load(Ordering::Acquire)
    }

    /// Every channel, the ring's included.
    pub(crate) fn all_channels(&self) -> impl Iterator<Item = &Arc<Channel>> {
        self.channels.iter().chain(&self.buffered_channel)
    }
}

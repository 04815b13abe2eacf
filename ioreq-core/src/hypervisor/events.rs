// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Event channels.

use std::os::fd::AsRawFd;

use crate::Result;
use crate::ids::{EvtchnPort, LocalPort};

/// A handle on event channels of this process: `/dev/xen/evtchn`, or the model's eventfds.
///
/// The file descriptor is readable while [`pending`](Self::pending) would return a port. One thread waits on a handle
/// and calls `pending`; `notify` and `unmask` may come from any thread.
///
/// A port that `pending` returned stays masked until [`unmask`](Self::unmask). An event that came meanwhile fires again
/// after the unmask, so none is lost; look at the slots once more after it all the same. Notifying needs no unmask.
/// Binding makes a port pending at once.
///
/// ```
/// use ioreq_core::{BufIoreq, EventChannels, LocalPort, Transport, VcpuId, slot::Slots};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let hv = domain.hypervisor();
/// let id = hv.create_server(BufIoreq::Off)?;
/// let slots = Slots::new(hv.ioreq_page(id)?, hv.vcpus()?)?;
/// hv.set_server_state(id, true)?;
///
/// let events = hv.open_events()?;
/// let port = events.bind(slots.get(VcpuId(0)).expect("one vCPU").vp_eport())?;
/// let mut ports = [LocalPort(0); 8];
/// assert_eq!(events.pending(&mut ports)?, 1, "binding makes a port pending");
/// assert_eq!(ports[0], port);
/// events.unmask(&[port])?;
/// assert_eq!(events.pending(&mut ports)?, 0);
/// events.unbind(port)?;
/// hv.destroy_server(id)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait EventChannels: AsRawFd + Send + Sync + 'static {
    /// Binds the guest-side port `remote` to a port of this process.
    ///
    /// # Errors
    /// `InvalidArgument` if the port is not one of the domain's, or is bound elsewhere.
    fn bind(&self, remote: EvtchnPort) -> Result<LocalPort>;

    /// Ends a binding.
    ///
    /// # Errors
    /// `InvalidArgument` if the port is not bound here.
    fn unbind(&self, port: LocalPort) -> Result<()>;

    /// Takes ports with an event, without waiting: fills `ports` from its start, returns how many. They are masked now.
    ///
    /// # Errors
    /// `EventOverflow` (EFBIG) when events were lost: call [`recover`](Self::recover). `TakenOver` when another process
    /// bound the server's ports.
    fn pending(&self, ports: &mut [LocalPort]) -> Result<usize>;

    /// Lets the ports fire again.
    ///
    /// # Errors
    /// `InvalidArgument` if a port is not bound here.
    fn unmask(&self, ports: &[LocalPort]) -> Result<()>;

    /// Signals the guest-side end of `port`.
    ///
    /// # Errors
    /// `InvalidArgument` if the port is not bound here. A domain that is gone is no error: nobody hears it.
    fn notify(&self, port: LocalPort) -> Result<()>;

    /// After an overflow: empties the ring and unmasks every port of this handle. The caller then scans every slot and
    /// the buffered ring, because any of them may have had an event.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn recover(&self) -> Result<()>;

    /// Makes the handle able to wait in [`pending`](Self::pending) and to be [woken](Self::wake) from there: called once, before
    /// anything is bound. False, and nothing has changed, where the system cannot.
    fn prepare_to_wait(&self) -> bool {
        false
    }

    /// While `on`, [`pending`](Self::pending) waits for an event, so that a worker need not wait for the descriptor before. Only
    /// for a handle that was [prepared](Self::prepare_to_wait) for it.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn set_waiting(&self, on: bool) -> Result<()> {
        let _on = on;
        Ok(())
    }

    /// Ends a wait in [`pending`](Self::pending) from any thread, now or the next. Nothing for a handle that was not
    /// [prepared](Self::prepare_to_wait).
    ///
    /// # Errors
    /// When the kernel refuses.
    fn wake(&self) -> Result<()> {
        Ok(())
    }
}

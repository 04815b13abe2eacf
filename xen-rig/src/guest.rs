// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A test domain, from its creation to its end.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::agent::{self, Done, FRAMES, Instr, Mailbox};
use crate::context::{Place, Start};
use crate::domctl::{self, Fate, Kind};
use crate::hypercall::{Mapping, Privcmd};
use crate::image::{self, Image};
use crate::{context, memory, param};

/// How long a vCPU may take to come up.
const BOOT: Duration = Duration::from_secs(20);
/// Between two looks at a vCPU that works.
const LOOK: Duration = Duration::from_micros(200);
/// The vector that wakes an idle vCPU.
const WAKE: u32 = 0x40;

/// Where an operating system begins: in 64-bit mode, interrupts off.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The first instruction.
    pub rip: u64,
    /// The stack.
    pub rsp: u64,
    /// What the boot protocol has in this register.
    pub rsi: u64,
    /// Guest-physical address of the root of the page tables.
    pub cr3: u64,
    /// Address of the global descriptor table: code at selector 8, data at 16.
    pub gdt: u64,
}

/// A domain with an agent in it. Dropping it destroys the domain.
#[derive(Debug)]
pub struct Guest {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    xen: Arc<Privcmd>,
    domid: u16,
    vcpus: u32,
    /// The agent's frames; None in a domain without.
    agent: Option<Mapping>,
    /// It belongs to a [`Guest`], which destroys it.
    made: bool,
}

impl Guest {
    /// Makes a domain with memory at `frames` (which include 0x100 to 0x1ff, the agent's), and lets it run; its vCPUs are idle.
    ///
    /// # Errors
    /// Xen's. What was made is gone then.
    pub fn create(
        xen: &Arc<Privcmd>,
        kind: Kind,
        frames: &[std::ops::Range<u64>],
    ) -> io::Result<Self> {
        let inner = Inner::bare(xen, kind, frames)?;
        let domid = inner.domid;
        for part in frames {
            memory::populate(xen, domid, part.clone())?;
        }
        Self::with_agent(inner, kind)
    }

    /// Makes a domain with memory at `frames` that runs a program of its own, with no agent beside it. Every vCPU starts at the
    /// program's entry, in 64-bit mode at privilege level 0, with 32 GiB mapped at their own addresses, interrupts off and no
    /// interrupt table; rsp is a stack of 32 KiB, rdi the vCPU's number, rsi the number of vCPUs. The domain is not running yet:
    /// [`unpause`](Self::unpause) starts it. Frames 0x100 to 0x1ff are for tables and stacks; what the program has is to be in
    /// `frames`, too.
    ///
    /// # Errors
    /// Xen's, and `InvalidInput` for more than 16 vCPUs and for a program that is not in `frames`. What was made is gone then.
    pub fn boot(
        xen: &Arc<Privcmd>,
        kind: Kind,
        frames: &[std::ops::Range<u64>],
        program: &Image,
    ) -> io::Result<Self> {
        let has = |addr: u64| frames.iter().any(|part| part.contains(&(addr >> 12)));
        let all = program.range();
        if kind.vcpus > image::MOST_VCPUS || !has(all.start) || !has(all.end - 1) {
            let what = format!("{} vCPUs, a program at {all:#x?}", kind.vcpus);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let mut inner = Inner::bare(xen, kind, frames)?;
        let domid = inner.domid;
        for part in frames {
            memory::populate_big(xen, domid, part.clone())?;
        }
        image::install(xen, domid, program)?;
        let current = domctl::context(xen, domid)?;
        let starts = (0..kind.vcpus).map(|vcpu| image::start(program, vcpu, kind.vcpus));
        domctl::set_context(xen, domid, &mut context::initial(&current, starts))?;
        inner.made = true;
        Ok(Guest {
            inner: Arc::new(inner),
        })
    }

    /// Makes a domain with memory at `frames`, in pieces of 2 MiB where they fit, and nothing in it: for whoever loads an operating
    /// system. [`enter`](Self::enter) says where it begins, [`unpause`](Self::unpause) starts it.
    ///
    /// # Errors
    /// Xen's. What was made is gone then.
    pub fn empty(
        xen: &Arc<Privcmd>,
        kind: Kind,
        frames: &[std::ops::Range<u64>],
    ) -> io::Result<Self> {
        let mut inner = Inner::bare(xen, kind, frames)?;
        for part in frames {
            memory::populate_big(xen, inner.domid, part.clone())?;
        }
        inner.made = true;
        Ok(Guest {
            inner: Arc::new(inner),
        })
    }

    /// A domain that another process of this rig made and left behind. Dropping it destroys the domain.
    ///
    /// # Errors
    /// Xen's; and that the domain is gone.
    pub fn adopt(xen: &Arc<Privcmd>, domid: u16, vcpus: u32) -> io::Result<Self> {
        if domctl::fate(xen, domid)? == Fate::Gone {
            return Err(io::Error::other(format!("domain {domid} is gone")));
        }
        let inner = Inner {
            xen: Arc::clone(xen),
            domid,
            vcpus,
            agent: None,
            made: true,
        };
        Ok(Guest {
            inner: Arc::new(inner),
        })
    }

    /// The first vCPU is to start here; its local APIC is as firmware leaves it, and the others wait to be woken.
    ///
    /// # Errors
    /// Xen's; and for a domain whose local APICs Xen does not emulate.
    pub fn enter(&self, entry: Entry) -> io::Result<()> {
        let Inner { xen, domid, .. } = &*self.inner;
        let start = Start {
            rip: entry.rip,
            rsp: entry.rsp,
            rsi: entry.rsi,
            cr3: entry.cr3,
            gdt: entry.gdt,
            ..Start::default()
        };
        let current = domctl::context(xen, *domid)?;
        let mut bytes = context::after_firmware(&current, start)?;
        domctl::set_context(xen, *domid, &mut bytes)
    }

    /// Where a vCPU is. Pause the domain, or it is somewhere else by then.
    ///
    /// # Errors
    /// Xen's; and for a vCPU that is not there.
    pub fn place(&self, vcpu: u32) -> io::Result<Place> {
        let context = domctl::context(&self.inner.xen, self.inner.domid)?;
        context::place(&context, vcpu)
            .ok_or_else(|| io::Error::other(format!("no vCPU {vcpu} in the domain's context")))
    }

    /// Puts an idle vCPU of a paused domain where the emulator may leave it when it is interrupted: behind `sti`, before its `hlt`, with
    /// interrupts let through. The next program has to wake it all the same.
    ///
    /// # Errors
    /// Xen's; and for a vCPU that does not sleep.
    pub fn before_sleep(&self, vcpu: u32) -> io::Result<()> {
        let Inner { xen, domid, .. } = &*self.inner;
        let current = domctl::context(xen, *domid)?;
        let sleep = agent::before_sleep();
        let asleep = context::place(&current, vcpu).filter(|place| place.rip == sleep + 1);
        let moved = asleep.and_then(|_| context::moved(&current, vcpu, sleep));
        let mut bytes =
            moved.ok_or_else(|| io::Error::other(format!("vCPU {vcpu} does not sleep")))?;
        domctl::set_context(xen, *domid, &mut bytes)
    }

    /// Sets one of the domain's parameters (`HVM_PARAM_*`).
    ///
    /// # Errors
    /// Xen's.
    pub fn set_param(&self, index: u32, value: u64) -> io::Result<()> {
        param::set(&self.inner.xen, self.inner.domid, index, value)
    }

    fn with_agent(mut inner: Inner, kind: Kind) -> io::Result<Self> {
        let (xen, domid) = (Arc::clone(&inner.xen), inner.domid);
        let agent = xen.map(domid, &FRAMES.collect::<Vec<_>>())?;
        agent::install(&agent);
        let current = domctl::context(&xen, domid)?;
        let starts = (0..kind.vcpus).map(|vcpu| agent::start(vcpu, kind.vcpus));
        domctl::set_context(&xen, domid, &mut context::initial(&current, starts))?;
        // An empty program is there before a vCPU starts: it shows that the vCPU works.
        let first: Vec<u64> = (0..kind.vcpus)
            .map(|vcpu| Mailbox::new(vcpu, kind.vcpus).post(&agent, &[]))
            .collect();
        domctl::unpause(&xen, domid)?;
        let started = Instant::now();
        for (vcpu, number) in (0..).zip(first) {
            while !Mailbox::new(vcpu, kind.vcpus).is_finished(&agent, number) {
                if started.elapsed() > BOOT {
                    let fate = domctl::fate(&xen, domid)?;
                    let what = format!("vCPU {vcpu} does not come up; the domain: {fate:?}");
                    return Err(io::Error::other(what));
                }
                thread::sleep(LOOK);
            }
        }
        inner.agent = Some(agent);
        inner.made = true;
        Ok(Guest {
            inner: Arc::new(inner),
        })
    }

    /// The domain's id.
    #[must_use]
    pub fn domid(&self) -> u16 {
        self.inner.domid
    }

    /// What has become of it.
    ///
    /// # Errors
    /// Xen's.
    pub fn fate(&self) -> io::Result<Fate> {
        domctl::fate(&self.inner.xen, self.inner.domid)
    }

    /// Gives it the handle that a toolstack puts a domain's UUID into.
    ///
    /// # Errors
    /// Xen's.
    pub fn set_handle(&self, handle: [u8; 16]) -> io::Result<()> {
        domctl::set_handle(&self.inner.xen, self.inner.domid, handle)
    }

    /// Pauses it; no vCPU runs when this returns.
    ///
    /// # Errors
    /// Xen's.
    pub fn pause(&self) -> io::Result<()> {
        domctl::pause(&self.inner.xen, self.inner.domid)
    }

    /// Lets it run again.
    ///
    /// # Errors
    /// Xen's.
    pub fn unpause(&self) -> io::Result<()> {
        domctl::unpause(&self.inner.xen, self.inner.domid)
    }

    /// A page's `hvmmem_type_t`.
    ///
    /// # Errors
    /// Xen's.
    pub fn mem_type(&self, gfn: u64) -> io::Result<u16> {
        memory::mem_type(&self.inner.xen, self.inner.domid, gfn)
    }

    /// Turns global log-dirty mode on or off.
    ///
    /// # Errors
    /// Xen's.
    pub fn log_dirty(&self, on: bool) -> io::Result<()> {
        domctl::log_dirty(&self.inner.xen, self.inner.domid, on)
    }

    /// Which of the first `pages` frames were written since the last look, in log-dirty mode; ascending.
    ///
    /// # Errors
    /// Xen's.
    pub fn dirty(&self, pages: u64) -> io::Result<Vec<u64>> {
        domctl::dirty(&self.inner.xen, self.inner.domid, pages)
    }

    /// Has an idle vCPU execute `program`; returns at once.
    ///
    /// # Errors
    /// Xen's, when it refuses to wake the vCPU.
    ///
    /// # Panics
    /// If the program does not fit the vCPU's mailbox.
    pub fn start(&self, vcpu: u32, program: &[Instr]) -> io::Result<Program> {
        let mailbox = Mailbox::new(vcpu, self.inner.vcpus);
        let number = mailbox.post(self.inner.agent()?, program);
        self.inner.wake(vcpu)?;
        Ok(Program {
            inner: Arc::clone(&self.inner),
            mailbox,
            number,
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Programs may still hold the rest; the domain goes now. An error has nobody to be told to: the leak check tells.
        let _gone = domctl::destroy(&self.inner.xen, self.inner.domid);
    }
}

impl Inner {
    /// A domain that has its vCPUs and may have memory at `frames`.
    fn bare(xen: &Arc<Privcmd>, kind: Kind, frames: &[std::ops::Range<u64>]) -> io::Result<Self> {
        let pages: u64 = frames.iter().map(|part| part.end - part.start).sum();
        let domid = domctl::create(xen, kind)?;
        // From here on dropping it destroys the domain.
        let inner = Inner {
            xen: Arc::clone(xen),
            domid,
            vcpus: kind.vcpus,
            agent: None,
            made: false,
        };
        domctl::max_vcpus(xen, domid, kind.vcpus)?;
        for vcpu in 0..kind.vcpus {
            match domctl::keep_off_dom0(xen, domid, vcpu) {
                Err(err) if err.raw_os_error() != Some(libc::EINVAL) => return Err(err),
                _done_or_one_processor => {}
            }
        }
        domctl::max_mem(xen, domid, (pages + 1024) * 4)?;
        domctl::paging_mempool(xen, domid, 8 << 20)?;
        Ok(inner)
    }

    fn agent(&self) -> io::Result<&Mapping> {
        self.agent
            .as_ref()
            .ok_or_else(|| io::Error::other("the domain has no agent"))
    }

    /// `XEN_DMOP_inject_msi` to the vCPU's local APIC, whose id is twice the vCPU's.
    fn wake(&self, vcpu: u32) -> io::Result<()> {
        // op u32 @0, pad u32 @4; data u32 @8, pad u32 @12, addr u64 @16
        let mut op = [0; 32];
        op[0] = 14;
        op[8..12].copy_from_slice(&WAKE.to_le_bytes());
        let address = 0xfee0_0000 | u64::from(vcpu * 2) << 12;
        op[16..24].copy_from_slice(&address.to_le_bytes());
        self.xen.dm_op(self.domid, &mut op, &mut [])
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.made {
            // It was never handed out.
            let _gone = domctl::destroy(&self.xen, self.domid);
        }
    }
}

/// A program that a vCPU executes.
#[derive(Debug)]
pub struct Program {
    inner: Arc<Inner>,
    mailbox: Mailbox,
    number: u64,
}

impl Program {
    /// Whether all of it is through. Never waits.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.inner
            .agent()
            .is_ok_and(|agent| self.mailbox.is_finished(agent, self.number))
    }

    /// What came of the instructions that are through.
    #[must_use]
    pub fn results(&self) -> Vec<Done> {
        let agent = self.inner.agent();
        agent.map_or_else(|_| Vec::new(), |agent| self.mailbox.results(agent))
    }

    /// What has become of the domain.
    ///
    /// # Errors
    /// Xen's.
    pub fn fate(&self) -> io::Result<Fate> {
        domctl::fate(&self.inner.xen, self.inner.domid)
    }

    /// Waits until the program is through or the domain ended, for at most `bound`; whether it is through.
    ///
    /// # Errors
    /// Xen's.
    pub fn wait(&self, bound: Duration) -> io::Result<bool> {
        self.wait_looking(bound, LOOK)
    }

    /// The same, with `pause` between two looks: where a look would disturb what is measured.
    ///
    /// # Errors
    /// Xen's.
    pub fn wait_looking(&self, bound: Duration, pause: Duration) -> io::Result<bool> {
        let started = Instant::now();
        loop {
            if self.is_finished() {
                return Ok(true);
            }
            if self.fate()? != Fate::Alive || started.elapsed() > bound {
                return Ok(self.is_finished());
            }
            thread::sleep(pause);
        }
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT

//! System calls of another process, counted with ptrace.
//!
//! UNSAFETY: `ptrace` and `waitpid`, which take numbers and structures of this process.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::thread;
use std::time::Duration;

use libc::{c_int, c_uint, c_void, pid_t};

/// Between two looks at threads that run.
const LOOK: Duration = Duration::from_micros(50);

/// What a thread called, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calls {
    /// The thread's name.
    pub thread: String,
    /// Number of the system call, of an `ioctl` the request, too; and how often.
    pub counts: BTreeMap<(u64, u64), u64>,
    /// How often a vector register was written between two of them.
    pub vectors: u64,
}

impl Calls {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }
}

/// A thread that is traced, from attaching to letting go.
struct Thread {
    tid: pid_t,
    stopped: bool,
    /// The call that attaching interrupted: it is begun anew, which is our doing.
    interrupted: Option<u64>,
    /// Its vector registers hold [`MARK`], unless it wrote to one since.
    marked: bool,
    calls: Calls,
}

/// What vector registers hold after a system call that has been traced, all of them. A function that was called leaves nothing in
/// them; a program that keeps something there across a call which is inlined would go wrong, and is found by that.
const MARK: u32 = 0x7ec7_0123;

fn ptrace(request: c_uint, tid: pid_t, address: usize, data: *mut c_void) -> io::Result<()> {
    // SAFETY: `data` is a number for the requests used here, but for PTRACE_GET_SYSCALL_INFO, where `address` is the size of what
    // it points to, and PTRACE_GETFPREGS and PTRACE_SETFPREGS, where it points to a `user_fpregs_struct`.
    match unsafe { libc::ptrace(request, tid, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The thread that stopped, if one did, and its status.
fn waited() -> io::Result<Option<(pid_t, c_int)>> {
    let mut status = 0;
    // SAFETY: it stores to `status`.
    let tid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::WNOHANG) };
    match tid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        _ => Ok(Some((tid, status))),
    }
}

impl Thread {
    fn attach(pid: u32, tid: pid_t) -> io::Result<Self> {
        let about = |what| fs::read_to_string(format!("/proc/{pid}/task/{tid}/{what}"));
        let name = about("comm")?;
        // "running", or the number of the call that the thread waits in.
        let waits = about("syscall")?;
        let call = waits.split_whitespace().next();
        let options =
            ptr::without_provenance_mut(libc::PTRACE_O_TRACESYSGOOD.unsigned_abs() as usize);
        ptrace(libc::PTRACE_SEIZE, tid, 0, options)?;
        ptrace(libc::PTRACE_INTERRUPT, tid, 0, ptr::null_mut())?;
        Ok(Thread {
            tid,
            stopped: false,
            interrupted: call.and_then(|number| number.parse().ok()),
            calls: Calls {
                thread: name.trim().into(),
                counts: BTreeMap::new(),
                vectors: 0,
            },
            marked: false,
        })
    }

    /// It stopped: notes what it calls, if it is about to call something.
    fn note(&mut self) -> io::Result<()> {
        let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
        let size = size_of_val(&info);
        ptrace(
            libc::PTRACE_GET_SYSCALL_INFO,
            self.tid,
            size,
            info.as_mut_ptr().cast(),
        )?;
        // SAFETY: zeros are a value of it, and the kernel has filled it.
        let info = unsafe { info.assume_init() };
        if info.op == libc::PTRACE_SYSCALL_INFO_EXIT {
            let mut registers = self.vector_registers()?;
            registers.xmm_space.fill(MARK);
            ptrace(
                libc::PTRACE_SETFPREGS,
                self.tid,
                0,
                (&raw mut registers).cast(),
            )?;
            self.marked = true;
        }
        if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
            return Ok(());
        }
        if mem::take(&mut self.marked) {
            let registers = self.vector_registers()?;
            let kept = registers.xmm_space.iter().all(|word| *word == MARK);
            self.calls.vectors += u64::from(!kept);
        }
        // SAFETY: the member that goes with this `op`.
        let entry = unsafe { info.u.entry };
        let again = self.interrupted.take();
        if again == Some(entry.nr)
            || again.is_some() && entry.nr == libc::SYS_restart_syscall.unsigned_abs()
        {
            return Ok(());
        }
        let is_ioctl = entry.nr == libc::SYS_ioctl.unsigned_abs();
        let request = if is_ioctl { entry.args[1] } else { 0 };
        *self.calls.counts.entry((entry.nr, request)).or_default() += 1;
        Ok(())
    }

    fn vector_registers(&self) -> io::Result<libc::user_fpregs_struct> {
        let mut registers = MaybeUninit::<libc::user_fpregs_struct>::zeroed();
        ptrace(
            libc::PTRACE_GETFPREGS,
            self.tid,
            0,
            registers.as_mut_ptr().cast(),
        )?;
        // SAFETY: zeros are a value of it, and the kernel has filled it.
        Ok(unsafe { registers.assume_init() })
    }

    /// Goes on, with the signal that stopped it.
    fn go_on(&self, status: c_int) -> io::Result<()> {
        let by_signal = status >> 16 == 0 && libc::WSTOPSIG(status) & 0x7f != libc::SIGTRAP;
        let signal = if by_signal { libc::WSTOPSIG(status) } else { 0 };
        let signal = ptr::without_provenance_mut(signal.unsigned_abs() as usize);
        ptrace(libc::PTRACE_SYSCALL, self.tid, 0, signal)
    }
}

/// Counts the system calls that the threads of process `pid` begin until `done` says so, which is asked again and again. A call that
/// attaching interrupts, and that begins anew, does not count.
///
/// # Errors
/// The system's; also if the process has other children waited for, or ends meanwhile.
pub fn count(pid: u32, mut done: impl FnMut() -> io::Result<bool>) -> io::Result<Vec<Calls>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = entry?.file_name();
        let tid = name.to_string_lossy().parse().map_err(io::Error::other)?;
        threads.push(Thread::attach(pid, tid)?);
    }
    let result = watch(&mut threads, &mut done);
    let let_go = let_go(&mut threads);
    result.and(let_go)?;
    Ok(threads.into_iter().map(|thread| thread.calls).collect())
}

fn watch(threads: &mut [Thread], done: &mut impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    while !done()? {
        while let Some((thread, status)) = next(threads)? {
            thread.note()?;
            thread.go_on(status)?;
            thread.stopped = false;
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// The next thread that stopped.
fn next(threads: &mut [Thread]) -> io::Result<Option<(&mut Thread, c_int)>> {
    let Some((tid, status)) = waited()? else {
        return Ok(None);
    };
    if !libc::WIFSTOPPED(status) {
        return Err(io::Error::other("the process ended while it was traced"));
    }
    let thread = threads.iter_mut().find(|thread| thread.tid == tid);
    let thread = thread.ok_or_else(|| io::Error::other("a child that is not traced here"))?;
    thread.stopped = true;
    Ok(Some((thread, status)))
}

fn let_go(threads: &mut [Thread]) -> io::Result<()> {
    for thread in threads.iter().filter(|thread| !thread.stopped) {
        ptrace(libc::PTRACE_INTERRUPT, thread.tid, 0, ptr::null_mut())?;
    }
    while threads.iter().any(|thread| !thread.stopped) {
        if next(threads)?.is_none() {
            thread::sleep(LOOK);
        }
    }
    for thread in threads {
        ptrace(libc::PTRACE_DETACH, thread.tid, 0, ptr::null_mut())?;
    }
    Ok(())
}

// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a driver needs of the vCPU that it runs on.

/// A vCPU in the hands of a guest program. Addresses are guest-physical.
pub trait Vcpu {
    /// Why an instruction was not executed. Uninhabited where there is nobody to tell.
    type Fault;

    /// Loads 4 bytes.
    ///
    /// # Errors
    /// The vCPU faults, or its domain is over; so with all instructions.
    fn load32(&mut self, addr: u64) -> Result<u32, Self::Fault>;

    /// Loads 8 bytes.
    ///
    /// # Errors
    /// As [`load32`](Self::load32).
    fn load64(&mut self, addr: u64) -> Result<u64, Self::Fault>;

    /// Stores 4 bytes, with one instruction.
    ///
    /// # Errors
    /// As [`load32`](Self::load32).
    fn store32(&mut self, addr: u64, value: u32) -> Result<(), Self::Fault>;

    /// Stores 8 bytes, with one instruction.
    ///
    /// # Errors
    /// As [`load32`](Self::load32).
    fn store64(&mut self, addr: u64, value: u64) -> Result<(), Self::Fault>;

    /// Exchanges 4 bytes of plain memory, atomically.
    ///
    /// # Errors
    /// As [`load32`](Self::load32).
    fn xchg32(&mut self, addr: u64, value: u32) -> Result<u32, Self::Fault>;

    /// Loads as many bytes as `buf` has, of memory.
    ///
    /// # Errors
    /// As [`load32`](Self::load32).
    fn read(&mut self, addr: u64, buf: &mut [u8]) -> Result<(), Self::Fault>;

    /// Gives way to other vCPUs: for loops that poll memory.
    ///
    /// # Errors
    /// As [`load32`](Self::load32).
    fn relax(&mut self) -> Result<(), Self::Fault>;

    /// Takes the interrupts that are pending; how many this vCPU has taken so far.
    ///
    /// # Errors
    /// As [`load32`](Self::load32).
    fn interrupts(&mut self) -> Result<u64, Self::Fault>;

    /// A clock that only goes forward, in ticks of its own.
    fn ticks(&mut self) -> u64;

    /// Something is wrong: for a person to read.
    fn complain(&mut self, what: &str);

    /// As many submissions are done.
    fn progress(&mut self, submissions: u64);
}

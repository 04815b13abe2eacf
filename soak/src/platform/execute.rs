// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The rig's instructions on a vCPU of the model.

use ioreq::sim::{Cpu, CpuFault};
use ioreq::{Gfn, Sbdf, Width};
use xen_rig::{Done, Instr};

fn width(bytes: u8) -> Width {
    Width::from_bytes(bytes.into()).expect("1, 2, 4 or 8")
}

/// What a configuration address and data port select: CONFIG_ADDRESS has bus 23:16, device 15:11, function 10:8, register 7:2.
fn register(address: u32, port: u16) -> (Sbdf, u8) {
    let [register, function, bus, _enable] = address.to_le_bytes();
    let [low, _] = port.to_le_bytes();
    let bits = u32::from(bus) << 8 | u32::from(function);
    (Sbdf::from_bits(bits), register & 0xfc | low & 3)
}

/// Executes one; a #GP is a result, too.
///
/// # Errors
/// The vCPU is stopped for good.
pub(super) fn execute(cpu: &mut Cpu, instr: Instr) -> Result<Done, CpuFault> {
    match step(cpu, instr) {
        Ok(Some(value)) => Ok(Done::Value(value)),
        Ok(None) => Ok(Done::Plain),
        Err(CpuFault::GeneralProtection { .. }) => Ok(Done::Fault),
        Err(stopped) => Err(stopped),
    }
}

fn step(cpu: &mut Cpu, instr: Instr) -> Result<Option<u64>, CpuFault> {
    let done = match instr {
        Instr::In { port, width: w } => return cpu.port_in(port, width(w)).map(Some),
        Instr::Out {
            port,
            width: w,
            value,
        } => cpu.port_out(port, width(w), value.into()),
        Instr::Load { addr, width: w } => return cpu.load(addr, width(w)).map(Some),
        Instr::Store {
            addr,
            width: w,
            value,
        } => cpu.store(addr, width(w), value),
        Instr::Store16 { addr, value } => {
            let value = u128::from(value[0]) | u128::from(value[1]) << 64;
            cpu.store128(addr, value)
        }
        Instr::RepStos {
            addr,
            width: w,
            value,
            count,
        } => cpu.rep_stos(addr, width(w), value, count),
        Instr::RepStosDown {
            addr,
            width: w,
            value,
            count,
        } => {
            cpu.set_df(true);
            let done = cpu.rep_stos(addr, width(w), value, count);
            cpu.set_df(false);
            done
        }
        Instr::RepMovs {
            from,
            to,
            width: w,
            count,
        } => cpu.rep_movs(to, from, width(w), count),
        Instr::RepMovsDown {
            from,
            to,
            width: w,
            count,
        } => {
            cpu.set_df(true);
            let done = cpu.rep_movs(to, from, width(w), count);
            cpu.set_df(false);
            done
        }
        Instr::RepIns {
            port,
            to,
            width: w,
            count,
        } => cpu.rep_ins(port, to, width(w), count),
        Instr::RepOuts {
            port,
            from,
            width: w,
            count,
        } => cpu.rep_outs(port, from, width(w), count),
        Instr::LockAdd {
            addr,
            width: w,
            value,
        } => cpu.lock_add(addr, width(w), value).map(drop),
        Instr::Or {
            addr,
            width: w,
            value,
        } => cpu.lock_or(addr, width(w), value).map(drop),
        Instr::Xchg {
            addr,
            width: w,
            value,
        } => return cpu.xchg(addr, width(w), value).map(Some),
        Instr::Cmpxchg {
            addr,
            width: w,
            expected,
            new,
        } => return cpu.cmpxchg(addr, width(w), expected, new).map(Some),
        Instr::PciRead {
            address,
            port,
            width: w,
        } => {
            let (function, register) = register(address, port);
            return cpu.pci_config_read(function, register, width(w)).map(Some);
        }
        Instr::PciWrite {
            address,
            port,
            width: w,
            value,
        } => {
            let (function, register) = register(address, port);
            cpu.pci_config_write(function, register, width(w), value.into())
        }
        Instr::RtcSet => cpu.rtc_set(3600),
        Instr::GiveBack { gfn } => cpu.give_back(Gfn(gfn)),
        Instr::Fetch { .. } | Instr::Await { .. } | Instr::Repeat { .. } | Instr::TimeStamp => {
            unreachable!("no program of the soak has it")
        }
    };
    done.map(|()| None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_address_is_taken_apart() {
        // Bus 1, device 2, function 3, register 0x44; the third of the data port's four bytes.
        let (function, register) = register(0x8001_1344, 0xcfe);
        assert_eq!((function.bits(), register), (0x0113, 0x46));
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Saved state as it is written, and what is refused when it is read.
#![cfg(all(feature = "serde", not(loom)))]

use ioreq_core::server::SavedServer;
use ioreq_core::snapshot::Versioned;
use ioreq_core::{Gfn, GfnRange, IoRange, MmioRange, PortRange, Sbdf, VcpuId, Width};
use proptest::prelude::*;
use serde::de::DeserializeOwned;

const SAVED: &str = concat!(
    r#"["server",1,{"buffered":true,"claimed":true,"#,
    r#""routes":[["a",{"port":[1280,1283]}],["b",{"mmio":[4096,8191]}],["c",{"pci":24}]],"#,
    r#""trackers":[{"name":"t","pages":[[1,1],[3,9]]}]}]"#
);

fn read(text: &str) -> Result<SavedServer, String> {
    serde_json::from_str(text)
        .map(|Versioned(saved)| saved)
        .map_err(|err| err.to_string())
}

#[test]
fn a_server_is_written_and_read() {
    let saved = read(SAVED).unwrap();
    assert!(saved.buffered() && saved.claimed());
    let routes: Vec<_> = saved.routes().collect();
    let ports = PortRange::new(0x500, 0x503).unwrap();
    let mmio = MmioRange::sized(0x1000, 0x1000).unwrap();
    let function = Sbdf::new(0, 0, 3, 0).unwrap();
    let expected: [(&str, IoRange); 3] = [
        ("a", ports.into()),
        ("b", mmio.into()),
        ("c", function.into()),
    ];
    assert_eq!(routes, expected);
    let pages: Vec<_> = saved.pages("t").collect();
    assert_eq!(
        pages,
        [GfnRange::new(1, 1).unwrap(), GfnRange::new(3, 9).unwrap()]
    );
    assert_eq!(serde_json::to_string(&Versioned(saved)).unwrap(), SAVED);
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let refused = |from: &str, to: &str, why: &str| {
        let text = SAVED.replacen(from, to, 1);
        assert_ne!(text, SAVED);
        let err = read(&text).unwrap_err();
        assert!(err.contains(why), "{err}");
    };
    refused(
        r#"",1,"#,
        r#"",2,"#,
        "of a server of version 2: this program knows version 1",
    );
    refused(r#"",1,"#, r#"",0,"#, "version 0");
    refused(
        "server",
        "pci function",
        r#"string "pci function", expected the state of a server"#,
    );
    let long = "x".repeat(1 << 20);
    let text = SAVED.replacen("server", &long, 1);
    assert!(
        read(&text).unwrap_err().len() < 300,
        "no copy of what was sent"
    );
    refused(r#""buffered":true,"#, "", "missing field `buffered`");
    refused(
        r#""buffered":true,"#,
        r#""buffered":true,"more":1,"#,
        "unknown field `more`",
    );
    refused("[1280,1283]", "[1283,1280]", "ends before it starts");
    refused("[1280,1283]", "[1280,65536]", "65536");
    refused("[3,9]", "[3,4503599627370496]", "beyond the address space");
    refused("[3,9]", "[3]", "invalid length");
    refused("[3,9]", "[-3,9]", "-3");
    refused("port", "socket", "unknown variant `socket`");
    refused(r#"["server",1,{"#, r#"["server",1,7,{"#, "invalid type");
    for text in [
        "",
        "[]",
        "{}",
        "7",
        "null",
        r#"["server"]"#,
        r#"["server",1]"#,
        "[7,1,{}]",
    ] {
        read(text).unwrap_err();
    }
    for end in 0..SAVED.len() {
        read(&SAVED[..end]).unwrap_err();
    }
}

fn same<T: serde::Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    value: T,
    text: &str,
) {
    assert_eq!(serde_json::to_string(&value).unwrap(), text);
    assert_eq!(serde_json::from_str::<T>(text).unwrap(), value);
}

#[test]
fn numbers_are_checked_as_by_their_constructors() {
    same(Gfn(5), "5");
    same(Gfn::MAX, &Gfn::MAX.0.to_string());
    serde_json::from_str::<Gfn>(&(Gfn::MAX.0 + 1).to_string()).unwrap_err();
    same(VcpuId(127), "127");
    same(Sbdf::from_bits(u32::MAX), &u32::MAX.to_string());
    for width in [Width::B1, Width::B2, Width::B4, Width::B8] {
        same(width, &width.bytes().to_string());
    }
    for bad in ["0", "3", "5", "16", "-1", "4294967297"] {
        serde_json::from_str::<Width>(bad).unwrap_err();
    }
}

proptest! {
    /// Bytes of a saved server, changed: refused, or read as something whose ranges are ranges.
    #[test]
    fn changed_bytes_do_no_harm(changes in prop::collection::vec((0..SAVED.len(), any::<u8>()), 1..6)) {
        let mut bytes = SAVED.as_bytes().to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok(Versioned(saved)) = serde_json::from_slice::<Versioned<SavedServer>>(&bytes) {
            for name in saved.trackers() {
                prop_assert!(saved.pages(name).all(|pages| pages.last() <= Gfn::MAX.0));
            }
        }
    }
}

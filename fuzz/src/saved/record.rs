// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The record of a server that a dead process left, and taking over by it.

use std::fs;
use std::path::PathBuf;

use ioreq_core::server::{IoreqServer, ServerRecord};
use ioreq_core::{BufIoreq, Gfn, GfnRange, Transport};
use ioreq_sim::{DomainConfig, Machine};

use super::edit::edit;
use crate::script::Script;

/// A folder of this process's own. The records in it are small, and the last stays.
fn path() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("ioreq-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for temporary files");
    let thread = std::thread::current().id();
    folder.join(format!("{thread:?}").replace(['(', ')'], "-"))
}

/// What a record says, by its lines; None if it is none.
fn naive(text: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(text).ok()?;
    let lines: Vec<&str> = text.lines().take(8).collect();
    let heads = [
        "boot: ",
        "domid: ",
        "identity: ",
        "server: ",
        "buffered: ",
        "claimed: ",
    ];
    if lines.len() < 8 || lines[0] != "ioreq server record 1" || lines[7] != "end" {
        return None;
    }
    let fields: Option<Vec<String>> = heads
        .iter()
        .zip(&lines[1..7])
        .map(|(head, line)| line.strip_prefix(head).map(str::to_owned))
        .collect();
    let fields = fields?;
    let number = |text: &str| {
        let digits = text.strip_prefix('+').unwrap_or(text);
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain
            && digits.trim_start_matches('0').len() <= 5
            && digits.parse::<u64>().is_ok_and(|n| n < 0x1_0000)
    };
    let flag = |text: &str| text == "yes" || text == "no";
    let fits = number(&fields[1]) && number(&fields[3]) && flag(&fields[4]) && flag(&fields[5]);
    fits.then_some(fields)
}

/// Reading.
pub(super) fn read(script: &mut Script) {
    let text = "ioreq server record 1\nboot: b\ndomid: 3\nidentity: model d3\nserver: 1\nbuffered: yes\nclaimed: no\nend\n";
    let text = edit(text.into(), script);
    let path = path();
    fs::write(&path, &text).expect("a temporary file");
    let expected = naive(&text);
    match (ServerRecord::read(&path), expected) {
        (Ok(record), Some(fields)) => {
            assert_eq!((&record.boot, &record.identity), (&fields[0], &fields[2]));
            let yes = |at: usize| fields[at] == "yes";
            assert_eq!((record.buffered, record.claimed), (yes(4), yes(5)));
            fs::write(&path, record.to_string()).expect("a temporary file");
            assert_eq!(
                ServerRecord::read(&path).ok(),
                Some(record),
                "written and read"
            );
        }
        (Err(_), None) => {}
        (read, expected) => panic!("{read:?}, and it says {expected:?}"),
    }
}

/// Taking over: whatever the record says, it is the server that was left, or an error.
pub(super) fn take_over(script: &mut Script) {
    let ram = GfnRange::sized(0, 8).expect("some pages");
    let config = DomainConfig::new(1).memory(ram);
    let domain = Machine::new().create_domain(config).expect("a domain");
    let path = path();
    let _none = fs::remove_file(&path);
    // Another device model's, which must be left alone.
    let strange = domain.hypervisor();
    let other = strange.create_server(BufIoreq::Off).expect("room for it");
    let first = domain.hypervisor();
    let server = IoreqServer::builder(first.clone())
        .buffered(if script.take() {
            BufIoreq::Atomic
        } else {
            BufIoreq::Off
        })
        .last_gfn(Gfn(15))
        .record(&path)
        .build()
        .expect("a server");
    let (id, claims) = (server.id(), script.take::<bool>());
    let claim = claims.then(|| server.claim_mem_type().expect("it is free"));
    let text = fs::read_to_string(&path).expect("its record");
    // kill -9: what it destroys on its way fails.
    first.kill();
    drop((claim, server));
    let edited = edit(text.clone(), script);
    let changed = edited != text.as_bytes();
    fs::write(&path, &edited).expect("a temporary file");
    let record = ServerRecord::read(&path);
    let again = IoreqServer::builder(domain.hypervisor())
        .last_gfn(Gfn(15))
        .take_over(&path)
        .build();
    match again {
        Ok(server) => {
            let record = record.expect("it was taken over by it");
            assert_eq!((server.id(), server.domid()), (record.server, record.domid));
            assert_eq!(record.domid, domain.domid());
            server.poll().expect("not in a handler");
            assert!(changed || server.id() == id);
            if !changed && claims {
                drop(server.claim_mem_type().expect("it is its own"));
            }
        }
        Err(err) => {
            assert!(changed, "{err}");
            assert!(!err.to_string().is_empty());
        }
    }
    let _alone = (other, strange);
}

// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A server's record: what a later process needs to know of a server whose process died, and that it is the same server.
//!
//! Xen keeps a server, its ranges, claim and pages when its process dies, and lets any process of the same domain go on with
//! it. It does not say whose a server is: another device model's must not be touched. So a server is taken over by a file
//! that was written before it was enabled, never by looking for one.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Op, Result};
use crate::ids::{DomId, ServerId};

/// The first line of a record.
const HEAD: &str = "ioreq server record 1";

/// What a server's record says.
///
/// ```
/// use ioreq_core::server::{IoreqServer, ServerRecord};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// # let folder = std::env::temp_dir().join(format!("ioreq-record-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// let path = folder.join("server");
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).record(&path).build()?;
/// let record = ServerRecord::read(&path)?;
/// assert_eq!((record.domid, record.server), (server.domid(), server.id()));
/// drop(server); // destroyed: nothing to take over
/// assert!(!path.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerRecord {
    /// This machine's boot; a server does not outlive it.
    pub boot: String,
    /// The domain.
    pub domid: DomId,
    /// What tells the domain from one that gets its id later.
    pub identity: String,
    /// The server.
    pub server: ServerId,
    /// Whether it was made with a buffered ring.
    pub buffered: bool,
    /// Whether it owns the write-tracking memory type, or was about to.
    pub claimed: bool,
}

impl ServerRecord {
    /// Reads a record.
    ///
    /// # Errors
    /// `NotFound` if there is none: its server was destroyed, or never enabled. `InvalidData` for anything but a record.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        Self::parse(&text).ok_or_else(|| {
            let why = format!("{} is no record of an ioreq server", path.display());
            io::Error::new(io::ErrorKind::InvalidData, why)
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) {
            return None;
        }
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(": ");
        let flag = |text: &str| match text {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        };
        let record = ServerRecord {
            boot: field("boot")?.into(),
            domid: DomId(field("domid")?.parse().ok()?),
            identity: field("identity")?.into(),
            server: ServerId(field("server")?.parse().ok()?),
            buffered: flag(field("buffered")?)?,
            claimed: flag(field("claimed")?)?,
        };
        (lines.next() == Some("end")).then_some(record)
    }

    /// Replaces the file as a whole: a reader finds the old record or the new one, after a crash too.
    fn write(&self, path: &Path) -> io::Result<()> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = path.with_file_name(name);
        let mut file = File::create(&new)?;
        write!(file, "{self}")?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    /// Whether it is a record of this boot, this domain, and no later one with its id.
    fn check(&self, now: &Self) -> Result<()> {
        let why = if self.boot != now.boot {
            "the machine was restarted since: there is nothing to take over, remove the record"
                .into()
        } else if self.domid != now.domid {
            format!("the record is of {}", self.domid)
        } else if self.identity != now.identity {
            "another domain has the id now: there is nothing to take over, remove the record".into()
        } else {
            return Ok(());
        };
        Err(refused(why).domain(now.domid).server(self.server))
    }
}

impl fmt::Display for ServerRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |flag| if flag { "yes" } else { "no" };
        writeln!(f, "{HEAD}")?;
        writeln!(f, "boot: {}", self.boot)?;
        writeln!(f, "domid: {}", self.domid.0)?;
        writeln!(f, "identity: {}", self.identity)?;
        writeln!(f, "server: {}", self.server.0)?;
        writeln!(f, "buffered: {}", flag(self.buffered))?;
        writeln!(f, "claimed: {}", flag(self.claimed))?;
        writeln!(f, "end")
    }
}

/// A server's record and where it is.
#[derive(Debug)]
pub(super) struct RecordFile {
    path: PathBuf,
    record: ServerRecord,
}

impl RecordFile {
    /// For a server that has no id yet. Nothing is written.
    pub(super) fn of(path: &Path, domid: DomId, identity: String) -> Result<Self> {
        if identity.contains(['\n', '\r']) {
            return Err(refused("an identity is one line".into()).domain(domid));
        }
        let boot = "/proc/sys/kernel/random/boot_id";
        let boot = std::fs::read_to_string(boot)
            .map_err(|err| Error::from_io(Op::TakeOver, &err).about(boot))?;
        Ok(RecordFile {
            path: path.to_owned(),
            record: ServerRecord {
                boot: boot.trim().into(),
                domid,
                identity,
                server: ServerId(0),
                buffered: false,
                claimed: false,
            },
        })
    }

    /// The record of a server that was left behind, for the same domain.
    pub(super) fn found(self) -> Result<Self> {
        let found = ServerRecord::read(&self.path).map_err(|err| self.error(&err))?;
        found.check(&self.record)?;
        Ok(RecordFile {
            path: self.path,
            record: found,
        })
    }

    pub(super) fn record(&self) -> &ServerRecord {
        &self.record
    }

    /// A new server, about to be enabled.
    pub(super) fn created(&mut self, server: ServerId, buffered: bool) -> Result<()> {
        self.record.server = server;
        self.record.buffered = buffered;
        self.save()
    }

    /// Before claiming, and after disclaiming.
    pub(super) fn set_claimed(&mut self, claimed: bool) -> Result<()> {
        if self.record.claimed == claimed {
            return Ok(());
        }
        self.record.claimed = claimed;
        self.save()
    }

    /// The server is gone.
    pub(super) fn remove(&self) {
        match std::fs::remove_file(&self.path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%err, path = %self.path.display(), "the record of a server that is gone stays");
            }
            _ => {}
        }
    }

    fn save(&self) -> Result<()> {
        self.record
            .write(&self.path)
            .map_err(|err| self.error(&err))
    }

    fn error(&self, err: &io::Error) -> Error {
        let about = format!("{}: {err}", self.path.display());
        Error::from_io(Op::TakeOver, err)
            .domain(self.record.domid)
            .about(about)
    }
}

fn refused(why: String) -> Error {
    Error::new(Op::TakeOver, ErrorKind::InvalidArgument).about(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ServerRecord {
        ServerRecord {
            boot: "b".into(),
            domid: DomId(3),
            identity: "i: x".into(),
            server: ServerId(1),
            buffered: true,
            claimed: false,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let text = record().to_string();
        assert_eq!(ServerRecord::parse(&text), Some(record()));
        let claimed = ServerRecord {
            claimed: true,
            buffered: false,
            ..record()
        };
        assert_eq!(ServerRecord::parse(&claimed.to_string()), Some(claimed));
    }

    #[test]
    fn half_a_record_is_none() {
        let text = record().to_string();
        for end in 0..text.len() - 1 {
            assert_eq!(ServerRecord::parse(&text[..end]), None, "{end} bytes");
        }
        assert_eq!(ServerRecord::parse(&text.replace("yes", "maybe")), None);
        assert_eq!(
            ServerRecord::parse(&text.replace("record 1", "record 2")),
            None
        );
    }

    #[test]
    fn another_boot_domain_or_identity_is_refused() {
        let refusal = |now| record().check(&now).unwrap_err().to_string();
        record().check(&record()).unwrap();
        let boot = ServerRecord {
            boot: "c".into(),
            ..record()
        };
        assert!(refusal(boot).contains("restarted"));
        let domid = ServerRecord {
            domid: DomId(4),
            ..record()
        };
        assert!(refusal(domid).contains("record is of d3"));
        let identity = ServerRecord {
            identity: "j".into(),
            ..record()
        };
        assert!(refusal(identity).contains("another domain"));
    }
}

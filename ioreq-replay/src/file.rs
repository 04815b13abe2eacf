// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The file: who made it, and frames.
//!
//! Eight bytes of magic, two of version (little-endian), the header, frames. A frame is its length (a varint), its body (postcard), and two
//! bytes of the checksum of all bodies so far, so that a change is found in the frame where it is. The header is a frame. A request's frame
//! is written before the request is served, so that one which kills the device model is the last in the file.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::act::{Act, Ended};
use crate::effects::{Effect, continued};

const MAGIC: [u8; 8] = *b"ioreqrec";
/// Of the frames and their contents; any change of them is another version.
const VERSION: u16 = 1;
/// No frame is longer.
const MOST: u64 = 1 << 28;
/// Bytes of the checksum at a frame's end.
const CHECK: usize = 2;

/// Why a file is no recording that this program can play.
///
/// ```
/// use ioreq_replay::{Recording, RecordingError};
/// assert!(matches!(Recording::read(&b"#!/bin/sh\n"[..]), Err(RecordingError::NotARecording)));
/// let newer = *b"ioreqrec\xff\x00";
/// let err = Recording::read(&newer[..]).unwrap_err();
/// assert_eq!(err.to_string(), "a recording of version 255: this program knows version 1; play it with the program that made it");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// The file cannot be read.
    #[error("the recording cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It does not begin as one.
    #[error("this is no recording")]
    NotARecording,
    /// It is of another version.
    #[error(
        "a recording of version {0}: this program knows version {VERSION}; play it with the program that made it"
    )]
    Version(u16),
    /// It was changed after it was made.
    #[error("the recording is damaged: frame {frame}, at byte {at}: {why}")]
    Damaged {
        /// The number of the frame, from 0.
        frame: u64,
        /// Where it begins, in bytes from the beginning of the file.
        at: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// What the device model wrote into the header is not what is expected.
    #[error("the recording's settings are not those of the device model {0:?}")]
    Settings(String),
}

/// Who made a recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) model: String,
    pub(crate) settings: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Frame {
    /// Begins; its end is the next frame.
    Begin(Act),
    End {
        effects: Vec<Effect>,
        ended: Ended,
    },
    /// All of one.
    Whole {
        act: Act,
        effects: Vec<Effect>,
    },
    /// The recorder was closed.
    Closed,
}

/// Writes one.
pub(crate) struct Writer {
    to: Box<dyn Write + Send>,
    sum: u32,
    /// The first failure ends it.
    failed: bool,
}

impl Writer {
    pub(crate) fn new(to: Box<dyn Write + Send>, header: &Header) -> io::Result<Self> {
        let mut writer = Writer {
            to,
            sum: 0,
            failed: false,
        };
        writer.to.write_all(&MAGIC)?;
        writer.to.write_all(&VERSION.to_le_bytes())?;
        writer.write(header)?;
        Ok(writer)
    }

    fn write(&mut self, frame: &impl Serialize) -> io::Result<()> {
        let body = postcard::to_allocvec(frame).map_err(io::Error::other)?;
        self.sum = continued(self.sum, &body);
        let mut bytes = postcard::to_allocvec(&(body.len() as u64)).map_err(io::Error::other)?;
        bytes.extend(body);
        bytes.extend(self.sum.to_le_bytes().into_iter().take(CHECK));
        // At once: what was written outlives this process.
        self.to.write_all(&bytes)
    }

    pub(crate) fn put(&mut self, frame: &Frame) {
        if self.failed {
            return;
        }
        if let Err(err) = self.write(frame) {
            tracing::error!(%err, "the recording ends here; the device model goes on");
            self.failed = true;
        }
    }
}

/// An act as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) act: Act,
    pub(crate) effects: Vec<Effect>,
    /// `None`: the recording ends within it.
    pub(crate) ended: Option<Ended>,
}

/// A recording, read.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use ioreq_replay::{Recording, Tape};
/// # #[derive(Clone, Default)] struct Shared(Arc<Mutex<Vec<u8>>>);
/// # impl std::io::Write for Shared {
/// #     fn write(&mut self, b: &[u8]) -> std::io::Result<usize> { self.0.lock().unwrap().write(b) }
/// #     fn flush(&mut self) -> std::io::Result<()> { Ok(()) }
/// # }
/// let file = Shared::default(); // a `File` elsewhere
/// Tape::record(file.clone(), "adder", &7_u32)?.close();
/// let bytes = file.0.lock().unwrap().clone();
/// let recording = Recording::read(&bytes[..])?;
/// assert_eq!((recording.model(), recording.settings::<u32>()?), ("adder", 7));
/// assert!(recording.is_closed() && recording.requests() == 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    header: Header,
    pub(crate) acts: Vec<Recorded>,
    closed: bool,
    bytes: u64,
}

impl Recording {
    /// Reads all of one. A file that ends in the middle, because its recorder was killed, is one up to there; see
    /// [`is_closed`](Self::is_closed).
    ///
    /// # Errors
    /// When it cannot be read, is of another version, or was changed since.
    pub fn read(mut from: impl Read) -> Result<Self, RecordingError> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let rest = bytes
            .strip_prefix(&MAGIC)
            .ok_or(RecordingError::NotARecording)?;
        let (version, rest) = rest
            .split_first_chunk()
            .ok_or(RecordingError::NotARecording)?;
        match u16::from_le_bytes(*version) {
            VERSION => {}
            other => return Err(RecordingError::Version(other)),
        }
        let all = bytes.len();
        let mut frames = Frames {
            rest,
            all,
            number: 0,
            sum: 0,
        };
        let header = frames.next()?.ok_or(RecordingError::NotARecording)?;
        let mut recording = Recording {
            header,
            acts: Vec::new(),
            closed: false,
            bytes: all as u64,
        };
        let mut open = false;
        loop {
            let (frame, at) = (frames.number, frames.at());
            let Some(found) = frames.next()? else {
                return Ok(recording);
            };
            let whole = |act, effects| Recorded {
                act,
                effects,
                ended: Some(Ended::Done),
            };
            match (found, recording.acts.last_mut()) {
                (Frame::Begin(act), _) if !open => {
                    open = true;
                    recording.acts.push(Recorded {
                        act,
                        effects: Vec::new(),
                        ended: None,
                    });
                }
                (Frame::End { effects, ended }, Some(last)) if open => {
                    open = false;
                    (last.effects, last.ended) = (effects, Some(ended));
                }
                (Frame::Whole { act, effects }, _) if !open => {
                    recording.acts.push(whole(act, effects));
                }
                (Frame::Closed, _) if !open && !recording.closed => recording.closed = true,
                _ => {
                    let why = "it is out of order";
                    return Err(RecordingError::Damaged { frame, at, why });
                }
            }
        }
    }

    /// The device model that made it.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.header.model
    }

    /// What that wrote down of itself.
    ///
    /// # Errors
    /// When it is something else.
    pub fn settings<T: DeserializeOwned>(&self) -> Result<T, RecordingError> {
        postcard::from_bytes(&self.header.settings)
            .map_err(|_| RecordingError::Settings(self.header.model.clone()))
    }

    /// The number of requests in it.
    #[must_use]
    pub fn requests(&self) -> u64 {
        let is_request =
            |it: &&Recorded| matches!(it.act, Act::Request { .. } | Act::Posted { .. });
        self.acts.iter().filter(is_request).count() as u64
    }

    /// Whether its recorder came to its end. If not, it was killed, and the last request may be why.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// The file's length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Takes frames off a file's bytes.
struct Frames<'a> {
    rest: &'a [u8],
    all: usize,
    number: u64,
    sum: u32,
}

impl Frames<'_> {
    fn at(&self) -> u64 {
        (self.all - self.rest.len()) as u64
    }

    /// The next one; `None` where the file ends, be it in the middle of one.
    fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, RecordingError> {
        let (frame, at) = (self.number, self.at());
        let damaged = |why| RecordingError::Damaged { frame, at, why };
        let (len, rest) = match postcard::take_from_bytes::<u64>(self.rest) {
            Ok(found) => found,
            Err(postcard::Error::DeserializeUnexpectedEnd) => return Ok(None),
            Err(_) => return Err(damaged("its length is no number")),
        };
        if len > MOST {
            return Err(damaged("it is too long to be true"));
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let (Some(body), Some(check)) = (
            rest.get(..len),
            rest.get(len..).and_then(|rest| rest.get(..CHECK)),
        ) else {
            return Ok(None);
        };
        let sum = continued(self.sum, body);
        if !sum.to_le_bytes().starts_with(check) {
            return Err(damaged("its checksum is wrong"));
        }
        let (found, left) =
            postcard::take_from_bytes(body).map_err(|_| damaged("it makes no sense"))?;
        if !left.is_empty() {
            return Err(damaged("it is longer than its contents"));
        }
        self.sum = sum;
        self.number += 1;
        self.rest = rest.get(len + CHECK..).unwrap_or_default();
        Ok(Some(found))
    }
}

/// The checksum of all that there is to read: to tell whether a disk's image is the one with which something was recorded.
///
/// ```
/// assert_eq!(ioreq_replay::checksum(&b"123456789"[..])?, 0xcbf4_3926); // CRC-32
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// Those of reading.
pub fn checksum(mut from: impl Read) -> io::Result<u32> {
    let mut piece = vec![0; 1 << 16];
    let mut sum = 0;
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(sum),
            Ok(len) => sum = continued(sum, piece.get(..len).unwrap_or_default()),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A page for Prometheus on a unix socket: `curl --unix-socket SOCKET http://localhost/metrics`.
//!
//! One connection after the other, each for a second at most: who does not ask, or does not read, holds nobody up for longer, and no guest
//! at all.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// The most bytes of a question that are looked at.
const MOST: usize = 8192;

/// The socket, and who answers there. Dropping it ends both.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Metrics {
    /// Answers with `page` at `path`, which only the user who runs this can reach if the folder says so. A socket that another process left
    /// there is replaced.
    ///
    /// # Errors
    /// When there can be no socket, because something else is there, for one; or no thread.
    pub fn serve(path: &Path, page: impl Fn() -> String + Send + 'static) -> io::Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(err) if err.kind() == io::ErrorKind::AddrInUse && is_left_behind(path) => {
                fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            bound => bound,
        }?;
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let thread = thread::Builder::new().name("metrics".into());
        let thread = thread.spawn(move || {
            for connection in listener.incoming() {
                // Relaxed: the connection that ends the wait comes after it.
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                if let Err(err) = connection.and_then(|to| answer(to, &page)) {
                    tracing::debug!(%err, "a question for metrics");
                }
            }
        })?;
        Ok(Metrics {
            path: path.to_owned(),
            over,
            thread: Some(thread),
        })
    }
}

/// Whether a socket is there, and nobody listens.
fn is_left_behind(path: &Path) -> bool {
    // What is no socket refuses, too.
    let is_socket = fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket());
    let refused = UnixStream::connect(path).err();
    is_socket && refused.is_some_and(|err| err.kind() == io::ErrorKind::ConnectionRefused)
}

impl Drop for Metrics {
    fn drop(&mut self) {
        // Relaxed: see above.
        self.over.store(true, Ordering::Relaxed);
        let _wakes_it = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let _a_panic_has_been_printed = thread.join();
        }
        let _somebody_may_have_been_faster = fs::remove_file(&self.path);
    }
}

/// Reads a question, and gives the page, if it is one for it.
fn answer(mut to: UnixStream, page: &impl Fn() -> String) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    to.set_write_timeout(Some(PATIENCE))?;
    let mut question = Vec::new();
    let mut piece = [0; 512];
    while !question.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || question.len() > MOST {
            return write!(to, "HTTP/1.0 400 Bad Request\r\n\r\n");
        }
        to.set_read_timeout(Some(left))?;
        match to.read(&mut piece)? {
            0 => break,
            len => question.extend(piece.iter().take(len)),
        }
    }
    if !question.starts_with(b"GET / ") && !question.starts_with(b"GET /metrics ") {
        return write!(to, "HTTP/1.0 404 Not Found\r\n\r\n");
    }
    let page = page();
    write!(
        to,
        "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\r\n{page}",
        page.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(path: &Path, question: &str) -> String {
        let mut to = UnixStream::connect(path).unwrap();
        to.write_all(question.as_bytes()).unwrap();
        let mut answer = String::new();
        to.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn the_page_is_given_to_who_asks_for_it_and_the_socket_goes_with_its_server() {
        let path = std::env::temp_dir().join(format!("metrics-{}", std::process::id()));
        let left = UnixListener::bind(&path).unwrap();
        let page = || "a 1\n".to_owned();
        assert!(Metrics::serve(&path, page).is_err(), "somebody listens");
        drop(left);
        let metrics = Metrics::serve(&path, page).unwrap();
        for question in [
            "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
        ] {
            let answer = ask(&path, question);
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(
                head.starts_with("HTTP/1.0 200 OK\r\n") && head.ends_with(": 4"),
                "{head}"
            );
            assert_eq!(body, "a 1\n");
        }
        assert!(ask(&path, "GET /secrets HTTP/1.1\r\n\r\n").starts_with("HTTP/1.0 404"));
        assert!(ask(&path, "POST / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.0 404"));
        // One who says nothing, and one who does not stop.
        let silent = UnixStream::connect(&path).unwrap();
        let mut endless = UnixStream::connect(&path).unwrap();
        let _it_may_be_closed_meanwhile = endless.write_all(&[b'x'; 2 * MOST]);
        assert!(ask(&path, "GET / HTTP/1.0\r\n\r\n").ends_with("a 1\n"));
        drop((silent, endless));
        drop(metrics);
        assert!(!path.exists());
        // Something that is no socket stays.
        fs::write(&path, "mine").unwrap();
        assert!(Metrics::serve(&path, page).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        fs::remove_file(&path).unwrap();
    }
}

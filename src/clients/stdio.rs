//! Standard input and output, which may block for as long as nobody writes or reads at the other end.
//!
//! So each is served by a thread of its own: a worker waits for the thread's channel, and shutdown waits for neither. A
//! thread that is stuck ends with the process; nothing else could end it.

use std::io::{self, ErrorKind, Read, Write};
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::lines::BLOCK_BYTES;

/// Blocks that are read ahead.
const BLOCKS_AHEAD: usize = 2;
/// A terminal that another program made non-blocking is asked this often.
const FULL: Duration = Duration::from_millis(5);

/// Blocks of bytes as they arrive; closed at the end of the input.
pub(crate) type Blocks = mpsc::Receiver<io::Result<Vec<u8>>>;

/// Starts the thread that reads.
pub(crate) fn read(mut input: impl Read + Send + 'static) -> io::Result<Blocks> {
    let (blocks, receiver) = mpsc::channel(BLOCKS_AHEAD);
    let read_all = move || {
        loop {
            let mut block = vec![0; BLOCK_BYTES];
            let read = match input.read(&mut block) {
                Ok(0) => return,
                Ok(read) => {
                    block.truncate(read);
                    Ok(block)
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = read.is_err();
            if blocks.blocking_send(read).is_err() || failed {
                return;
            }
        }
    };
    thread::Builder::new().name("weir-stdin".to_owned()).spawn(read_all)?;
    Ok(receiver)
}

/// Hands bytes to a thread that writes them.
#[derive(Debug)]
pub(crate) struct Writer(mpsc::Sender<Job>);

#[derive(Debug)]
struct Job {
    bytes: Vec<u8>,
    done: oneshot::Sender<io::Result<()>>,
}

impl Writer {
    /// Starts the thread. It ends when the writer is dropped and what it was given is written.
    pub(crate) fn start(mut output: impl Write + Send + 'static) -> io::Result<Self> {
        let (writer, mut jobs) = mpsc::channel::<Job>(1);
        let write_all = move || {
            let mut torn = Vec::new();
            while let Some(Job { bytes, done }) = jobs.blocking_recv() {
                // Nobody waits for the answer after a rewind; the lines come again, and the reader sees them twice.
                let _ = done.send(write_lines(&mut torn, bytes, &mut output));
            }
        };
        thread::Builder::new().name("weir-stdout".to_owned()).spawn(write_all)?;
        Ok(Self(writer))
    }

    /// Whether the thread has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Resolves when the bytes are written.
    pub(crate) async fn write(&self, bytes: Vec<u8>) -> io::Result<()> {
        let ended = || io::Error::other("the thread that writes has ended");
        let (done, written) = oneshot::channel();
        self.0.send(Job { bytes, done }).await.map_err(|_| ended())?;
        written.await.map_err(|_| ended())?
    }
}

/// Writes lines. What is left of a line that an error tore is kept in `torn`, and is written first the next time: no other
/// line may stand behind its beginning.
fn write_lines(torn: &mut Vec<u8>, lines: Vec<u8>, output: &mut impl Write) -> io::Result<()> {
    let first = torn.len();
    let lines = if first == 0 { lines } else { [std::mem::take(torn), lines].concat() };
    let mut at = 0;
    let written = write_from(&mut at, &lines, output);
    if written.is_err() {
        let rest_of_line =
            || lines[at..].iter().position(|byte| *byte == b'\n').map_or(lines.len(), |end| at + end + 1);
        let is_in_line = at > 0 && lines[at - 1] != b'\n';
        let end = if at < first {
            first
        } else if is_in_line {
            rest_of_line()
        } else {
            at
        };
        *torn = lines[at..end].to_vec();
    }
    written
}

/// Writes all from a place on, and moves the place.
fn write_from(at: &mut usize, bytes: &[u8], output: &mut impl Write) -> io::Result<()> {
    while *at < bytes.len() {
        match output.write(&bytes[*at..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => *at += written,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(FULL),
            Err(error) => return Err(error),
        }
    }
    output.flush()
}

//! A raw TCP exchange of as many bytes as a page request and its answer: the floor for `getpage` on this machine.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use super::pinned;
use super::stats::Samples;

/// Bytes of a request for one page with its framing.
const REQUEST: usize = 110;
/// Bytes of its answer.
const ANSWER: usize = 8192 + 40;

/// Round trips in microseconds, between two threads that are bound to different processors, if there are two. Blocks.
///
/// # Errors
/// There is no port, or the loopback device fails.
pub fn apart(count: usize) -> anyhow::Result<Samples> {
    // Threads of their own: they stay bound.
    let thread = std::thread::spawn(move || round_trips(count, true));
    thread
        .join()
        .unwrap_or_else(|_| Err(anyhow::anyhow!("the raw exchange panicked")))
}

/// Round trips in microseconds, against a thread of this process; `apart` binds the two to different processors. Blocks.
///
/// # Errors
/// There is no port, or the loopback device fails.
pub fn round_trips(count: usize, apart: bool) -> anyhow::Result<Samples> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let server = std::thread::spawn(move || -> anyhow::Result<()> {
        if apart {
            pinned::this_thread(false)?;
        }
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let (mut request, answer) = ([0; REQUEST], [1; ANSWER]);
        while stream.read_exact(&mut request).is_ok() {
            stream.write_all(&answer)?;
        }
        Ok(())
    });
    if apart {
        pinned::this_thread(true)?;
    }
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let (request, mut answer) = ([1; REQUEST], vec![0; ANSWER]);
    let mut samples = Samples::default();
    for _ in 0..count {
        let began = Instant::now();
        stream.write_all(&request)?;
        stream.read_exact(&mut answer)?;
        samples.push(began.elapsed().as_secs_f64() * 1e6);
    }
    drop(stream);
    let _ = server.join();
    Ok(samples)
}

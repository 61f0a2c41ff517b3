//! A proxy in front of an HTTP server that makes the trouble of real networks, on demand.
//!
//! One request per connection, in both directions: what is asked, answered and lost is then never in doubt. Writes reach
//! the server one at a time: moto looks whether an object exists and stores it in two steps, so that of two conditional
//! writes at the same moment both may succeed, which no real store allows. Whoever judges races goes through a proxy.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It passes.
    None,
    /// The answer is 503 and the server never hears of it.
    Unavailable,
    /// The connection breaks and the server never hears of it.
    Lost,
    /// The server does what is asked, and the connection breaks instead of an answer.
    AnswerLost,
    /// The server does what is asked, and the client waits for the answer until it gives up.
    Silent,
    /// The answer comes this much later.
    Slow(Duration),
}

/// A request, as a plan of faults sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `GET`, `PUT`, …
    pub method: String,
    /// Path and query.
    pub target: String,
    /// How many requests came before it.
    pub number: u64,
}

type Plan = Box<dyn FnMut(&Seen) -> Fault + Send>;

struct State {
    plan: Plan,
    seen: Vec<(Seen, Fault)>,
    writes: Arc<tokio::sync::Mutex<()>>,
}

/// A running proxy; ends when dropped.
pub struct FaultyProxy {
    /// `host:port`.
    pub address: String,
    state: Arc<Mutex<State>>,
    _stop: oneshot::Sender<()>,
}

/// Most bytes of a request's head.
const MAX_HEAD: usize = 64 << 10;

impl FaultyProxy {
    /// Starts one in front of `server` (`host:port`), in a thread of its own. It makes no trouble yet.
    pub fn start(server: &str) -> FaultyProxy {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a listener");
        let address = listener.local_addr().expect("its address").to_string();
        let state = Arc::new(Mutex::new(State {
            plan: Box::new(|_| Fault::None),
            seen: Vec::new(),
            writes: Arc::default(),
        }));
        let (stop, stopped) = oneshot::channel();
        let (served, server) = (state.clone(), server.to_owned());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listener");
                tokio::select! {
                    () = accept(listener, &served, &server) => {}
                    _ = stopped => {}
                }
            });
        });
        FaultyProxy {
            address,
            state,
            _stop: stop,
        }
    }

    /// From now on this decides what happens to a request.
    pub fn set(&self, plan: impl FnMut(&Seen) -> Fault + Send + 'static) {
        self.lock().plan = Box::new(plan);
    }

    /// Every request so far, and what happened to it.
    pub fn seen(&self) -> Vec<(Seen, Fault)> {
        self.lock().seen.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: TcpListener, state: &Arc<Mutex<State>>, server: &str) {
    while let Ok((client, _)) = listener.accept().await {
        let (state, server) = (state.clone(), server.to_owned());
        // A broken connection is what a proxy is for.
        tokio::spawn(async move { drop(serve(client, &state, &server).await) });
    }
}

async fn serve(mut client: TcpStream, state: &Mutex<State>, server: &str) -> std::io::Result<()> {
    let Some((head, body)) = read_request(&mut client).await? else {
        return Ok(());
    };
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (fault, writes) = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = Seen {
            method: method.to_owned(),
            target: target.to_owned(),
            number: state.seen.len() as u64,
        };
        let fault = (state.plan)(&seen);
        state.seen.push((seen, fault));
        (fault, state.writes.clone())
    };
    match fault {
        Fault::Lost => return Ok(()),
        Fault::Unavailable => {
            let answer = "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            return client.write_all(answer.as_bytes()).await;
        }
        Fault::None | Fault::AnswerLost | Fault::Silent | Fault::Slow(_) => {}
    }
    let turn = match method {
        "PUT" => Some(writes.lock().await),
        _ => None,
    };
    let answer = ask(server, &head, &body).await?;
    drop(turn);
    match fault {
        Fault::AnswerLost => return Ok(()),
        Fault::Silent => {
            // Until the client hangs up.
            let _ = client.read(&mut [0; 16]).await?;
            return Ok(());
        }
        Fault::Slow(time) => tokio::time::sleep(time).await,
        Fault::None | Fault::Lost | Fault::Unavailable => {}
    }
    client.write_all(&answer).await?;
    client.shutdown().await
}

/// Head and body of a request; `None` when the client hung up.
async fn read_request(client: &mut TcpStream) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if bytes.len() > MAX_HEAD || client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let mut body = bytes.split_off(end);
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let length = header(&head, "content-length").and_then(|text| text.parse().ok());
    let length = length.unwrap_or(0);
    while body.len() < length {
        if client.read_buf(&mut body).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some((head, body)))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The server's whole answer.
async fn ask(server: &str, head: &str, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut upstream = TcpStream::connect(server).await?;
    let kept = head.trim_end().lines().filter(|line| {
        let name = line.split(':').next().unwrap_or_default();
        !name.eq_ignore_ascii_case("connection")
    });
    let mut head = kept.collect::<Vec<_>>().join("\r\n");
    head.push_str("\r\nConnection: close\r\n\r\n");
    upstream.write_all(head.as_bytes()).await?;
    upstream.write_all(body).await?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer).await?;
    Ok(answer)
}

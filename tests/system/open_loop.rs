//! An open-loop generator: requests go out when they are due, whatever became of those before. What was offered and what
//! was sent are counted apart, and times run from when a request was due.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::raw::Dialer;

/// An answer within this time, from when its request was due, is a good one; after it nobody waits any more.
pub(crate) const GOOD: Duration = Duration::from_secs(1);
/// Handshakes at a time while connections are opened.
const OPENING: usize = 32;
/// How long a connection that was closed is left alone, as `Retry-After` asks.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What is asked: requests number 0, 1, 2 and so on, as bytes.
pub(crate) type Ask = Arc<dyn Fn(u64, &mut Vec<u8>) + Send + Sync>;

/// A load.
#[derive(Clone)]
pub(crate) struct Offer {
    pub(crate) per_second: u64,
    pub(crate) connections: u64,
    /// Requests that a connection sends at once, one behind the other (pipelined).
    pub(crate) burst: u64,
    /// Before what is counted.
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
    pub(crate) ask: Ask,
}

/// What became of the requests that were due in the time that counts.
#[derive(Debug, Default, Clone)]
pub(crate) struct Got {
    pub(crate) offered: u64,
    pub(crate) sent: u64,
    /// 2xx within [`GOOD`], and after.
    pub(crate) good: u64,
    pub(crate) late: u64,
    /// 503.
    pub(crate) refused: u64,
    pub(crate) other: u64,
    /// Connections that were closed.
    pub(crate) closed: u64,
    /// Of all 2xx, sorted.
    pub(crate) times: Vec<Duration>,
    /// 2xx within [`GOOD`] of requests due in the warm-up.
    pub(crate) good_before: u64,
}

impl Got {
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let at = (self.times.len() * percent / 100).min(self.times.len().saturating_sub(1));
        self.times.get(at).copied().unwrap_or_default()
    }

    pub(crate) fn sent_percent(&self) -> u64 {
        self.sent * 100 / self.offered.max(1)
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.offered += other.offered;
        self.sent += other.sent;
        self.good += other.good;
        self.late += other.late;
        self.refused += other.refused;
        self.other += other.other;
        self.closed += other.closed;
        self.good_before += other.good_before;
        self.times.extend(other.times);
    }
}

/// Opens the connections, offers the load, and waits until nobody would wait any more.
pub(crate) async fn run(dialer: &Dialer, offer: &Offer) -> Result<Got> {
    let mut opening = JoinSet::new();
    let mut streams = Vec::new();
    for _ in 0..offer.connections {
        if opening.len() >= OPENING {
            streams.push(opening.join_next().await.context("a connection is being opened")???);
        }
        let dialer = dialer.clone();
        opening.spawn(async move { dialer.connect().await });
    }
    while let Some(opened) = opening.join_next().await {
        streams.push(opened??);
    }
    let begin = Instant::now() + Duration::from_millis(200);
    let counted = begin + offer.warm_up;
    let end = counted + offer.time;
    let mut running = JoinSet::new();
    for (number, stream) in (0..).zip(streams) {
        let connection = Connection {
            dialer: dialer.clone(),
            offer: offer.clone(),
            number,
            begin,
            counted,
            end,
            next: 0,
            state: Mutex::default(),
        };
        running.spawn(connection.run(stream));
    }
    let mut got = Got::default();
    while let Some(of_one) = running.join_next().await {
        got.add(of_one?);
    }
    got.times.sort_unstable();
    Ok(got)
}

/// One of the connections, and those that follow it when it is closed.
struct Connection {
    dialer: Dialer,
    offer: Offer,
    number: u64,
    begin: Instant,
    counted: Instant,
    end: Instant,
    /// The next burst.
    next: u64,
    /// Locked for a few instructions, never over an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    got: Got,
    /// When the requests were due whose answers have not come.
    waiting: VecDeque<Instant>,
}

impl Connection {
    async fn run(mut self, first: impl AsyncRead + AsyncWrite + Unpin + Send) -> Got {
        if self.session(first).await {
            while Instant::now() < self.end {
                tokio::time::sleep(RETRY_AFTER).await;
                let Ok(Ok(stream)) = timeout_at(self.end, self.dialer.connect()).await else { continue };
                if !self.session(stream).await {
                    break;
                }
            }
        }
        // What was due while there was no connection was offered all the same.
        while self.due(self.next) < self.end {
            self.skip();
        }
        self.state.into_inner().expect("nobody panicked").got
    }

    /// Bursts of all connections are spread evenly.
    fn due(&self, burst: u64) -> Instant {
        let place = burst * self.offer.connections + self.number;
        self.begin
            + Duration::from_secs(self.offer.burst * place) / u32::try_from(self.offer.per_second).expect("small")
    }

    fn skip(&mut self) {
        if self.due(self.next) >= self.counted {
            self.state.get_mut().expect("nobody panicked").got.offered += self.offer.burst;
        }
        self.next += 1;
    }

    /// Until the end, or until the connection is closed: then it is to be opened again.
    async fn session(&mut self, stream: impl AsyncRead + AsyncWrite + Unpin + Send) -> bool {
        // Nobody would wait for what is long overdue.
        while self.due(self.next) < self.end && self.due(self.next) + GOOD < Instant::now() {
            self.skip();
        }
        let (from, to) = tokio::io::split(stream);
        let first = self.next;
        let sent = std::sync::atomic::AtomicU64::new(first);
        let closed = {
            let this = &*self;
            tokio::select! {
                _ = this.read(from) => true,
                () = this.write(to, &sent) => false,
            }
        };
        self.next = sent.into_inner();
        let state = self.state.get_mut().expect("nobody panicked");
        state.waiting.clear();
        state.got.closed += u64::from(closed);
        closed
    }

    async fn write(&self, mut to: impl AsyncWrite + Unpin, next: &std::sync::atomic::AtomicU64) {
        let mut bytes = Vec::new();
        loop {
            let burst = next.load(std::sync::atomic::Ordering::Relaxed);
            let due = self.due(burst);
            if due >= self.end {
                break;
            }
            sleep_until(due).await;
            bytes.clear();
            for n in 0..self.offer.burst {
                (self.offer.ask)((burst * self.offer.connections + self.number) * self.offer.burst + n, &mut bytes);
            }
            let counts = due >= self.counted;
            {
                let mut state = self.state.lock().expect("nobody panicked");
                state.got.offered += if counts { self.offer.burst } else { 0 };
                state.waiting.extend((0..self.offer.burst).map(|_| due));
            }
            next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let written = async {
                to.write_all(&bytes).await?;
                to.flush().await
            };
            match timeout_at(self.end, written).await {
                // What the connection took only when nobody would have waited any more was not sent in time.
                Ok(Ok(())) if counts && due.elapsed() < GOOD => {
                    self.state.lock().expect("nobody panicked").got.sent += self.offer.burst;
                }
                Ok(Ok(())) => {}
                Ok(Err(_)) => std::future::pending().await,
                Err(_) => break,
            }
        }
        sleep_until(self.end + GOOD).await;
    }

    /// Reads answers until there is no more to come.
    async fn read(&self, mut from: impl AsyncRead + Unpin) -> Result<()> {
        let mut bytes = Vec::new();
        loop {
            while let Some(head) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                let answer = parse(&bytes[..head])?;
                let length = head + 4 + answer.body_bytes;
                if bytes.len() < length {
                    break;
                }
                bytes.drain(..length);
                self.answered(answer.status)?;
                if answer.close {
                    return Ok(());
                }
            }
            if from.read_buf(&mut bytes).await? == 0 {
                bail!("closed");
            }
        }
    }

    fn answered(&self, status: u16) -> Result<()> {
        let mut state = self.state.lock().expect("nobody panicked");
        let due = state.waiting.pop_front().context("an answer to nothing")?;
        let (time, good) = (due.elapsed(), matches!(status, 200 | 201));
        if due < self.counted {
            state.got.good_before += u64::from(good && time <= GOOD);
            return Ok(());
        }
        let got = &mut state.got;
        match status {
            _ if good && time <= GOOD => got.good += 1,
            _ if good => got.late += 1,
            503 => got.refused += 1,
            _ => got.other += 1,
        }
        if good {
            got.times.push(time);
        }
        Ok(())
    }
}

struct Answer {
    status: u16,
    body_bytes: usize,
    close: bool,
}

fn parse(head: &[u8]) -> Result<Answer> {
    let text = std::str::from_utf8(head)?;
    let status = text.get(9..12).context("no status")?.parse()?;
    let field = |name: &str| {
        let fields = text.split("\r\n").filter_map(|line| line.split_once(": "));
        fields.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    };
    let body_bytes = field("content-length").context("no Content-Length")?.parse()?;
    Ok(Answer { status, body_bytes, close: field("connection").is_some_and(|c| c == "close") })
}

/// What so many connections get done that each wait for one answer before they ask again, per second.
pub(crate) async fn closed_loop(dialer: &Dialer, connections: u64, time: Duration, ask: &Ask) -> Result<u64> {
    let mut running = JoinSet::new();
    for number in 0..connections {
        let (mut stream, ask) = (dialer.connect().await?, ask.clone());
        running.spawn(async move {
            let (begun, mut done, mut bytes) = (Instant::now(), 0, Vec::new());
            while begun.elapsed() < time {
                bytes.clear();
                ask(done * connections + number, &mut bytes);
                stream.write_all(&bytes).await?;
                stream.flush().await?;
                let answer = timeout(Duration::from_secs(30), crate::raw::read_answer(&mut stream, false)).await??;
                if !matches!(answer.status, 200 | 201) {
                    bail!("{}: {}", answer.status, answer.text());
                }
                done += 1;
            }
            Ok(done)
        });
    }
    let mut done = 0;
    while let Some(of_one) = running.join_next().await {
        done += of_one??;
    }
    Ok(done / time.as_secs().max(1))
}

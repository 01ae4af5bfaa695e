//! The shedding of load against a model of the front: one thread with a part of a core, connections that pipeline, work that goes on
//! elsewhere. Times of the model are those that were measured (docs/design/overload.md); all of it is virtual.

use std::collections::{BinaryHeap, VecDeque};

use super::*;

/// CPU time of one request that is served, of one that is refused, of a packet on a connection that is read, of a connection that is
/// read again, of a handshake; in µs.
const SERVE: u64 = 55;
const REFUSE: u64 = 16;
const WAKE: u64 = 1;
const READ_AGAIN: u64 = 12;
const HANDSHAKE: u64 = 450;
/// CPU time in each period.
const QUOTA: u64 = 25_000;
const PERIOD: u64 = 100_000;
/// How long the work on a request goes on elsewhere, and how much longer for each other that is worked on.
const WORK: u64 = 30_000;
const WORK_EACH: u64 = 100;
/// Requests of one packet, and bytes of a request.
const BURST: u64 = 2;
const BYTES: u64 = 400;
/// What is read at once.
const READ: u64 = 4096;
/// What can be served.
const CAPACITY: u64 = QUOTA * 1_000_000 / PERIOD / (SERVE + WAKE);
const SECOND: u64 = 1_000_000;

thread_local! {
    /// For how long the thread of the model has wanted a CPU.
    static WANTED: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::ZERO) };
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A burst of a connection is due.
    Due(usize),
    /// The work on a request is done, or the connection is there again.
    Ready(usize),
    /// The connection was closed and comes again.
    Again(usize),
    Sweep,
}

struct Connection {
    seat: Arc<Seat>,
    /// In the socket, and in the buffer: when each was sent.
    socket: VecDeque<u64>,
    buffer: VecDeque<u64>,
    /// Is in the run queue, or its work goes on elsewhere.
    busy: bool,
    aside: bool,
    closed: bool,
    /// When the request that is worked on was due, and how long the work takes.
    working: Option<(u64, u64)>,
}

#[derive(Default, Debug)]
struct Outcome {
    good: u64,
    late: u64,
    refused: u64,
    closed: u64,
}

struct Model {
    shed: Arc<Shed>,
    now: u64,
    period: u64,
    used: u64,
    in_flight: u64,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    connections: Vec<Connection>,
    run_queue: VecDeque<usize>,
    /// Counted from here on.
    from: u64,
    got: Outcome,
}

fn at(us: u64) -> Duration {
    Duration::from_micros(us)
}

impl Model {
    fn new(connections: usize) -> Self {
        let shed = Shed::new(Arc::new(Metrics::new(std::path::Path::new("/"))), || Some(WANTED.get()));
        let connection = |_| Connection {
            seat: shed.seat(),
            socket: VecDeque::new(),
            buffer: VecDeque::new(),
            busy: false,
            aside: false,
            closed: false,
            working: None,
        };
        let connections: Vec<_> = (0..connections).map(connection).collect();
        for c in &connections {
            c.seat.is_exclusive();
        }
        let events = BinaryHeap::from([Reverse((250_000, Event::Sweep))]);
        let (run_queue, got) = (VecDeque::new(), Outcome::default());
        Self { shed, now: 0, period: 0, used: 0, in_flight: 0, events, connections, run_queue, from: 0, got }
    }

    fn spend(&mut self, cpu: u64) {
        if self.now / PERIOD != self.period {
            (self.period, self.used) = (self.now / PERIOD, 0);
        }
        let before = self.now;
        self.now += cpu;
        self.used += cpu;
        if self.used >= QUOTA {
            self.now = self.now.max((self.period + 1) * PERIOD);
        }
        WANTED.set(WANTED.get() + at(self.now - before));
    }

    fn wake(&mut self, n: usize) {
        let c = &mut self.connections[n];
        if !c.busy && !c.closed {
            c.busy = true;
            c.seat.woken.note(at(self.now));
            self.run_queue.push_back(n);
        }
    }

    /// Offers so many requests a second for so long, and counts those of the last `counted`.
    fn offer(&mut self, per_second: u64, time: u64, counted: u64) -> Outcome {
        let begin = self.now;
        self.events.retain(|e| !matches!(e.0.1, Event::Due(_)));
        let end = begin + time;
        self.from = end - counted;
        self.got = Outcome::default();
        let count = self.connections.len() as u64;
        let every = BURST * count * SECOND / per_second;
        for n in 0..self.connections.len() {
            self.events.push(Reverse((begin + every * n as u64 / count, Event::Due(n))));
        }
        while self.now < end + SECOND {
            while let Some(Reverse((due, event))) = self.events.peek().copied().filter(|e| e.0.0 <= self.now) {
                self.events.pop();
                self.happen(due, event, end, every);
            }
            match self.run_queue.pop_front() {
                Some(n) => self.run(n),
                None => self.now = self.now.max(self.events.peek().map_or(end + SECOND, |e| e.0.0)),
            }
        }
        std::mem::take(&mut self.got)
    }

    fn happen(&mut self, due: u64, event: Event, end: u64, every: u64) {
        match event {
            Event::Due(_) if due >= end => {}
            Event::Due(n) => {
                self.events.push(Reverse((due + every, event)));
                if self.connections[n].closed {
                    return;
                }
                self.connections[n].socket.extend((0..BURST).map(|_| due));
                if !self.connections[n].aside {
                    self.connections[n].seat.woken.note(at(self.now));
                    self.spend(WAKE);
                    if self.connections[n].working.is_none() {
                        self.wake(n);
                    }
                }
            }
            Event::Ready(n) => {
                if let Some((due, work)) = self.connections[n].working.take() {
                    self.in_flight -= 1;
                    self.answered(due);
                    self.shed.worked(at(work));
                }
                self.connections[n].busy = false;
                self.wake(n);
            }
            Event::Again(n) => {
                self.spend(HANDSHAKE);
                let seat = self.shed.seat();
                seat.is_exclusive();
                let c = &mut self.connections[n];
                (c.seat, c.closed) = (seat, false);
                self.wake(n);
            }
            Event::Sweep => {
                self.events.push(Reverse((self.now + 250_000, Event::Sweep)));
                self.shed.sweep_at(at(self.now));
                for n in 0..self.connections.len() {
                    if self.connections[n].aside && !self.connections[n].seat.is_put_off() {
                        self.wake(n);
                    }
                }
            }
        }
    }

    fn answered(&mut self, due: u64) {
        if due >= self.from {
            let good = self.now - due <= SECOND;
            self.got.good += u64::from(good);
            self.got.late += u64::from(!good);
        }
    }

    /// The task of a connection runs.
    fn run(&mut self, n: usize) {
        self.connections[n].busy = false;
        if self.connections[n].aside {
            self.spend(READ_AGAIN);
            let c = &mut self.connections[n];
            c.aside = false;
            c.seat.reads_again_at(at(self.now), c.socket.len() as u64 * BYTES);
        }
        loop {
            let c = &mut self.connections[n];
            if c.buffer.is_empty() {
                let count = c.socket.len().min(usize::try_from(READ / BYTES).unwrap());
                if count == 0 {
                    c.seat.watched();
                    return;
                }
                c.buffer.extend(c.socket.drain(..count));
                c.seat.received_at(at(self.now), count as u64 * BYTES, c.socket.len() as u64 * BYTES);
                if c.socket.is_empty() {
                    c.seat.watched();
                }
            }
            let due = c.buffer.pop_front().expect("it has one");
            match c.seat.judge_at(at(self.now)) {
                Verdict::Serve => {
                    c.busy = true;
                    self.spend(SERVE);
                    self.in_flight += 1;
                    lock(&self.shed.state).in_flight += 1;
                    let work = WORK + WORK_EACH * self.in_flight;
                    self.connections[n].working = Some((due, work));
                    self.events.push(Reverse((self.now + work, Event::Ready(n))));
                    return;
                }
                Verdict::Refuse { close, .. } => {
                    self.spend(REFUSE);
                    self.got.refused += u64::from(due >= self.from);
                    let c = &mut self.connections[n];
                    if close {
                        c.seat.leave_at(at(self.now));
                        c.closed = true;
                        (c.socket, c.buffer) = Default::default();
                        self.got.closed += 1;
                        self.events.push(Reverse((self.now + SECOND, Event::Again(n))));
                        return;
                    }
                    if c.seat.is_put_off() {
                        c.aside = true;
                        return;
                    }
                }
            }
        }
    }
}

/// Goodput at so many times the capacity, in percent of it, of three thousand connections.
fn goodput(percent: u64) -> (u64, Outcome) {
    let mut model = Model::new(3000);
    model.offer(CAPACITY * 9 / 10, 5 * SECOND, SECOND);
    let got = model.offer(CAPACITY * percent / 100, 20 * SECOND, 15 * SECOND);
    (got.good * 100 / 15 / CAPACITY, got)
}

fn kept(percent: u64, least: u64) {
    let (good, got) = goodput(percent);
    eprintln!("{percent} % of what can be served: {good} % in time, {got:?}");
    assert!(
        good >= least,
        "of {percent} % of what can be served {good} % are answered in time, expected {least}; {got:?}; \
         once more: cargo test -p samovar http::shed -- --nocapture"
    );
}

#[test]
fn what_can_be_served_is_served() {
    let (good, got) = goodput(90);
    assert!(got.refused * 1000 <= got.good, "{} of {} were refused at 90 %", got.refused, got.good);
    assert!(good >= 89, "{good} %");
}

#[test]
fn some_more_than_can_be_served_leaves_most_of_the_goodput() {
    kept(100, 95);
    kept(120, 85);
    kept(200, 85);
}

#[test]
fn ten_times_as_much_leaves_most_of_the_goodput() {
    kept(500, 85);
    kept(1000, 80);
}

#[tokio::test]
async fn who_is_put_off_is_not_read_until_its_time_has_come() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let shed = Shed::new(Arc::new(Metrics::new(std::path::Path::new("/"))), || None);
    {
        let mut state = lock(&shed.state);
        (state.strained, state.seats) = (true, Some(0.0));
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let seat = shed.seat();
    seat.is_exclusive();
    let mut socket = super::super::io::Socket::new(listener.accept().await.unwrap().0, seat.clone());
    client.write_all(b"1").await.unwrap();
    assert_eq!(socket.read_u8().await.unwrap(), b'1');
    let verdict = seat.judge();
    let Verdict::Refuse { retry_after_s, close: false } = verdict else { panic!("{verdict:?}, expected a refusal") };
    socket.write_all(b"no").await.unwrap();
    socket.flush().await.unwrap();
    client.write_all(b"2").await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(100), socket.read_u8()).await;
    assert!(early.is_err(), "{early:?} was read from a connection that is put off");
    shed.sweep_at(shed.origin.elapsed() + Duration::from_secs(retry_after_s));
    let read = tokio::time::timeout(Duration::from_secs(5), socket.read_u8()).await;
    assert_eq!(read.expect("it is read again").unwrap(), b'2');
    let mut told = [0; 2];
    client.read_exact(&mut told).await.unwrap();
    assert_eq!(&told, b"no");
}

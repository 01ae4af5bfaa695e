//! Random changes of a log, crashes and restarts, against a plain model: after a restart, the log is what it was after
//! some prefix of the changes queued, and that prefix holds everything that was acknowledged. `SAMOVAR_SEED` runs one
//! seed, `SAMOVAR_SEEDS` that many.

use super::*;
use crate::disk::sim::CrashPoint;

/// What a log holds on disk.
#[derive(Clone, Default, PartialEq)]
struct Held {
    vote: Option<Vote>,
    committed: Option<EntryId>,
    purged: Option<EntryId>,
    /// The first and the newest purge that entries stand on without its being durable.
    base: Option<(EntryId, EntryId)>,
    entries: BTreeMap<u64, (EntryId, Bytes)>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<_> = self.entries.values().map(|(id, _)| (id.term, id.index)).collect();
        let (vote, committed, purged) = (self.vote, self.committed, self.purged);
        write!(f, "{vote:?} committed {committed:?} purged {purged:?} base {:?} entries {ids:?}", self.base)
    }
}

impl Held {
    /// What opening makes of it.
    fn opened(&self) -> Self {
        let mut held = self.clone();
        let visible = held.purged.map_or(0, |mark| mark.index + 1);
        held.entries = held.entries.split_off(&visible);
        if let Some((first, _)) = held.base.take() {
            held.truncate(first.index + 1);
            let next = held.entries.keys().next_back().map_or(0, |last| last + 1);
            held.truncate(next);
        }
        held
    }

    fn truncate(&mut self, from: u64) {
        self.entries.split_off(&from);
        self.committed = self.committed.filter(|id| id.index < from);
    }
}

/// The changes queued since the log was opened, as the states after each.
struct Model {
    /// States on disk after each change; the first is what was opened.
    states: Vec<Held>,
    /// How many changes are acknowledged.
    acknowledged: Arc<Mutex<usize>>,
    purged: Option<EntryId>,
    released: Option<EntryId>,
    state_durable: Option<EntryId>,
    term: u64,
    payloads: u64,
    sealed: u64,
}

impl Model {
    fn new() -> Self {
        Self {
            states: vec![Held::default()],
            acknowledged: Arc::default(),
            purged: None,
            released: None,
            state_durable: None,
            term: 1,
            payloads: 0,
            sealed: 0,
        }
    }

    fn now(&self) -> &Held {
        self.states.last().unwrap()
    }

    /// Adds a change, and returns what is to be called when it is acknowledged.
    fn change(&mut self, change: impl FnOnce(&mut Held)) -> Done {
        let mut held = self.now().clone();
        change(&mut held);
        self.states.push(held);
        let (ordinal, acknowledged) = (self.states.len() - 1, self.acknowledged.clone());
        Box::new(move |result| {
            if result.is_ok() {
                let mut acknowledged = acknowledged.lock().unwrap();
                *acknowledged = ordinal.max(*acknowledged);
            }
        })
    }

    fn visible(&self) -> impl Iterator<Item = &(EntryId, Bytes)> {
        self.now().entries.range(self.purged.map_or(0, |mark| mark.index + 1)..).map(|(_, entry)| entry)
    }

    fn last(&self) -> Option<EntryId> {
        self.visible().last().map(|(id, _)| *id).or(self.purged)
    }

    /// A new payload that occurs nowhere else.
    fn payload(&mut self, rng: &mut StdRng) -> Bytes {
        self.payloads += 1;
        let bytes = if rng.gen_bool(0.1) { rng.gen_range(0..3000) } else { rng.gen_range(0..300) };
        let mut payload = format!("<{}>", self.payloads).into_bytes();
        payload.resize(payload.len() + bytes, b'x');
        payload.into()
    }

    /// The log was opened again: it must be what some acknowledged prefix left.
    async fn check_opened(&mut self, wal: &Wal, seed: u64) {
        let read = wal.read(0..u64::MAX, usize::MAX).await.unwrap();
        let found = Held {
            vote: wal.vote(),
            committed: wal.committed(),
            purged: wal.purged(),
            base: None,
            entries: read.into_iter().map(|(id, payload)| (id.index, (id, payload))).collect(),
        };
        let acknowledged = *self.acknowledged.lock().unwrap();
        let matching = self.states[acknowledged..].iter().any(|state| state.opened() == found);
        assert!(
            matching,
            "seed {seed}: after {acknowledged} of {} changes acknowledged, found {found:?}\nacknowledged {:?}\nlast {:?}",
            self.states.len() - 1,
            self.states[acknowledged].opened(),
            self.now().opened()
        );
        self.purged = found.purged;
        self.released = found.purged;
        self.state_durable = found.purged;
        self.term += 1;
        self.states = vec![found];
        self.acknowledged = Arc::default();
    }

    async fn check_reads(&self, wal: &Wal, rng: &mut StdRng, seed: u64) {
        assert_eq!(wal.last(), self.last(), "seed {seed}");
        let (from, count) = (rng.gen_range(0..60), rng.gen_range(0..20));
        let Ok(read) = wal.read(from..from + count, usize::MAX).await else { return };
        let expected: Vec<_> =
            self.visible().filter(|(id, _)| (from..from + count).contains(&id.index)).cloned().collect();
        assert_eq!(read, expected, "seed {seed}");
    }
}

/// One random change; `Err` when the log has ended.
async fn step(wal: &Wal, model: &mut Model, rng: &mut StdRng, disk: &SimDisk, seed: u64) -> Result<(), Error> {
    match rng.gen_range(0..20) {
        0..=7 => {
            let next = model.last().map_or(0, |last| last.index + 1);
            let count = rng.gen_range(1..5);
            let entries: Vec<_> = (next..next + count).map(|i| (id(model.term, i), model.payload(rng))).collect();
            append_to_both(wal, model, entries)
        }
        8 | 9 => {
            model.term += 1;
            let vote = Vote { term: model.term, node: rng.gen_range(1..4), committed: false };
            let done = model.change(|held| held.vote = Some(vote));
            wal.save_vote(vote, Some(done))
        }
        10 => {
            let Some(vote) = model.now().vote else { return Ok(()) };
            let vote = Vote { committed: true, ..vote };
            let _ = model.change(|held| held.vote = Some(vote));
            wal.save_vote(vote, None)
        }
        11 | 12 => {
            let ids: Vec<_> = model.visible().map(|(id, _)| *id).collect();
            let Some(id) = ids.get(rng.gen_range(0..ids.len().max(1))).copied() else { return Ok(()) };
            let _ = model.change(|held| held.committed = Some(id));
            wal.save_committed(id)
        }
        13 => {
            // What state holds is committed, and never truncated.
            let applied = model.state_durable.map_or(0, |durable| durable.index + 1);
            let ids: Vec<_> = model.visible().map(|(id, _)| id.index).filter(|index| *index >= applied).collect();
            let Some(&from) = ids.get(ids.len().saturating_sub(rng.gen_range(1..6))) else { return Ok(()) };
            model.term += 1;
            let _ = model.change(|held| held.truncate(from));
            wal.truncate(from)
        }
        14 => purge_both(wal, model, rng),
        15 | 16 => release_both(wal, model, rng, disk, seed).await,
        17 => {
            rt::sleep(Duration::from_millis(150)).await;
            Ok(())
        }
        _ => {
            rt::sleep(Duration::from_micros(rng.gen_range(0..5000))).await;
            Ok(())
        }
    }
}

fn append_to_both(wal: &Wal, model: &mut Model, entries: Vec<(EntryId, Bytes)>) -> Result<(), Error> {
    let first = entries[0].0.index;
    let tail = model.now().entries.keys().next_back().copied();
    if let Some(mark) = model.purged
        && model.released.is_none_or(|released| released.index < mark.index)
        && tail.is_none_or(|tail| tail < mark.index)
        && first > mark.index
    {
        let _ = model.change(|held| held.base = Some((held.base.map_or(mark, |(first, _)| first), mark)));
    }
    // A batch may be split where a segment ends, so a crash may leave a part of it.
    let mut done: Done = Box::new(|_| ());
    for entry in &entries {
        done = model.change(|held| drop(held.entries.insert(entry.0.index, entry.clone())));
    }
    wal.append(entries, done)
}

fn purge_both(wal: &Wal, model: &mut Model, rng: &mut StdRng) -> Result<(), Error> {
    let ids: Vec<_> = model.visible().map(|(id, _)| *id).collect();
    let mark = if rng.gen_bool(0.2) {
        // A snapshot was installed.
        id(model.term, model.last().map_or(0, |last| last.index) + rng.gen_range(1..5))
    } else {
        let Some(id) = ids.get(rng.gen_range(0..ids.len().max(1))).copied() else { return Ok(()) };
        id
    };
    model.purged = Some(mark);
    release_in_model(model);
    wal.purge(mark)
}

/// Moves the durable purge mark of the model as far as it may go.
fn release_in_model(model: &mut Model) -> Option<Done> {
    let (purged, durable) = (model.purged?, model.state_durable?);
    let mark = if purged.index <= durable.index { purged } else { durable };
    model.released = Some(mark);
    Some(model.change(|held| {
        held.purged = Some(mark);
        held.base = held.base.filter(|(_, newest)| newest.index > mark.index);
    }))
}

async fn release_both(wal: &Wal, model: &mut Model, rng: &mut StdRng, disk: &SimDisk, seed: u64) -> Result<(), Error> {
    let below = model.now().entries.values().map(|(id, _)| *id).chain(model.purged).collect::<Vec<_>>();
    let Some(upto) = below.get(rng.gen_range(0..below.len().max(1))).copied() else { return Ok(()) };
    if model.state_durable.is_none_or(|durable| durable.index < upto.index) {
        model.state_durable = Some(upto);
    }
    let seal = rng.gen_bool(0.3);
    let acknowledge = release_in_model(model);
    wait(|done| wal.release(upto, seal, done)).await?;
    if let Some(acknowledge) = acknowledge {
        acknowledge(Ok(()));
        if seal {
            model.sealed += 1;
            check_sealed(model, disk, seed);
        }
    }
    Ok(())
}

/// No file holds an entry at or below the durable mark.
fn check_sealed(model: &Model, disk: &SimDisk, seed: u64) {
    let mark = model.released.unwrap();
    let left = markers(disk);
    for state in &model.states {
        for (index, (_, payload)) in state.entries.range(..=mark.index) {
            assert!(
                !left.contains(marker(payload)),
                "seed {seed}: entry {index} is left on disk, purged up to {mark:?}"
            );
        }
    }
}

/// What names a payload, `<number>`.
fn marker(payload: &[u8]) -> &[u8] {
    let end = payload.iter().position(|byte| *byte == b'>').unwrap();
    &payload[..=end]
}

/// The markers of all payloads that any file holds.
fn markers(disk: &SimDisk) -> std::collections::BTreeSet<Vec<u8>> {
    let contents = disk.files().into_iter().map(|path| disk.contents(&path).unwrap());
    let mut found = std::collections::BTreeSet::new();
    for bytes in contents {
        for part in bytes.split(|byte| *byte == b'<').skip(1) {
            let digits = part.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if part.get(digits) == Some(&b'>') {
                found.insert([b"<", &part[..=digits]].concat());
            }
        }
    }
    found
}

/// Opens the log, with crashes while it opens.
fn reopen(disk: &SimDisk, rng: &mut StdRng, seed: u64) -> Wal {
    loop {
        if rng.gen_bool(0.3) {
            disk.crash_at(disk.durable_operations() + rng.gen_range(1..8), point(rng));
        }
        match open(disk) {
            Ok(wal) => return wal,
            Err(error) => {
                assert!(disk.is_dead(), "seed {seed}: refused without damage: {error}");
                disk.crash();
            }
        }
    }
}

fn point(rng: &mut StdRng) -> CrashPoint {
    if rng.gen_bool(0.5) { CrashPoint::Before } else { CrashPoint::After }
}

/// One life of the node: opens, checks, changes until a crash.
fn live(disk: &SimDisk, model: &mut Model, rng: &mut StdRng, seed: u64) {
    simulate(rng.r#gen(), async {
        let wal = reopen(disk, rng, seed);
        if disk.is_dead() {
            return;
        }
        model.check_opened(&wal, seed).await;
        let steps = rng.gen_range(1..60);
        if rng.gen_bool(0.5) {
            disk.crash_at(disk.durable_operations() + rng.gen_range(1..20), point(rng));
        }
        for _ in 0..steps {
            if let Err(error) = step(&wal, model, rng, disk, seed).await {
                assert!(disk.is_dead(), "seed {seed}: the log ended without a crash: {error}");
                break;
            }
            if !disk.is_dead() {
                model.check_reads(&wal, rng, seed).await;
            }
        }
    });
    // A dead machine loses power; a live one may as well only lose the process.
    if disk.is_dead() || rng.gen_bool(0.7) {
        disk.crash();
    }
}

fn run(seed: u64) -> u64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let disk = SimDisk::new(seed);
    let mut model = Model::new();
    for _ in 0..rng.gen_range(2..6) {
        live(&disk, &mut model, &mut rng, seed);
    }
    model.sealed
}

#[test]
fn random_changes_and_crashes_lose_nothing_acknowledged() {
    let number = |name| std::env::var(name).ok().and_then(|value: String| value.parse::<u64>().ok());
    let only = number("SAMOVAR_SEED");
    let seeds = only.map_or(0..number("SAMOVAR_SEEDS").unwrap_or(3000), |seed| seed..seed + 1);
    let sealed: u64 = seeds.map(run).sum();
    assert!(only.is_some() || sealed > 1000, "the runs are to seal often, they did {sealed} times");
}

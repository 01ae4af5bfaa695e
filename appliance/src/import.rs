//! `samovar import`: rows of a file become values, each row exactly once, however often the import is killed and run
//! again.
//!
//! Rows are cut into transactions where nothing but the file decides ([`batch`]), each sent under an `Idempotency-Key`
//! made of the import's identity and the offset ([`state`]), many at once but as if one after the other ([`pipeline`]).
//! The progress file trails what is acknowledged; what lies between is sent again and applied once.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use hyper::Method;
use samovar_node::rt;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cli::Usage;
use crate::client::{self, Client, Request, Target};
use crate::output::{self, Format};

mod batch;
mod meter;
mod pipeline;
mod rows;
mod state;

use batch::{CutError, Cutter};
use meter::Meter;
use pipeline::{Acked, Failure};
use rows::{RowFormat, Rows, Shape};
use state::State;

/// Batches cut ahead of sending.
const CUT_AHEAD: usize = 8;
/// Bytes read from the file at once.
const READ_BYTES: usize = 256 << 10;
/// Time between two writes of the progress file: each is an fsync on the disk that is read from.
const SAVE_EVERY: Duration = Duration::from_millis(500);
/// How long a transaction is repeated while the node is away or busy; an update of the node takes less.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest wait for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer to a transaction of 128 keys, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Import rows of a CSV or JSON-lines file, each exactly once
///
/// Each row becomes the JSON value of one key: --prefix, then what stands in the --key fields. A CSV row becomes an
/// object of its columns; a JSON line stays as it is, byte for byte. Rows go in transactions of at most 128 rows and
/// about 1 MiB; of rows with the same key the later one wins, and the earlier ones are its history.
///
/// Killed at any instant, the same command goes on where it was, no row twice and none lost: FILE.samovar-import holds
/// how far everything is acknowledged, and what was sent beyond it (at most 256 transactions) is sent again under the
/// same Idempotency-Key. The ledger remembers those for 24 hours or a million writes, whichever ends first: resume
/// within that time. The same bound holds for importing the same file a second time, which writes nothing anew unless
/// --again says so. The file must stay as it is meanwhile; its first MiB and its size are checked.
///
/// A bad row (malformed, no key, too large, not UTF-8) stops the import with file and line, or with --skip-bad goes to
/// FILE.rejected, which can be mended and imported.
#[derive(Debug, clap::Args)]
pub(crate) struct Import {
    #[command(flatten)]
    target: Target,
    /// The file; `-` reads standard input, which cannot be resumed
    file: PathBuf,
    /// Put before every key
    #[arg(long, value_name = "TEXT", default_value = "")]
    prefix: String,
    /// Column or member that makes the key; several are joined by `/`
    #[arg(long = "key", value_name = "FIELD", required = true)]
    key_fields: Vec<String>,
    /// How rows are written [default: by the file's extension]
    #[arg(long, value_enum)]
    format: Option<RowFormat>,
    /// Between two fields of CSV, one ASCII character or `tab` [default: `,`, or tab for .tsv]
    #[arg(long, value_name = "CHARACTER")]
    delimiter: Option<String>,
    /// Make numbers and booleans of CSV fields that look like them
    #[arg(long)]
    typed: bool,
    /// Put bad rows into FILE.rejected and go on
    #[arg(long)]
    skip_bad: bool,
    /// Where bad rows go [default: FILE.rejected]
    #[arg(long, value_name = "FILE", requires = "skip_bad")]
    rejected: Option<PathBuf>,
    /// Progress file [default: FILE.samovar-import]
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Write the rows anew even if the same file was imported before
    #[arg(long)]
    again: bool,
    /// Transactions in flight at once
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u8).range(1..=32))]
    parallel: u8,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

/// Runs the import.
pub(crate) async fn run(import: &Import, format: Format) -> anyhow::Result<()> {
    let shape = import.shape()?;
    let client = Client::open(&import.target)?;
    let log = client.send(Request::get("/v1/log")).await?.json()?;
    let origin = log.get("origin").and_then(Value::as_str).context("/v1/log names no origin")?.to_owned();
    // Tells rows that an earlier import wrote; a principal that may not know sees them counted as its own.
    let size_before = crate::cli::log_size(&client).await.unwrap_or(0);
    let name = import.file.display().to_string();
    if import.is_stdin() {
        let progress = import.begin_stdin(&shape, &origin, size_before)?;
        let input = BufReader::with_capacity(READ_BYTES, io::stdin());
        let rows = Rows::new(input, shape).context("standard input")?;
        return transfer(import, &client, rows, progress, format).await;
    }
    let mut file = File::open(&import.file).with_context(|| format!("cannot open {name}"))?;
    let mut progress = import.begin_file(&mut file, &shape, &origin, size_before)?;
    let input = BufReader::with_capacity(READ_BYTES, file);
    let mut rows = Rows::new(input, shape).with_context(|| name.clone())?;
    if progress.state.place.offset > 0 {
        rows.resume_at(progress.state.place).with_context(|| name.clone())?;
    }
    progress.save()?;
    transfer(import, &client, rows, progress, format).await
}

async fn transfer<R: BufRead + Send + 'static>(
    import: &Import,
    client: &Client,
    rows: Rows<R>,
    mut progress: Progress,
    format: Format,
) -> anyhow::Result<()> {
    progress.header = rows.header().to_vec();
    let (sender, batches) = mpsc::channel(CUT_AHEAD);
    let mut cutter = Cutter::new(rows, import.skip_bad);
    // A thread, because reading a pipe may block for ever; after a failure it ends with the process.
    let reader = std::thread::Builder::new().name("import-reader".into()).spawn(move || {
        while let Some(cut) = cutter.next().transpose() {
            let last = cut.is_err();
            if sender.blocking_send(cut).is_err() || last {
                return;
            }
        }
    })?;
    let identity = progress.state.identity.clone();
    let send = |offset, body| write(client.clone(), state::idempotency_key(&identity, offset), body);
    let ended = pipeline::run(batches, usize::from(import.parallel), send, |acked| progress.record(acked)).await;
    progress.meter.finish();
    progress.save()?;
    ended.map_err(|f| import.explain(f, &progress.state))?;
    // A reader that panicked looks like the end of the file to everybody else.
    reader.join().map_err(|_| {
        anyhow::anyhow!("reading {} failed; nothing after the rows done is imported", import.file.display())
    })?;
    progress.summary(format)?;
    progress.done()
}

async fn write(client: Client, key: String, body: Bytes) -> Result<u64, client::Error> {
    let request = Request::write(Method::POST, "/v1/transactions", body)
        .header("content-type", "application/json")?
        .idempotent(&key)?
        .patience(PATIENCE)
        .bounds(ANSWER_TIMEOUT, ANSWER_BYTES_MAX);
    let answer = client.send(request).await?;
    let number = answer.header("samovar-transaction").and_then(|v| v.parse().ok());
    number.ok_or_else(|| client::Error::Protocol("the node's answer names no transaction".into()))
}

impl Import {
    fn is_stdin(&self) -> bool {
        self.file.as_os_str() == "-"
    }

    fn shape(&self) -> anyhow::Result<Shape> {
        let extension = self.file.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        let format = match (self.format, extension.as_str()) {
            (Some(format), _) => format,
            (None, "csv" | "tsv") => RowFormat::Csv,
            (None, "jsonl" | "ndjson" | "json") => RowFormat::Jsonl,
            (None, _) => bail!(Usage(format!("{}: pass --format csv or --format jsonl", self.file.display()))),
        };
        let delimiter = match (self.delimiter.as_deref(), extension.as_str()) {
            (Some("tab" | "\\t" | "\t"), _) | (None, "tsv") => b'\t',
            (None, _) => b',',
            (Some(text), _) => match text.as_bytes() {
                [b] if b.is_ascii() && !matches!(b, b'"' | b'\r' | b'\n') => *b,
                _ => bail!(Usage(format!("--delimiter {text:?}: one ASCII character other than a quote, or tab"))),
            },
        };
        let repeated = (1..self.key_fields.len()).find(|&i| self.key_fields[..i].contains(&self.key_fields[i]));
        if let Some(i) = repeated {
            bail!(Usage(format!("--key {} is given twice", self.key_fields[i])));
        }
        let (prefix, key_fields) = (self.prefix.clone(), self.key_fields.clone());
        Ok(Shape { format, prefix, key_fields, delimiter, typed: self.typed })
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.file.as_os_str().to_owned();
        path.push(suffix);
        path.into()
    }

    fn begin_stdin(&self, shape: &Shape, origin: &str, size_before: u64) -> anyhow::Result<Progress> {
        if self.state.is_some() {
            bail!(Usage("--state needs a file: what came from standard input cannot be read again".into()));
        }
        if self.skip_bad && self.rejected.is_none() {
            bail!(Usage("--skip-bad with standard input needs --rejected FILE".into()));
        }
        if !self.quiet {
            output::note("importing from standard input: cannot be resumed if it is interrupted");
        }
        let nonce = nonce();
        let identity = state::identity(io::empty(), 0, shape, origin, &nonce)?;
        let state = State::new(identity, nonce, size_before);
        Progress::new(self, state, None, None)
    }

    /// Finds where an earlier run stopped, or begins.
    fn begin_file(&self, file: &mut File, shape: &Shape, origin: &str, size_before: u64) -> anyhow::Result<Progress> {
        let path = self.state.clone().unwrap_or_else(|| self.beside(".samovar-import"));
        let size = file.metadata()?.len();
        let earlier = State::load(&path)?;
        let nonce = match &earlier {
            Some(state) => state.nonce.clone(),
            None if self.again => nonce(),
            None => String::new(),
        };
        let identity = state::identity(&mut *file, size, shape, origin, &nonce)?;
        file.rewind()?;
        let state = match earlier {
            None => State::new(identity, nonce, size_before),
            Some(state) if state.identity == identity => state,
            Some(state) => bail!(
                "{} is of another import ({} rows done): the file, the ledger or the options are not those it began \
                 with; repeat it as it was, or remove the progress file to begin anew, or name another with --state",
                path.display(),
                state.rows
            ),
        };
        if !self.quiet && state.rows > 0 {
            let (name, rows, line) = (self.file.display(), state.rows, state.place.line);
            output::note(&format!("{name}: going on after {rows} rows, at line {line}"));
        }
        Progress::new(self, state, Some(path), Some(size))
    }

    /// What ended the import, where, and how to go on.
    fn explain<E: Into<anyhow::Error>>(&self, failure: Failure<E>, state: &State) -> anyhow::Error {
        let name = self.file.display();
        let done = format!("{} rows before are imported", state.rows);
        let resume = if self.is_stdin() { "" } else { "; the same command goes on from there" };
        match failure {
            Failure::Cut(CutError::BadRow { line, reason }) => anyhow::anyhow!(
                "{name}:{line}: {reason}; {done}. To go on with the others: the same command with --skip-bad, which \
                 collects bad rows in a file of their own"
            ),
            Failure::Cut(e @ CutError::Stop(_)) => anyhow::anyhow!("{name}: {e}; {done}{resume}"),
            Failure::Send(e) => e.into().context(format!("{name}: stopped; {done}{resume}")),
            Failure::Record(e) => e.context(format!("{name}: stopped; {done}{resume}")),
        }
    }
}

fn nonce() -> String {
    let mut bytes = [0; 16];
    rt::fill_random(&mut bytes);
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// What is acknowledged, on disk and on the screen.
struct Progress {
    state: State,
    /// `None`: standard input.
    path: Option<PathBuf>,
    rejected_path: PathBuf,
    /// Opened at the first bad row.
    rejected: Option<File>,
    header: Vec<u8>,
    saved: Instant,
    meter: Meter,
}

impl Progress {
    fn new(import: &Import, mut state: State, path: Option<PathBuf>, size: Option<u64>) -> anyhow::Result<Self> {
        let rejected_path = import.rejected.clone().unwrap_or_else(|| import.beside(".rejected"));
        let name = rejected_path.display().to_string();
        match &state.rejected_file {
            // Bad rows of earlier imports stay: ours are appended.
            None => state.rejected_bytes = file_length(&rejected_path),
            Some(earlier) if *earlier == name && state.rejected_bytes <= file_length(&rejected_path) => {}
            Some(earlier) => bail!("the bad rows of this import are in {earlier}: pass it with --rejected, unaltered"),
        }
        state.rejected_file = Some(name);
        let meter =
            Meter::new(&import.file.display().to_string(), size, (state.place.offset, state.rows), import.quiet);
        let saved = Instant::now();
        Ok(Self { state, path, rejected_path, rejected: None, header: Vec::new(), saved, meter })
    }

    fn record(&mut self, acked: Acked) -> anyhow::Result<()> {
        for row in &acked.rejected {
            self.reject(&row.raw).with_context(|| format!("cannot write {}", self.rejected_path.display()))?;
            self.meter.rejected(row.line, &row.reason);
        }
        self.state.place = acked.end;
        self.state.rows += acked.rows;
        if let Some(transaction) = acked.transaction {
            self.state.transactions += 1;
            self.state.rows_before += if transaction < self.state.size_before { acked.rows } else { 0 };
        }
        self.meter.reached(acked.end.offset, self.state.rows);
        if self.saved.elapsed() >= SAVE_EVERY { self.save() } else { Ok(()) }
    }

    /// Appends a bad row. What a killed run wrote beyond the progress file's word is cut off first.
    fn reject(&mut self, raw: &[u8]) -> io::Result<()> {
        let file = match &mut self.rejected {
            Some(file) => file,
            none => {
                let file = OpenOptions::new().create(true).write(true).truncate(false).open(&self.rejected_path)?;
                file.set_len(self.state.rejected_bytes)?;
                none.insert(file)
            }
        };
        file.seek(io::SeekFrom::Start(self.state.rejected_bytes))?;
        let header = if self.state.rejected_bytes == 0 { self.header.as_slice() } else { b"" };
        let line_end: &[u8] = if raw.ends_with(b"\n") { b"" } else { b"\n" };
        let text = [header, raw, line_end].concat();
        file.write_all(&text)?;
        self.state.rejected_bytes += text.len() as u64;
        self.state.rejected += 1;
        Ok(())
    }

    /// Makes the bad rows durable, then the progress file that counts on them.
    fn save(&mut self) -> anyhow::Result<()> {
        if let Some(file) = &self.rejected {
            file.sync_data().with_context(|| format!("cannot write {}", self.rejected_path.display()))?;
        }
        if let Some(path) = &self.path {
            self.state.save(path)?;
        }
        self.saved = Instant::now();
        Ok(())
    }

    fn summary(&self, format: Format) -> anyhow::Result<()> {
        let s = &self.state;
        let (ms, rate) = (self.meter.elapsed().as_millis(), self.meter.rows_per_second());
        let seconds = format!("{}.{:03}", ms / 1000, ms % 1000);
        if format == Format::Json {
            output::json(&json!({
                "rows": s.rows, "rows_before": s.rows_before, "transactions": s.transactions, "rejected": s.rejected,
                "seconds": seconds.parse::<f64>().unwrap_or_default(), "rows_per_second": rate,
            }))?;
            return Ok(());
        }
        output::text(&format!("{} rows in {} entries, {seconds} s, {rate} rows/s\n", s.rows, s.transactions))?;
        if s.rows_before > 0 {
            output::text(&format!(
                "{} of these rows had been written by an earlier import of the same file, and were not written again; \
                 to write them anew: --again\n",
                s.rows_before
            ))?;
        }
        if s.rejected > 0 {
            let path = self.rejected_path.display();
            output::text(&format!("{} bad rows are in {path}; mend them there and import that file\n", s.rejected))?;
        }
        Ok(())
    }

    /// The last act: a kill before it makes the next run find nothing left to do.
    fn done(&self) -> anyhow::Result<()> {
        self.path.as_deref().map_or(Ok(()), State::remove)
    }
}

fn file_length(path: &Path) -> u64 {
    path.metadata().map_or(0, |m| m.len())
}

#[cfg(test)]
mod tests;

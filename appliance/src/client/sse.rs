//! Server-sent events: bytes in any pieces to events, as the HTML standard defines the format, within a bound.

/// Largest event, in bytes: a transaction's change with its value fits.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Id of the newest event that had one.
    pub(crate) id: String,
    /// Name of the event; `message` when the server gave none.
    pub(crate) name: String,
    /// Its data lines, joined by newlines.
    pub(crate) data: String,
}

/// Why a stream cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    /// An event is beyond the bound.
    #[error("an event is larger than {EVENT_BYTES_MAX} bytes")]
    TooLarge,
    /// A line is not UTF-8.
    #[error("an event is not UTF-8")]
    NotUtf8,
}

/// The state between two pieces of a stream.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    started: bool,
    id: String,
    name: String,
    data: String,
}

impl Parser {
    /// Takes the next bytes and appends the events that they complete.
    ///
    /// # Errors
    /// When the stream cannot be an event stream within the bound; the parser is of no use afterwards.
    pub(crate) fn push(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), Broken> {
        for &byte in bytes {
            let after_cr = std::mem::take(&mut self.after_cr);
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    self.end_line(events)?;
                }
                _ => {
                    if self.line.len() + self.data.len() >= EVENT_BYTES_MAX {
                        return Err(Broken::TooLarge);
                    }
                    self.line.push(byte);
                }
            }
        }
        Ok(())
    }

    fn end_line(&mut self, events: &mut Vec<Event>) -> Result<(), Broken> {
        let line = std::mem::take(&mut self.line);
        let text = std::str::from_utf8(&line).map_err(|_| Broken::NotUtf8)?;
        let text = if std::mem::replace(&mut self.started, true) { text } else { text.trim_start_matches('\u{feff}') };
        if text.is_empty() {
            self.dispatch(events);
            return Ok(());
        }
        let (field, value) = text.split_once(':').unwrap_or((text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "event" => value.clone_into(&mut self.name),
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self, events: &mut Vec<Event>) {
        let name = std::mem::take(&mut self.name);
        let mut data = std::mem::take(&mut self.data);
        if data.is_empty() {
            return;
        }
        data.pop();
        let name = if name.is_empty() { "message".into() } else { name };
        events.push(Event { id: self.id.clone(), name, data });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn event(id: &str, name: &str, data: &str) -> Event {
        Event { id: id.into(), name: name.into(), data: data.into() }
    }

    #[test]
    fn stream_in_any_pieces_gives_the_same_events() {
        let stream = "\u{feff}: hello\n\nid: 7\nevent: put\ndata: {\"a\":1}\n\ndata:two\r\ndata: lines\r\n\r\n: x\n\n\
                      id\ndata: größe\rignored: x\rretry: 5\r\rid: 9\ndata\n\nevent: lost\n\ndata: unfinished\n";
        let expected = [
            event("7", "put", "{\"a\":1}"),
            event("7", "message", "two\nlines"),
            event("", "message", "größe"),
            event("9", "message", ""),
        ];
        let seed = 20;
        let mut rng = StdRng::seed_from_u64(seed);
        for round in 0..200 {
            let (mut parser, mut events, mut rest) = (Parser::default(), Vec::new(), stream.as_bytes());
            while !rest.is_empty() {
                let n = rng.gen_range(1..=rest.len().min(if round % 2 == 0 { 3 } else { 40 }));
                parser.push(&rest[..n], &mut events).expect("a good stream");
                rest = &rest[n..];
            }
            assert_eq!(events, expected, "seed {seed}, round {round}");
        }
    }

    #[test]
    fn stream_without_end_is_bounded() {
        let mut parser = Parser::default();
        let piece = [b'x'; 1 << 16];
        let mut pushed = 0;
        while parser.push(&piece, &mut Vec::new()).is_ok() {
            pushed += piece.len();
            assert!(pushed <= EVENT_BYTES_MAX, "{pushed} bytes of one line were kept");
        }
        let mut parser = Parser::default();
        let line = [b"data: ".as_slice(), &piece[..], b"\n"].concat();
        let lines = (0..200).take_while(|_| parser.push(&line, &mut Vec::new()).is_ok()).count();
        assert!(lines * piece.len() <= EVENT_BYTES_MAX, "{lines} data lines of 64 KiB were kept");
        assert_eq!(Parser::default().push(b"data: \xff\n", &mut Vec::new()), Err(Broken::NotUtf8));
    }
}

use samovar_fuzz::decoder;

use super::*;

fn commands() -> [Command; 6] {
    let (author, log, policy) = ("p1".to_owned(), "L".to_owned(), "P".to_owned());
    let cosigners = vec!["C".to_owned()];
    let change = Command::LogKey {
        time_ms: 1,
        author: author.clone(),
        log: log.clone(),
        cosigners: cosigners.clone(),
        policy: policy.clone(),
        writes: Vec::new(),
    };
    let row = WriteCommand {
        author: author.clone(),
        requirements: vec![Requirement { key: Key::checked("k").unwrap(), revision: Some(4) }],
        operations: vec![OperationCommand::Delete { key: Key::checked("b").unwrap() }],
        idempotency: None,
        proposal: None,
    };
    let id = ProposalId { node: 1, boot: 2, sequence: 3 };
    let forwarded = WriteCommand { requirements: Vec::new(), proposal: Some(id), ..row.clone() };
    let message = Command::Messages { time_ms: 1, writes: vec![forwarded.clone(), forwarded], counts: vec![2] };
    let following = match change.clone() {
        Command::LogKey { time_ms, author, log, cosigners, policy, .. } => {
            Command::LogKey { time_ms, author, log, cosigners, policy, writes: vec![row] }
        }
        other => other,
    };
    let recovery = Command::Recovery {
        time_ms: 1,
        author: author.clone(),
        log: log.clone(),
        cosigners: cosigners.clone(),
        policy: policy.clone(),
        reason: "r".into(),
        last: "n".into(),
        known: None,
        writes: Vec::new(),
    };
    let cosigners = Command::Cosigners { time_ms: 1, author, log, cosigners, policy };
    [one_of_everything(), cosigners, change, following, message, recovery]
}

#[test]
fn fuzz_command() {
    let seeds: Vec<_> = commands().iter().map(|c| c.encode().to_vec()).collect();
    decoder("command", &seeds, |bytes| {
        if let Ok(command) = Command::decode(&Bytes::copy_from_slice(bytes)) {
            let again = Command::decode(&command.encode()).expect("what was encoded is decoded");
            assert_eq!(again, command, "a command changes when it is written again");
        }
    });
}

/// One of everything, so that its bytes hold the whole encoding.
fn one_of_everything() -> Command {
    let key = |text: &str| Key::checked(text).unwrap();
    let operations = vec![
        OperationCommand::Put {
            key: key("a"),
            value: Bytes::from_static(b"soup"),
            media_type: "text/plain".into(),
            blob: None,
            salt: [7; 32],
        },
        OperationCommand::Delete { key: key("b") },
        OperationCommand::Erase { key: key("c"), revision: 300 },
    ];
    let write = WriteCommand {
        author: "p1".into(),
        requirements: vec![
            Requirement { key: key("a"), revision: Some(5) },
            Requirement { key: key("b"), revision: None },
        ],
        operations,
        idempotency: Some(Idempotency { key: "k".into(), fingerprint: [9; 32] }),
        proposal: Some(ProposalId { node: 1, boot: 2, sequence: 3 }),
    };
    Command::Writes { time_ms: 1_700_000_000_000, writes: vec![write] }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn golden_bytes_hold_the_encoding_of_commands() {
    let salt = "07".repeat(32);
    let fingerprint = "09".repeat(32);
    // Version, variant, time as a varint, one write: author, two requirements, three operations, names.
    let writes = format!(
        "01 00 80d095ffbc31 01 027031 02 0161 0105 0162 00 03 00 0161 04736f7570 0a746578742f706c61696e 00 {salt} \
         01 0162 02 0163 ac02 01 016b {fingerprint} 01 01 02 03"
    );
    let (cosigners, log_key) = ("01 01 01 027031 014c 01 0143 0150", "02 02 01 027031 014c 01 0143 0150 00");
    let following = "03 02 01 027031 014c 01 0143 0150 01 027031 01 016b 0104 01 01 0162 00 00";
    let recovery = "05 04 01 027031 014c 01 0143 0150 0172 016e 00 00";
    let message = "04 03 01 02 027031 00 01 01 0162 00 01 01 02 03 027031 00 01 01 0162 00 01 01 02 03 01 02";
    let golden = [writes, cosigners.into(), log_key.into(), following.into(), message.into(), recovery.into()];
    for (command, golden) in commands().into_iter().zip(golden) {
        let golden = golden.replace(' ', "");
        assert_eq!(hex(&command.encode()), golden, "nodes of the neighbouring version could not read this any more");
        assert_eq!(Command::decode(&command.encode()).unwrap(), command);
    }
}

#[test]
fn what_is_no_whole_command_is_refused() {
    let good = one_of_everything().encode();
    for length in 0..good.len() {
        assert!(Command::decode(&good.slice(..length)).is_err(), "the first {length} of {} bytes", good.len());
    }
    let longer = Bytes::from([&good[..], &[0]].concat());
    let error = Command::decode(&longer).unwrap_err().to_string();
    assert!(error.contains("1 bytes follow"), "a byte after the command: {error}");
    let mut miscounted = commands()[4].encode().to_vec();
    *miscounted.last_mut().unwrap() = 1;
    let error = Command::decode(&Bytes::from(miscounted)).unwrap_err().to_string();
    assert!(error.contains("count its writes"), "two writes of which one is counted: {error}");
    let other = Bytes::from([&[2], &good[1..]].concat());
    let error = Command::decode(&other).unwrap_err().to_string();
    assert!(error.contains("not one of format 2"), "a command under a version that has another encoding: {error}");
    let newer = Bytes::from([&[6], &good[1..]].concat());
    let error = Command::decode(&newer).unwrap_err().to_string();
    assert!(error.contains("start the newer version"), "another version: {error}");
}

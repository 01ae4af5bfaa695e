use samovar_fuzz::decoder;

use super::*;

fn commands() -> Vec<Command> {
    let key = |text: &str| Key::client(text).expect("a key");
    let operations = vec![
        OperationCommand::Put {
            key: key("a"),
            value: "v".into(),
            media_type: "text/plain".into(),
            blob: false,
            salt: [7; 32],
        },
        OperationCommand::Delete { key: key("b") },
        OperationCommand::Erase { key: key("c"), revision: 300 },
    ];
    let write = WriteCommand {
        author: "w".into(),
        requirements: vec![Requirement { key: key("a"), revision: Some(1) }],
        operations,
        idempotency: Some(Idempotency { key: "i".into(), fingerprint: [9; 32] }),
        proposal: Some(ProposalId { node: 1, boot: 2, sequence: 3 }),
    };
    let cosigners = vec!["c".to_owned()];
    let (author, log, policy) = ("a".to_owned(), "l".to_owned(), "p".to_owned());
    vec![
        Command::Writes { time_ms: 1, writes: vec![write] },
        Command::Cosigners { time_ms: 1, author, log, cosigners, policy },
    ]
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

use std::cell::{Cell, RefCell};

use tokio::sync::mpsc;

use super::*;

fn batch(n: u64, keys: &[u64], rows: u64) -> Batch {
    let place = |offset| Place { offset, line: offset + 1 };
    let (start, end) = (place(n), place(n + 1));
    Batch { start, end, body: Bytes::from_static(b"x"), rows, keys: keys.to_vec(), rejected: Vec::new() }
}

fn feed(batches: Vec<Result<Batch, CutError>>) -> mpsc::Receiver<Result<Batch, CutError>> {
    let (sender, receiver) = mpsc::channel(batches.len().max(1));
    for b in batches {
        sender.try_send(b).expect("room for all");
    }
    receiver
}

#[tokio::test]
async fn many_at_once_recorded_in_order_equal_keys_apart() {
    // Later batches answer sooner; batches 2 and 5 share key 7.
    let keys: [&[u64]; 8] = [&[1], &[2], &[3, 7], &[4], &[5], &[7, 8], &[9], &[10]];
    let batches = keys.iter().enumerate().map(|(n, k)| Ok(batch(n as u64, k, 1))).collect();
    let (flying, most) = (Cell::new(0), Cell::new(0));
    let (sent, done, recorded) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()), RefCell::new(Vec::new()));
    let send = async |offset: u64, _body: Bytes| -> Result<u64, ()> {
        sent.borrow_mut().push(offset);
        flying.set(flying.get() + 1);
        most.set(most.get().max(flying.get()));
        tokio::time::sleep(std::time::Duration::from_millis(100 - 10 * offset)).await;
        flying.set(flying.get() - 1);
        done.borrow_mut().push(offset);
        Ok(100 + offset)
    };
    let record = |a: Acked| {
        recorded.borrow_mut().push((a.end.offset, a.transaction));
        Ok(())
    };
    run(feed(batches), 4, send, record).await.expect("all go well");
    let expected: Vec<_> = (0..8).map(|n| (n + 1, Some(100 + n))).collect();
    assert_eq!(*recorded.borrow(), expected, "recorded in the order of the file");
    assert_eq!(most.get(), 4, "as many at once as the window allows");
    let at = |list: &RefCell<Vec<u64>>, n| list.borrow().iter().position(|x| *x == n).expect("sent and done");
    assert_ne!(*done.borrow(), (0..8).collect::<Vec<_>>(), "they do overtake each other");
    assert!(at(&sent, 4) < at(&sent, 5), "sent in order");
    assert!(!sent.borrow()[..5].contains(&5), "batch 5 waits for batch 2, which has a key in common");
}

#[tokio::test]
async fn failure_waits_for_what_is_in_flight() {
    let batches = (0..6).map(|n| Ok(batch(n, &[n], 1))).collect();
    let recorded = RefCell::new(Vec::new());
    let send = async |offset: u64, _body: Bytes| {
        tokio::task::yield_now().await;
        if offset == 1 { Err("refused") } else { Ok(offset) }
    };
    let record = |a: Acked| {
        recorded.borrow_mut().push(a.end.offset);
        Ok(())
    };
    let failure = run(feed(batches), 3, send, record).await.expect_err("batch 1 is refused");
    assert!(matches!(failure, Failure::Send("refused")), "{failure:?}");
    assert_eq!(*recorded.borrow(), [1], "what lies behind a hole is not recorded");

    let bad = CutError::BadRow { line: 3, reason: "bad".into() };
    let batches = vec![Ok(batch(0, &[1], 1)), Ok(batch(1, &[], 0)), Err(bad)];
    let recorded = RefCell::new(Vec::new());
    let send = async |offset: u64, _body: Bytes| Ok::<u64, ()>(offset + 50);
    let record = |a: Acked| {
        recorded.borrow_mut().push((a.end.offset, a.transaction));
        Ok(())
    };
    let failure = run(feed(batches), 3, send, record).await.expect_err("row 3 is bad");
    assert!(matches!(failure, Failure::Cut(CutError::BadRow { line: 3, .. })), "{failure:?}");
    assert_eq!(*recorded.borrow(), [(1, Some(50)), (2, None)], "a batch without rows is not sent, but recorded");
}

#[tokio::test]
async fn first_batch_without_answer_holds_the_others_back() {
    let (sender, receiver) = mpsc::channel(1);
    let sent = Cell::new(0_u64);
    let send = async |offset: u64, _body: Bytes| -> Result<u64, ()> {
        sent.set(sent.get() + 1);
        if offset == 0 { std::future::pending().await } else { Ok(offset) }
    };
    let source = async {
        for n in 0..2 * AHEAD_MAX {
            sender.send(Ok(batch(n, &[n], 1))).await.expect("the pipeline reads on");
        }
        std::future::pending::<()>().await;
    };
    let pipeline = run(receiver, 8, send, |_| Ok(()));
    let waited = tokio::time::timeout(std::time::Duration::from_millis(300), async {
        tokio::select! { _ = pipeline => {}, () = source => {} }
    });
    assert!(waited.await.is_err(), "it waits for the first answer");
    assert_eq!(sent.get(), AHEAD_MAX, "so many, and no more, were sent ahead");
}

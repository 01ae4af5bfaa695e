//! `samovar dev --nodes 3`.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use super::*;

#[tokio::test]
async fn three_nodes_for_development_in_one_process() {
    let directory = tempfile::tempdir().unwrap();
    // The second time they are there already.
    for _ in 0..2 {
        let mut child = Command::new(samovar_tests::binary().unwrap())
            .args(["dev", "--nodes", "3", "--data"])
            .arg(directory.path().join("dev"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines: Vec<String> =
            BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap).take(6).collect();
        let named = |name: &str| -> Vec<String> {
            let values = lines.iter().filter_map(|line| line.strip_prefix(name));
            values.map(|value| value.trim().to_owned()).collect()
        };
        let (urls, ca, token) = (named("url "), named("ca "), named("token "));
        assert_eq!((urls.len(), ca.len(), token.len()), (3, 1, 1), "three URLs, one CA, one token: {lines:?}");
        let token = fs::read_to_string(&token[0]).unwrap();
        for (n, url) in urls.iter().enumerate() {
            let port = url.rsplit_once(':').unwrap().1.parse().unwrap();
            let mut client = Client::connect(port, ca[0].as_ref(), Some(token.trim())).await.unwrap();
            let put = client.put(&format!("/v1/keys/{n}"), "v").await.unwrap();
            assert!(put.status < 300, "{url}: {}", put.text());
            // Each hears of the others in its own time.
            let begun = Instant::now();
            loop {
                let cluster = client.get("/v1/cluster").await.unwrap().json().unwrap();
                if cluster["voters"] == 3 && cluster["can_lose"] == 1 {
                    break;
                }
                assert!(begun.elapsed() < FAILOVER_WITHIN, "{cluster:#}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        let id = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success(), "it ends at SIGTERM");
    }
}

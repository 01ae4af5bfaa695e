"""Receipts of three nodes: they verify offline under the published policy, and no longer with too few cosignatures."""

import itertools
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

from load import Ledger

HERE = pathlib.Path(__file__).parent
NODES = 3
TOGETHER_SECONDS = 60


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def peers(port):
    return f'[peers]\nlisten = "127.0.0.1:{port}"\n'


class Joined:
    """A node that joins the cluster of a ledger."""

    def __init__(self, first, name):
        api, port, data = free_port(), free_port(), first.work / name
        token, config = first.work / f"{name}.token", first.work / f"{name}.toml"
        first.run("node", "token", "--save", str(token))
        first.run("join", first.url, "--name", name, "--peers", f"127.0.0.1:{port}", "--token-file", str(token), "--data", str(data))
        config.write_text(f'[listen]\napi = "127.0.0.1:{api}"\n[chain]\npublic = true\n{peers(port)}')
        self.url, self.journal = f"https://localhost:{api}", (first.work / f"{name}.log").open("w")
        command = [first.binary, "serve", "--config", str(config), "--data", str(data)]
        self.process = subprocess.Popen(command, stdout=self.journal, stderr=self.journal)

    def stop(self):
        self.process.terminate()
        self.process.wait(60)


def ask(ledger, url, path, data=None):
    headers = {"Authorization": f"Bearer {ledger.token}", "Content-Type": "text/plain"}
    request = urllib.request.Request(f"{url}/{path}", data, headers, method="PUT" if data else "GET")
    return urllib.request.urlopen(request, timeout=30).read().decode()


def until(what, condition):
    end, last = time.monotonic() + TOGETHER_SECONDS, None
    while time.monotonic() < end:
        try:
            if last := condition():
                return last
        except OSError as error:
            last = error
        time.sleep(0.1)
    sys.exit(f"{what} was expected within {TOGETHER_SECONDS} s; last: {last}")


def three(ledger, node, index):
    """A receipt with the cosignatures of all nodes: those beyond what the policy asks for must come within a moment of it, so
    there is another checkpoint at each try."""
    ask(ledger, node.url, "v1/keys/foreign/later", b"v")
    receipt = ask(ledger, node.url, f"v1/transactions/{index}/receipt?wait=quorum")
    return receipt if len(signatures(receipt)) == 1 + NODES else None


def signatures(receipt):
    return [line for line in receipt.splitlines() if line.startswith("\N{EM DASH} ")]


def tools(ledger, work, key):
    policy = str(work / "policy")
    return {
        "aics-tlog": [sys.executable, str(HERE / "with_aics_receipt.py"), str(work / "receipt"), key, policy],
        "verify.py": [sys.executable, str(HERE.parent / "verifier/verify.py"), str(work / "receipt"), key, policy],
        "samovar verify": [ledger.binary, "verify", str(work / "receipt"), "--key", key, "--policy", policy],
    }


def check(ledger, nodes, work):
    index = json.loads(ask(ledger, nodes[1].url, "v1/keys/foreign/cluster", b"v"))["transaction"]
    log = json.loads(ask(ledger, ledger.url, "v1/log"))
    (work / "policy").write_text(log["policy"])
    passed = failed = 0
    for node in nodes:
        receipt = until("a receipt with all cosignatures", lambda: three(ledger, node, index))
        own, *others = signatures(receipt)
        assert own.split()[1] == log["vkey"].split("+")[0], f"the log signs first: {own}"
        for count in range(NODES + 1):
            for gone in itertools.combinations(others, count):
                kept = "".join(line for line in receipt.splitlines(True) if line.rstrip("\n") not in gone)
                (work / "receipt").write_text(kept)
                for tool, command in tools(ledger, work, log["vkey"]).items():
                    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
                    good = (done.returncode == 0) == (NODES - count > NODES // 2)
                    passed, failed = passed + good, failed + (not good)
                    if not good:
                        said = (done.stderr or done.stdout).strip()[-300:]
                        print(f"{tool} of {node.url} without {count}: exit {done.returncode}: {said}")
    print(f"receipts of three nodes, with each choice of cosignatures left: {passed} passed, {failed} failed\n")
    return 1 if failed else 0


def main():
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="samovar-foreign-") as work:
        work, nodes = pathlib.Path(work), []
        nodes.append(Ledger(work, peers(free_port())))
        try:
            ledger = nodes[0]
            for n in range(2, NODES + 1):
                nodes.append(Joined(ledger, f"box-{n:02}"))
            cosigners = lambda: len(json.loads(ask(ledger, ledger.url, "v1/log"))["cosigners"]) == NODES
            until("a policy of all nodes", cosigners)
            return check(ledger, nodes, work)
        finally:
            for node in reversed(nodes):
                node.stop()


if __name__ == "__main__":
    sys.exit(main())

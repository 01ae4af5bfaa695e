"""A ledger with real data: rows of vega-datasets, imported as files and then put one by one, one entry each."""

import csv
import http.client
import importlib.util
import json
import os
import pathlib
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

# Found, not imported: its code wants pandas, its files do not.
SOURCE = pathlib.Path(importlib.util.find_spec("vega_datasets").origin).parent / "_data"
#: File, its key column, and how it is imported.
FILES = [("airports", "iata", "csv"), ("sf-temps", "date", "jsonl"), ("seattle-temps", "date", "csv")]
WRITERS = 8
SAMPLE = 16
READY_SECONDS = 60


class Ledger:
    """The daemon, run as users run it, on a port of its own."""

    def __init__(self, work, more=""):
        """`more`: lines added to its configuration."""
        self.binary, self.work, self.data = os.environ["SAMOVAR_BIN"], work, work / "data"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        listen = f"127.0.0.1:{self.port}"
        self.run("init", "--name", "box-01", "--listen", listen, "--data", str(self.data))
        config = work / "samovar.toml"
        config.write_text(f'[listen]\napi = "{listen}"\n[chain]\npublic = true\n{more}')
        self.journal = (work / "journal").open("w")
        command = [self.binary, "serve", "--config", str(config), "--data", str(self.data)]
        self.process = subprocess.Popen(command, stdout=self.journal, stderr=self.journal)
        # Whatever is started from here on trusts the ledger's CA and nothing else.
        os.environ["SSL_CERT_FILE"] = os.environ["CURL_CA_BUNDLE"] = str(self.data / "ca.pem")
        self.url = f"https://localhost:{self.port}"
        self.token = (self.data / "admin.token").read_text().strip()
        self.await_ready()

    def run(self, *words):
        done = subprocess.run([self.binary, *words], env=os.environ | {"SAMOVAR_DATA": str(self.data)}, capture_output=True)
        if done.returncode != 0:
            sys.exit(f"samovar {' '.join(words)}: {done.stderr.decode()}")
        return done.stdout.decode()

    def await_ready(self):
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                return self.get("ready")
            except OSError:
                time.sleep(0.05)
        self.stop()
        sys.exit(f"the daemon is not ready: {(self.work / 'journal').read_text()}")

    def get(self, path):
        return urllib.request.urlopen(f"{self.url}/{path}", timeout=30).read()

    def upload(self, content):
        """Stores a blob; gives its CID."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{self.url}/v1/blobs", content, headers)
        return json.loads(urllib.request.urlopen(request, timeout=60).read())["cid"]

    def settle(self):
        """Waits until the checkpoint has caught up with the last write: the log then stays as it is."""
        before, after = None, self.get("checkpoint")
        while before != after:
            time.sleep(1)
            before, after = after, self.get("checkpoint")

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()
        self.journal.close()

    def put_all(self, rows):
        """Puts rows one by one, each an entry of its own, over connections that are kept."""

        def put(share):
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection("localhost", self.port, context=context, timeout=60)
            headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
            for n, row in share:
                connection.request("PUT", f"/v1/keys/row/{n}", json.dumps(row), headers)
                answer = connection.getresponse()
                said = answer.read()
                assert answer.status in (200, 201), f"PUT row/{n}: {answer.status} {said}"

        numbered = list(enumerate(rows))
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(put, [numbered[n::WRITERS] for n in range(WRITERS)]))


def import_files(ledger):
    """Imports each file; gives all rows."""
    rows = []
    for name, key, kind in FILES:
        with (SOURCE / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            own = list(csv.DictReader(file))
        path = ledger.work / f"{name}.{kind}"
        if kind == "csv":
            shutil.copy(SOURCE / f"{name}.csv", path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in own))
        ledger.run("import", str(path), "--prefix", f"{name}/", "--key", key, "--quiet")
        rows += own
    return rows


def load(ledger):
    """Loads the data; gives the number of rows and, by size, a sample of the checkpoints published meanwhile."""
    seen, done = {}, threading.Event()

    def collect():
        while not done.wait(0.1):
            note = ledger.get("checkpoint")
            seen[int(note.split(b"\n")[1])] = note

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        rows = import_files(ledger)
        ledger.put_all(rows)
    finally:
        done.set()
        collector.join()
    sizes = sorted(seen)[:-1]
    step = max(1, len(sizes) // SAMPLE)
    return len(rows), {size: seen[size] for size in sizes[::step][:SAMPLE]}

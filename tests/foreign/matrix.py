"""Runs every tool on the log as static files and through the API, then on damaged copies, which it must refuse."""

import functools
import http.server
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from load import Ledger, load
from mirror import mirror

HERE = pathlib.Path(__file__).parent
CHECKS = ["signature", "cosignature", "bundles", "inclusion", "consistency"]
#: The checks that each tool knows. What it knows it must do.
TOOLS = {
    "golang.org/x/mod/sumdb": ["signature", "inclusion", "consistency"],
    "signed_note, tlog_tiles": ["signature", "inclusion", "consistency"],
    "aics-tlog": CHECKS,
    "ct-merkle": ["inclusion", "consistency"],
    "pymerkle": ["inclusion", "consistency"],
}
#: What is run, with where the log is, its key, its cosigner's key, and checkpoints as files, the newest last.
COMMANDS = {
    "golang.org/x/mod/sumdb": ["go-sumdb"],
    "signed_note, tlog_tiles": ["azul"],
    "aics-tlog": [sys.executable, str(HERE / "with_aics.py")],
    "ct-merkle": ["ct-merkle"],
    "pymerkle": [sys.executable, str(HERE / "with_pymerkle.py")],
}
#: Tools that fetch over HTTP by themselves; the others are given a mirror.
FETCHES = {"aics-tlog"}
ROWS_MIN = 20_000
CHECKPOINTS_MIN = 8
TOOL_SECONDS = 300
#: None, one byte, a whole piece of the files of blobs, and several.
BLOB_SIZES = [0, 1, 65536, 1_000_003]


class Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass


def serve(directory):
    """A plain file server; ends with this process."""
    handler = functools.partial(Quiet, directory=str(directory))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def damage(work, size):
    """Copies of the exported log, each with one flipped bit, and the tools' checks that must see it."""
    places = {
        # Late enough that every tool has much to get right before it. Those that check signatures read tiles.
        "hash-tile": ("tile/0/%03d" % (size // 512), 40, {"signature"}),
        "bundle": ("tile/entries/%03d" % (size // 512), 40, {"inclusion"}),
        "root": ("checkpoint", None, {"signature", "inclusion"}),
        "cosignature": ("checkpoint", -3, {"cosignature"}),
    }
    for name, (file, at, seen_by) in places.items():
        copy = work / "served" / name
        shutil.copytree(work / "served" / "good", copy)
        if name == "root":
            flip(copy / file, (copy / file).read_bytes().index(b"\n", (copy / file).read_bytes().index(b"\n") + 1) + 5)
        else:
            flip(copy / file, at if at >= 0 else (copy / file).stat().st_size + at - 20)
        yield name, seen_by


class Log:
    """What the tools are told of the log."""

    def __init__(self, work, vkey, cosigner):
        self.work, self.keys, self.mirrors = work, [vkey, cosigner], 0

    def mirror(self, base):
        """Fetches the log behind `base`; gives the directory and the arguments of a tool after it."""
        self.mirrors += 1
        local = self.work / f"mirror-{self.mirrors}"
        return str(local), [*self.keys, *mirror(base, local, self.work / "checkpoints")]


class Table:
    def __init__(self):
        self.rows, self.passed, self.failed = [], 0, 0

    def row(self, tool, source, cells, good, seconds):
        self.passed, self.failed = self.passed + sum(good), self.failed + len(good) - sum(good)
        line = f"{tool:24} {source:22} " + " ".join(f"{c:13}" for c in cells)
        print(f"{line} {seconds:5.1f} s", flush=True)


def run(tool, base, local, arguments):
    """Runs a tool on a log behind `base`, of which `local` is a mirror."""
    started = time.monotonic()
    where = base if tool in FETCHES else local
    done = subprocess.run([*COMMANDS[tool], where, *arguments], capture_output=True, text=True, timeout=TOOL_SECONDS)
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return done.returncode, said, reason, time.monotonic() - started


def accept(table, base, source, log, expected):
    local, arguments = log.mirror(base)
    for tool, checks in TOOLS.items():
        code, said, reason, seconds = run(tool, base, local, arguments)
        counts = {check: said.get(check, "0").split()[0] for check in CHECKS}
        good = [code == 0 and counts[check] == str(expected[check]) for check in checks]
        cells = [(counts[c] if good[checks.index(c)] else "FAILED") if c in checks else "-" for c in CHECKS]
        table.row(tool, source, cells, good, seconds)
        if not all(good):
            print(f"    expected {expected}, exit 0; it said {said}, exit {code}: {reason}")


def refuse(table, base, name, log, seen_by):
    local, arguments = log.mirror(f"{base}/{name}")
    for tool, checks in TOOLS.items():
        if not seen_by & set(checks):
            continue
        code, said, reason, seconds = run(tool, f"{base}/{name}", local, arguments)
        table.row(tool, f"1 bit of {name}", ["refused" if code == 1 else "ACCEPTED"], [code == 1], seconds)
        print(f"    {reason[:140]}")


def name_blobs(table, ledger, work):
    """The names that the daemon gives to blobs are those that multiformats computes."""
    files = []
    for size in BLOB_SIZES:
        files.append(work / f"blob-{size}")
        files[-1].write_bytes(bytes(n % 251 for n in range(size)))
    started = time.monotonic()
    given = [ledger.upload(file.read_bytes()) for file in files]
    tool = [sys.executable, str(HERE / "with_multiformats.py"), *map(str, files)]
    done = subprocess.run(tool, capture_output=True, text=True, timeout=TOOL_SECONDS)
    good = given == done.stdout.split()
    table.row("multiformats", "API", [f"{len(given)} CIDs" if good else "FAILED"], [good], time.monotonic() - started)
    if not good:
        print(f"    given {given}, computed {done.stdout.split()}, exit {done.returncode}: {done.stderr[-300:]}")


def main():
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="samovar-foreign-") as work:
        work = pathlib.Path(work)
        ledger = Ledger(work)
        try:
            return check(ledger, work)
        finally:
            ledger.stop()


def check(ledger, work):
    started = time.monotonic()
    rows, sample = load(ledger)
    ledger.settle()
    ledger.run("export", "--tiles", str(work / "served" / "good"), "--quiet")
    size = int((work / "served" / "good" / "checkpoint").read_text().split("\n")[1])
    sample = {n: note for n, note in sample.items() if n < size}
    (work / "checkpoints").mkdir()
    for n, note in sample.items():
        (work / "checkpoints" / f"{n:09}").write_bytes(note)
    print(f"{rows} rows imported and put, {size} entries, {len(sample)} earlier checkpoints from {min(sample)} to "
          f"{max(sample)}, {time.monotonic() - started:.0f} s\n")
    assert rows >= ROWS_MIN and size >= ROWS_MIN and len(sample) >= CHECKPOINTS_MIN, "too little data to say anything"
    heads = len(sample) + 1
    expected = {"signature": heads, "cosignature": heads, "bundles": -(-size // 256), "inclusion": size,
                "consistency": heads * (heads - 1) // 2}
    named = json.loads(ledger.get("v1/log"))
    log = Log(work, named["vkey"], named["cosigners"][0])
    table = Table()
    print(f"{'tool':24} {'log from':22} " + " ".join(f"{c:13}" for c in CHECKS))
    base = serve(work / "served")
    accept(table, f"{base}/good", "exported files", log, expected)
    accept(table, ledger.url, "API", log, expected)
    name_blobs(table, ledger, work)
    print()
    for name, seen_by in damage(work, size):
        refuse(table, base, name, log, seen_by)
    print(f"\n{table.passed} passed, {table.failed} failed")
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())

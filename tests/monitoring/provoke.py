"""States of trouble for the monitoring lane, each made for real."""

import pathlib
import re
import socket
import ssl
import subprocess
import threading
import time

from processes import BINARY, until

RUNBOOKS = pathlib.Path(__file__).resolve().parents[2] / "docs/operate/runbooks"
# What is left free of the small file system: below its reserve, and above what makes ext4 itself refuse.
LEFT_BYTES = 40 << 20
# Reads sent together.
PIPELINE = 100


class Load(threading.Thread):
    """As many reads as a daemon answers, until they are enough; then reads and writes of every kind, until finished."""

    def __init__(self, daemon):
        super().__init__(daemon=True)
        self.target, self.enough, self.ending, self.error = daemon, threading.Event(), threading.Event(), None
        self.start()

    def heavy(self, seen):
        """Goes on with the many reads until they are noticed: how many a machine answers, or a scrape misses, varies."""
        until("heavy traffic is noticed", 120, lambda: self.error or seen())
        self.enough.set()

    def finish(self):
        self.ending.set()
        self.join()
        if self.error:
            raise ValueError(f"the load ended: {self.error}")

    def run(self):
        try:
            self.pipelined()
            connection, n = self.target.connect(), 0
            while not self.ending.is_set():
                n += 1
                for method, path, body, want in [
                    ("PUT", f"/v1/keys/load/{n}", b"x" * 256, {201}), ("GET", f"/v1/keys/load/{n}", None, {200}),
                    ("GET", "/v1/keys/absent", None, {404}), ("GET", "/v1/keys?prefix=load/&limit=10", None, {200}),
                    ("POST", "/v1/transactions", b'{"require":[{"key":"load/1","revision":null}],"operations":'
                                                 b'[{"delete":{"key":"load/1"}}]}', {412}),
                ]:
                    status, text = self.target.ask(method, path, body, connection)
                    if status not in want:
                        raise ValueError(f"{method} {path}: {status} {text}")
                time.sleep(0.05)
        except (OSError, ValueError) as error:
            self.error = error

    def pipelined(self):
        """Many reads on one connection, written without waiting for answers."""
        head = f"Host: {self.target.host}\r\n\r\n"
        context = ssl.create_default_context(cafile=str(self.target.ca))
        with socket.create_connection((self.target.host, self.target.port), timeout=30) as plain:
            with context.wrap_socket(plain, server_hostname=self.target.host) as stream:
                while not self.enough.is_set() and not self.ending.is_set():
                    stream.sendall(f"GET /v1/log HTTP/1.1\r\n{head}".encode() * PIPELINE)
                    answered = b""
                    while answered.count(b"HTTP/1.1 200 ") < PIPELINE or not answered.endswith(b"}"):
                        answered += stream.recv(1 << 20)


class Provoke:
    """Makes the states; `seen` says whether the alerts that were wanted are there."""

    def __init__(self, work, processes):
        self.work, self.processes = work, processes
        self.mount = work / "small-fs"

    def small_file_system(self):
        image = self.work / "small.img"
        self.processes.check(["truncate", "--size", "320M", str(image)])
        self.processes.check(["mkfs.ext4", "-q", "-m", "0", str(image)])
        self.mount.mkdir()
        self.processes.check(["mount", "-o", "loop", str(image), str(self.mount)])
        self.processes.finally_run(lambda: subprocess.run(["umount", str(self.mount)], check=True))
        return self.mount

    def short_certificate(self, daemon):
        """The daemon's certificate, signed anew by its own CA for three days."""
        tls = daemon.data / "tls"
        self.processes.check(["openssl", "x509", "-x509toreq", "-in", "node.pem", "-key", "node.key",
                              "-copy_extensions", "copyall", "-out", "node.csr"], cwd=tls)
        self.processes.check(["openssl", "x509", "-req", "-in", "node.csr", "-CA", "../ca.pem", "-CAkey", "ca.key",
                              "-copy_extensions", "copyall", "-days", "3", "-out", "node.pem"], cwd=tls)

    def fresh_certificate(self, daemon):
        """What the runbook says to do about it, with room for the entry; how many seconds are left then."""
        (self.mount / "filling").unlink()
        until("there is room again", 30, lambda: daemon.ask("PUT", "/v1/keys/full", b"x")[0] in (200, 201))
        page = (RUNBOOKS / "certificate.md").read_text()
        words = re.search(r"^ *samovar (rotate node)$", page, re.MULTILINE).group(1).split()
        self.processes.check([BINARY, *words, "--data", str(daemon.data)])
        expiry = re.search(r'_expiry_timestamp_seconds\{certificate="node"\} (\d+)', daemon.metrics())
        return int(expiry.group(1)) - time.time()

    def load(self, daemon):
        return Load(daemon)

    def restarts(self, daemon, times):
        for _ in range(times):
            time.sleep(2)
            daemon.stop()
            daemon.start()

    def hold_connections(self, daemon, many, seen):
        held = [daemon.connect() for _ in range(many)]
        for connection in held:
            connection.connect()
        until(f"{many} connections are held", 20, seen)
        for connection in held:
            connection.close()

    def frozen(self, daemon, seen):
        """Freezes the file system under a daemon while writes come."""
        writers = [threading.Thread(target=daemon.ask, args=("PUT", f"/v1/keys/frozen/{n}", b"x")) for n in range(20)]
        thaw = ["fsfreeze", "--unfreeze", str(self.mount)]
        self.processes.check(["fsfreeze", "--freeze", str(self.mount)])
        try:
            for writer in writers:
                writer.start()
                time.sleep(0.05)
            until("the disk stands still", 40, seen)
        finally:
            self.processes.check(thaw)
        for writer in writers:
            writer.join()

    def filled(self, daemon, seen):
        """Fills the file system beyond the daemon's reserve, and writes."""
        free = int(self.processes.check(["stat", "--file-system", "--format", "%a", str(self.mount)])) * int(
            self.processes.check(["stat", "--file-system", "--format", "%S", str(self.mount)]))
        self.processes.check(["fallocate", "--length", str(free - LEFT_BYTES), str(self.mount / "filling")])

        def refused():
            return daemon.ask("PUT", "/v1/keys/full", b"x")[0] == 507

        until("writes are refused", 10, refused)
        until("room and errors are noticed", 40, lambda: refused() and seen())

"""Clients that read and write while boxes go down: each follows `Retry-After`, goes to another node when one does not answer, and
sends a write again under its `Idempotency-Key`.
"""

import http.client
import ssl
import threading
import time
import uuid
from pathlib import Path

CLIENTS = 4
# A request that has no answer by then has failed.
PATIENCE_S = 20


class Load:
    """Clients of a cluster, until they are told to stop."""

    def __init__(self, addresses: list[str], ca: Path, token: str):
        self.addresses, self.token = addresses, token
        self.tls = ssl.create_default_context(cafile=str(ca))
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.done = self.moved = self.told_to_wait = 0
        self.failed: list[str] = []
        self.written: dict[str, str] = {}
        self.longest_s = 0.0
        # Fewest nodes that were ready at any time.
        self.ready_min = len(addresses)
        self.threads = [threading.Thread(target=self.client, args=(n,), daemon=True) for n in range(CLIENTS)]
        self.threads.append(threading.Thread(target=self.watch, daemon=True))

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(PATIENCE_S + 5)

    def client(self, number: int) -> None:
        count, node = 0, number
        while not self.stop.is_set():
            key, value = f"load/{number}/{count % 50}", f"{number}-{count}"
            node = self.request(node, "PUT", key, value)
            with self.lock:
                self.written[key] = value
            node = self.request(node, "GET", key, value)
            count += 1
            time.sleep(0.05)

    def request(self, node: int, method: str, key: str, value: str) -> int:
        """Until it is answered; which node answered."""
        headers = {"authorization": f"Bearer {self.token}", "idempotency-key": uuid.uuid4().hex, "content-type": "text/plain"}
        began, said = time.monotonic(), "no answer"
        while time.monotonic() - began < PATIENCE_S:
            try:
                status, text, wait_s = self.once(node, method, key, value, headers)
            except (OSError, http.client.HTTPException, ssl.SSLError) as error:
                said, node = f"{type(error).__name__}: {error}", node + 1
                with self.lock:
                    self.moved += 1
                time.sleep(0.1)
                continue
            if status in (200, 201) and (method == "PUT" or text == value):
                with self.lock:
                    self.done += 1
                    self.longest_s = max(self.longest_s, time.monotonic() - began)
                return node
            said = f"{status} {text[:200]}"
            if wait_s is None:
                break
            with self.lock:
                self.told_to_wait += 1
            time.sleep(min(wait_s, 5))
            node += 1
        with self.lock:
            self.failed.append(f"{method} {key} at {self.addresses[node % len(self.addresses)]}: {said}")
        return node + 1

    def once(self, node: int, method: str, key: str, value: str, headers: dict) -> tuple[int, str, float | None]:
        """Status, body, and for how long it says to wait, if it does."""
        address = self.addresses[node % len(self.addresses)]
        connection = http.client.HTTPSConnection(address, 8443, timeout=5, context=self.tls)
        try:
            connection.request(method, f"/v1/keys/{key}", value if method == "PUT" else None, headers)
            answer = connection.getresponse()
            wait = answer.headers.get("retry-after")
            return answer.status, answer.read().decode(), None if wait is None else float(wait)
        finally:
            connection.close()

    def value(self, key: str) -> str:
        """What the last node has under a key."""
        return self.once(len(self.addresses) - 1, "GET", key, "", {"authorization": f"Bearer {self.token}"})[1]

    def watch(self) -> None:
        while not self.stop.is_set():
            ready = sum(self.ready(address) for address in self.addresses)
            with self.lock:
                self.ready_min = min(self.ready_min, ready)
            time.sleep(0.3)

    def ready(self, address: str) -> bool:
        connection = http.client.HTTPSConnection(address, 8443, timeout=3, context=self.tls)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

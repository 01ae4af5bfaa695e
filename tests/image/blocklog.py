"""A disk served over NBD that remembers every write, and the disks that a power cut could have left.

The cache of a disk keeps what it was told until a flush; a power cut takes any of it, whole writes or single sectors, in any order.
A flush makes durable what was answered before it was asked: of requests that were under way together none counts as written
before another.
"""

import ctypes
import os
import random
import socket
import struct
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
# NBD, the fixed newstyle handshake: github.com/NetworkBlockDevice/nbd, doc/proto.md.
OPTION_GO, OPTION_INFO, OPTION_ABORT = 7, 6, 2
REPLY_ACK, REPLY_INFO, REPLY_UNSUPPORTED = 1, 3, 0x80000001
READ, WRITE, DISCONNECT, FLUSH, TRIM, ZEROES = 0, 1, 2, 3, 4, 6
COMMAND_FUA = 1
# Has flags, takes flushes, "force unit access", trims and zeroes. A trim changes nothing: a disk may keep what it was told to forget.
EXPORT_FLAGS = 1 | 4 | 8 | 32 | 64
# fallocate(2): keep the size, make a hole.
HOLE = 1 | 2
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Entry:
    """A write, or a flush (`length` 0). `turn`: entries of one turn were under way together. `at`: where the log has its content; -1:
    zeroes."""

    turn: int
    offset: int
    length: int
    at: int
    forced: bool


class BlockLog(threading.Thread):
    """Serves `disk` on a socket; the content of every write goes to `log` too."""

    def __init__(self, disk: Path, address: Path, log: Path):
        super().__init__(daemon=True)
        self.disk, self.log = disk, log
        self.entries: list[Entry] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(address))
        self.listener.listen(1)
        self.turn = self.end = 0

    def position(self) -> int:
        """How many entries there are; what somebody was told before is within them."""
        return len(self.entries)

    def run(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            try:
                self.handshake(connection)
                self.serve(connection)
            except (ConnectionError, EOFError):
                pass  # Power taken away.
            finally:
                connection.close()

    def handshake(self, connection: socket.socket) -> None:
        connection.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        received(connection, 4)
        while True:
            _, option, length = struct.unpack(">8sII", received(connection, 16))
            received(connection, length)
            reply = lambda kind, data=b"", option=option: connection.sendall(  # noqa: E731
                struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data)
            if option == OPTION_ABORT:
                reply(REPLY_ACK)
                raise EOFError
            if option not in (OPTION_GO, OPTION_INFO):
                reply(REPLY_UNSUPPORTED)
                continue
            reply(REPLY_INFO, struct.pack(">HQH", 0, self.disk.stat().st_size, EXPORT_FLAGS))
            reply(REPLY_INFO, struct.pack(">HIII", 3, SECTOR, 4096, 32 << 20))
            reply(REPLY_ACK)
            if option == OPTION_GO:
                return

    def serve(self, connection: socket.socket) -> None:
        disk = os.open(self.disk, os.O_RDWR)
        try:
            with self.log.open("ab") as log:
                left = b""
                while True:
                    left += more(connection, len(left) == 0)
                    # Everything that was asked before the first of it is answered belongs to one turn.
                    answers = []
                    while (size := whole(left)) and size <= len(left):
                        request, left = left[:size], left[size:]
                        answers.append(self.answer(disk, log, request))
                    if answers:
                        self.turn += 1
                        connection.sendall(b"".join(answers))
                    elif left:
                        left += received(connection, (whole(left) or 28) - len(left))
        finally:
            os.close(disk)

    def answer(self, disk: int, log, request: bytes) -> bytes:
        _, flags, kind, handle, offset, length = struct.unpack(">IHHQQI", request[:28])
        if kind == DISCONNECT:
            raise EOFError
        data = b""
        if kind == READ:
            data = os.pread(disk, length, offset)
        elif kind == WRITE:
            os.pwrite(disk, request[28:], offset)
            log.write(request[28:])
            log.flush()
            self.entries.append(Entry(self.turn, offset, length, self.end, bool(flags & COMMAND_FUA)))
            self.end += length
        elif kind == ZEROES:
            zero(disk, offset, length)
            self.entries.append(Entry(self.turn, offset, length, -1, bool(flags & COMMAND_FUA)))
        elif kind == FLUSH:
            self.entries.append(Entry(self.turn, 0, 0, -1, False))
        return struct.pack(">IIQ", 0x67446698, 0, handle) + data


def zero(file: int, offset: int, length: int) -> None:
    """Makes a part of a file zeroes, and a hole."""
    if LIBC.fallocate(file, HOLE, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


def whole(data: bytes) -> int:
    """Length of the request that `data` begins with; 0 if its head is not there yet."""
    if len(data) < 28:
        return 0
    kind, length = struct.unpack(">H", data[6:8])[0], struct.unpack(">I", data[24:28])[0]
    return 28 + (length if kind == WRITE else 0)


def more(connection: socket.socket, wait: bool) -> bytes:
    """What has arrived; waits for something if `wait`."""
    parts = [] if not wait else [connection.recv(1 << 20)]
    if wait and not parts[0]:
        raise EOFError
    while True:
        try:
            part = connection.recv(1 << 20, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b"".join(parts)
        if not part:
            raise EOFError
        parts.append(part)


def received(connection: socket.socket, length: int) -> bytes:
    parts = []
    while length:
        part = connection.recv(min(length, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


# What of the writes that no flush covered survives a cut.
LOSSES = ("none of them", "half of them", "half of their sectors")


class Rebuilder:
    """Disks as power cuts left them, at points in ascending order."""

    def __init__(self, base: Path, log: Path, entries: list[Entry], durable: Path):
        self.entries, self.durable = entries, durable
        self.log = log.open("rb")
        self.waiting: list[Entry] = []
        self.next = 0
        subprocess.run(["cp", "--sparse=always", base, durable], check=True)

    def write(self, disk: int, entry: Entry, first: int = 0, size: int | None = None) -> None:
        """Does a write, or a part of it, again."""
        size = entry.length if size is None else size
        if entry.at < 0:
            zero(disk, entry.offset + first, size)
            return
        self.log.seek(entry.at + first)
        os.pwrite(disk, self.log.read(size), entry.offset + first)

    def cut(self, point: int, loss: str, seed: int, place: Path) -> int:
        """Makes `place` the disk after a cut when `point` entries had arrived; how many writes were not flushed."""
        with self.durable.open("r+b", buffering=0) as disk:
            for entry in self.entries[self.next : point]:
                if entry.length:
                    self.waiting.append(entry)
                    continue
                for write in [w for w in self.waiting if w.turn < entry.turn]:
                    self.write(disk.fileno(), write)
                self.waiting = [w for w in self.waiting if w.turn >= entry.turn]
        self.next = point
        subprocess.run(["cp", "--sparse=always", self.durable, place], check=True)
        chance = random.Random(seed)
        with place.open("r+b", buffering=0) as disk:
            for write in self.waiting:
                size = SECTOR if loss == LOSSES[2] and write.at >= 0 else write.length
                for first in range(0, write.length, size):
                    if write.forced or (loss != LOSSES[0] and chance.random() < 0.5):
                        self.write(disk.fileno(), write, first, size)
        return len(self.waiting)

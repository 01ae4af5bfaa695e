"""What a disk holds, read without starting it: partition table, ESP, what GRUB would start, the data partition, its ledger."""

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import time
import zlib
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SAMOVAR = os.environ.get("SAMOVAR_BIN", "samovar")
SECTOR = 512
# What fsck.vfat finds on every ESP whose machine lost power, and repairs by itself.
HARMLESS = re.compile(r"dirty bit|mostly harmless|Differences:|Not automatically|Starting (check/repair|verification)|not properly unmounted|Automatically removing dirty bit|free cluster|Free cluster|Leaving filesystem|^fsck|^/|^$|differences between boot sector|bytes .*:$|^ +\d+:", re.IGNORECASE)
LEDGER_PATIENCE_S = 60
PIECE = 1 << 16


class Wrong(Exception):
    """Something that a power cut must not leave."""


class Offline:
    """One disk image, looked at."""

    def __init__(self, disk: Path, work: Path):
        self.disk, self.work = disk, work
        self.notes: list[str] = []
        self.partitions = self.table()

    def table(self) -> dict[int, tuple[int, int]]:
        """Number of each partition → where it begins and ends, in bytes. From the copy at the end if the first is torn."""
        with self.disk.open("rb") as file:
            first = read_table(file, SECTOR)
            second = read_table(file, os.fstat(file.fileno()).st_size - SECTOR)
        if first is None:
            self.notes.append("partition table torn, its copy holds" if second else "partition table torn")
            if second is None:
                raise Wrong("no partition table: neither the first nor the copy at the end of the disk holds")
        return first or second or {}

    def part(self, number: int) -> Path:
        """A partition as a file of its own."""
        begin, end = self.partitions[number]
        place = self.work / f"part{number}"
        copy_extents(self.disk, begin, end, place)
        return place

    def esp(self) -> Path:
        """The ESP's files; damage that is not repaired by itself is wrong."""
        image = self.part(2)
        said = subprocess.run(["fsck.vfat", "-n", "-V", image], capture_output=True, text=True, check=False).stdout
        odd = [line.strip() for line in said.splitlines() if not HARMLESS.search(line)]
        if odd:
            self.notes.append("ESP: " + "; ".join(odd)[:200])
        files = self.work / "esp"
        shutil.rmtree(files, ignore_errors=True)
        files.mkdir()
        for name, needed in (("EFI/BOOT/BOOTX64.EFI", True), ("EFI/samovar/grub.cfg", True), ("EFI/samovar/grubenv", False),
                             ("samovar/provisioned", False), ("samovar/machine-id", False)):  # fmt: skip
            (files / name).parent.mkdir(parents=True, exist_ok=True)
            copied = subprocess.run(["mcopy", "-n", "-i", image, f"::/{name}", files / name], capture_output=True, text=True, check=False,
                                    env=os.environ | {"MTOOLS_SKIP_CHECK": "1"})  # fmt: skip
            if copied.returncode and "not found" not in copied.stderr:
                self.notes.append(f"ESP: {name} unreadable")
            if copied.returncode and needed:
                raise Wrong(f"the firmware or GRUB would not find {name} on the ESP: {copied.stderr.strip()[:200]}")
        return files

    def choice(self, files: Path) -> str:
        """The slot that GRUB would start (image/grub.cfg)."""
        listed = subprocess.run(["grub-editenv", files / "EFI/samovar/grubenv", "list"], capture_output=True, text=True, check=False)
        env = {"ORDER": "A B", "A_OK": "1", "B_OK": "1", "A_TRY": "0", "B_TRY": "0", "CONFIRMED": ""}
        if listed.returncode:
            self.notes.append("GRUB's environment unreadable")
        else:
            env |= dict(line.split("=", 1) for line in listed.stdout.splitlines() if "=" in line)
        self.env = env
        for letter in env["ORDER"].split():
            number = {"A": 3, "B": 4}[letter]
            begin, _ = self.partitions[number]
            with self.disk.open("rb") as file:
                file.seek(begin)
                there = file.read(4) == b"hsqs"
            if env[f"{letter}_OK"] == "1" and env[f"{letter}_TRY"] in ("0", "1", "2") and there:
                return letter
        raise Wrong(f"GRUB would start no slot but for rescue: {env}")

    def slot(self, letter: str, size: int) -> bytes:
        """The first `size` bytes of a slot."""
        begin, _ = self.partitions[{"A": 3, "B": 4}[letter]]
        with self.disk.open("rb") as file:
            file.seek(begin)
            return file.read(size)

    def var(self, key: Path, kept: "Clear") -> Path:
        """Decrypts the data partition, replays its journal, checks it, and copies what it holds."""
        locked, clear = self.part(5), self.work / "var.ext4"
        (self.work / "volume.key").unlink(missing_ok=True)
        opened = subprocess.run(["cryptsetup", "luksDump", "--batch-mode", "--dump-volume-key", "--volume-key-file", self.work / "volume.key",
                                 "--key-file", key, locked], capture_output=True, text=True, check=False)  # fmt: skip
        if opened.returncode:
            raise Wrong(f"the data partition does not open: {opened.stderr.strip()}")
        header = json.loads(subprocess.run(["cryptsetup", "luksDump", "--dump-json-metadata", locked], capture_output=True, text=True, check=True).stdout)
        segment = header["segments"]["0"]
        kept.decrypt(locked, int(segment["offset"]), int(segment["sector_size"]), (self.work / "volume.key").read_bytes(), clear)
        (self.work / "volume.key").unlink()
        place, mount = self.work / "var", self.work / "mount"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        mount.mkdir(exist_ok=True)
        mounted = subprocess.run(["mount", "-o", "loop", "-t", "ext4", clear, mount], capture_output=True, text=True, check=False)
        if mounted.returncode:
            raise Wrong(f"the data partition cannot be mounted: {mounted.stderr.strip()}")
        try:
            for name in ("lib/samovar", "lib/samovar-site", "lib/samovar-update"):
                if (mount / name).exists():
                    (place / name).parent.mkdir(parents=True, exist_ok=True)
                    subprocess.run(["cp", "-a", mount / name, place / name], check=True)
        finally:
            subprocess.run(["umount", mount], check=True)
        checked = subprocess.run(["e2fsck", "-fn", clear], capture_output=True, text=True, check=False)
        if checked.returncode:
            raise Wrong(f"its file system is damaged: {checked.stdout[-300:]}")
        return place

    def ledger(self, data: Path, written: int) -> int:
        """Starts the ledger; every write up to `written` must be there. How many there are."""
        # The daemon takes a directory of its own user only.
        subprocess.run(["chown", "-R", f"{os.getuid()}:{os.getgid()}", data], check=True)
        port = free_port()
        config = self.work / "samovar.toml"
        config.write_text(f'[listen]\napi = "127.0.0.1:{port}"\n')
        log = self.work / "ledger.log"
        with log.open("w") as file:
            daemon = subprocess.Popen([SAMOVAR, "serve", "--config", config, "--data", data], stdout=file, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + LEDGER_PATIENCE_S
            while True:
                said = subprocess.run([SAMOVAR, "keys", "power/", "--data", data, "--output", "json"], capture_output=True, text=True, check=False)
                if said.returncode == 0:
                    break
                if daemon.poll() is not None or time.monotonic() > end:
                    raise Wrong(f"the ledger does not come up: {said.stderr[-200:]} {log.read_text()[-600:]}")
                time.sleep(0.1)
            keys = [json.loads(line)["key"] for line in said.stdout.splitlines()]
            there = {int(key.rpartition("/")[2]) for key in keys}
            lost = [number for number in range(written) if number not in there]
            if lost:
                raise Wrong(f"{len(lost)} writes that were acknowledged are gone, the first is {lost[0]} of {written}")
            for number in sorted({0, written // 2, written - 1}) if written else []:
                value = subprocess.run([SAMOVAR, "get", f"power/{number:06}", "--data", data], capture_output=True, text=True, check=False).stdout
                if value.strip() != f"value {number}":
                    raise Wrong(f"write {number} has the value {value!r}")
            return len(there)
        finally:
            daemon.kill()
            daemon.wait()


def read_table(file, at: int) -> dict[int, tuple[int, int]] | None:
    """A GPT whose header is at this byte, if its checksums hold (UEFI specification 2.10, 5.3.2)."""
    file.seek(at)
    header = file.read(92)
    if len(header) < 92 or header[:8] != b"EFI PART" or zlib.crc32(header[:16] + bytes(4) + header[20:]) != struct.unpack("<I", header[16:20])[0]:
        return None
    entries, count, size, crc = struct.unpack("<QIII", header[72:92])
    file.seek(entries * SECTOR)
    table = file.read(count * size)
    if zlib.crc32(table) != crc:
        return None
    found = {}
    for number in range(count):
        entry = table[number * size : (number + 1) * size]
        if any(entry[:16]):
            first, last = struct.unpack("<QQ", entry[32:48])
            found[number + 1] = (first * SECTOR, (last + 1) * SECTOR)
    return found


def extents(file: int, begin: int, end: int):
    """Where a sparse file has data between two bytes."""
    at = begin
    while at < end:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
        except OSError:
            return
        if start >= end:
            return
        at = min(os.lseek(file, start, os.SEEK_HOLE), end)
        yield start, at


def copy_extents(disk: Path, begin: int, end: int, place: Path) -> None:
    place.unlink(missing_ok=True)
    with disk.open("rb") as source, place.open("w+b") as target:
        target.truncate(end - begin)
        for start, stop in extents(source.fileno(), begin, end):
            source.seek(start)
            target.seek(start - begin)
            target.write(source.read(stop - start))


class Clear:
    """The data partition decrypted (LUKS2, aes-xts-plain64), kept between one disk and the next: only what changed is done again."""

    def __init__(self, work: Path):
        self.seen, self.clear, self.key = work / "seen", work / "clear", b""

    def decrypt(self, locked: Path, offset: int, sector: int, key: bytes, place: Path) -> None:
        if key != self.key or not self.clear.exists():
            for file in (self.seen, self.clear):
                file.unlink(missing_ok=True)
                file.touch()
                os.truncate(file, locked.stat().st_size)
            self.key = key
        with locked.open("rb") as source, self.seen.open("r+b") as seen, self.clear.open("r+b") as clear:
            size = locked.stat().st_size
            data = {at for file in (source, seen) for start, stop in extents(file.fileno(), offset, size) for at in range(start - start % PIECE, stop, PIECE)}
            for at in sorted(data):
                source.seek(at)
                seen.seek(at)
                new = source.read(PIECE)
                if new == seen.read(PIECE):
                    continue
                seen.seek(at)
                seen.write(new)
                clear.seek(at)
                clear.write(b"".join(self.plain(new[n : n + sector], at + n - offset) for n in range(0, len(new), sector)))
        # What it holds begins after the header.
        copy_extents(self.clear, offset, size, place)

    def plain(self, data: bytes, at: int) -> bytes:
        """A sector; what was never written stays zeroes."""
        if not any(data):
            return data
        tweak = struct.pack("<QQ", at // SECTOR, 0)
        return Cipher(algorithms.AES(self.key), modes.XTS(tweak)).decryptor().update(data)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]

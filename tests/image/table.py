#!/usr/bin/env python3
"""The partition table over a power cut at any point of its renewal, by the box's own code. Run alone: tests/image/table.py"""

import itertools
import os
import struct
import sys
import tempfile
import uuid
import zlib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(REPOSITORY / "ansible/roles/bake/files/root/usr/lib/samovar"))
import gpt  # noqa: E402

SECTORS, COPY_AT = 4096, 2047


def fresh(path: Path) -> None:
    """A disk that an image of 2048 sectors was written to: four partitions, the copy of their table where the image ended."""
    entries = bytearray(128 * 128)
    for number in range(4):
        entry = struct.pack("<16s16sQQQ72s", uuid.uuid4().bytes_le, bytes([number + 1]) * 16, 100 * number + 40, 100 * number + 99, 0, b"")
        entries[number * 128 : number * 128 + 128] = entry
    path.write_bytes(bytes(SECTORS * 512))
    descriptor = os.open(path, os.O_RDWR)
    fields = [b"EFI PART", 0x10000, 92, 0, 0, 0, 0, 34, COPY_AT - 33, bytes(16), 0, 128, 128, 0]
    for place in ((COPY_AT, 1, COPY_AT - 32), (1, COPY_AT, 2)):
        gpt.write(descriptor, fields, bytes(entries), *place)
    os.close(descriptor)


def kernel(disk: bytes) -> list[bytes] | None:
    """Ids of the first four partitions as Linux sees them with `gpt`: the first table, else the copy at the end of the disk."""
    for at in (1, SECTORS - 1):
        header = disk[at * 512 : at * 512 + 92]
        fields = gpt.HEADER.unpack(header)
        entries = disk[fields[10] * 512 : fields[10] * 512 + fields[11] * fields[12]]
        if fields[0] == b"EFI PART" and zlib.crc32(header[:16] + bytes(4) + header[20:]) == fields[3] and zlib.crc32(entries) == fields[13]:
            return ids(entries)
    return None


def ids(entries: bytes) -> list[bytes]:
    return [entries[number * 128 + 16 : number * 128 + 32] for number in range(4)]


def main() -> int:
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "disk"
        fresh(path)
        before = path.read_bytes()
        steps: list[tuple[int, bytes] | None] = []
        write, sync = os.pwrite, os.fsync
        os.pwrite = lambda fd, data, at: (steps.append((at, bytes(data))), write(fd, data, at))[1]
        os.fsync = lambda fd: (steps.append(None), sync(fd))[1]
        gpt.renew(str(path))
        os.pwrite, os.fsync = write, sync
        after = path.read_bytes()
    cuts, wrong = 0, []
    durable = bytearray(before)
    for number, done in enumerate(steps):
        if done is None:
            at, data = steps[number - 1]
            durable[at : at + len(data)] = data
            continue
        at, data = done
        changed = [n for n in range(0, len(data), 512) if durable[at + n : at + n + 512] != data[n : n + 512]]
        for count in range(len(changed) + 1):
            for kept in itertools.combinations(changed, count):
                disk = bytearray(durable)
                for n in kept:
                    disk[at + n : at + n + 512] = data[n : n + 512]
                cuts += 1
                seen = kernel(bytes(disk))
                # GRUB hands the kernel the id that it reads in the first table, without looking at checksums.
                if seen is None or seen != ids(bytes(disk[1024:])):
                    wrong.append((number, kept, "no table holds" if seen is None else "GRUB and the kernel read different ids"))
    if kernel(after) in (None, kernel(before)) or kernel(after) != ids(after[1024:]):
        wrong.append(("in the end", (), "the ids are not new"))
    for case in wrong:
        print(f"write {case[0]}, sectors kept {case[1]}: {case[2]}")
    print(f"table: {cuts} power cuts, {len(wrong)} that leave no disk to start from")
    return int(bool(wrong) or cuts < 8)


if __name__ == "__main__":
    sys.exit(main())

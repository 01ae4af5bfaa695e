"""The partition table of the disk that was booted: ids of its own, written so that a power cut at any point leaves one that holds.

UEFI specification 2.10, 5.3: a header at the second sector with its entries, and a copy of both at the end of the disk. The copy is
durable before the first is touched, and entries before their header, since GRUB reads the first without looking at its checksum
and the kernel (`gpt` on its command line) takes the copy when the first does not hold.
"""

import os
import struct
import uuid
import zlib

SECTOR = 512
HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
ENTRY_BYTES = 128


class TableError(Exception):
    """The disk has no partition table that could be read."""


def renew(disk: str) -> None:
    """Gives a disk and its partitions new ids, and the copy of its table the place at the end of the disk."""
    descriptor = os.open(disk, os.O_RDWR)
    try:
        last = os.lseek(descriptor, 0, os.SEEK_END) // SECTOR - 1
        fields, entries = read(descriptor, last)
        for at in range(0, len(entries), ENTRY_BYTES):
            if any(entries[at : at + 16]):
                entries[at + 16 : at + 32] = uuid.uuid4().bytes_le
        fields[9] = uuid.uuid4().bytes_le
        room = len(entries) // SECTOR
        # The last sector that partitions may use: before the copy's entries.
        fields[8] = last - room - 1
        for place in ((last, 1, last - room), (1, last, 2)):
            write(descriptor, fields, entries, *place)
    finally:
        os.close(descriptor)


def read(descriptor: int, last: int) -> tuple[list, bytearray]:
    """Fields of the header, and the entries; from the copy if the first does not hold."""
    for at in (1, last):
        header = os.pread(descriptor, HEADER.size, at * SECTOR)
        fields = list(HEADER.unpack(header))
        if fields[0] != b"EFI PART" or fields[2] != HEADER.size or zlib.crc32(header[:16] + bytes(4) + header[20:]) != fields[3]:
            continue
        entries = os.pread(descriptor, fields[11] * fields[12], fields[10] * SECTOR)
        if fields[12] == ENTRY_BYTES and zlib.crc32(entries) == fields[13]:
            return fields, bytearray(entries)
    raise TableError("the disk's partition table cannot be read: write the image to the disk again")


def write(descriptor: int, fields: list, entries: bytes, own: int, other: int, first: int) -> None:
    """Entries from sector `first` on, durable; then the header in sector `own`, durable."""
    fields = [*fields[:3], 0, 0, own, other, *fields[7:10], first, *fields[11:13], zlib.crc32(entries)]
    fields[3] = zlib.crc32(HEADER.pack(*fields))
    os.pwrite(descriptor, entries, first * SECTOR)
    os.fsync(descriptor)
    os.pwrite(descriptor, HEADER.pack(*fields).ljust(SECTOR, b"\0"), own * SECTOR)
    os.fsync(descriptor)

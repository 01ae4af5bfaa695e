"""The files of a log, fetched as they are served, for tools that know no HTTP. Verifies nothing."""

import urllib.request


def paths(kind, hashes):
    """Tiles of one level, or bundles, that `hashes` hashes fill."""
    for n in range(-(-hashes // 256)):
        width = min(256, hashes - 256 * n)
        place = f"x{n // 1000:03}/{n % 1000:03}" if n >= 1000 else f"{n:03}"
        yield f"tile/{kind}/{place}" + (f".p/{width}" if width < 256 else "")


def entries(bundle):
    while bundle:
        end = 2 + int.from_bytes(bundle[:2], "big")
        yield bundle[2:end]
        bundle = bundle[end:]


def mirror(base, target, earlier):
    """Fetches checkpoint, tiles and bundles into `target`, and writes each entry as a line of the file `entries`. Gives
    the checkpoints as files, the `earlier` ones first."""

    def fetch(path):
        return urllib.request.urlopen(f"{base}/{path}", timeout=30).read()

    target.mkdir()
    newest = target / "checkpoint"
    newest.write_bytes(fetch("checkpoint"))
    size = int(newest.read_text().split("\n")[1])
    level, hashes = 0, size
    while hashes:
        for path in paths(level, hashes):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(fetch(path))
        level, hashes = level + 1, hashes // 256
    with (target / "entries").open("wb") as file:
        for path in paths("entries", size):
            file.writelines(entry + b"\n" for entry in entries(fetch(path)))
    return [str(file) for file in [*sorted(earlier.iterdir()), newest]]

"""pymerkle: the tree built anew from the entry bundles; inclusion and consistency. It knows no notes."""

import base64
import pathlib
import sys
import urllib.request
from itertools import combinations

from pymerkle import InmemoryTree, verify_consistency, verify_inclusion

base, directory = sys.argv[1:3]


def head(text):
    _, size, root = text.split("\n")[:3]
    return int(size), base64.b64decode(root)


def fetch(path):
    return urllib.request.urlopen(f"{base}/{path}").read()


newest, root = head(fetch("checkpoint").decode())
tree = InmemoryTree(algorithm="sha256")
for first in range(0, newest, 256):
    path = f"tile/entries/{f'x{first // 256000:03}/' if first >= 256000 else ''}{first // 256 % 1000:03}"
    bundle = fetch(path if first + 256 <= newest else f"{path}.p/{newest - first}")
    while bundle:
        end = 2 + int.from_bytes(bundle[:2], "big")
        tree.append_entry(bundle[2:end])
        bundle = bundle[end:]
for n in range(1, newest + 1):
    verify_inclusion(tree.get_leaf(n), root, tree.prove_inclusion(n, newest), index=n, size=newest)
print(f"inclusion: {newest} entries")
heads = [head(f.read_text()) for f in sorted(pathlib.Path(directory).iterdir())] + [(newest, root)]
pairs = list(combinations(heads, 2))
for (a, root_a), (b, root_b) in pairs:
    verify_consistency(root_a, root_b, tree.prove_consistency(a, b), prior_size=a, later_size=b)
print(f"consistency: {len(pairs)} pairs")

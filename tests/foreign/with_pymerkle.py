"""pymerkle: the tree built anew from the entries; inclusion and consistency. It knows no notes."""

import base64
import pathlib
import sys
from itertools import combinations

from pymerkle import InmemoryTree, verify_consistency, verify_inclusion

directory, _, _, *files = sys.argv[1:]


def head(file):
    _, size, root = pathlib.Path(file).read_text().split("\n")[:3]
    return int(size), base64.b64decode(root)


heads = [head(file) for file in files]
newest, root = heads[-1]
tree = InmemoryTree(algorithm="sha256")
for entry in pathlib.Path(directory, "entries").read_bytes().splitlines():
    tree.append_entry(entry)
for n in range(1, newest + 1):
    verify_inclusion(tree.get_leaf(n), root, tree.prove_inclusion(n, newest), index=n, size=newest)
print(f"inclusion: {newest} entries")
pairs = list(combinations(heads, 2))
for (a, root_a), (b, root_b) in pairs:
    verify_consistency(root_a, root_b, tree.prove_consistency(a, b), prior_size=a, later_size=b)
print(f"consistency: {len(pairs)} pairs")

"""aics-tlog: signatures, cosignature, tiles, bundles, inclusion, consistency."""

import pathlib
import sys
from itertools import combinations

from aics_tlog import *

base, vkey, cosigner, *files = sys.argv[1:]
log, node = parse_vkey(vkey), parse_vkey(cosigner)


def head(data):
    note = parse_note(data)
    point = parse_checkpoint(note.text)
    assert verify_note(note, [log]) and point.origin == log.name, "log signature"
    blobs = [s.signature for s in note.signatures if (s.name, s.key_id) == (node.name, node.key_id)]
    assert blobs and all(
        verify_cosignature(b, node.name, node.public_key, point.origin, point.size, point.root) for b in blobs
    ), "cosignature"
    return point


http = HttpTileReader(base)
newest = head(http.read_checkpoint())
heads = [head(pathlib.Path(file).read_bytes()) for file in files]
print(f"signature: {len(heads)} checkpoints\ncosignature: {len(heads)} checkpoints")
print("bundles:", audit_tiles(http, newest.size, newest.root).bundles, "bundles against their tiles")
tiles = VerifiedTileReader(http, newest.size, newest.root)
# Its proofs from tiles hash each tile again for each proof; those from its tree are the same and are verified alike.
tree = MerkleTree(tiles.entry(n) for n in range(newest.size))
for n in range(newest.size):
    proof = tree.inclusion_proof(n)
    assert verify_leaf_inclusion(tiles.entry(n), n, newest.size, proof, newest.root), f"inclusion of {n}"
print(f"inclusion: {newest.size} entries")
pairs = list(combinations(heads, 2))
for a, b in pairs:
    proof = tree.consistency_proof(a.size, b.size)
    assert verify_consistency(a.size, b.size, a.root, b.root, proof), f"consistency of {a.size} and {b.size}"
print(f"consistency: {len(pairs)} pairs")

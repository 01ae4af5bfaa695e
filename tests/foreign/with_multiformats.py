"""multiformats: the CID of each file that is named."""

import pathlib
import sys

from multiformats import CID, multihash

for file in sys.argv[1:]:
    print(CID("base32", 1, "raw", multihash.digest(pathlib.Path(file).read_bytes(), "sha2-256")))

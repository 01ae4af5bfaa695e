// The original code of Go's checksum database, sumdb/note and sumdb/tlog: signatures, tiles, bundles, inclusion,
// consistency.
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type log struct {
	base  string
	cache map[string][]byte
}

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, "refused:", err)
		os.Exit(1)
	}
	return value
}

func (l log) fetch(path string) []byte {
	if l.cache[path] == nil {
		answer := must(http.Get(l.base + "/" + path))
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			must(0, fmt.Errorf("%s: %s", path, answer.Status))
		}
		l.cache[path] = must(io.ReadAll(answer.Body))
	}
	return l.cache[path]
}

func (l log) Height() int                                { return 8 }
func (l log) SaveTiles(tiles []tlog.Tile, data [][]byte) {}
func (l log) ReadTiles(tiles []tlog.Tile) (data [][]byte, err error) {
	for _, tile := range tiles {
		data = append(data, l.fetch(strings.Replace(tile.Path(), "tile/8/", "tile/", 1)))
	}
	return data, nil
}

func head(text []byte, key note.Verifier) (tree tlog.Tree) {
	opened := must(note.Open(text, note.VerifierList(key)))
	lines := strings.Split(opened.Text, "\n")
	if lines[0] != key.Name() {
		must(0, fmt.Errorf("origin %s", lines[0]))
	}
	must(fmt.Sscan(lines[1], &tree.N))
	tree.Hash = must(tlog.ParseHash(lines[2]))
	return tree
}

func main() {
	l := log{os.Args[1], map[string][]byte{}}
	key := must(note.NewVerifier(os.Args[3]))
	newest := head(l.fetch("checkpoint"), key)
	var heads []tlog.Tree
	for _, file := range must(filepath.Glob(os.Args[2] + "/*")) {
		heads = append(heads, head(must(os.ReadFile(file)), key))
	}
	heads = append(heads, newest)
	fmt.Println("signature:", len(heads), "checkpoints")
	tiles := tlog.TileHashReader(newest, l)
	for n := int64(0); n < newest.N; {
		tile := tlog.TileForIndex(8, tlog.StoredHashIndex(0, n))
		if tile.W = 256; n+256 > newest.N {
			tile.W = int(newest.N - n)
		}
		hashes := l.fetch(strings.Replace(tile.Path(), "tile/8/", "tile/", 1))
		bundle := l.fetch(strings.Replace(tile.Path(), "tile/8/0/", "tile/entries/", 1))
		for i := 0; i < tile.W; i, n = i+1, n+1 {
			end := 2 + int(binary.BigEndian.Uint16(bundle))
			leaf := tlog.RecordHash(bundle[2:end])
			if bundle = bundle[end:]; !bytes.Equal(leaf[:], hashes[i*32:i*32+32]) {
				must(0, fmt.Errorf("entry %d is not what its tile says", n))
			}
			must(0, tlog.CheckRecord(must(tlog.ProveRecord(newest.N, n, tiles)), newest.N, newest.Hash, n, leaf))
		}
	}
	fmt.Println("bundles:", (newest.N+255)/256, "bundles against their tiles")
	fmt.Println("inclusion:", newest.N, "entries")
	pairs := 0
	for b, later := range heads {
		for _, a := range heads[:b] {
			proof := must(tlog.ProveTree(later.N, a.N, tiles))
			must(0, tlog.CheckTree(proof, later.N, later.Hash, a.N, a.Hash))
			pairs++
		}
	}
	fmt.Println("consistency:", pairs, "pairs")
}

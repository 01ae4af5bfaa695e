// The original code of Go's checksum database, sumdb/note and sumdb/tlog: signatures, inclusion from tiles, consistency.
package main

import (
	"bytes"
	"fmt"
	"log"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type files string

func (files) Height() int                                { return 8 }
func (files) SaveTiles(tiles []tlog.Tile, data [][]byte) {}
func (f files) ReadTiles(tiles []tlog.Tile) (data [][]byte, err error) {
	for _, tile := range tiles {
		data = append(data, must(os.ReadFile(strings.Replace(tile.Path(), "tile/8", string(f)+"/tile", 1))))
	}
	return data, nil
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatalln("refused:", err)
	}
	return value
}

func main() {
	key := must(note.NewVerifier(os.Args[2]))
	var heads []tlog.Tree
	for _, file := range os.Args[4:] {
		text := must(note.Open(must(os.ReadFile(file)), note.VerifierList(key))).Text
		size, root := int64(0), ""
		must(fmt.Sscanf(text, key.Name()+"\n%d\n%s\n", &size, &root))
		heads = append(heads, tlog.Tree{N: size, Hash: must(tlog.ParseHash(root))})
	}
	newest := heads[len(heads)-1]
	tiles := tlog.TileHashReader(newest, files(os.Args[1]))
	for n, entry := range bytes.Split(must(os.ReadFile(os.Args[1]+"/entries")), []byte("\n"))[:newest.N] {
		proof := must(tlog.ProveRecord(newest.N, int64(n), tiles))
		must(0, tlog.CheckRecord(proof, newest.N, newest.Hash, int64(n), tlog.RecordHash(entry)))
	}
	pairs := 0
	for b, later := range heads {
		for _, a := range heads[:b] {
			must(0, tlog.CheckTree(must(tlog.ProveTree(later.N, a.N, tiles)), later.N, later.Hash, a.N, a.Hash))
			pairs++
		}
	}
	fmt.Printf("signature: %d checkpoints\ninclusion: %d entries\nconsistency: %d pairs\n", len(heads), newest.N, pairs)
}

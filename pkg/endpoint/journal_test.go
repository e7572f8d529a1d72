// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// written returns a journal of so many begins, and its file's bytes.
func written(t *testing.T, dir string, n int) (*journal, []byte) {
	t.Helper()
	j := &journal{dir: dir, boot: "boot-1"}
	if err := j.begin(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.file.Close() })
	for i := range n {
		if err := j.append(entry{Op: opBegin, Endpoint: &Endpoint{Link: fmt.Sprintf("fl%012x", i), ContainerID: fmt.Sprint("c", i)}}); err != nil {
			t.Fatal(err)
		}
	}
	p, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	return j, p
}

func names(all []entry) (links []string) {
	for _, e := range all {
		links = append(links, e.Endpoint.Link)
	}
	return links
}

func TestJournalCutAtAnyByteKeepsWholeEntries(t *testing.T) {
	_, p := written(t, t.TempDir(), 5)
	dir := t.TempDir()
	for cut := range len(p) + 1 {
		if err := os.WriteFile(filepath.Join(dir, journalName), p[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := load(dir)
		if err != nil || len(l.damage) > 0 {
			t.Fatalf("cut at %d: %v, damage %v", cut, err, l.damage)
		}
		if want := max(0, strings.Count(string(p[:cut]), "\n")-1); len(l.entries) != want || l.seq != uint64(want) {
			t.Fatalf("cut at %d: %d entries up to %d, want %d", cut, len(l.entries), l.seq, want)
		}
	}
}

func TestJournalDamagedAtAnyByteIsSeen(t *testing.T) {
	_, p := written(t, t.TempDir(), 3)
	dir := t.TempDir()
	last := strings.LastIndex(string(p[:len(p)-1]), "\n")
	for at := range last { // damage in the last line may also be a torn one
		q := append([]byte(nil), p...)
		q[at] ^= 0x20
		if err := os.WriteFile(filepath.Join(dir, journalName), q, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := load(dir)
		if err != nil {
			t.Fatalf("damage at %d: %v", at, err)
		}
		if len(l.damage) == 0 {
			// One byte of the checksum may change its case, which changes nothing.
			if d := cmp.Diff(3, len(l.entries)); d != "" {
				t.Fatalf("damage at %d is not seen: %s", at, d)
			}
			continue
		}
		if len(l.entries) < 1 || l.entries[len(l.entries)-1].Endpoint.Link != "fl000000000002" {
			t.Fatalf("damage at %d: what is whole was lost: %v", at, names(l.entries))
		}
	}
}

// Whatever step of a snapshot is the last one, the same is read.
func TestSnapshotKilledAtAnyStep(t *testing.T) {
	want := []string{"fl000000000000", "fl000000000001", "fl000000000002", "fl000000000003"}
	known := func(l *loaded) (links []string) {
		if l.snapshot != nil {
			for _, e := range l.snapshot.Endpoints {
				links = append(links, e.Link)
			}
		}
		return append(links, names(l.entries)...)
	}
	steps := []string{"before", "begun", "appended", "written", "done"}
	for _, last := range steps {
		dir := t.TempDir()
		j, _ := written(t, dir, 3)
		s := snapshot{Version: journalVersion, Boot: "boot-1", Seq: 3}
		for i := range 3 {
			s.Endpoints = append(s.Endpoints, Endpoint{Link: fmt.Sprintf("fl%012x", i)})
		}
		end := func(step string) bool { return step == last }
		func() {
			fourth := func() {
				if err := j.append(entry{Op: opBegin, Endpoint: &Endpoint{Link: want[3]}}); err != nil {
					t.Fatal(err)
				}
			}
			if end("before") {
				fourth()
				return
			}
			if err := j.begin(); err != nil {
				t.Fatal(err)
			}
			fourth()
			if end("begun") || end("appended") {
				return
			}
			old, err := os.ReadFile(filepath.Join(dir, oldName))
			if err != nil {
				t.Fatal(err)
			}
			if err := writeSnapshot(dir, s); err != nil {
				t.Fatal(err)
			}
			if end("written") { // killed before the old journal is removed
				if err := os.WriteFile(filepath.Join(dir, oldName), old, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}()
		l, err := load(dir)
		if err != nil || len(l.damage) > 0 {
			t.Fatalf("%s: %v, %v", last, err, l.damage)
		}
		if d := cmp.Diff(want, known(l), cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s: %s", last, d)
		}
		if l.seq != 4 || l.boot != "boot-1" {
			t.Errorf("%s: sequence %d, boot %q", last, l.seq, l.boot)
		}
	}
}

func TestJournalOfANewerReleaseIsRefused(t *testing.T) {
	dir := t.TempDir()
	line, err := encodeLine(entry{Op: opHeader, Version: journalVersion + 2, Boot: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, journalName), line, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := load(dir); err == nil || !strings.Contains(err.Error(), "version 3") {
		t.Errorf("error %v", err)
	}
}

func TestJournalTakesBackWhatItWroteInPart(t *testing.T) {
	dir := t.TempDir()
	j, before := written(t, dir, 1)
	whole := j.file
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	j.file = full
	if err := j.append(entry{Op: opRemove, Link: "fl000000000000"}); err == nil {
		t.Fatal("no error on a full disk")
	}
	j.file = whole
	if err := j.append(entry{Op: opRemove, Link: "fl000000000000"}); err != nil {
		t.Fatal(err)
	}
	l, err := load(dir)
	if err != nil || len(l.damage) > 0 || len(l.entries) != 2 {
		t.Errorf("%d entries after %d bytes, damage %v, %v", len(l.entries), len(before), l.damage, err)
	}
}

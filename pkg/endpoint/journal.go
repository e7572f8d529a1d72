// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/fairlead/fairlead/pkg/ipam"
)

// The journal is a file of lines, each eight hexadecimal digits of CRC-32C, a space and a JSON document. Lines are written and not
// synced: a killed agent loses nothing of the page cache, and after a reboot every record is a candidate for removal anyway. From time
// to time everything known goes into the snapshot, which is synced, and the journal begins anew:
//
//	endpoints.journal -> endpoints.journal.old   (under the lock; a new journal begins)
//	endpoints.snapshot written, synced, renamed
//	endpoints.journal.old removed
//
// A start reads the snapshot, then both journals, and skips entries that the snapshot holds already, by their sequence numbers. So a
// kill between any two steps loses nothing.
const (
	journalName  = "endpoints.journal"
	oldName      = "endpoints.journal.old"
	snapshotName = "endpoints.snapshot"

	journalVersion = 1
)

// operation is what a journal entry says.
type operation string

const (
	opHeader operation = "header" // first line: version and boot id
	opBegin  operation = "begin"  // an ADD has its addresses
	opCommit operation = "commit" // the ADD is complete
	opRemove operation = "remove" // the endpoint is gone, its addresses are free
)

type entry struct {
	Seq      uint64        `json:"seq,omitempty"`
	Op       operation     `json:"op"`
	Version  int           `json:"version,omitempty"`
	Boot     string        `json:"boot,omitempty"`
	Endpoint *Endpoint     `json:"endpoint,omitempty"`
	Link     string        `json:"link,omitempty"`
	At       time.Duration `json:"at,omitempty"` // since boot
}

// snapshot is everything that was known when entry Seq had been written.
type snapshot struct {
	Version   int          `json:"version"`
	Boot      string       `json:"boot"`
	Seq       uint64       `json:"seq"`
	Endpoints []Endpoint   `json:"endpoints"`
	Pools     []ipam.State `json:"pools"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeLine(v any) ([]byte, error) {
	p, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return append(fmt.Appendf(nil, "%08x ", crc32.Checksum(p, castagnoli)), append(p, '\n')...), nil
}

// decodeLine reads one line without its newline.
func decodeLine(line []byte, v any) error {
	if len(line) < 9 || line[8] != ' ' {
		return errors.New("no checksum")
	}
	sum, err := strconv.ParseUint(string(line[:8]), 16, 32)
	if err != nil {
		return fmt.Errorf("read checksum: %w", err)
	}
	if crc32.Checksum(line[9:], castagnoli) != uint32(sum) {
		return errors.New("checksum differs")
	}
	return json.Unmarshal(line[9:], v)
}

// journal appends to the file. The table's lock covers it.
type journal struct {
	dir   string
	boot  string
	file  *os.File
	size  int64  // bytes that are whole lines
	lines int    // since the snapshot
	seq   uint64 // of the last entry
	dirty bool   // an entry is missing in the file: the next snapshot must make up for it
}

// begin makes a new journal file in place of the present one, which becomes the old one.
func (j *journal) begin() error {
	head, err := encodeLine(entry{Op: opHeader, Version: journalVersion, Boot: j.boot})
	if err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	temp := filepath.Join(j.dir, journalName+".new")
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	if _, err := f.Write(head); err != nil {
		return errors.Join(fmt.Errorf("begin journal: %w", err), f.Close(), os.Remove(temp))
	}
	path := filepath.Join(j.dir, journalName)
	if err := os.Rename(path, filepath.Join(j.dir, oldName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.Join(fmt.Errorf("begin journal: %w", err), f.Close(), os.Remove(temp))
	}
	if err := os.Rename(temp, path); err != nil {
		return errors.Join(fmt.Errorf("begin journal: %w", err), f.Close())
	}
	if j.file != nil {
		err = j.file.Close()
	}
	j.file, j.size, j.lines = f, int64(len(head)), 0
	return err
}

// append writes one entry. After an error the file holds what it held before.
func (j *journal) append(e entry) error {
	j.seq++
	e.Seq = j.seq
	line, err := encodeLine(e)
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if _, err := j.file.WriteAt(line, j.size); err != nil {
		// What was written in part goes, else it would look like damage in the middle once more is written.
		return errors.Join(fmt.Errorf("write journal: %w", err), j.file.Truncate(j.size))
	}
	j.size += int64(len(line))
	j.lines++
	return nil
}

// writeSnapshot replaces the snapshot, synced, and removes the old journal, which it covers.
func writeSnapshot(dir string, s snapshot) (err error) {
	line, err := encodeLine(s)
	if err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	path := filepath.Join(dir, snapshotName)
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	_, err = f.Write(line)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write snapshot: %w", err), os.Remove(temp))
	}
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if err := os.Remove(filepath.Join(dir, oldName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old journal: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// loaded is what the files of a state directory say.
type loaded struct {
	snapshot *snapshot // nil: none, or unreadable
	entries  []entry   // newer than the snapshot, in order
	boot     string    // of the newest file; empty: no files
	seq      uint64
	damage   []error // parts that were unreadable: the kernel's own state must make up for them
}

// load reads the state directory. Its error is one of the disk; damage in a file is no error.
func load(dir string) (*loaded, error) {
	l := &loaded{}
	p, err := os.ReadFile(filepath.Join(dir, snapshotName))
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("read snapshot: %w", err)
	default:
		var s snapshot
		if err := decodeLine(bytes.TrimSuffix(p, []byte("\n")), &s); err != nil {
			l.damage = append(l.damage, fmt.Errorf("read %s: %w", snapshotName, err))
		} else if s.Version > journalVersion+1 {
			return nil, fmt.Errorf("read %s: version %d, this release reads up to %d: remove the file or install the newer release",
				snapshotName, s.Version, journalVersion+1)
		} else {
			l.snapshot, l.boot, l.seq = &s, s.Boot, s.Seq
		}
	}
	for _, name := range []string{oldName, journalName} {
		if err := l.read(dir, name); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *loaded) read(dir, name string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	p, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	for n := 1; len(p) > 0; n++ {
		line, rest, whole := bytes.Cut(p, []byte("\n"))
		p = rest
		if !whole {
			break // the agent died while it wrote: whoever asked for it got no answer
		}
		var e entry
		if err := decodeLine(line, &e); err != nil {
			l.damage = append(l.damage, fmt.Errorf("read %s line %d: %w", name, n, err))
			continue
		}
		switch {
		case e.Op == opHeader && e.Version > journalVersion+1:
			return fmt.Errorf("read %s: version %d, this release reads up to %d: remove the file or install the newer release",
				name, e.Version, journalVersion+1)
		case e.Op == opHeader:
			l.boot = e.Boot
		case e.Seq > l.seq:
			l.entries = append(l.entries, e)
			l.seq = e.Seq
		}
	}
	return nil
}

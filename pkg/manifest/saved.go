// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// saved keeps a copy of the last good content of each file, so that a restart finds it when the file is broken by then. It is not synced: after a
// power cut a copy may be missing, and then the directory alone counts.
type saved struct {
	dir string // empty: keep nothing
}

// read returns all copies by file name.
func (s saved) read() (map[string][]byte, error) {
	if s.dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read saved manifests: %w", err)
	}
	all := map[string][]byte{}
	for _, e := range entries {
		if !isManifest(e.Name()) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(s.dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read saved manifest: %w", err)
		}
		all[e.Name()] = data
	}
	return all, nil
}

// write makes the copy of a file that was just loaded: its content, or when that has problems what is good of it, and behind it the documents of the
// copy before that have an object which stays in force.
func (s saved) write(f *file, data []byte, problems bool) error {
	if s.dir == "" {
		return nil
	}
	if len(f.entries) == 0 {
		return s.remove(f.name)
	}
	path := filepath.Join(s.dir, f.name)
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("save manifest: %w", err)
	}
	if problems {
		data = slices.Concat(good(f.name, data, f, false), good(f.name, old, f, true))
	}
	if bytes.Equal(data, old) {
		return nil
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("save manifest: %w", err)
	}
	temp := filepath.Join(s.dir, "."+f.name)
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return fmt.Errorf("save manifest: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("save manifest: %w", err)
	}
	return nil
}

// good returns the documents of data that have an object in force of which kept is as asked for.
func good(name string, data []byte, f *file, kept bool) []byte {
	docs := split(data)
	wanted := map[int]bool{}
	for _, e := range decode(name, data, nil).entries {
		if _, ok := f.entries[e.id]; ok && f.kept[e.id] == kept {
			wanted[e.doc] = true
		}
	}
	var out []byte
	for i, d := range docs {
		if wanted[i] {
			out = append(append(out, "---\n"...), d.text...)
			if !bytes.HasSuffix(out, []byte("\n")) {
				out = append(out, '\n')
			}
		}
	}
	return out
}

// remove forgets a file.
func (s saved) remove(name string) error {
	if s.dir == "" {
		return nil
	}
	if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove saved manifest: %w", err)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// scanner finds the files of a directory that changed.
type scanner struct {
	dir     string
	watched os.FileInfo // the directory that events come from; nil: none
	stamps  map[string]stamp
}

// stamp tells versions of a file apart without reading it.
type stamp struct {
	info os.FileInfo // of the file, or of what a link points to
	size int64
	time time.Time
}

func (a stamp) same(b stamp) bool {
	return a.info != nil && b.info != nil && os.SameFile(a.info, b.info) && a.size == b.size && a.time.Equal(b.time)
}

// content is a file as read just now.
type content struct {
	name string
	data []byte
	err  error
}

// isManifest says that a file of this name is read. Hidden ones are what editors and renaming writers leave on their way.
func isManifest(name string) bool {
	return !strings.HasPrefix(name, ".") && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name))
}

// moved says that the directory's name leads to another directory than the watched one; from now on it is the watched one.
func (s *scanner) moved() bool {
	info, err := os.Stat(s.dir)
	if err != nil {
		s.watched = nil
		return true
	}
	if s.watched != nil && os.SameFile(s.watched, info) {
		return false
	}
	s.watched = info
	return true
}

// lost says that the directory could not be watched.
func (s *scanner) lost() { s.watched = nil }

// scan returns the files that are new or changed, by name, and those of known that are gone. A directory that cannot be read, or has no manifests, is
// an error and not a deletion of everything.
func (s *scanner) scan(named map[string]bool, known map[string]*file) (found []content, gone []string, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read manifests: %w", err)
	}
	present := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		if !isManifest(name) {
			continue
		}
		info, err := os.Stat(filepath.Join(s.dir, name))
		if errors.Is(err, os.ErrNotExist) && e.Type()&os.ModeSymlink == 0 {
			continue // gone since the directory was read
		}
		present[name] = true
		if err == nil && info.IsDir() {
			delete(present, name)
			continue
		}
		if err != nil { // a link to nowhere may be mended
			delete(s.stamps, name)
			found = append(found, content{name: name, err: fmt.Errorf("read manifest: %w", err)})
			continue
		}
		now := stamp{info: info, size: info.Size(), time: info.ModTime()}
		if s.stamps[name].same(now) && !named[filepath.Join(s.dir, name)] {
			continue
		}
		s.stamps[name] = now
		if f, ok := s.read(name); ok {
			found = append(found, f)
		}
	}
	if len(present) == 0 {
		return nil, nil, fmt.Errorf("read manifests: %s has no *.yaml, *.yml or *.json", s.dir)
	}
	for name := range known {
		if !present[name] {
			gone = append(gone, name)
			delete(s.stamps, name)
		}
	}
	slices.Sort(gone)
	return found, gone, nil
}

// read returns a file's content; not ok: it is gone.
func (s *scanner) read(name string) (content, bool) {
	data, err := os.ReadFile(filepath.Join(s.dir, name))
	if errors.Is(err, os.ErrNotExist) {
		delete(s.stamps, name)
		return content{}, false
	}
	if err != nil {
		delete(s.stamps, name) // try again at the next scan
		err = fmt.Errorf("read manifest: %w", err)
	}
	return content{name: name, data: data, err: err}, true
}

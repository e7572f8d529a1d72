// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/fairlead/fairlead/pkg/cluster"
)

// store knows which object is in force, and by which file. An object that two files describe belongs to the file that had it first.
type store struct {
	intern *cluster.Interner
	files  map[string]*file
	owner  map[object]*file
	before map[object]any // values that the consumer knows, of objects touched since the last flush; nil: none
}

// file is what one file describes.
type file struct {
	name    string
	entries map[object]entry // in force
	kept    map[object]bool  // of these, those that are of an earlier version of the file, since this one has problems
	refused []object         // described here too, but another file has them
}

func newStore() *store {
	return &store{intern: cluster.NewInterner(), files: map[string]*file{}, owner: map[object]*file{}, before: map[object]any{}}
}

// load makes a file's content the one in force and returns what is wrong with it. With anything wrong nothing is removed: the last good version of
// each object of this file stays unless the new content has a good one.
func (s *store) load(name string, data []byte) []problem {
	d := decode(name, data, s.intern)
	f := s.files[name]
	if f == nil {
		f = &file{name: name, entries: map[object]entry{}}
		s.files[name] = f
	}
	f.refused = nil
	fresh := map[object]entry{}
	for _, e := range d.entries {
		if first, ok := fresh[e.id]; ok {
			d.problems = append(d.problems, problem{file: name, line: e.line, object: e.id.String(),
				reason: fmt.Sprintf("also at line %d, which counts", first.line)})
			continue
		}
		if o := s.owner[e.id]; o != nil && o != f {
			f.refused = append(f.refused, e.id)
			d.problems = append(d.problems, problem{file: name, line: e.line, object: e.id.String(),
				reason: fmt.Sprintf("also in %s, which counts", o.name)})
			continue
		}
		fresh[e.id] = e
	}
	kept := map[object]bool{}
	for id, e := range f.entries {
		if _, ok := fresh[id]; ok {
			continue
		}
		if len(d.problems) > 0 {
			fresh[id], kept[id] = e, true
			continue
		}
		s.touch(id)
		delete(s.owner, id)
	}
	for id := range fresh {
		if !kept[id] {
			s.touch(id)
			s.owner[id] = f
		}
	}
	f.entries, f.kept = fresh, kept
	return d.problems
}

// drop removes a file and all that it describes.
func (s *store) drop(name string) {
	f := s.files[name]
	if f == nil {
		return
	}
	for id := range f.entries {
		s.touch(id)
		delete(s.owner, id)
	}
	delete(s.files, name)
}

// claimants returns the files that describe an object which no file has any more: they must be loaded again.
func (s *store) claimants() []string {
	var names []string
	for name, f := range s.files {
		if slices.ContainsFunc(f.refused, func(id object) bool { return s.owner[id] == nil }) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// touch remembers what the consumer knows of an object before it changes.
func (s *store) touch(id object) {
	if _, ok := s.before[id]; !ok {
		s.before[id] = s.value(id)
	}
}

// value returns what is in force, or nil.
func (s *store) value(id object) any {
	if f := s.owner[id]; f != nil {
		return f.entries[id].value
	}
	return nil
}

// flush returns what changed since the last time, in a stable order. Objects that were written anew as they were are not in it.
func (s *store) flush() []cluster.Change {
	var changes []cluster.Change
	for _, id := range slices.SortedFunc(maps.Keys(s.before), compareObjects) {
		old, now := s.before[id], s.value(id)
		if reflect.DeepEqual(old, now) {
			if now != nil { // the value that the consumer has stays the one in use
				f := s.owner[id]
				e := f.entries[id]
				e.value = old
				f.entries[id] = e
			}
			continue
		}
		changes = append(changes, cluster.Change{Kind: id.kind, Key: id.key, Value: now})
	}
	clear(s.before)
	return changes
}

// SPDX-License-Identifier: Apache-2.0

// Package manifest yields cluster values from a directory of Kubernetes YAML: standalone mode.
//
// A file, or an object in it, that cannot be used is reported with file, line and field, and its last good version stays in force. An object is
// removed by removing its file, or its document from a file that is otherwise good. A directory that vanished or is empty removes nothing. Files are
// replaced best by renaming, so that none is read half written.
package manifest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/fairlead/fairlead/pkg/cluster"
)

const (
	// quiet is how long nothing must happen in the directory before it is read, but it is read after patience in any case.
	quiet    = 50 * time.Millisecond
	patience = 500 * time.Millisecond

	// checkEvery is how often the directory itself is looked after; each rescanEvery-th time its files too, in case that an event was lost.
	checkEvery  = time.Second
	rescanEvery = 30
)

// Addresses says what addresses ADD gave to the pods of this node.
type Addresses interface {
	PodAddresses(namespace, name string) []netip.Addr
	Changed() <-chan struct{} // has an element after a change
}

// Options configure a Source.
type Options struct {
	Dir       string    // of *.yaml, *.yml and *.json; hidden files and folders in it are not read
	NodeName  string    // own node
	SavedDir  string    // for copies of the last good content; empty: none are kept
	Addresses Addresses // nil: pods have the addresses in their manifest's status
	Log       *slog.Logger
}

// Source yields what the files of a directory describe. It satisfies cluster.Source.
type Source struct {
	options    Options
	log        *slog.Logger
	conditions cluster.Conditions

	// All below belongs to the goroutine of Run.
	store     *store
	selectors *selectors
	saved     saved
	scanner   scanner
	synced    bool // the consumer has been told that all kinds are complete
}

// conditionName is the name of all conditions; the object is the file, or empty for the directory.
const conditionName = "manifests"

// New makes a source. It does not read the directory: what is wrong there may be mended while the source runs.
func New(o Options) (*Source, error) {
	if o.Dir == "" {
		return nil, errors.New("read manifests: no directory: give --manifests")
	}
	if o.NodeName == "" {
		return nil, errors.New("read manifests: own node has no name: give --node-name")
	}
	return &Source{
		options: o, log: o.Log, store: newStore(), selectors: newSelectors(o.NodeName, o.Addresses),
		saved: saved{dir: o.SavedDir}, scanner: scanner{dir: o.Dir, stamps: map[string]stamp{}},
	}, nil
}

// Conditions returns what is wrong with the directory and its files.
func (s *Source) Conditions() []cluster.Condition { return s.conditions.List() }

// Run yields until the context ends, and then returns nil. It may be called once. All kinds are complete with the first batch, which comes when the
// directory has been read, or when it cannot be and copies were kept.
func (s *Source) Run(ctx context.Context, emit func(cluster.Batch)) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch manifests (see the limit fs.inotify.max_user_instances): %w", err)
	}
	defer watcher.Close()
	s.restore()
	s.watch(watcher)
	s.scan(nil, emit)

	var changed <-chan struct{}
	if s.options.Addresses != nil {
		changed = s.options.Addresses.Changed()
	}
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	settle := time.NewTimer(quiet)
	settle.Stop()
	named := map[string]bool{} // files with events
	var first time.Time        // of these events
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case e := <-watcher.Events:
			if len(named) == 0 {
				first = time.Now()
			}
			named[e.Name] = true
			settle.Reset(max(0, min(quiet, time.Until(first.Add(patience)))))
		case err := <-watcher.Errors:
			s.log.Warn("read all manifests again, an event was lost", "error", err)
			s.scan(nil, emit)
		case <-settle.C:
			s.scan(named, emit)
			clear(named)
		case <-changed:
			s.selectors.poll()
			s.flush(emit)
		case <-check.C:
			if s.watch(watcher) || n%rescanEvery == 0 {
				s.scan(nil, emit)
			}
		}
	}
}

// watch makes sure that events come from the directory that has the name now, and says whether it is another one than before.
func (s *Source) watch(w *fsnotify.Watcher) bool {
	if !s.scanner.moved() {
		return false
	}
	_ = w.Remove(s.options.Dir) // not watched is fine
	if err := w.Add(s.options.Dir); err != nil {
		s.scanner.lost()
		if s.conditions.Set(cluster.Condition{Name: conditionName + "/watch", Reason: "unwatched",
			Message: fmt.Sprintf("watch %s: %v; it is read every %s", s.options.Dir, err, rescanEvery*checkEvery)}) {
			s.log.Warn("changes of manifests are seen late", "path", s.options.Dir, "error", err)
		}
		return false
	}
	s.conditions.Clear(conditionName+"/watch", "")
	return true
}

// restore loads the copies of a former run.
func (s *Source) restore() {
	copies, err := s.saved.read()
	if err != nil {
		s.log.Warn("start without the last good manifests", "error", err)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(copies)) {
		if problems := s.store.load(name, copies[name]); len(problems) > 0 {
			s.log.Debug("saved manifest has problems", "file", name, "error", message(problems))
		}
	}
}

// scan reads the files that changed, and those named even if they look the same.
func (s *Source) scan(named map[string]bool, emit func(cluster.Batch)) {
	found, gone, err := s.scanner.scan(named, s.store.files)
	if err != nil {
		if s.conditions.Set(cluster.Condition{Name: conditionName, Reason: "no-manifests", Message: err.Error() + "; what was read before stays in force"}) {
			s.log.Error("manifests are not seen", "error", err)
		}
		if s.synced || len(s.store.files) > 0 {
			s.flush(emit)
		}
		return
	}
	s.conditions.Clear(conditionName, "")
	for _, name := range gone {
		s.store.drop(name)
		s.conditions.Clear(conditionName, name)
		s.report(s.saved.remove(name))
		s.log.Info("manifest is gone", "file", name)
	}
	for _, f := range found {
		s.load(f)
	}
	// An object that a file lost may be in another one, which was refused until now.
	for range len(s.store.files) {
		names := s.store.claimants()
		if len(names) == 0 {
			break
		}
		for _, name := range names {
			if f, ok := s.scanner.read(name); ok {
				s.load(f)
			}
		}
	}
	s.flush(emit)
}

// load takes one file.
func (s *Source) load(c content) {
	if c.err != nil {
		s.wrong(c.name, "unreadable", fmt.Sprintf("%v; what was read from it before stays in force", c.err))
		return
	}
	problems := s.store.load(c.name, c.data)
	if len(problems) > 0 {
		s.wrong(c.name, "malformed", message(problems))
	} else if s.conditions.Clear(conditionName, c.name) {
		s.log.Info("manifest is good again", "file", c.name)
	}
	s.report(s.saved.write(s.store.files[c.name], c.data, len(problems) > 0))
}

func (s *Source) wrong(file, reason, message string) {
	if s.conditions.Set(cluster.Condition{Name: conditionName, Object: file, Reason: reason, Message: message}) {
		s.log.Error("manifest cannot be used, its last good version stays in force", "file", file, "error", message)
	}
}

// report says that a copy could not be kept, which matters only at the next start.
func (s *Source) report(err error) {
	if err == nil {
		s.conditions.Clear(conditionName+"/saved", "")
		return
	}
	if s.conditions.Set(cluster.Condition{Name: conditionName + "/saved", Reason: "not-written", Message: err.Error()}) {
		s.log.Warn("copy of a manifest is not kept", "error", err)
	}
}

// flush tells the consumer what changed.
func (s *Source) flush(emit func(cluster.Batch)) {
	b := cluster.Batch{Changes: s.store.flush()}
	for _, c := range b.Changes {
		s.selectors.note(c)
	}
	b.Changes = append(b.Changes, s.selectors.flush()...)
	if !s.synced {
		s.synced = true
		for k := range cluster.Kinds {
			b.Synced = append(b.Synced, k)
		}
	}
	if len(b.Changes)+len(b.Synced) > 0 {
		emit(b)
	}
}

// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fairlead/fairlead/pkg/cni"
	"github.com/fairlead/fairlead/pkg/link"
)

// Intervals of the background work.
const (
	beat          = 5 * time.Second  // sign of life, tombstones
	verifyEvery   = 30 * time.Second // filters, host ports, lost links
	snapshotEvery = 5 * time.Minute
	snapshotLines = 4096 // journal entries after which a snapshot is made at the next beat
)

// Run does the work behind the verbs until the context ends: links of removed endpoints, tombstones, filters and host ports that somebody
// removed, endpoints that runtimes forgot, snapshots.
func (t *Table) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { t.reap(ctx) })
	tick := time.NewTicker(beat)
	defer tick.Stop()
	var missing map[string]bool
	verified, saved := time.Now(), time.Now()
	for {
		if err := errors.Join(cni.WriteAlive(t.cfg.RunDir, sinceBoot()), t.bury()); err != nil {
			t.report("tombstones", err)
		}
		if time.Since(verified) >= verifyEvery {
			verified = time.Now()
			t.verify(ctx)
			var err error
			if missing, err = t.sweep(ctx, missing); err != nil {
				t.report("collect endpoints", err)
			}
		}
		if t.due(time.Since(saved)) {
			saved = time.Now()
			if err := t.Save(); err != nil {
				t.report("write snapshot", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// due says whether a snapshot is worth it.
func (t *Table) due(since time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.journal.dirty || t.journal.lines >= snapshotLines || t.journal.lines > 0 && since >= snapshotEvery
}

// Save writes a snapshot and begins a new journal. ADD and DEL go on meanwhile.
func (t *Table) Save() error {
	t.compact.Lock()
	defer t.compact.Unlock()
	t.mu.Lock()
	s := t.snapshot()
	dirty := t.journal.dirty
	t.journal.dirty = false
	var err error
	// An old journal is one that no snapshot has covered yet: it stays, and the present one goes on.
	if _, old := os.Stat(filepath.Join(t.cfg.StateDir, oldName)); errors.Is(old, os.ErrNotExist) {
		err = t.journal.begin()
	}
	t.mu.Unlock()
	if err == nil {
		err = writeSnapshot(t.cfg.StateDir, s)
	}
	if err != nil && dirty {
		t.mu.Lock()
		t.journal.dirty = true
		t.mu.Unlock()
	}
	return err
}

// verify puts filters and host ports back that somebody removed or replaced.
func (t *Table) verify(ctx context.Context) {
	n, err := t.repairHostPorts(ctx)
	if err != nil {
		t.report("host ports", err)
	}
	t.mu.Lock()
	t.repaired += uint64(n)
	t.mu.Unlock()
	for _, e := range t.List() {
		if ctx.Err() != nil {
			return
		}
		err := t.veths.VerifyFilters(e.Ifindex, t.cfg.Filters)
		if err == nil || errors.Is(err, link.ErrNoLink) {
			continue
		}
		t.report("filters of "+e.Link, err)
		if !errors.Is(err, link.ErrFilter) {
			continue
		}
		if err := t.veths.AttachFilters(e.Ifindex, t.cfg.Filters); err != nil {
			t.report("filters of "+e.Link, err)
			continue
		}
		t.mu.Lock()
		t.repaired++
		t.mu.Unlock()
	}
}

// bury does the DELs that found no agent. One that is older than the endpoint, or of a kernel before this one, is only removed.
func (t *Table) bury() error {
	all, err := cni.ReadTombstones(t.cfg.RunDir)
	errs := []error{err}
	for _, s := range all {
		if s.Boot == t.boot {
			if err := t.del(context.Background(), s.Attachment, s.At); err != nil {
				errs = append(errs, err)
				continue
			}
			t.log.Info("tombstone done", "container", s.ContainerID, "ifname", s.Ifname)
		}
		errs = append(errs, s.Remove())
	}
	return errors.Join(errs...)
}

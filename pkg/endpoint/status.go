// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/fairlead/fairlead/pkg/cni"
)

// VerbCount is how often a verb was asked for.
type VerbCount struct {
	Calls  uint64        `json:"calls"`
	Failed uint64        `json:"failed"`
	Total  time.Duration `json:"total"` // time in all of them, in nanoseconds
	Max    time.Duration `json:"max"`
}

// PoolUse is how much of a pod CIDR is in use.
type PoolUse struct {
	Prefix  netip.Prefix `json:"prefix"`
	Size    int          `json:"size"`
	Used    int          `json:"used"`
	Cooling int          `json:"cooling"` // freed less than the cooldown ago
	Hurried uint64       `json:"hurried"` // given out again before the cooldown ended, since the agent started
}

// View is the state of a table.
type View struct {
	Endpoints int                    `json:"endpoints"`
	Capacity  int                    `json:"capacity"`
	Pools     []PoolUse              `json:"pools"`
	Removing  int                    `json:"removing"` // links of removed endpoints that are still to go
	Repaired  uint64                 `json:"repaired"` // filters and host ports that were missing or replaced by others
	Verbs     map[cni.Verb]VerbCount `json:"verbs"`
	LastError string                 `json:"lastError,omitempty"`
}

// Status returns the state of the table, from memory.
func (t *Table) Status() View {
	removing := t.doomed.count()
	t.mu.Lock()
	defer t.mu.Unlock()
	v := View{
		Endpoints: len(t.endpoints),
		Capacity:  int(t.cfg.Dataplane.Capacity()),
		Removing:  removing,
		Repaired:  t.repaired,
		Verbs:     maps.Clone(t.verbs),
		LastError: t.lastError,
	}
	now := sinceBoot()
	for _, p := range t.pools {
		v.Pools = append(v.Pools, PoolUse{p.Prefix(), p.Size(), p.Used(), p.Cooling(now), p.Hurried()})
	}
	return v
}

// CNIStatus answers STATUS, from memory: the runtime asks every few seconds and waits for it.
func (t *Table) CNIStatus(context.Context) error {
	if err := t.ready(); err != nil {
		return cni.Errorf(cni.CodeDegraded, "agent is not ready: %v", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.pools {
		if p.Used() == p.Size() {
			return cni.Errorf(cni.CodeUnavailable, "pool %s is full (%d addresses)", p.Prefix(), p.Size())
		}
	}
	if n := int(t.cfg.Dataplane.Capacity()); len(t.endpoints) >= n {
		return cni.Errorf(cni.CodeUnavailable, "map endpoints is full (%d endpoints)", n)
	}
	return nil
}

func (t *Table) ready() error {
	if t.cfg.Ready == nil {
		return nil
	}
	return t.cfg.Ready()
}

// stuck is how long one ADD may take before the agent counts as hung: the runtime gives up on a pod after four minutes.
const stuck = time.Minute

// Alive takes the locks that ADD takes, and says whether an ADD has been under way for too long. It waits at most until the context ends.
func (t *Table) Alive(ctx context.Context) error {
	for !t.mu.TryLock() {
		select {
		case <-ctx.Done():
			return errors.New("endpoint table is locked")
		case <-time.After(5 * time.Millisecond):
		}
	}
	defer t.mu.Unlock()
	now := sinceBoot()
	for a, since := range t.adds {
		if now-since > stuck {
			return fmt.Errorf("ADD of %s is under way for %s", a, (now - since).Round(time.Second))
		}
	}
	return nil
}

// enter notes the beginning of a verb.
func (t *Table) enter(v cni.Verb, a cni.Attachment) time.Duration {
	now := sinceBoot()
	if v == cni.Add {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.adds[a.String()] = now
	}
	return now
}

// leave notes the end of a verb.
func (t *Table) leave(v cni.Verb, a cni.Attachment, began time.Duration, err error) {
	took := sinceBoot() - began
	t.mu.Lock()
	defer t.mu.Unlock()
	if v == cni.Add {
		delete(t.adds, a.String())
	}
	c := t.verbs[v]
	c.Calls++
	c.Total += took
	c.Max = max(c.Max, took)
	if err != nil {
		c.Failed++
		t.note(string(v)+" "+a.String(), err)
	}
	t.verbs[v] = c
}

// report logs an error of the background and keeps it for Status.
func (t *Table) report(what string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.note(what, err)
}

// note is report for who has the lock.
func (t *Table) note(what string, err error) {
	t.lastError = fmt.Sprintf("%s: %v", what, err)
	t.log.Warn(what, "error", err)
}

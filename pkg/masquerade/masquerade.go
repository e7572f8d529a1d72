// SPDX-License-Identifier: Apache-2.0

// Package masquerade gives packets of this node's pods that leave the cluster's pod network the address of the device that they leave by.
// It keeps one small nftables table of its own; the number of rules does not grow with pods, nodes or Services.
package masquerade

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fairlead/fairlead/pkg/nft"
)

// Table is the name of the table, of family inet.
const Table = "fairlead"

// Config says what is inside.
type Config struct {
	Overlay    string         // name of the overlay device
	PodDevices string         // name of the host side of pods' devices, with * for what differs
	Own        []netip.Prefix // pod CIDRs of this node: whose packets are masqueraded
	Cluster    []netip.Prefix // instead of the pod CIDRs of all nodes: a prefix that holds them (--cluster-cidr); empty: Change tells
	Log        *slog.Logger
}

// Masquerade owns the table.
type Masquerade struct {
	cfg  Config
	conn *nft.Conn
	log  *slog.Logger
	wake chan struct{}

	mu       sync.Mutex
	own      []netip.Prefix
	pods     map[netip.Prefix]bool // wanted destinations that keep the pod's address
	synced   bool                  // pods is complete
	add      map[netip.Prefix]bool // not in the kernel yet
	remove   map[netip.Prefix]bool // still in the kernel
	clean    bool                  // but for add and remove, the kernel is as it should be
	repaired uint64
	err      error
}

// The sets: own pods by family, and the pods of the cluster by family.
var (
	own4  = nft.Set{Name: "own4"}
	own6  = nft.Set{Name: "own6", IPv6: true}
	pods4 = nft.Set{Name: "pods4"}
	pods6 = nft.Set{Name: "pods6", IPv6: true}
)

// New returns a Masquerade that has touched nothing yet.
func New(cfg Config, conn *nft.Conn) *Masquerade {
	m := &Masquerade{
		cfg: cfg, conn: conn, log: cfg.Log, wake: make(chan struct{}, 1), own: cfg.Own,
		pods: map[netip.Prefix]bool{}, add: map[netip.Prefix]bool{}, remove: map[netip.Prefix]bool{},
	}
	for _, p := range cfg.Cluster {
		m.pods[p] = true
	}
	m.synced = len(cfg.Cluster) > 0
	return m
}

// SetOwn replaces the pod CIDRs of this node; Run writes them.
func (m *Masquerade) SetOwn(own []netip.Prefix) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.own, m.clean = own, false
	m.kick()
}

// Change adds pod CIDRs of the cluster and removes others; Run writes them. They must not overlap. Until synced is true nothing is
// written: what an earlier agent put there stays.
func (m *Masquerade) Change(add, remove []netip.Prefix, synced bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.cfg.Cluster) > 0 {
		return
	}
	for _, p := range remove {
		delete(m.pods, p)
		if m.add[p] {
			delete(m.add, p)
		} else {
			m.remove[p] = true
		}
	}
	for _, p := range add {
		m.pods[p] = true
		if m.remove[p] {
			delete(m.remove, p)
		} else {
			m.add[p] = true
		}
	}
	if synced && !m.synced {
		m.synced, m.clean = true, false
	}
	m.kick()
}

func (m *Masquerade) kick() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Setup writes the table as it should be now, and leaves alone what is right already.
func (m *Masquerade) Setup() error {
	_, err := m.ensure()
	return err
}

// ensure compares the whole table and brings it to what is wanted.
func (m *Masquerade) ensure() (changed bool, err error) {
	m.mu.Lock()
	t := table(m.cfg, m.own, slices.Collect(maps.Keys(m.pods)), m.synced)
	clear(m.add)
	clear(m.remove)
	m.clean = true // a change that comes meanwhile is on top of this table
	m.mu.Unlock()
	changed, err = m.conn.Ensure(t)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
	m.clean = m.clean && err == nil
	return changed, err
}

// update writes only what changed; done is false when the whole table must be looked at.
func (m *Masquerade) update() (done bool) {
	m.mu.Lock()
	add, remove, ok := slices.Collect(maps.Keys(m.add)), slices.Collect(maps.Keys(m.remove)), m.clean && m.synced
	if ok {
		clear(m.add)
		clear(m.remove)
	}
	m.mu.Unlock()
	if !ok {
		return false
	}
	for _, s := range []nft.Set{pods4, pods6} {
		other := func(p netip.Prefix) bool { return p.Addr().Is4() == s.IPv6 }
		add, remove := slices.DeleteFunc(slices.Clone(add), other), slices.DeleteFunc(slices.Clone(remove), other)
		if len(add)+len(remove) == 0 {
			continue
		}
		if err := m.conn.Update(Table, s, add, remove); err != nil {
			m.log.Debug("masquerade set is not as it was left, comparing all", "error", err)
			return false
		}
	}
	return true
}

// Status says how often somebody else's change was undone, and why the table is not as it should be, if so.
func (m *Masquerade) Status() (repaired uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.repaired, m.err
}

// How often the table is compared, and how long after an error.
const (
	driftEvery = time.Minute
	retryAfter = 2 * time.Second
)

// Run writes changes and undoes those of others until the context ends; then it leaves the table in place. The error is the context's.
func (m *Masquerade) Run(ctx context.Context) error {
	timer := time.NewTimer(driftEvery)
	defer timer.Stop()
	for {
		asked := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.wake:
			asked = true
		case <-timer.C:
		}
		if asked && m.update() {
			continue
		}
		changed, err := m.ensure()
		next := driftEvery
		switch {
		case err != nil:
			m.log.Warn("masquerade table is not as it should be, trying again", "error", err, "after", retryAfter)
			next = retryAfter
		case changed && !asked:
			m.mu.Lock()
			m.repaired++
			m.mu.Unlock()
			m.log.Warn("repaired masquerade table", "table", Table)
		case changed:
			m.log.Debug("wrote masquerade table", "table", Table)
		}
		timer.Reset(next)
	}
}

// Remove takes the table away.
func Remove(conn *nft.Conn) error { return conn.Delete(Table) }

// table compiles the table. One rule per family: a packet of an own pod that leaves by a device that is neither the overlay nor another pod's,
// to an address that is no pod's. Packets to this host itself never come here.
func table(cfg Config, own, pods []netip.Prefix, synced bool) nft.Table {
	t := nft.Table{Name: Table, Chains: []nft.Chain{{Name: "masquerade", Hook: nft.Postrouting}}}
	for _, f := range []struct {
		name      string
		own, pods nft.Set
	}{{"IPv4", own4, pods4}, {"IPv6", own6, pods6}} {
		other := func(p netip.Prefix) bool { return p.Addr().Is4() == f.own.IPv6 }
		f.own.Prefixes = slices.DeleteFunc(slices.Clone(own), other)
		f.pods.Prefixes = slices.DeleteFunc(slices.Clone(pods), other)
		f.pods.Keep = !synced
		t.Sets = append(t.Sets, f.own, f.pods)
		t.Chains[0].Rules = append(t.Chains[0].Rules, nft.Rule{
			Comment: "own pods to outside, " + f.name,
			Parts: []nft.Part{
				nft.SourceIn(f.own), nft.NotOut(cfg.Overlay), nft.NotOut(cfg.PodDevices), nft.DestinationNotIn(f.pods), nft.Masquerade(),
			},
		})
	}
	return t
}

// Check reports an impossible configuration, naming field and value.
func (c Config) Check() error {
	var errs []error
	for i, p := range c.Cluster {
		for _, q := range c.Cluster[:i] {
			if p.Overlaps(q) {
				errs = append(errs, errors.New("--cluster-cidr "+p.String()+": overlaps "+q.String()))
			}
		}
	}
	return errors.Join(errs...)
}

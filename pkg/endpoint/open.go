// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cni"
	"github.com/fairlead/fairlead/pkg/ipam"
	"github.com/fairlead/fairlead/pkg/link"
)

// Open takes up what an agent before this one left: it reads the journal and compares it with the links and the programs' table, none of
// which is trusted alone. What is whole is kept and gets the present filters; an ADD that was not complete is taken back; what only the
// programs and a link know comes back into the journal. Afterwards the tombstones of DELs without an agent are worked off. The table
// belongs to the network namespace of the calling thread.
func Open(cfg Config) (*Table, error) {
	if cfg.Cooldown == 0 {
		cfg.Cooldown = DefaultCooldown
	}
	if cfg.MTU < 1280 && slices.ContainsFunc(cfg.Pools, func(p netip.Prefix) bool { return p.Addr().Is6() }) || cfg.MTU < 576 {
		return nil, fmt.Errorf("open endpoints: MTU %d is too small (IPv4 576, IPv6 1280)", cfg.MTU)
	}
	if len(cfg.Pools) == 0 {
		return nil, errors.New("open endpoints: no pod CIDR")
	}
	t := &Table{
		cfg:       cfg,
		boot:      cfg.BootID,
		log:       cfg.Log.With("component", "endpoint"),
		endpoints: map[string]*Endpoint{},
		adds:      map[string]time.Duration{},
		verbs:     map[cni.Verb]VerbCount{},
		doomed:    doomed{links: map[string]doom{}, wake: make(chan struct{}, 1)},
		changed:   make(chan struct{}, 1),
		kernel:    make(chan struct{}, max(4, 2*runtime.NumCPU())),
	}
	for i, prefix := range cfg.Pools {
		p, err := ipam.New(prefix, cfg.Cooldown)
		if err != nil {
			return nil, fmt.Errorf("open endpoints: %w", err)
		}
		if slices.ContainsFunc(cfg.Pools[:i], func(o netip.Prefix) bool { return o.Addr().Is4() == prefix.Addr().Is4() }) {
			return nil, fmt.Errorf("open endpoints: pod CIDR %s is the second one of its family", prefix)
		}
		t.pools = append(t.pools, p)
	}
	for _, dir := range []string{cfg.StateDir, cfg.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open endpoints: %w", err)
		}
	}
	var err error
	if t.boot == "" {
		if t.boot, err = bootID(); err != nil {
			return nil, fmt.Errorf("open endpoints: %w", err)
		}
	}
	if t.veths, err = link.OpenVeths(); err != nil {
		return nil, fmt.Errorf("open endpoints: %w", err)
	}
	if err := t.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("open endpoints: %w", err), t.Close())
	}
	return t, nil
}

// Close ends the use of the table; everything in the kernel stays as it is.
func (t *Table) Close() error {
	err := t.veths.Close()
	if t.journal.file != nil {
		err = errors.Join(err, t.journal.file.Close())
	}
	return err
}

func (t *Table) recover() error {
	l, err := load(t.cfg.StateDir)
	if err != nil {
		return err
	}
	for _, d := range l.damage {
		t.report("state was damaged, the kernel's makes up for it", d)
	}
	t.replay(l)
	links, err := t.veths.List(cni.LinkPrefix)
	if err != nil {
		return err
	}
	entries, err := t.cfg.Dataplane.List()
	if err != nil {
		return err
	}
	byName, byIndex := map[string]link.Found{}, map[int]bpf.Endpoint{}
	for _, b := range entries {
		byIndex[int(b.Ifindex)] = b
	}
	mine := owner{gateway: t.cfg.GatewayMAC, names: l.names()}
	for _, f := range links {
		if _, known := byIndex[f.Index]; mine.has(f) || known && cni.IsLinkName(f.Name) {
			byName[f.Name] = f
		}
	}
	t.rebuild(byName, byIndex, t.dropLost(byName))
	if err := t.takeHostPorts(); err != nil {
		return err
	}
	if err := t.adopt(byName, entries); err != nil {
		return err
	}
	if _, err := t.repairHostPorts(context.Background()); err != nil {
		t.report("host ports", err) // the pods have the rest, and it is tried again
	}
	if err := t.releaseIDs(); err != nil {
		return err
	}
	// Everything up to here is in the snapshot, so the journals of before are not needed any more.
	t.journal = journal{dir: t.cfg.StateDir, boot: t.boot, seq: l.seq}
	if err := writeSnapshot(t.cfg.StateDir, t.snapshot()); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(t.cfg.StateDir, journalName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old journal: %w", err)
	}
	if err := t.journal.begin(); err != nil {
		return err
	}
	return t.bury()
}

// replay brings endpoints and pools to where the files end.
func (t *Table) replay(l *loaded) {
	now := sinceBoot()
	// A clock of before a reboot means nothing now: what was cooling then cools from the start of this one.
	clip := func(at time.Duration) time.Duration { return min(at, now) }
	if l.boot != t.boot {
		clip = func(time.Duration) time.Duration { return 0 }
	}
	put := func(e Endpoint) {
		if old, known := t.endpoints[e.Link]; known {
			t.free(old.Addrs, now)
		}
		for other, _ := t.claimant(e.HostPorts, e.Link); other != nil; other, _ = t.claimant(e.HostPorts, e.Link) {
			t.drop(other, "a later one has its host port", e.Link)
		}
		for _, a := range e.Addrs {
			p := t.poolOf(a)
			if p == nil {
				continue
			}
			if p.InUse(a) {
				t.displace(a, e.Link)
			}
			if err := p.Take(a); err != nil {
				t.report("endpoint "+e.Link, err)
			}
		}
		t.endpoints[e.Link] = &e
	}
	if s := l.snapshot; s != nil {
		for _, st := range s.Pools {
			for _, p := range t.pools {
				p.Restore(st, clip)
			}
		}
		for _, e := range s.Endpoints {
			put(e)
		}
	}
	for _, n := range l.entries {
		switch {
		case n.Endpoint != nil && (n.Op == opBegin || n.Op == opCommit):
			put(*n.Endpoint)
		case n.Op == opRemove:
			if e := t.endpoints[n.Link]; e != nil {
				t.free(e.Addrs, clip(n.At))
				delete(t.endpoints, n.Link)
			}
		}
	}
}

// displace forgets the endpoint that has an address which the journal gives to a later one: the entry of its DEL was lost.
func (t *Table) displace(a netip.Addr, by string) {
	for _, e := range t.endpoints {
		if slices.Contains(e.Addrs, a) {
			t.drop(e, "a later one has its address", by)
		}
	}
}

func (t *Table) drop(e *Endpoint, why, by string) {
	t.log.Warn("endpoint dropped at start: "+why, "endpoint", e, "by", by)
	t.free(e.Addrs, sinceBoot())
	delete(t.endpoints, e.Link)
}

// dropLost takes back the ADDs that were under way, and forgets the endpoints whose link is gone. It returns the names of both.
func (t *Table) dropLost(links map[string]link.Found) map[string]bool {
	now := sinceBoot()
	dropped := map[string]bool{}
	for name, e := range t.endpoints {
		f, ok := links[name]
		whole := ok && e.Complete && f.Index == e.Ifindex
		if whole {
			continue
		}
		t.log.Info("endpoint dropped at start", "endpoint", e, "complete", e.Complete, "linkPresent", ok)
		t.free(e.Addrs, now)
		delete(t.endpoints, name)
		dropped[name] = true
	}
	return dropped
}

// rebuild makes records of links that only the programs' table knows: the journal was lost or damaged. The container is not known, only
// the name that follows from it, which is enough for DEL, CHECK and GC. A link that is down is of an ADD that never ended.
func (t *Table) rebuild(links map[string]link.Found, entries map[int]bpf.Endpoint, dropped map[string]bool) {
	for name, f := range links {
		b, known := entries[f.Index]
		if t.endpoints[name] != nil || dropped[name] || !known || !f.Up {
			continue
		}
		e := &Endpoint{
			Link: name, MAC: net.HardwareAddr(b.MAC[:]).String(), MTU: f.MTU, ID: b.ID, Incarnation: b.Incarnation,
			SocketLBOff: b.Flags&bpf.EndpointSocketLBOff != 0, Ifindex: f.Index, Cookie: b.Cookie, Created: sinceBoot(), Complete: true,
		}
		e.Pod.Namespace, e.Pod.Name, _ = strings.Cut(f.Alias, "/")
		taken := false
		for _, p := range t.pools {
			for _, a := range []netip.Addr{b.Addr4, b.Addr6} {
				if a.IsValid() && p.Prefix().Contains(a) {
					taken = taken || p.Take(a) != nil
					e.Addrs = append(e.Addrs, a)
				}
			}
		}
		if taken {
			// Another endpoint has the address by the journal: that one is right, this link goes below.
			t.log.Warn("link with another endpoint's address", "endpoint", e)
			continue
		}
		if whole, err := t.interned(e); err != nil || !whole {
			t.log.Warn("link without an id of its own", "endpoint", e, "error", err)
			t.free(e.Addrs, sinceBoot())
			continue
		}
		t.log.Warn("endpoint rebuilt from its link", "endpoint", e)
		t.endpoints[name] = e
	}
}

// interned says whether the id that the programs' table shows is still the endpoint's.
func (t *Table) interned(e *Endpoint) (bool, error) {
	all, err := t.cfg.IDs.List(bpf.IDEndpoint)
	if err != nil {
		return false, err
	}
	return slices.Contains(all, bpf.Interned{Signature: bpf.Sign(e.Link), ID: bpf.ID{ID: e.ID, Incarnation: e.Incarnation}}), nil
}

// adopt brings the programs' table and the filters to what the records say, and removes links and entries that nobody knows.
func (t *Table) adopt(links map[string]link.Found, entries []bpf.Endpoint) error {
	have := map[uint32]bpf.Endpoint{}
	for _, b := range entries {
		have[b.ID] = b
	}
	wanted := map[uint32]bool{}
	for _, e := range t.endpoints {
		wanted[e.ID] = true
	}
	for id := range have {
		if !wanted[id] {
			if err := t.cfg.Dataplane.Delete(id); err != nil {
				return err
			}
		}
	}
	for _, e := range t.endpoints {
		b, err := e.entry()
		if err != nil {
			return fmt.Errorf("endpoint %s: %w", e.Link, err)
		}
		if have[e.ID] != b {
			if err := t.cfg.Dataplane.Put(b); err != nil {
				return err
			}
		}
		if t.veths.VerifyFilters(e.Ifindex, t.cfg.Filters) == nil {
			continue
		}
		if err := t.veths.AttachFilters(e.Ifindex, t.cfg.Filters); err != nil {
			t.report("adopt "+e.Link, err) // one broken pod must not keep the others from working
		}
	}
	for name := range links {
		if t.endpoints[name] == nil {
			t.doomed.add(name, doom{due: time.Now()})
		}
	}
	return nil
}

// releaseIDs gives back the ids of endpoints that are gone, but for those whose link is still to be removed.
func (t *Table) releaseIDs() error {
	all, err := t.cfg.IDs.List(bpf.IDEndpoint)
	if err != nil {
		return err
	}
	keep := map[bpf.Signature]bool{}
	for name := range t.endpoints {
		keep[bpf.Sign(name)] = true
	}
	for _, i := range all {
		if !keep[i.Signature] {
			if err := t.cfg.IDs.ReleaseSignature(bpf.IDEndpoint, i.Signature); err != nil {
				return err
			}
		}
	}
	return nil
}

// snapshot copies everything known. The caller has the lock, or the table to itself.
func (t *Table) snapshot() snapshot {
	s := snapshot{Version: journalVersion, Boot: t.boot, Seq: t.journal.seq}
	for _, e := range t.endpoints {
		s.Endpoints = append(s.Endpoints, *e)
	}
	for _, p := range t.pools {
		s.Pools = append(s.Pools, p.State())
	}
	return s
}

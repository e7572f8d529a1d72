// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/link"
	"github.com/fairlead/fairlead/pkg/testnet/sandbox"
)

// host is a node in a namespace of its own, with the real device, maps and programs.
type host struct {
	t       *testing.T
	name    string
	ns      *sandbox.Namespace
	nl      *link.Handle
	dir     string
	cfg     Config
	objects *bpf.Objects
	node    *Node
	self    Self
	changed chan Self
	cidrs   chan CIDRs
	stop    func()
}

func newHost(t *testing.T, cfg Config) *host {
	t.Helper()
	h := &host{t: t, name: cfg.Name, ns: sandbox.NewNamespace(t), cfg: cfg, dir: bpfDir(t, cfg.Name)}
	var err error
	if h.nl, err = link.OpenAt(h.ns.FD()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.nl.Close)
	return h
}

const testPrefix = "/sys/fs/bpf/fairlead-test-" // of every package's tests, followed by the owner's process id

func bpfDir(t *testing.T, name string) string {
	old, _ := filepath.Glob(testPrefix + "*-node-*")
	for _, dir := range old {
		pid, _, _ := strings.Cut(strings.TrimPrefix(dir, testPrefix), "-")
		if n, err := strconv.Atoi(pid); err == nil && syscall.Kill(n, 0) != nil {
			if err := bpf.Remove(dir); err != nil {
				t.Error(err)
			}
		}
	}
	test := strings.NewReplacer("/", "_", ".", "_").Replace(t.Name())
	dir := fmt.Sprintf("%s%d-node-%s-%s", testPrefix, os.Getpid(), test, name)
	t.Cleanup(func() {
		if err := bpf.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// wire joins the uplinks of two hosts, both called eth0.
func wire(t *testing.T, mtu int, a *host, onA []string, b *host, onB []string) {
	t.Helper()
	end := func(list []string) link.End {
		e := link.End{Name: "eth0", MTU: mtu}
		for _, s := range list {
			e.Addresses = append(e.Addresses, netip.MustParsePrefix(s))
		}
		return e
	}
	if err := link.Wire(a.nl, end(onA), b.nl, end(onB)); err != nil {
		t.Fatal(err)
	}
}

// start sets the host up and runs it, as an agent does. What it learns comes by apply.
func (h *host) start(own *cluster.Node) {
	h.t.Helper()
	h.changed, h.cidrs = make(chan Self, 100), make(chan CIDRs, 100)
	cfg := h.cfg
	cfg.Log = slog.New(slog.NewTextHandler(testLog{h}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg.Changed = func(s Self) { h.changed <- s }
	cfg.CIDRs = func(c CIDRs) { h.cidrs <- c }
	h.node = New(cfg, h.nl)
	var err error
	if h.self, err = h.node.Setup(own); err != nil {
		h.t.Fatal(err)
	}
	h.objects, err = bpf.Open(bpf.Options{Dir: h.dir, Log: slog.New(slog.DiscardHandler), Config: bpf.Config{
		Node4: h.self.Node4, Node6: h.self.Node6, Overlay4: h.self.Overlay4, Overlay6: h.self.Overlay6, HostCookie: h.ns.Cookie(h.t),
		OverlayIfindex: uint32(h.self.OverlayIndex), OverlayMTU: uint32(h.self.MTU), VNI: h.self.VNI, GatewayMAC: h.self.GatewayMAC,
		OverlayMAC: h.self.OverlayMAC, OuterV6: h.self.OuterV6,
	}, Capacity: map[string]uint32{
		"backends": 4096, "slots": 4096, "services": 1024, "frontends": 1024, "affinities": 1024, "cluster_ips": 1024, "ids": 8192,
		"flow_slots": 4096,
	}})
	if err != nil {
		h.t.Fatal(err)
	}
	if h.self.OverlayIndex != 0 {
		h.ns.Do(h.t, h.attach)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() {
		if err := h.node.Run(ctx, h.objects.Peers(), h.objects.IDs()); err != context.Canceled {
			h.t.Errorf("run of %s: %v", h.name, err)
		}
	})
	h.stop = sync.OnceFunc(func() {
		cancel()
		ended.Wait()
		if err := h.objects.Close(); err != nil {
			h.t.Error(err)
		}
	})
	h.t.Cleanup(h.stop)
}

// attach puts the overlay's programs on its device in the calling thread's namespace, as an agent does.
func (h *host) attach() error {
	err := h.objects.AttachOverlay(h.self.OverlayIndex)
	if !errors.Is(err, bpf.ErrNoTCX) {
		return err
	}
	from, to, err := h.objects.OverlayPrograms()
	if err != nil {
		return err
	}
	veths, err := link.OpenVeths()
	if err != nil {
		return err
	}
	filters := link.Filters{FromPodFD: from.FD, FromPodID: from.ID, ToPodFD: to.FD, ToPodID: to.ID}
	return errors.Join(veths.AttachFilters(h.self.OverlayIndex, filters), veths.Close())
}

// apply tells the host of nodes; nil values are gone. The first call opens the gate.
func (h *host) apply(nodes map[string]*cluster.Node) {
	b := cluster.Batch{Synced: []cluster.Kind{cluster.NodeKind}}
	for name, n := range nodes {
		c := cluster.Change{Kind: cluster.NodeKind, Key: cluster.Key{Name: name}}
		if n != nil {
			c.Value = n
		}
		b.Changes = append(b.Changes, c)
	}
	h.node.Apply(b)
}

// until waits for a condition that Run brings about.
func (h *host) until(what string, ok func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("%s: not within 20 s; routes %v, status %+v", what, h.routes(), h.node.Status())
		}
	}
}

// routes returns this package's routes as text, sorted.
func (h *host) routes() []string {
	all, err := h.nl.Routes()
	if err != nil {
		h.t.Fatal(err)
	}
	devices, err := h.nl.Devices()
	if err != nil {
		h.t.Fatal(err)
	}
	names := map[int]string{}
	for _, d := range devices {
		names[d.Index] = d.Name
	}
	list := []string{}
	for _, r := range all {
		if r.Unreachable {
			list = append(list, r.Dst.String()+" unreachable")
			continue
		}
		list = append(list, fmt.Sprintf("%s via %s dev %s src %s mtu %d", r.Dst, r.Gateway, names[r.Link], r.Src, r.MTU))
	}
	slices.Sort(list)
	return list
}

// peers returns the peer table as text, without ids.
func (h *host) peers() []string {
	all, err := h.objects.Peers().List()
	if err != nil {
		h.t.Fatal(err)
	}
	list := []string{}
	for _, p := range all {
		list = append(list, fmt.Sprintf("%s %v sources %v mtu %d flags %d", p.Node, p.CIDRs, p.Sources, p.MTU, p.Flags))
	}
	slices.Sort(list)
	return list
}

// testLog shows a host's log with the test's.
type testLog struct{ h *host }

func (l testLog) Write(b []byte) (int, error) {
	l.h.t.Logf("%s: %s", l.h.name, strings.TrimSpace(string(b)))
	return len(b), nil
}

func nodeOf(name, cidrs, ips string) *cluster.Node {
	n := &cluster.Node{Name: name, UID: "uid-" + name}
	for _, s := range strings.Fields(cidrs) {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(s))
	}
	for _, s := range strings.Fields(ips) {
		n.InternalIPs = append(n.InternalIPs, netip.MustParseAddr(s))
	}
	return n
}

func aged(n *cluster.Node, seconds int64) *cluster.Node {
	n.Created = time.Unix(seconds, 0)
	return n
}

// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/link"
)

// Config is what the agent is told about routing.
type Config struct {
	Name    string       // of the own Node object
	NodeIPs []netip.Addr // instead of those in its status; the first decides the outer family
	Devices []string     // that lead to other nodes: the first one that is there counts; empty: found by the node's address and the default route
	Mode    Mode
	MTU     int    // of pods, in bytes; 0: the largest that fits
	Port    uint16 // UDP port of the overlay; 0: Port
	VNI     uint32 // 1 to 2^24-1; 0: VNI
	Log     *slog.Logger

	// Changed is called from Run when a fact of the own node that others hold a copy of is another one: its addresses, CIDRs, MTU or the
	// overlay device. The kernel objects of this package are already as the new value says; the programs' config and the pods' MTU are not.
	Changed func(Self)
	// CIDRs is called from Run when the pod CIDRs in force changed, the own ones included. They never overlap.
	CIDRs func(CIDRs)
}

// CIDRs is a change to the pod CIDRs in force. Synced is true from the first call after all Nodes are known: only from then on is the sum
// of all changes complete.
type CIDRs struct {
	Add, Remove []netip.Prefix
	Synced      bool
}

// PeerTable is where programs look peers up; *bpf.Peers is one. A CIDR or address that another peer has moves to the one put last.
type PeerTable interface {
	Put(bpf.Peer) error
	Delete(id uint32) error
	List() ([]bpf.Peer, error)
}

// IDs gives every node an id that it keeps; *bpf.IDs is one.
type IDs interface {
	Acquire(kind bpf.IDKind, description string) (bpf.ID, error)
	Release(kind bpf.IDKind, description string) error
	ReleaseSignature(kind bpf.IDKind, sig bpf.Signature) error
	List(kind bpf.IDKind) ([]bpf.Interned, error)
}

// Node owns the overlay device, the routes to other nodes and their peer entries.
type Node struct {
	cfg Config
	nl  *link.Handle
	log *slog.Logger

	inbox inbox

	mu         sync.Mutex
	self       Self
	own        *cluster.Node
	conditions map[string]error // by node name
	peers      int
	repaired   uint64
	synced     chan struct{} // closed once every Node was written
}

// New returns a Node that has touched nothing yet. The handle stays the caller's and must live as long.
func New(cfg Config, nl *link.Handle) *Node {
	if cfg.Port == 0 {
		cfg.Port = Port
	}
	if cfg.VNI == 0 {
		cfg.VNI = VNI
	}
	if cfg.Changed == nil {
		cfg.Changed = func(Self) {}
	}
	if cfg.CIDRs == nil {
		cfg.CIDRs = func(CIDRs) {}
	}
	return &Node{
		cfg: cfg, nl: nl, log: cfg.Log, conditions: map[string]error{}, synced: make(chan struct{}),
		inbox: inbox{nodes: map[string]*cluster.Node{}, wake: make(chan struct{}, 1)},
	}
}

// Self returns what the last Setup found.
func (n *Node) Self() Self {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.self
}

// Synced is closed when the peers gate was open and everything that was known then is in the kernel, or refused with a condition.
func (n *Node) Synced() <-chan struct{} { return n.synced }

// Status is what people are told about the peers.
type Status struct {
	Peers      int              // written
	Repaired   uint64           // entries, routes and device settings that somebody else had changed
	Conditions map[string]error // node name -> why it, or one of its CIDRs, is not served
}

// Status returns a copy.
func (n *Node) Status() Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := Status{Peers: n.peers, Repaired: n.repaired, Conditions: make(map[string]error, len(n.conditions))}
	for name, err := range n.conditions {
		s.Conditions[name] = err
	}
	return s
}

// Apply takes what a source learned; other kinds than Node are ignored. It never waits for the kernel, so it may be called from the
// source's goroutine, before Run too.
func (n *Node) Apply(b cluster.Batch) { n.inbox.put(b) }

// inbox is what arrived and is not worked on yet: the last value per node.
type inbox struct {
	mu     sync.Mutex
	nodes  map[string]*cluster.Node // nil: gone
	synced bool
	wake   chan struct{}
}

func (in *inbox) put(b cluster.Batch) {
	in.mu.Lock()
	defer in.mu.Unlock()
	before := len(in.nodes)
	for _, c := range b.Changes {
		if c.Kind == cluster.NodeKind {
			in.nodes[c.Key.Name], _ = c.Value.(*cluster.Node)
		}
	}
	opened := !in.synced && slices.Contains(b.Synced, cluster.NodeKind)
	in.synced = in.synced || opened
	if len(in.nodes) > before || opened || len(b.Changes) > 0 {
		select {
		case in.wake <- struct{}{}:
		default:
		}
	}
}

func (in *inbox) take() (nodes map[string]*cluster.Node, synced bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	nodes, in.nodes = in.nodes, map[string]*cluster.Node{}
	return nodes, in.synced
}

// Timing of Run.
const (
	settle     = 200 * time.Millisecond // pods come and go in bursts: kernel messages of this span are one look
	driftEvery = time.Minute
	retryFirst = time.Second
	retryMost  = 30 * time.Second
)

// Run writes peers and routes as Nodes change, and keeps the overlay device, its addresses and all routes as they should be, until the
// context ends; then it leaves everything in place. Setup must have succeeded before. The error is the context's.
func (n *Node) Run(ctx context.Context, table PeerTable, ids IDs) error {
	r := newRun(n, table, ids)
	var events atomic.Uint32
	kernel := make(chan struct{}, 1)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		n.nl.Watch(ctx, func(e link.Event, index int) {
			if s := n.Self(); index == s.OverlayIndex || index == s.Underlay.Index {
				e |= link.RouteEvent // of IPv4 routes that go with a device the kernel does not tell
			}
			events.Or(uint32(e))
			select {
			case kernel <- struct{}{}:
			default:
			}
		})
	}()
	defer func() { <-watched }()

	drift := time.NewTicker(driftEvery)
	defer drift.Stop()
	var settled, retry <-chan time.Time
	pause := retryFirst
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.inbox.wake:
			err = r.work()
		case <-retry:
			retry = nil
			err = errors.Join(r.look(everything), r.work())
		case <-kernel:
			if settled == nil {
				settled = time.After(settle)
			}
			continue
		case <-settled:
			settled = nil
			err = r.look(link.Event(events.Swap(0)))
		case <-drift.C:
			err = errors.Join(r.look(everything), r.compare())
		}
		if err == nil {
			retry, pause = nil, retryFirst
			continue
		}
		n.log.Warn("nodes are not all in the kernel, trying again", "error", err, "after", pause)
		retry = time.After(pause)
		pause = min(2*pause, retryMost)
	}
}

// condition remembers why a node is not served, or forgets it, and says so once.
func (n *Node) condition(name string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.conditions[name]
	if err == nil {
		delete(n.conditions, name)
		return
	}
	n.conditions[name] = err
	if old == nil || old.Error() != err.Error() {
		n.log.Error("node is not served completely", "node", name, "error", err)
	}
}

func (n *Node) countRepair(what string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.repaired++
	n.log.Warn("repaired "+what, args...)
}

func nodeError(n *cluster.Node, field string, format string, args ...any) error {
	return fmt.Errorf("node %s: %s: %w", n.Name, field, fmt.Errorf(format, args...))
}

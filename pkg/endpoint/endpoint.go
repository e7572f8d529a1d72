// SPDX-License-Identifier: Apache-2.0

// Package endpoint is the pods of this node: it does what the container runtime asks for by CNI, keeps the journal that lets a new agent
// go on where the last one died, and takes back what runtimes forget. Nothing in it waits for another machine.
package endpoint

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cni"
	"github.com/fairlead/fairlead/pkg/ipam"
	"github.com/fairlead/fairlead/pkg/link"
)

// Dataplane is the table of endpoints that the programs read.
type Dataplane interface {
	Put(bpf.Endpoint) error
	Delete(id uint32) error
	Get(id uint32) (bpf.Endpoint, bool)
	List() ([]bpf.Endpoint, error)
	Capacity() uint32
}

// IDs gives each endpoint a small number and an incarnation that is never used again.
type IDs interface {
	Acquire(kind bpf.IDKind, description string) (bpf.ID, error)
	Release(kind bpf.IDKind, description string) error
	ReleaseSignature(kind bpf.IDKind, sig bpf.Signature) error
	List(kind bpf.IDKind) ([]bpf.Interned, error)
}

// Config is what a Table needs to know.
type Config struct {
	RunDir     string         // tombstones, and the file that says the agent lives
	StateDir   string         // journal and snapshot
	Pools      []netip.Prefix // pod CIDRs of the node, at most one per family; their order is that of a pod's addresses
	Cooldown   time.Duration  // 0: DefaultCooldown
	MTU        int            // bytes, of the pods' links
	GatewayMAC [6]byte        // host side of every pod's link
	Sources    []netip.Addr   // source of the node's own traffic to its pods: at most one per family, on a link already
	Filters    link.Filters
	Dataplane  Dataplane
	HostPorts  HostPorts
	IDs        IDs
	Ready      func() error // why no pod may start yet; nil, or a nil error: pods may start
	BootID     string       // empty: the kernel's
	Log        *slog.Logger
}

// DefaultCooldown is how long a freed address rests when there are others: longer than the kernel keeps a half-open connection (120 s).
const DefaultCooldown = 130 * time.Second

// Endpoint is a pod's interface.
type Endpoint struct {
	Link        string         `json:"link"` // name of the host side: names the endpoint for good
	ContainerID string         `json:"containerID,omitempty"`
	Ifname      string         `json:"ifname,omitempty"`
	Pod         cni.Pod        `json:"pod,omitzero"`
	Addrs       []netip.Addr   `json:"addrs"`
	MAC         string         `json:"mac"`                 // pod side
	MTU         int            `json:"mtu"`                 // bytes
	HostPorts   []cni.HostPort `json:"hostPorts,omitempty"` // with an address each; never changed in place
	ID          uint32         `json:"id"`
	Incarnation uint32         `json:"incarnation"`
	SocketLBOff bool           `json:"socketLBOff,omitempty"`
	Ifindex     int            `json:"ifindex"` // host side
	Netns       string         `json:"netns,omitempty"`
	Inode       uint64         `json:"inode,omitempty"`  // of the network namespace
	Cookie      uint64         `json:"cookie,omitempty"` // of the network namespace
	Created     time.Duration  `json:"created"`          // since boot
	Complete    bool           `json:"complete"`         // ADD has answered
}

// LogValue describes the endpoint by what people look for.
func (e *Endpoint) LogValue() slog.Value {
	return slog.GroupValue(slog.String("link", e.Link), slog.String("pod", e.Pod.Namespace+"/"+e.Pod.Name),
		slog.String("container", e.ContainerID), slog.Any("addrs", e.Addrs), slog.Any("id", e.ID))
}

// podName is what people know the endpoint by.
func (e *Endpoint) podName() string {
	if e.Pod.Namespace == "" && e.Pod.Name == "" {
		return "a container without pod"
	}
	return "pod " + e.Pod.Namespace + "/" + e.Pod.Name
}

// entry is the endpoint as the programs see it.
func (e *Endpoint) entry() (bpf.Endpoint, error) {
	mac, err := parseMAC(e.MAC)
	if err != nil {
		return bpf.Endpoint{}, err
	}
	b := bpf.Endpoint{ID: e.ID, Incarnation: e.Incarnation, Cookie: e.Cookie, Ifindex: uint32(e.Ifindex), MAC: mac}
	if e.SocketLBOff {
		b.Flags |= bpf.EndpointSocketLBOff
	}
	for _, a := range e.Addrs {
		if a.Is4() {
			b.Addr4 = a
		} else {
			b.Addr6 = a
		}
	}
	return b, nil
}

// Table is the endpoints of a node. All methods may be called by several goroutines.
type Table struct {
	cfg   Config
	boot  string
	log   *slog.Logger
	veths *link.Veths

	mu        sync.Mutex // never held over a system call that waits for the network lock of the kernel
	endpoints map[string]*Endpoint
	pools     []*ipam.Pool
	journal   journal
	adds      map[string]time.Duration // ADDs under way, since when
	verbs     map[cni.Verb]VerbCount
	repaired  uint64
	lastError string

	locks   locks
	kernel  chan struct{} // holds one value per ADD that works with the kernel at this moment
	doomed  doomed
	changed chan struct{}
	compact sync.Mutex // one snapshot at a time
}

// List returns the complete endpoints in the order of their pods' names.
func (t *Table) List() []Endpoint {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]Endpoint, 0, len(t.endpoints))
	for _, e := range t.endpoints {
		if e.Complete {
			all = append(all, *e)
		}
	}
	slices.SortFunc(all, func(a, b Endpoint) int {
		return cmp.Or(cmp.Compare(a.Pod.Namespace, b.Pod.Namespace), cmp.Compare(a.Pod.Name, b.Pod.Name), cmp.Compare(a.Link, b.Link))
	})
	return all
}

// PodAddresses returns the addresses that ADD gave a pod, those of its newest container when there are several; nil when it has none.
func (t *Table) PodAddresses(namespace, name string) []netip.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	var newest *Endpoint
	for _, e := range t.endpoints {
		if e.Complete && e.Pod.Namespace == namespace && e.Pod.Name == name && (newest == nil || e.Created > newest.Created) {
			newest = e
		}
	}
	if newest == nil {
		return nil
	}
	return slices.Clone(newest.Addrs)
}

// Changed returns a channel that gets a value after endpoints came or went. It is for one reader and holds one value: several changes
// may be one value.
func (t *Table) Changed() <-chan struct{} { return t.changed }

func (t *Table) notify() {
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// OpenNamespace opens the network namespace with a cookie: that of an endpoint, or the node's own. The caller closes it soon: an open
// file keeps a namespace alive.
func (t *Table) OpenNamespace(cookie uint64) (*os.File, error) {
	if cookie == t.veths.Cookie() {
		return t.veths.OpenNamespace()
	}
	t.mu.Lock()
	var path string
	var inode uint64
	for _, e := range t.endpoints {
		if e.Cookie == cookie {
			path, inode = e.Netns, e.Inode
			break
		}
	}
	t.mu.Unlock()
	if inode == 0 && path == "" {
		return nil, fmt.Errorf("open namespace %d: no endpoint has this cookie: %w", cookie, os.ErrNotExist)
	}
	return openNamespace(path, inode, cookie)
}

// podMAC is the MAC of a pod's interface when it asks for none: the same for the same attachment, and locally administered.
func podMAC(containerID, ifname string) [6]byte {
	sum := sha256.Sum256([]byte(containerID + "/" + ifname + "/pod"))
	return [6]byte{2, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

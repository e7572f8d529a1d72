// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/link"
)

// run is what the goroutine of Run knows.
type run struct {
	*Node
	table PeerTable
	ids   IDs

	nodes   map[string]*cluster.Node // the others
	claims  *claims
	byAddr  map[netip.Addr]map[string]bool // InternalIP -> nodes that name it
	dirty   map[string]bool                // nodes whose entry or routes may be wrong; true: put again even when it looks right
	written map[string]written             // what each node has in the kernel
	routes  map[netip.Prefix]link.Route    // to other nodes, in the kernel
	stale   map[netip.Prefix]bool          // destinations whose route may be nobody's any more
	adopted bool                           // what earlier agents left is known
	left    []func() error                 // takes away what of it is nobody's
	told    map[netip.Prefix]bool          // CIDRs in force, as Config.CIDRs knows them; nil: never told
}

// written is what the kernel has of a node.
type written struct {
	peer   bpf.Peer
	routes []link.Route
}

func newRun(n *Node, table PeerTable, ids IDs) *run {
	r := &run{
		Node: n, table: table, ids: ids, nodes: map[string]*cluster.Node{}, claims: newClaims(), byAddr: map[netip.Addr]map[string]bool{},
		dirty: map[string]bool{}, written: map[string]written{}, routes: map[netip.Prefix]link.Route{}, stale: map[netip.Prefix]bool{},
	}
	r.claimOwn(n.Self())
	return r
}

// claimOwn takes the own CIDRs.
func (r *run) claimOwn(s Self) {
	var own []claim
	for _, p := range s.PodCIDRs {
		own = append(own, claim{prefix: p, node: s.Name, own: true})
	}
	r.mark(r.claims.set(s.Name, own), false)
}

func (r *run) mark(names []string, force bool) {
	for _, name := range names {
		if name != r.cfg.Name {
			r.dirty[name] = r.dirty[name] || force
		}
	}
}

// work takes what arrived and brings the kernel to it.
func (r *run) work() error {
	nodes, synced := r.inbox.take()
	var errs []error
	for name, v := range nodes {
		if name != r.cfg.Name {
			r.learn(name, v)
		} else if v != nil { // an own Node that is gone changes nothing for running pods
			r.mu.Lock()
			r.own = v
			r.mu.Unlock()
			errs = append(errs, r.look(everything))
		}
	}
	if synced {
		errs = append(errs, r.write())
	}
	return errors.Join(errs...)
}

// learn takes the new value of another node; nil: it is gone.
func (r *run) learn(name string, v *cluster.Node) {
	r.mark([]string{name}, false)
	if old := r.nodes[name]; old != nil {
		for _, a := range old.InternalIPs {
			delete(r.byAddr[a], name)
			r.mark(slices.Collect(maps.Keys(r.byAddr[a])), true)
			if len(r.byAddr[a]) == 0 {
				delete(r.byAddr, a)
			}
		}
	}
	var list []claim
	if v == nil {
		delete(r.nodes, name)
		r.condition(name, nil)
	} else {
		r.nodes[name] = v
		for _, a := range v.InternalIPs {
			if r.byAddr[a] == nil {
				r.byAddr[a] = map[string]bool{}
			}
			r.byAddr[a][name] = true
			r.mark(slices.Collect(maps.Keys(r.byAddr[a])), len(r.byAddr[a]) > 1)
		}
		list, _ = compileClaims(r.Self(), v) // put reports the error
	}
	r.mark(r.claims.set(name, list), false)
}

// write brings the kernel to what is known of every dirty node: what is new or changed, then what is gone.
func (r *run) write() error {
	if !r.adopted {
		if err := r.adopt(); err != nil {
			return err
		}
	}
	var errs []error
	var gone []string
	for _, name := range r.inOrder() {
		if r.nodes[name] == nil {
			gone = append(gone, name)
			continue
		}
		errs = append(errs, r.put(name))
	}
	for _, name := range gone {
		errs = append(errs, r.remove(name))
	}
	errs = append(errs, r.prune())
	r.left = slices.DeleteFunc(r.left, func(remove func() error) bool {
		err := remove()
		errs = append(errs, err)
		return err == nil
	})
	r.tell()
	err := errors.Join(errs...)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.peers = len(r.written)
	if err == nil {
		select {
		case <-r.synced:
		default:
			close(r.synced)
		}
	}
	return err
}

// inOrder returns the dirty nodes by age. The youngest is put last: the table leads an address to the last one that named it, and when a
// machine is replaced under the same address its old Node object lingers.
func (r *run) inOrder() []string {
	names := slices.Sorted(maps.Keys(r.dirty))
	slices.SortStableFunc(names, func(a, b string) int {
		x, y := r.nodes[a], r.nodes[b]
		if x == nil || y == nil {
			return first(x == nil, y == nil)
		}
		return x.Created.Compare(y.Created)
	})
	return names
}

// put writes one node's entry and routes. A node, or a CIDR of it, that cannot be served as it is now has a condition, and is not tried
// again before something changes.
func (r *run) put(name string) error {
	v, s := r.nodes[name], r.Self()
	_, refused := compileClaims(s, v)
	var cidrs []netip.Prefix
	for _, p := range v.PodCIDRs {
		if r.claims.held[p] == name {
			cidrs = append(cidrs, p)
		} else if refused == nil {
			q, holder := r.claims.holder(p)
			refused = nodeError(v, "spec.podCIDRs", "%s: overlaps %s of node %s, which keeps it", p, q, holder)
		}
	}
	peer, routes, ok, err := compilePeer(s, v, cidrs)
	if !ok {
		r.condition(name, errors.Join(refused, err))
		return r.remove(name)
	}
	peer.Sources = slices.DeleteFunc(peer.Sources, func(a netip.Addr) bool { return r.younger(a, v) })
	err = r.putPeer(name, peer, routes)
	for _, route := range routes {
		if r.routes[route.Dst] == route || err != nil {
			continue
		}
		if err = r.nl.SetRoute(route); err == nil {
			r.log.Debug("wrote route", "node", name, "old", r.routes[route.Dst], "new", route)
			r.routes[route.Dst] = route
		}
	}
	if err != nil {
		r.condition(name, errors.Join(refused, nodeError(v, "spec.podCIDRs", "%w", err)))
		return err
	}
	r.condition(name, refused)
	delete(r.dirty, name)
	return nil
}

// putPeer writes the entry of a node and remembers what goes with it.
func (r *run) putPeer(name string, peer bpf.Peer, routes []link.Route) error {
	id, err := r.ids.Acquire(bpf.IDPeer, name)
	if err != nil {
		return err
	}
	peer.ID, peer.Incarnation = id.ID, id.Incarnation
	had, ok := r.written[name]
	if !ok || !samePeer(had.peer, peer) || r.dirty[name] {
		if err := r.table.Put(peer); err != nil {
			return err
		}
		r.log.Debug("wrote peer", "node", name, "old", had.peer, "new", peer)
	}
	for _, route := range had.routes {
		r.stale[route.Dst] = true
	}
	r.written[name] = written{peer: peer, routes: routes}
	return nil
}

// younger says that a Node object younger than v, in the order of inOrder, has the address too.
func (r *run) younger(a netip.Addr, v *cluster.Node) bool {
	for name := range r.byAddr[a] {
		if cmp.Or(r.nodes[name].Created.Compare(v.Created), cmp.Compare(name, v.Name)) > 0 {
			return true
		}
	}
	return false
}

// remove takes a node's entry away; its routes go with prune.
func (r *run) remove(name string) error {
	if w, ok := r.written[name]; ok {
		if err := r.table.Delete(w.peer.ID); err != nil {
			return err
		}
		r.log.Debug("deleted peer", "node", name, "old", w.peer)
		for _, route := range w.routes {
			r.stale[route.Dst] = true
		}
		delete(r.written, name)
	}
	if r.nodes[name] == nil {
		if err := r.ids.Release(bpf.IDPeer, name); err != nil {
			return err
		}
	}
	delete(r.dirty, name)
	return nil
}

// prune deletes routes to CIDRs that no written node has any more.
func (r *run) prune() error {
	var errs []error
	for dst := range r.stale {
		route, there := r.routes[dst]
		if there && !slices.Contains(r.written[r.claims.held[dst]].routes, route) {
			if err := r.nl.DeleteRoute(route); err != nil {
				errs = append(errs, err)
				continue
			}
			r.log.Debug("deleted route", "old", route)
			delete(r.routes, dst)
		}
		delete(r.stale, dst)
	}
	return errors.Join(errs...)
}

// tell reports the CIDRs that came into force or went.
func (r *run) tell() {
	c := CIDRs{Synced: true}
	for p := range r.claims.moved {
		in := r.claims.held[p] != ""
		switch {
		case in && !r.told[p]:
			c.Add = append(c.Add, p)
		case !in && r.told[p]:
			c.Remove = append(c.Remove, p)
		}
	}
	clear(r.claims.moved)
	if r.told != nil && len(c.Add)+len(c.Remove) == 0 {
		return
	}
	if r.told == nil {
		r.told = map[netip.Prefix]bool{}
	}
	for _, p := range c.Add {
		r.told[p] = true
	}
	for _, p := range c.Remove {
		delete(r.told, p)
	}
	r.cfg.CIDRs(c)
}

func samePeer(a, b bpf.Peer) bool {
	return a.ID == b.ID && a.Incarnation == b.Incarnation && a.Flags == b.Flags && a.Node == b.Node && a.MTU == b.MTU &&
		sameSet(a.Sources, b.Sources, netip.Addr.Compare) && sameSet(a.CIDRs, b.CIDRs, netip.Prefix.Compare)
}

func sameSet[T comparable](a, b []T, compare func(T, T) int) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, compare)
	slices.SortFunc(b, compare)
	return slices.Equal(a, b)
}

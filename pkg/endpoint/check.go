// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/fairlead/fairlead/pkg/cni"
	"github.com/fairlead/fairlead/pkg/ipam"
	"github.com/fairlead/fairlead/pkg/link"
)

// Check compares an endpoint with what ADD made: record, addresses, both sides of the link, neighbours and routes, filters, and the
// programs' tables. What others added is no error.
func (t *Table) Check(ctx context.Context, req *cni.Request, netns *os.File) error {
	began := t.enter(cni.Check, attachment(req))
	err := t.checkRequest(ctx, req, netns)
	t.leave(cni.Check, attachment(req), began, err)
	return err
}

func (t *Table) checkRequest(ctx context.Context, req *cni.Request, netns *os.File) error {
	a := attachment(req)
	release, err := t.lock(ctx, a.LinkName())
	if err != nil {
		return err
	}
	defer release()
	e, ok := t.get(a.LinkName())
	if !ok {
		return cni.Errorf(cni.CodeUnknown, "container %s has no interface %s", a.ContainerID, a.Ifname)
	}
	t.learn(e, req, netns)
	wanted, err := hostPorts(req.HostPorts, e.Addrs)
	if err != nil {
		return err
	}
	for _, p := range wanted {
		if !slices.Contains(e.HostPorts, p) {
			return cni.Errorf(cni.CodeBroken, "check %s: host port %s to %d is not the container's", a, hostPortKey(p), p.To)
		}
	}
	if err := t.check(e, netns); err != nil {
		return cni.Errorf(cni.CodeBroken, "check %s: %v", a, err)
	}
	return nil
}

// learn completes an endpoint that was rebuilt from its link: that the link's name follows from the request proves whose it is.
func (t *Table) learn(e *Endpoint, req *cni.Request, netns *os.File) {
	inode, err := inodeOf(netns)
	if err != nil || e.ContainerID != "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e.ContainerID, e.Ifname, e.Pod, e.Netns, e.Inode = req.ContainerID, req.Ifname, req.Pod, req.Netns, inode
	if err := t.journal.append(entry{Op: opCommit, Endpoint: e}); err != nil {
		t.journal.dirty = true
		t.note("write journal", err)
	}
}

func (t *Table) check(e *Endpoint, netns *os.File) error {
	cookie, err := link.NamespaceCookie(int(netns.Fd()))
	if err != nil {
		return err
	}
	if cookie != e.Cookie {
		return fmt.Errorf("network namespace is not the one that ADD was given")
	}
	if a := t.unowned(e); a.IsValid() {
		return fmt.Errorf("address %s is not marked as in use", a)
	}
	want, err := e.entry()
	if err != nil {
		return err
	}
	if got, ok := t.cfg.Dataplane.Get(e.ID); !ok || got != want {
		return fmt.Errorf("endpoint %d is missing or different in the programs' table", e.ID)
	}
	if err := t.checkHostPorts(e); err != nil {
		return err
	}
	if err := t.veths.VerifyFilters(e.Ifindex, t.cfg.Filters); err != nil {
		return err
	}
	spec, err := t.spec(e)
	if err != nil {
		return err
	}
	return t.veths.Check(int(netns.Fd()), spec)
}

// unowned returns an address of the endpoint that its pool regards as free, the zero Addr when there is none. An address outside of every
// pool is from pod CIDRs that the node had before.
func (t *Table) unowned(e *Endpoint) netip.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range e.Addrs {
		if p := t.poolOf(a); p != nil && !p.InUse(a) {
			return a
		}
	}
	return netip.Addr{}
}

func (t *Table) poolOf(a netip.Addr) *ipam.Pool {
	for _, p := range t.pools {
		if p.Prefix().Contains(a) {
			return p
		}
	}
	return nil
}

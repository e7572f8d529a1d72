// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cni"
	"github.com/fairlead/fairlead/pkg/ipam"
	"github.com/fairlead/fairlead/pkg/link"
)

// lockWait is how long a verb waits for another one that works on the same endpoint.
const lockWait = 10 * time.Second

// annotationSocketLB turns the socket path off for a pod.
const annotationSocketLB = "fairlead.io/socket-lb"

// Add connects a pod: addresses, host ports and journal, link, table of the programs, filters, then the link goes up, and at last the
// host ports lead to it. A failure takes everything back. Nothing in it waits for a grace period of the kernel. The same ADD again, for
// an endpoint that is whole, has the same result.
func (t *Table) Add(ctx context.Context, req *cni.Request, netns *os.File) (*cni.Result, error) {
	began := t.enter(cni.Add, attachment(req))
	r, err := t.add(ctx, req, netns)
	t.leave(cni.Add, attachment(req), began, err)
	if err == nil {
		r.HostPorts = len(req.HostPorts)
	}
	return r, err
}

func (t *Table) add(ctx context.Context, req *cni.Request, netns *os.File) (*cni.Result, error) {
	if err := t.ready(); err != nil {
		return nil, cni.Errorf(cni.CodeAgain, "agent is not ready: %v", err)
	}
	e, err := t.describe(req)
	if err != nil {
		return nil, err
	}
	release, err := t.lock(ctx, e.Link)
	if err != nil {
		return nil, err
	}
	defer release()
	if old, ok := t.get(e.Link); ok {
		return t.again(old, req, netns)
	}
	if err := t.finish(e.Link); err != nil { // its link from before a DEL
		return nil, cni.Errorf(cni.CodeAgain, "%v", err)
	}
	if e.Inode, err = inodeOf(netns); err != nil {
		return nil, cni.Errorf(cni.CodeEnvironment, "%v", err)
	}
	id, err := t.cfg.IDs.Acquire(bpf.IDEndpoint, e.Link)
	if err != nil {
		return nil, cni.Errorf(cni.CodeAgain, "%v", err)
	}
	e.ID, e.Incarnation = id.ID, id.Incarnation
	if err := t.reserve(e, req.IPs); err != nil {
		return nil, errors.Join(err, t.cfg.IDs.Release(bpf.IDEndpoint, e.Link))
	}
	if err := t.connect(e, netns); err != nil {
		return nil, errors.Join(err, t.rollback(e))
	}
	if err := t.expose(e); err != nil {
		return nil, errors.Join(err, t.rollback(e))
	}
	if err := t.commit(e); err != nil {
		return nil, errors.Join(err, t.rollback(e))
	}
	t.log.Info("endpoint added", "endpoint", e)
	return t.result(e), nil
}

// describe makes an endpoint from a request, everything but its numbers and addresses.
func (t *Table) describe(req *cni.Request) (*Endpoint, error) {
	if req.ContainerID == "" || req.Ifname == "" {
		return nil, cni.Errorf(cni.CodeEnvironment, "container ID %q and interface name %q must be given", req.ContainerID, req.Ifname)
	}
	mac := podMAC(req.ContainerID, req.Ifname)
	if req.MAC != "" {
		m, err := parseMAC(req.MAC)
		if err != nil {
			return nil, cni.Errorf(cni.CodeConfig, "capability mac: %v", err)
		}
		if m == t.cfg.GatewayMAC {
			return nil, cni.Errorf(cni.CodeConfig, "capability mac: %s is the gateway's MAC", req.MAC)
		}
		mac = m
	}
	off := false
	switch v := req.Annotations[annotationSocketLB]; v {
	case "", "on":
	case "off":
		off = true
	default:
		return nil, cni.Errorf(cni.CodeConfig, "annotation %s: %q is neither \"on\" nor \"off\"", annotationSocketLB, v)
	}
	var gets []netip.Addr // one of each pool
	for _, p := range t.cfg.Pools {
		gets = append(gets, p.Addr())
	}
	ports, err := hostPorts(req.HostPorts, gets)
	if err != nil {
		return nil, err
	}
	return &Endpoint{
		Link:        attachment(req).LinkName(),
		ContainerID: req.ContainerID,
		Ifname:      req.Ifname,
		Pod:         req.Pod,
		MAC:         net.HardwareAddr(mac[:]).String(),
		MTU:         t.cfg.MTU,
		HostPorts:   ports,
		SocketLBOff: off,
		Netns:       req.Netns,
		Created:     sinceBoot(),
	}, nil
}

// again answers an ADD for an endpoint that exists: its result when it is whole, in the same namespace and with the host ports that are
// wanted.
func (t *Table) again(old *Endpoint, req *cni.Request, netns *os.File) (*cni.Result, error) {
	t.learn(old, req, netns)
	cookie, err := link.NamespaceCookie(int(netns.Fd()))
	if err != nil {
		return nil, cni.Errorf(cni.CodeEnvironment, "%v", err)
	}
	if cookie != old.Cookie {
		return nil, cni.Errorf(cni.CodeTaken, "container %s has %s already, in another network namespace: DEL it first", req.ContainerID, req.Ifname)
	}
	wanted, err := hostPorts(req.HostPorts, old.Addrs)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(wanted, old.HostPorts) {
		return nil, cni.Errorf(cni.CodeTaken, "container %s has %s already, with other host ports: DEL it first", req.ContainerID, req.Ifname)
	}
	if err := t.check(old, netns); err != nil {
		return nil, cni.Errorf(cni.CodeTaken, "container %s has %s already, and it is broken: DEL it first: %v", req.ContainerID, req.Ifname, err)
	}
	return t.result(old), nil
}

// reserve gives the endpoint its host ports and its addresses, one of each pool, and writes that down.
func (t *Table) reserve(e *Endpoint, wanted []netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := sinceBoot()
	if other, p := t.claimant(e.HostPorts, ""); other != nil {
		return cni.Errorf(cni.CodeTaken, "hostPort %d, protocol %s: %s has it (container %s, on %s)", p.Port, p.Protocol, other.podName(), other.ContainerID, p.Addr)
	}
	err := t.pick(e, wanted, now)
	if err == nil {
		if err = t.journal.append(entry{Op: opBegin, Endpoint: e}); err != nil {
			err = cni.Errorf(cni.CodeIO, "%s", cni.Harmless(err.Error()))
		}
	}
	if err != nil {
		t.free(e.Addrs, now)
		return err
	}
	t.endpoints[e.Link] = e
	return nil
}

func (t *Table) pick(e *Endpoint, wanted []netip.Addr, now time.Duration) error {
	for i, w := range wanted {
		if !slices.ContainsFunc(t.pools, func(p *ipam.Pool) bool { return p.Prefix().Contains(w) }) {
			return cni.Errorf(cni.CodeConfig, "capability ips: %s is in no pod CIDR of this node (%s)", w, join(t.cfg.Pools))
		}
		if slices.ContainsFunc(wanted[:i], func(o netip.Addr) bool { return o.Is4() == w.Is4() }) {
			return cni.Errorf(cni.CodeConfig, "capability ips: %s is the second address of its family", w)
		}
	}
	for _, p := range t.pools {
		i := slices.IndexFunc(wanted, p.Prefix().Contains)
		var a netip.Addr
		var err error
		if i >= 0 {
			a, err = wanted[i], p.Take(wanted[i])
		} else {
			a, err = p.Allocate(now)
		}
		switch {
		case errors.Is(err, ipam.ErrFull):
			return cni.Errorf(cni.CodeAgain, "no address for the pod: %v", err)
		case errors.Is(err, ipam.ErrTaken):
			return cni.Errorf(cni.CodeTaken, "capability ips: %v", err)
		case err != nil:
			return cni.Errorf(cni.CodeConfig, "capability ips: %v", err)
		}
		e.Addrs = append(e.Addrs, a)
	}
	return nil
}

// free gives addresses back. The caller has the lock.
func (t *Table) free(addrs []netip.Addr, now time.Duration) {
	for _, a := range addrs {
		for _, p := range t.pools {
			p.Free(a, now)
		}
	}
}

// connect makes what the kernel has of the endpoint. All link changes wait for one lock in the kernel: a few threads that want it are about
// as fast as many, and the others queue up here in order, which shortens the longest waits.
func (t *Table) connect(e *Endpoint, netns *os.File) error {
	spec, err := t.spec(e)
	if err != nil {
		return err
	}
	t.kernel <- struct{}{}
	defer func() { <-t.kernel }()
	pair, err := t.veths.Create(int(netns.Fd()), spec)
	if errors.Is(err, link.ErrPodLinkExists) && t.evict(netns, e.Ifname) {
		pair, err = t.veths.Create(int(netns.Fd()), spec)
	}
	switch {
	case errors.Is(err, link.ErrPodLinkExists):
		return cni.Errorf(cni.CodeTaken, "%v", err)
	case errors.Is(err, link.ErrHostNamespace):
		return cni.Errorf(cni.CodeEnvironment, "CNI_NETNS %s: %v", e.Netns, err)
	case err != nil:
		return err
	}
	t.mu.Lock()
	e.Ifindex, e.Cookie = pair.HostIndex, pair.Cookie
	t.mu.Unlock()
	b, err := e.entry()
	if err == nil {
		err = t.cfg.Dataplane.Put(b)
	}
	if err == nil {
		err = t.veths.Open(pair, spec, t.cfg.Filters)
	}
	return errors.Join(err, pair.Close())
}

// evict removes links of endpoints that are gone from a namespace whose interface name is wanted again.
func (t *Table) evict(netns *os.File, ifname string) bool {
	cookie, err := link.NamespaceCookie(int(netns.Fd()))
	if err != nil {
		return false
	}
	var any bool
	for _, name := range t.doomed.inside(cookie, ifname) {
		// Not under the lock of that name: whoever else removes it at this moment does the same.
		err := t.veths.Delete(name)
		any = any || err == nil
	}
	return any
}

// spec is the endpoint's link.
func (t *Table) spec(e *Endpoint) (link.Veth, error) {
	mac, err := parseMAC(e.MAC)
	if err != nil {
		return link.Veth{}, err
	}
	alias := e.Pod.Namespace + "/" + e.Pod.Name
	if alias == "/" {
		alias = e.ContainerID
	}
	return link.Veth{
		Host:    e.Link,
		Pod:     e.Ifname,
		Alias:   alias[:min(len(alias), 255)],
		HostMAC: t.cfg.GatewayMAC,
		PodMAC:  mac,
		MTU:     e.MTU,
		Addrs:   e.Addrs,
		Sources: t.cfg.Sources,
	}, nil
}

// commit writes down that the endpoint is complete.
func (t *Table) commit(e *Endpoint) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.Complete = true
	if err := t.journal.append(entry{Op: opCommit, Endpoint: e}); err != nil {
		e.Complete = false
		return cni.Errorf(cni.CodeIO, "%s", cni.Harmless(err.Error()))
	}
	t.notify()
	return nil
}

// rollback takes back what an ADD did before it failed, as far as the kernel lets it; what it does not is retried behind it.
func (t *Table) rollback(e *Endpoint) error {
	err := errors.Join(t.conceal(e), t.cfg.Dataplane.Delete(e.ID))
	if delErr := t.veths.Delete(e.Link); delErr != nil {
		err = errors.Join(err, delErr)
		t.doomed.add(e.Link, doom{due: time.Now().Add(linger), cookie: e.Cookie, ifname: e.Ifname})
	} else {
		err = errors.Join(err, t.cfg.IDs.Release(bpf.IDEndpoint, e.Link))
	}
	t.forget(e)
	return err
}

// result is what ADD answers for an endpoint.
func (t *Table) result(e *Endpoint) *cni.Result {
	r := &cni.Result{
		HostLink: e.Link,
		HostMAC:  net.HardwareAddr(t.cfg.GatewayMAC[:]).String(),
		PodMAC:   e.MAC,
		MTU:      e.MTU,
	}
	for _, a := range e.Addrs {
		r.Addrs = append(r.Addrs, cni.Assignment{Addr: a, Gateway: link.Gateway(a)})
	}
	return r
}

// parseMAC reads a unicast Ethernet address.
func parseMAC(s string) (mac [6]byte, err error) {
	m, err := net.ParseMAC(s)
	if err != nil {
		return mac, fmt.Errorf("%q is no MAC address", s)
	}
	if len(m) != 6 || m[0]&1 != 0 || [6]byte(m) == mac {
		return mac, fmt.Errorf("%q is no unicast Ethernet address", s)
	}
	return [6]byte(m), nil
}

func attachment(req *cni.Request) cni.Attachment {
	return cni.Attachment{ContainerID: req.ContainerID, Ifname: req.Ifname}
}

func join(all []netip.Prefix) string {
	var s []string
	for _, p := range all {
		s = append(s, p.String())
	}
	return strings.Join(s, ", ")
}

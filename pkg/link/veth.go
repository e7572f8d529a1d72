// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

const genModeNone = 1 // IN6_ADDR_GEN_MODE_NONE, linux/if_link.h

// The address of a pod's gateway, one per family: nobody has it, a permanent neighbour entry stands for it.
var (
	Gateway4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	Gateway6 = netip.MustParseAddr("fe80::1")
)

// Veth describes the pair of links that connects a pod.
type Veth struct {
	Host    string       // name of the host side, 1 to 15 bytes
	Pod     string       // name of the pod side, 1 to 15 bytes
	Alias   string       // of the host side, for people; at most 255 bytes; may be empty
	HostMAC [6]byte      // the gateway's MAC as the pod sees it
	PodMAC  [6]byte      //
	MTU     int          // bytes, both sides
	Addrs   []netip.Addr // the pod's addresses
	Sources []netip.Addr // source address of the host's own traffic to the pod, by family; may lack any
}

// Pair is a pair of links that exists.
type Pair struct {
	HostIndex, PodIndex int
	Cookie              uint64 // of the pod's network namespace
	pod                 *wire  // in the pod's namespace
}

// Close releases the socket in the pod's namespace; the links stay.
func (p *Pair) Close() error { return p.pod.close() }

// Errors that callers tell apart.
var (
	ErrPodLinkExists = errors.New("interface exists already in the network namespace")
	ErrHostNamespace = errors.New("network namespace is the node's own")
	ErrNoLink        = errors.New("link is absent")
)

// Veths makes, finds, checks and removes the pods' links. Its host side is the namespace of the thread that opened it. All methods may
// be called by several goroutines at once.
type Veths struct {
	ns     *os.File
	cookie uint64
	idle   chan *wire
}

// OpenVeths returns a Veths for the namespace of the calling thread.
func OpenVeths() (*Veths, error) {
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	v := &Veths{ns: ns, idle: make(chan *wire, 16)}
	w, err := openWire()
	if err == nil {
		v.cookie, err = w.cookie()
		v.idle <- w
	}
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return v, nil
}

// Close releases the sockets that are not in use.
func (v *Veths) Close() error {
	err := v.ns.Close()
	for {
		select {
		case w := <-v.idle:
			err = errors.Join(err, w.close())
		default:
			return err
		}
	}
}

// Cookie returns the cookie of the host side's namespace.
func (v *Veths) Cookie() uint64 { return v.cookie }

// OpenNamespace opens the host side's namespace. The caller closes it.
func (v *Veths) OpenNamespace() (*os.File, error) {
	fd, err := unix.FcntlInt(v.ns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	return os.NewFile(uintptr(fd), v.ns.Name()), nil
}

// host runs f with a socket in the host side's namespace, an idle one when there is one.
func (v *Veths) host(f func(w *wire) error) error {
	var w *wire
	select {
	case w = <-v.idle:
	default:
		err := InNamespace(int(v.ns.Fd()), func() (err error) {
			w, err = openWire()
			return err
		})
		if err != nil {
			return err
		}
	}
	err := f(w)
	select {
	case v.idle <- w:
	default:
		err = errors.Join(err, w.close())
	}
	return err
}

// NamespaceCookie returns the cookie of the network namespace behind fd.
func NamespaceCookie(fd int) (cookie uint64, err error) {
	err = InNamespace(fd, func() error {
		s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		defer unix.Close(s)
		if cookie, err = unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil {
			return fmt.Errorf("get namespace cookie: %w", err)
		}
		return nil
	})
	return cookie, err
}

// Create makes the pair, both sides down, in the namespace behind fd: one request places each side where it belongs, with its MAC, so
// nothing is moved or renamed (both wait for a grace period) and udev has no MAC to change. A host side of the same name that another
// attempt left is removed first. On error nothing is left. The caller closes the Pair.
func (v *Veths) Create(fd int, spec Veth) (*Pair, error) {
	p := &Pair{}
	err := InNamespace(fd, func() (err error) {
		if p.pod, err = openWire(); err != nil {
			return err
		}
		if p.Cookie, err = p.pod.cookie(); err != nil {
			return err
		}
		if p.Cookie == v.cookie {
			return ErrHostNamespace
		}
		if err := v.create(p, spec); err != nil {
			return err
		}
		if err := podSysctls(spec); err != nil {
			return errors.Join(err, p.remove())
		}
		return nil
	})
	if err != nil && p.pod != nil {
		err = errors.Join(err, p.pod.close())
	}
	if err != nil {
		return nil, fmt.Errorf("create veth %s: %w", spec.Host, err)
	}
	return p, nil
}

func (v *Veths) create(p *Pair, spec Veth) error {
	for try := 0; ; try++ {
		var b batch
		b.add("create link", unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0, 0))
		b.attrName(unix.IFLA_IFNAME, spec.Pod)
		b.attr(unix.IFLA_ADDRESS, spec.PodMAC[:])
		b.attr32(unix.IFLA_MTU, uint32(spec.MTU))
		info := b.open(unix.IFLA_LINKINFO)
		b.attr(unix.IFLA_INFO_KIND, []byte("veth"))
		data := b.open(unix.IFLA_INFO_DATA)
		peer := b.open(1) // VETH_INFO_PEER
		b.buf = append(b.buf, ifinfo(0, 0, 0)...)
		b.attrName(unix.IFLA_IFNAME, spec.Host)
		b.attr(unix.IFLA_ADDRESS, spec.HostMAC[:])
		b.attr32(unix.IFLA_MTU, uint32(spec.MTU))
		b.attr32(unix.IFLA_NET_NS_FD, uint32(v.ns.Fd()))
		b.done(peer)
		b.done(data)
		b.done(info)
		b.add("get link", unix.RTM_GETLINK, 0, ifinfo(0, 0, 0))
		b.attrName(unix.IFLA_IFNAME, spec.Pod)
		b.attr32(unix.IFLA_EXT_MASK, skipStats)
		all, err := p.pod.run(&b)
		if err != nil {
			return err
		}
		switch err := all[0].err; {
		case errors.Is(err, unix.EEXIST) && all[1].err == nil:
			return fmt.Errorf("%q: %w", spec.Pod, ErrPodLinkExists)
		case errors.Is(err, unix.EEXIST) && try == 0:
			if err := v.Delete(spec.Host); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		case all[1].err != nil:
			return errors.Join(fmt.Errorf("get link %s: %w", spec.Pod, all[1].err), v.Delete(spec.Host))
		}
		l := parseLink(all[1].data)
		p.PodIndex, p.HostIndex = l.Index, l.Peer
		return nil
	}
}

// remove takes the pair away from the pod's side.
func (p *Pair) remove() error {
	var b batch
	b.add("delete link", unix.RTM_DELLINK, 0, ifinfo(p.PodIndex, 0, 0))
	if err := p.pod.do(&b); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// Open brings the pair up, host side first: filters, link, neighbours and routes; then the pod's side. A failure leaves what was done;
// the caller removes the pair.
func (v *Veths) Open(p *Pair, spec Veth, f Filters) error {
	if err := v.AttachFilters(p.HostIndex, f); err != nil {
		return err
	}
	if err := v.host(func(w *wire) error { return w.do(hostSide(p.HostIndex, spec)) }); err != nil {
		return fmt.Errorf("open host side of %s: %w", spec.Host, err)
	}
	if err := InNamespace(int(v.ns.Fd()), func() error { return hostSysctls(spec.Host) }); err != nil {
		return err
	}
	if err := p.pod.do(podSide(p.PodIndex, spec)); err != nil {
		return fmt.Errorf("open pod side of %s: %w", spec.Host, err)
	}
	return nil
}

// hostSide: up, no address of its own, the pod as permanent neighbour behind a host route.
func hostSide(index int, spec Veth) *batch {
	b := &batch{}
	noAutoAddress(b, index)
	b.add("set link up", unix.RTM_SETLINK, 0, ifinfo(index, unix.IFF_UP, unix.IFF_UP))
	if spec.Alias != "" {
		b.attr(unix.IFLA_IFALIAS, []byte(spec.Alias))
	}
	for _, a := range spec.Addrs {
		neighbour(b, index, a, spec.PodMAC)
		route(b, index, netip.PrefixFrom(a, a.BitLen()), netip.Addr{}, source(spec.Sources, a))
	}
	return b
}

// podSide: loopback up, the addresses without duplicate detection, the gateway as permanent neighbour behind the default route.
func podSide(index int, spec Veth) *batch {
	b := &batch{}
	b.add("set loopback up", unix.RTM_SETLINK, 0, ifinfo(1, unix.IFF_UP, unix.IFF_UP)) // lo is always index 1
	noAutoAddress(b, index)
	b.add("set link up", unix.RTM_SETLINK, 0, ifinfo(index, unix.IFF_UP, unix.IFF_UP))
	var v6 bool
	for _, a := range spec.Addrs {
		v6 = v6 || a.Is6()
		address(b, index, netip.PrefixFrom(a, a.BitLen()), unix.RT_SCOPE_UNIVERSE)
	}
	if v6 {
		address(b, index, netip.PrefixFrom(LinkLocal(spec.PodMAC), 64), unix.RT_SCOPE_LINK)
	}
	for _, a := range spec.Addrs {
		neighbour(b, index, Gateway(a), spec.HostMAC)
		route(b, index, netip.PrefixFrom(zero(a), 0), Gateway(a), netip.Addr{})
	}
	return b
}

// Gateway returns the gateway of a pod address.
func Gateway(a netip.Addr) netip.Addr {
	if a.Is4() {
		return Gateway4
	}
	return Gateway6
}

// LinkLocal returns the link-local address that follows from a MAC (RFC 4291, appendix A).
func LinkLocal(mac [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

func zero(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func source(all []netip.Addr, a netip.Addr) netip.Addr {
	for _, s := range all {
		if s.Is4() == a.Is4() {
			return s
		}
	}
	return netip.Addr{}
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func ifinfo(index int, flags, change uint32) []byte {
	h := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(h[4:], uint32(index))
	binary.NativeEndian.PutUint32(h[8:], flags)
	binary.NativeEndian.PutUint32(h[12:], change)
	return h
}

// noAutoAddress keeps the kernel from making a link-local address: it would start duplicate detection. A kernel without IPv6 says that
// it does not know the family, which is as good.
func noAutoAddress(b *batch, index int) {
	if !hasIPv6() {
		return
	}
	b.add("turn off automatic addresses", unix.RTM_SETLINK, 0, ifinfo(index, 0, 0))
	spec := b.open(unix.IFLA_AF_SPEC)
	v6 := b.open(unix.AF_INET6)
	b.attr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{genModeNone})
	b.done(v6)
	b.done(spec)
}

func address(b *batch, index int, p netip.Prefix, scope uint8) {
	h := make([]byte, unix.SizeofIfAddrmsg)
	h[0], h[1], h[3] = family(p.Addr()), uint8(p.Bits()), scope
	binary.NativeEndian.PutUint32(h[4:], uint32(index))
	b.add("add address "+p.String(), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, h)
	b.attrAddr(unix.IFA_LOCAL, p.Addr())
	b.attrAddr(unix.IFA_ADDRESS, p.Addr())
	if p.Addr().Is6() {
		b.attr32(unix.IFA_FLAGS, unix.IFA_F_NODAD|unix.IFA_F_NOPREFIXROUTE)
	}
}

func neighbour(b *batch, index int, a netip.Addr, mac [6]byte) {
	h := make([]byte, unix.SizeofNdMsg)
	h[0] = family(a)
	binary.NativeEndian.PutUint32(h[4:], uint32(index))
	binary.NativeEndian.PutUint16(h[8:], unix.NUD_PERMANENT)
	b.add("add neighbour "+a.String(), unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, h)
	b.attrAddr(unix.NDA_DST, a)
	b.attr(unix.NDA_LLADDR, mac[:])
}

func route(b *batch, index int, dst netip.Prefix, via, src netip.Addr) {
	h := make([]byte, unix.SizeofRtMsg)
	h[0], h[1] = family(dst.Addr()), uint8(dst.Bits())
	h[4], h[5], h[6], h[7] = unix.RT_TABLE_MAIN, Protocol, unix.RT_SCOPE_LINK, unix.RTN_UNICAST
	if via.IsValid() {
		h[6] = unix.RT_SCOPE_UNIVERSE
		binary.NativeEndian.PutUint32(h[8:], unix.RTNH_F_ONLINK)
	}
	b.add("add route "+dst.String(), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, h)
	if dst.Bits() > 0 {
		b.attrAddr(unix.RTA_DST, dst.Addr())
	}
	b.attr32(unix.RTA_OIF, uint32(index))
	if via.IsValid() {
		b.attrAddr(unix.RTA_GATEWAY, via)
	}
	if src.IsValid() {
		b.attrAddr(unix.RTA_PREFSRC, src)
	}
}

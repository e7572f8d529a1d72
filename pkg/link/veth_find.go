// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const skipStats = 8 // RTEXT_FILTER_SKIP_STATS

// Found is a link as the kernel describes it.
type Found struct {
	Name  string
	Alias string
	Kind  string // "veth" for all of ours
	Index int
	Peer  int // index of the other side, in its own namespace; 0: none
	MTU   int
	MAC   [6]byte
	Up    bool
}

func parseLink(data []byte) Found {
	if len(data) < unix.SizeofIfInfomsg {
		return Found{}
	}
	a := attrs(data[unix.SizeofIfInfomsg:])
	f := Found{
		Name:  text(a[unix.IFLA_IFNAME]),
		Alias: text(a[unix.IFLA_IFALIAS]),
		Kind:  text(attrs(a[unix.IFLA_LINKINFO])[unix.IFLA_INFO_KIND]),
		Index: int(binary.NativeEndian.Uint32(data[4:])),
		Peer:  int(number(a[unix.IFLA_LINK])),
		MTU:   int(number(a[unix.IFLA_MTU])),
		Up:    binary.NativeEndian.Uint32(data[8:])&unix.IFF_UP != 0,
	}
	copy(f.MAC[:], a[unix.IFLA_ADDRESS])
	return f
}

func text(p []byte) string { return string(bytes.TrimRight(p, "\x00")) }

func number(p []byte) uint32 {
	if len(p) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(p)
}

func addr(p []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(p)
	return a
}

// find asks for one link by name.
func find(w *wire, name string) (Found, error) {
	var b batch
	b.add("get link "+name, unix.RTM_GETLINK, 0, ifinfo(0, 0, 0))
	b.attrName(unix.IFLA_IFNAME, name)
	b.attr32(unix.IFLA_EXT_MASK, skipStats)
	all, err := w.run(&b)
	if err == nil {
		err = all[0].err
	}
	if errors.Is(err, unix.ENODEV) {
		err = ErrNoLink
	}
	if err != nil {
		return Found{}, fmt.Errorf("get link %s: %w", name, err)
	}
	return parseLink(all[0].data), nil
}

// Find returns the host side of that name; ErrNoLink when it is absent.
func (v *Veths) Find(name string) (f Found, err error) {
	err = v.host(func(w *wire) error {
		f, err = find(w, name)
		return err
	})
	return f, err
}

// List returns every veth of the host side's namespace whose name begins with the prefix.
func (v *Veths) List(prefix string) (all []Found, err error) {
	var b batch
	b.add("list links", unix.RTM_GETLINK, unix.NLM_F_DUMP, ifinfo(0, 0, 0))
	b.attr32(unix.IFLA_EXT_MASK, skipStats)
	info := b.open(unix.IFLA_LINKINFO)
	b.attr(unix.IFLA_INFO_KIND, []byte("veth"))
	b.done(info)
	err = v.host(func(w *wire) error {
		return w.dump(&b, func() { all = nil }, func(data []byte) {
			if f := parseLink(data); f.Kind == "veth" && strings.HasPrefix(f.Name, prefix) {
				all = append(all, f)
			}
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return all, nil
}

// Delete removes the pair whose host side has that name. An absent link is no error; one that is no veth is not ours and stays. The
// kernel waits for a grace period in it (15 ms on a quiet machine).
func (v *Veths) Delete(name string) error {
	return v.host(func(w *wire) error {
		f, err := find(w, name)
		if errors.Is(err, ErrNoLink) {
			return nil
		}
		if err != nil {
			return err
		}
		if f.Kind != "veth" {
			return fmt.Errorf("delete link %s: it is a %q, not a veth of ours", name, f.Kind)
		}
		var b batch
		b.add("delete link "+name, unix.RTM_DELLINK, 0, ifinfo(f.Index, 0, 0))
		if err := w.do(&b); err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
		return nil
	})
}

// Addresses returns the addresses that host routes of ours lead to the link.
func (v *Veths) Addresses(index int) (all []netip.Addr, err error) {
	err = v.host(func(w *wire) error {
		for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
			if err := routes(w, fam, index, func(r found) {
				if r.protocol == Protocol && r.dst.IsSingleIP() {
					all = append(all, r.dst.Addr())
				}
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list routes of link %d: %w", index, err)
	}
	return all, nil
}

// Check compares a pair with what Create and Open made of it; the error names the first part that is missing or different. What others
// added is no error.
func (v *Veths) Check(fd int, spec Veth) error {
	var host Found
	err := v.host(func(w *wire) (err error) {
		if host, err = find(w, spec.Host); err != nil {
			return err
		}
		return checkSide(w, host, spec.HostMAC, spec.MTU, nil, hostWants(spec))
	})
	if err != nil {
		return fmt.Errorf("check host side: %w", err)
	}
	err = InNamespace(fd, func() error {
		w, err := openWire()
		if err != nil {
			return err
		}
		pod, err := find(w, spec.Pod)
		switch {
		case err != nil:
		case pod.Peer != host.Index || host.Peer != pod.Index:
			err = fmt.Errorf("link %s is not the other side of %s", spec.Pod, spec.Host)
		default:
			err = checkSide(w, pod, spec.PodMAC, spec.MTU, spec.Addrs, podWants(spec))
		}
		return errors.Join(err, w.close())
	})
	if err != nil {
		return fmt.Errorf("check pod side: %w", err)
	}
	return nil
}

// want is a neighbour and the route that needs it.
type want struct {
	dst netip.Prefix
	via netip.Addr
	hop netip.Addr // the neighbour
	mac [6]byte
}

func hostWants(spec Veth) (all []want) {
	for _, a := range spec.Addrs {
		all = append(all, want{netip.PrefixFrom(a, a.BitLen()), netip.Addr{}, a, spec.PodMAC})
	}
	return all
}

func podWants(spec Veth) (all []want) {
	for _, a := range spec.Addrs {
		all = append(all, want{netip.PrefixFrom(zero(a), 0), Gateway(a), Gateway(a), spec.HostMAC})
	}
	return all
}

func checkSide(w *wire, f Found, mac [6]byte, mtu int, own []netip.Addr, wants []want) error {
	switch {
	case !f.Up:
		return fmt.Errorf("link %s is down", f.Name)
	case f.MAC != mac:
		return fmt.Errorf("link %s has MAC %x, not %x", f.Name, f.MAC, mac)
	case f.MTU > mtu:
		return fmt.Errorf("link %s has MTU %d, more than %d", f.Name, f.MTU, mtu)
	}
	if len(own) > 0 {
		have, err := addresses(w, f.Index)
		if err != nil {
			return err
		}
		for _, a := range own {
			if !slices.Contains(have, a) {
				return fmt.Errorf("link %s lacks address %s", f.Name, a)
			}
		}
	}
	for _, n := range wants {
		if err := checkNeighbour(w, f, n.hop, n.mac); err != nil {
			return err
		}
		var ok bool
		if err := routes(w, family(n.hop), f.Index, func(r found) { ok = ok || r.dst == n.dst && r.via == n.via }); err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("link %s lacks route to %s", f.Name, n.dst)
		}
	}
	return nil
}

func addresses(w *wire, index int) (all []netip.Addr, err error) {
	h := make([]byte, unix.SizeofIfAddrmsg)
	binary.NativeEndian.PutUint32(h[4:], uint32(index))
	var b batch
	b.add("list addresses", unix.RTM_GETADDR, unix.NLM_F_DUMP, h)
	err = w.dump(&b, func() { all = nil }, func(data []byte) {
		if len(data) < unix.SizeofIfAddrmsg || binary.NativeEndian.Uint32(data[4:]) != uint32(index) {
			return
		}
		a := attrs(data[unix.SizeofIfAddrmsg:])
		if local := addr(a[unix.IFA_LOCAL]); local.IsValid() {
			all = append(all, local)
		} else if only := addr(a[unix.IFA_ADDRESS]); only.IsValid() {
			all = append(all, only) // IPv6 has no IFA_LOCAL
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses of link %d: %w", index, err)
	}
	return all, nil
}

func checkNeighbour(w *wire, f Found, hop netip.Addr, mac [6]byte) error {
	h := make([]byte, unix.SizeofNdMsg)
	h[0] = family(hop)
	binary.NativeEndian.PutUint32(h[4:], uint32(f.Index))
	var b batch
	b.add("get neighbour", unix.RTM_GETNEIGH, 0, h)
	b.attrAddr(unix.NDA_DST, hop)
	all, err := w.run(&b)
	if err == nil {
		err = all[0].err
	}
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("link %s lacks neighbour %s", f.Name, hop)
	}
	if err != nil {
		return fmt.Errorf("get neighbour %s of link %s: %w", hop, f.Name, err)
	}
	data := all[0].data
	if len(data) < unix.SizeofNdMsg || binary.NativeEndian.Uint16(data[8:])&unix.NUD_PERMANENT == 0 ||
		!bytes.Equal(attrs(data[unix.SizeofNdMsg:])[unix.NDA_LLADDR], mac[:]) {
		return fmt.Errorf("neighbour %s of link %s is not permanent with MAC %x", hop, f.Name, mac)
	}
	return nil
}

// found is a route of a link.
type found struct {
	dst      netip.Prefix
	via      netip.Addr
	protocol uint8
}

// routes calls each for the main table's routes of a family that leave by the link.
func routes(w *wire, fam uint8, index int, each func(found)) error {
	h := make([]byte, unix.SizeofRtMsg)
	h[0], h[4], h[7] = fam, unix.RT_TABLE_MAIN, unix.RTN_UNICAST
	var b batch
	b.add("list routes", unix.RTM_GETROUTE, unix.NLM_F_DUMP, h)
	b.attr32(unix.RTA_TABLE, unix.RT_TABLE_MAIN)
	b.attr32(unix.RTA_OIF, uint32(index))
	var all []found
	err := w.dump(&b, func() { all = nil }, func(data []byte) {
		if len(data) < unix.SizeofRtMsg {
			return
		}
		a := attrs(data[unix.SizeofRtMsg:])
		if number(a[unix.RTA_OIF]) != uint32(index) {
			return
		}
		dst := addr(a[unix.RTA_DST])
		if !dst.IsValid() && fam == unix.AF_INET {
			dst = netip.IPv4Unspecified()
		} else if !dst.IsValid() {
			dst = netip.IPv6Unspecified()
		}
		all = append(all, found{netip.PrefixFrom(dst, int(data[1])), addr(a[unix.RTA_GATEWAY]), data[5]})
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil // no such family in this kernel
	}
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range all {
		each(r)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Filters names the two programs that every pod's link carries, by file descriptor to attach them and by id to find them again.
type Filters struct {
	FromPodFD, ToPodFD int
	FromPodID, ToPodID uint32
}

// FilterNames are the names that a pair of filters bears, at ingress and egress.
type FilterNames struct{ From, To string }

// The names on pods' links.
const (
	fromPod = "from_pod"
	toPod   = "to_pod"
)

// Where the filters sit: one direct-action filter in each direction of clsact, at a fixed place, so that it is found, compared and
// replaced in place. Unlike a tcx link none of this waits for a grace period.
const (
	filterHandle   = 1
	filterPriority = 1
	clsactHandle   = 0xffff0000 // TC_H_MAKE(TC_H_CLSACT, 0)
	clsactParent   = 0xfffffff1 // TC_H_CLSACT
	clsactIngress  = 0xfffffff2 // TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
	clsactEgress   = 0xfffffff3 // TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS)
)

// TCA_BPF_*, linux/pkt_cls.h.
const (
	tcaBPFFD    = 6
	tcaBPFName  = 7
	tcaBPFFlags = 8
	tcaBPFID    = 11
	actDirect   = 1  // TCA_BPF_FLAG_ACT_DIRECT
	sizeofTcMsg = 20 // struct tcmsg
)

// ErrFilter says that a link does not carry the program that it should.
var ErrFilter = errors.New("filter differs")

func filterHeader(index int, parent, handle, info uint32) []byte {
	h := make([]byte, sizeofTcMsg)
	binary.NativeEndian.PutUint32(h[4:], uint32(index))
	binary.NativeEndian.PutUint32(h[8:], handle)
	binary.NativeEndian.PutUint32(h[12:], parent)
	binary.NativeEndian.PutUint32(h[16:], info)
	return h
}

// filterInfo is priority and protocol (all), the latter in network byte order.
func filterInfo() uint32 {
	return filterPriority<<16 | uint32(binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff}))
}

// AttachFilters puts the programs on the link, in place of those that an agent before this one attached. A link whose clsact place is
// taken by an ingress qdisc of somebody else (the chained bandwidth plugin makes one) is an error.
func (v *Veths) AttachFilters(index int, f Filters) error {
	return v.attachFilters(index, f, FilterNames{fromPod, toPod})
}

// AttachNamed is AttachFilters for a link that is not Fairlead's own: a place that is taken by a filter with another name is an error.
func (v *Veths) AttachNamed(index int, f Filters, names FilterNames) error {
	have, err := v.filterNames(index)
	if err != nil {
		return err
	}
	if (have.From != "" && have.From != names.From) || (have.To != "" && have.To != names.To) {
		return fmt.Errorf("attach filters to link %d: priority %d handle %d is taken by %q and %q (ingress, egress): %w",
			index, filterPriority, filterHandle, have.From, have.To, ErrFilter)
	}
	return v.attachFilters(index, f, names)
}

func (v *Veths) attachFilters(index int, f Filters, names FilterNames) error {
	var b batch
	b.add("add clsact (is there an ingress qdisc of another plugin?)", unix.RTM_NEWQDISC, unix.NLM_F_CREATE,
		filterHeader(index, clsactParent, clsactHandle, 0))
	b.attrName(unix.TCA_KIND, "clsact")
	for _, d := range []struct {
		parent uint32
		name   string
		fd     int
	}{{clsactIngress, names.From, f.FromPodFD}, {clsactEgress, names.To, f.ToPodFD}} {
		b.add("attach "+d.name, unix.RTM_NEWTFILTER, unix.NLM_F_CREATE, filterHeader(index, d.parent, filterHandle, filterInfo()))
		b.attrName(unix.TCA_KIND, "bpf")
		o := b.open(unix.TCA_OPTIONS)
		b.attr32(tcaBPFFD, uint32(d.fd))
		b.attrName(tcaBPFName, d.name)
		b.attr32(tcaBPFFlags, actDirect)
		b.done(o)
	}
	if err := v.host(func(w *wire) error { return w.do(&b) }); err != nil {
		return fmt.Errorf("attach filters to link %d: %w", index, err)
	}
	return nil
}

// RemoveFilters takes the filters with these names from the link. The clsact qdisc and filters of others stay. A link that is not there is
// no error.
func (v *Veths) RemoveFilters(index int, names FilterNames) error {
	have, err := v.filterNames(index)
	if errors.Is(err, ErrNoLink) {
		return nil
	}
	if err != nil {
		return err
	}
	var b batch
	for _, d := range []struct {
		parent     uint32
		name, have string
	}{{clsactIngress, names.From, have.From}, {clsactEgress, names.To, have.To}} {
		if d.have == d.name {
			b.add("remove "+d.name, unix.RTM_DELTFILTER, 0, filterHeader(index, d.parent, filterHandle, filterInfo()))
			b.attrName(unix.TCA_KIND, "bpf")
		}
	}
	if len(b.start) == 0 {
		return nil
	}
	err = v.host(func(w *wire) error { return w.do(&b) })
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove filters from link %d: %w", index, err)
	}
	return nil
}

// filterNames reads the names of what is in the filters' place; empty: nothing.
func (v *Veths) filterNames(index int) (names FilterNames, err error) {
	var b batch
	for _, parent := range []uint32{clsactIngress, clsactEgress} {
		b.add("get filter", unix.RTM_GETTFILTER, 0, filterHeader(index, parent, filterHandle, filterInfo()))
		b.attrName(unix.TCA_KIND, "bpf")
	}
	err = v.host(func(w *wire) error {
		all, err := w.run(&b)
		if err != nil {
			return err
		}
		for i, to := range []*string{&names.From, &names.To} {
			switch err := all[i].err; {
			case errors.Is(err, unix.ENODEV):
				return ErrNoLink
			case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL): // no filter there, or no clsact at all
			case err != nil:
				return err
			case len(all[i].data) < sizeofTcMsg:
				return errors.New("short answer")
			default:
				*to = text(attrs(attrs(all[i].data[sizeofTcMsg:])[unix.TCA_OPTIONS])[tcaBPFName])
			}
		}
		return nil
	})
	if err != nil {
		return FilterNames{}, fmt.Errorf("get filters of link %d: %w", index, err)
	}
	return names, nil
}

// VerifyFilters compares the programs on the link with those that should be there: ErrFilter when one is absent or another.
func (v *Veths) VerifyFilters(index int, f Filters) error {
	var b batch
	want := []struct {
		parent uint32
		name   string
		id     uint32
	}{{clsactIngress, fromPod, f.FromPodID}, {clsactEgress, toPod, f.ToPodID}}
	for _, d := range want {
		b.add("get "+d.name, unix.RTM_GETTFILTER, 0, filterHeader(index, d.parent, filterHandle, filterInfo()))
		b.attrName(unix.TCA_KIND, "bpf")
	}
	return v.host(func(w *wire) error {
		all, err := w.run(&b)
		if err != nil {
			return fmt.Errorf("get filters of link %d: %w", index, err)
		}
		for i, d := range want {
			switch err := all[i].err; {
			case errors.Is(err, unix.ENODEV):
				return fmt.Errorf("get filters of link %d: %w", index, ErrNoLink)
			case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL): // no filter there, or no clsact at all
				return fmt.Errorf("%s of link %d is absent: %w", d.name, index, ErrFilter)
			case err != nil:
				return fmt.Errorf("get %s of link %d: %w", d.name, index, err)
			}
			if len(all[i].data) < sizeofTcMsg {
				return fmt.Errorf("get %s of link %d: short answer", d.name, index)
			}
			opt := attrs(attrs(all[i].data[sizeofTcMsg:])[unix.TCA_OPTIONS])
			if id := opt[tcaBPFID]; len(id) != 4 || binary.NativeEndian.Uint32(id) != d.id {
				return fmt.Errorf("%s of link %d is another program: %w", d.name, index, ErrFilter)
			}
			if fl := opt[tcaBPFFlags]; len(fl) != 4 || binary.NativeEndian.Uint32(fl)&actDirect == 0 {
				return fmt.Errorf("%s of link %d is not direct-action: %w", d.name, index, ErrFilter)
			}
		}
		return nil
	})
}

// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// ErrNoTCX says that the kernel (before Linux 6.6) has no tcx: the overlay programs go into clsact filters.
var ErrNoTCX = errors.New("kernel has no tcx")

// Program is a loaded program as other packages attach it: its file descriptor is the Objects', valid until Close.
type Program struct {
	Name string
	FD   int
	ID   uint32
}

// program returns a loaded program by name.
func (o *Objects) program(name string) (*ebpf.Program, error) {
	p, ok := o.programs[name]
	if !ok {
		return nil, fmt.Errorf("find program %s: not loaded", name)
	}
	return p, nil
}

// export returns a program for another package.
func (o *Objects) export(name string) (Program, error) {
	p, err := o.program(name)
	if err != nil {
		return Program{}, err
	}
	info, err := p.Info()
	if err != nil {
		return Program{}, fmt.Errorf("read program %s: %w", name, err)
	}
	id, _ := info.ID()
	return Program{Name: name, FD: p.FD(), ID: uint32(id)}, nil
}

// PodPrograms returns what runs on the host side of every pod's veth: fromPod at ingress, toPod at egress.
func (o *Objects) PodPrograms() (fromPod, toPod Program, err error) {
	fromPod, err1 := o.export("from_pod")
	toPod, err2 := o.export("to_pod")
	return fromPod, toPod, errors.Join(err1, err2)
}

// OverlayPrograms returns what runs on the VXLAN device where AttachOverlay says ErrNoTCX: from at ingress, to at egress.
func (o *Objects) OverlayPrograms() (from, to Program, err error) {
	from, err1 := o.export("from_overlay")
	to, err2 := o.export("to_overlay")
	return from, to, errors.Join(err1, err2)
}

// sockPrograms is the order in which the socket programs are attached: what translates back comes first, so that no socket is translated
// without a way back.
func sockPrograms() []struct {
	name string
	hook ebpf.AttachType
} {
	return []struct {
		name string
		hook ebpf.AttachType
	}{
		{"recvmsg4", ebpf.AttachCGroupUDP4Recvmsg},
		{"recvmsg6", ebpf.AttachCGroupUDP6Recvmsg},
		{"getpeername4", ebpf.AttachCgroupInet4GetPeername},
		{"getpeername6", ebpf.AttachCgroupInet6GetPeername},
		{"sendmsg4", ebpf.AttachCGroupUDP4Sendmsg},
		{"sendmsg6", ebpf.AttachCGroupUDP6Sendmsg},
		{"connect4", ebpf.AttachCGroupInet4Connect},
		{"connect6", ebpf.AttachCGroupInet6Connect},
		{"bind4", ebpf.AttachCGroupInet4Bind},
		{"bind6", ebpf.AttachCGroupInet6Bind},
	}
}

// AttachSock attaches the socket programs to a cgroup v2 directory and everything below it. Links that an agent before this one pinned
// are updated in place: no call in between is untranslated. A link to another cgroup is replaced after the new one is in force.
func (o *Objects) AttachSock(cgroup string) error {
	var st syscall.Stat_t
	if err := syscall.Stat(cgroup, &st); err != nil {
		return fmt.Errorf("attach socket programs to %s: %w", cgroup, err)
	}
	for _, s := range sockPrograms() {
		p, err := o.program(s.name)
		if err != nil {
			return fmt.Errorf("attach socket programs to %s: %w", cgroup, err)
		}
		here := func(i *link.Info) bool {
			c := i.Cgroup()
			return c != nil && c.CgroupId == st.Ino // the id of a cgroup is the inode of its directory
		}
		err = o.attach(s.name, p, here, func() (link.Link, error) {
			return link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: s.hook, Program: p})
		})
		if err != nil {
			return fmt.Errorf("attach socket programs to %s: %w", cgroup, err)
		}
	}
	return nil
}

// AttachOverlay attaches from_overlay and to_overlay to the VXLAN device, in place where pinned links are on that device already. Other
// programs on the device are left alone. ErrNoTCX where the kernel has no tcx.
func (o *Objects) AttachOverlay(ifindex int) error {
	err := o.attachTCX("from_overlay", "from_overlay", ifindex, ebpf.AttachTCXIngress)
	if err == nil {
		err = o.attachTCX("to_overlay", "to_overlay", ifindex, ebpf.AttachTCXEgress)
	}
	if err != nil {
		return fmt.Errorf("attach overlay programs to device %d: %w", ifindex, err)
	}
	return nil
}

// attachTCX makes the pinned link run a program on a device of the calling thread's network namespace. ErrNoTCX where the kernel has no tcx.
func (o *Objects) attachTCX(name, program string, ifindex int, hook ebpf.AttachType) error {
	p, err := o.program(program)
	if err != nil {
		return err
	}
	on, err := linksOn(ifindex, hook)
	if err != nil {
		return err
	}
	err = o.attach(name, p, func(i *link.Info) bool { return slices.Contains(on, i.ID) }, func() (link.Link, error) {
		return link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: p, Attach: hook})
	})
	if errors.Is(err, ebpf.ErrNotSupported) {
		err = fmt.Errorf("%w: %w", ErrNoTCX, err)
	}
	return err
}

// linksOn returns the ids of the tcx links of a device; none where the kernel has no tcx. A link's info names its device by an index that
// other namespaces have as well: what runs on the device in the calling thread's namespace decides.
func linksOn(ifindex int, hook ebpf.AttachType) (ids []link.ID, err error) {
	on, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: hook})
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, syscall.EINVAL) { // no such hook: AttachTCX says it by name
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, p := range on.Programs {
		if id, ok := p.LinkID(); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// aside ends the name of a link's pin until it is renamed; bpffs refuses names with a dot.
const aside = "-new"

// attach makes the pinned link of a name run a program. A pinned link that is where it should be (here) is updated: its id stays. One
// that is elsewhere, or whose target is gone, is replaced: the new link is pinned aside and renamed over it, so that at every moment
// the pin is one or the other, and a killed agent leaves at most a pin aside that the next one overwrites.
func (o *Objects) attach(name string, p *ebpf.Program, here func(*link.Info) bool, make func() (link.Link, error)) error {
	path := filepath.Join(o.dir, linksDir, name)
	beside := path + aside
	if err := os.Remove(beside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("attach %s: %w", name, err)
	}
	old, err := link.LoadPinnedLink(path, nil)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("attach %s: open link %s: %w", name, path, err)
	}
	if err == nil {
		defer func() { _ = old.Close() }() // the pin holds the link
		info, err := old.Info()
		if err != nil {
			return fmt.Errorf("attach %s: %w", name, err)
		}
		if here(info) {
			if err := old.Update(p); err != nil {
				return fmt.Errorf("attach %s: update link %d: %w", name, info.ID, err)
			}
			o.log.Debug("link updated", "link", name, slog.Any("id", info.ID))
			return nil
		}
		o.log.Info("link is attached elsewhere, replaced", "link", name, slog.Any("id", info.ID))
	}
	fresh, err := make()
	if err != nil {
		return fmt.Errorf("attach %s: %w", name, err)
	}
	defer func() { _ = fresh.Close() }() // the pin holds the link
	if err := fresh.Pin(beside); err != nil {
		return fmt.Errorf("attach %s: pin at %s: %w", name, beside, err)
	}
	if err := os.Rename(beside, path); err != nil {
		return fmt.Errorf("attach %s: %w", name, err)
	}
	o.log.Info("link made", "link", name)
	return nil
}

// Links returns the names of the pinned links with the ids of link and program, for status.
func (o *Objects) Links() ([]Link, error) {
	entries, err := os.ReadDir(filepath.Join(o.dir, linksDir))
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var all []Link
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), aside) {
			continue
		}
		l, err := link.LoadPinnedLink(filepath.Join(o.dir, linksDir, e.Name()), nil)
		if err != nil {
			return nil, fmt.Errorf("open link %s: %w", e.Name(), err)
		}
		info, err := l.Info()
		if err := errors.Join(err, l.Close()); err != nil {
			return nil, fmt.Errorf("read link %s: %w", e.Name(), err)
		}
		all = append(all, Link{Name: e.Name(), ID: uint32(info.ID), Program: uint32(info.Program)})
	}
	return all, nil
}

// Link is a pinned link: its name, its id, the id of the program that it runs.
type Link struct {
	Name        string
	ID, Program uint32
}

// ArmSweep starts the timer that expires flows, or makes a running one run this agent's code: a timer's callback holds the program that
// armed it.
func (o *Objects) ArmSweep() error {
	p, err := o.program("sweep_arm")
	if err != nil {
		return fmt.Errorf("arm sweep: %w", err)
	}
	verdict, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 64)}) // any frame will do, the program does not look at it
	if err != nil {
		return fmt.Errorf("arm sweep: %w", err)
	}
	if verdict != 0 {
		return fmt.Errorf("arm sweep: program answered %d", int32(verdict))
	}
	return nil
}

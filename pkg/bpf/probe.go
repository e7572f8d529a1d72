// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Feature is one thing that the kernel can or cannot do, found by doing it.
type Feature struct {
	Name   string
	What   string // what it is for, in a few words
	Needed bool   // nothing works without it; the others have another way
	Err    error  // why not; nil: it works
}

// OK says whether the feature works.
func (f Feature) OK() bool { return f.Err == nil }

// Probe tries every kernel feature that Fairlead uses: small programs, maps, and links in a network namespace that is gone afterwards.
// It takes some hundred milliseconds, needs the same privileges as Open and leaves nothing behind.
func Probe() []Feature {
	return []Feature{
		{"isa-v3", "compare-and-swap in programs", true, features.HaveV3ISA()},
		{"array-mmap", "tables written without a system call", true, probeMmap()},
		{"cgroup-retval", "connection refused at the system call", true, probeRetval()},
		{"cgroup-getpeername", "names of Services for connected sockets", true, probeGetpeername()},
		{"socket-storage", "what a socket was led to, kept with it", true, probeStorage()},
		{"netns-cookie", "which pod a socket is of", true, probeCookie()},
		{"timer", "flows expire without the agent", true, probeTimer()},
		{"redirect-peer", "delivery into a pod", true, features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRedirectPeer)},
		{"redirect-neigh", "delivery to a next hop", true, features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRedirectNeigh)},
		{"tunnel-key", "outer addresses chosen per packet", true, probeTunnelKey()},
		{"iterator-storage", "namespaces that hold stale sockets", true, probeIterator("bpf_sk_storage_map")},
		{"iterator-udp", "stale sockets of a namespace", true, probeIterator("udp")},
		{"clsact", "programs on pods' links", true, inNamespace(probeClsact)},
		{"vxlan-external", "one overlay device for all nodes", true, inNamespace(probeVXLAN)},
		{"tcx", "programs on devices beside others'; else clsact filters", false, inNamespace(probeTCX)},
		{"socket-destroy", "stale sockets closed by the iterator; else by netlink", false, probeDestroy()},
	}
}

// Missing returns an error that names every needed feature that does not work, or nil.
func Missing(all []Feature) error {
	var errs []error
	for _, f := range all {
		if f.Needed && !f.OK() {
			errs = append(errs, fmt.Errorf("kernel feature %s (%s) is missing: %w", f.Name, f.What, f.Err))
		}
	}
	return errors.Join(errs...)
}

// probeMmap writes through memory and reads by system call.
func probeMmap() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE})
	if err != nil {
		return err
	}
	defer m.Close()
	mem, err := mapArray("probe", m)
	if err != nil {
		return err
	}
	defer mem.close()
	mem.store(0, 0, 42)
	var got uint64
	if err := m.Lookup(uint32(0), &got); err != nil {
		return err
	}
	if got != 42 {
		return fmt.Errorf("memory holds 42, the map %d", got)
	}
	return nil
}

// tries loads a program and lets it go.
func tries(spec *ebpf.ProgramSpec) error {
	p, err := ebpf.NewProgram(spec)
	if err != nil {
		return err
	}
	return p.Close()
}

func probeRetval() error {
	return tries(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, -int32(unix.ECONNREFUSED)),
			asm.FnSetRetval.Call(),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
	})
}

func probeGetpeername() error {
	return tries(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCgroupInet6GetPeername, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
}

// probeStorage makes storage for the socket of a connect call: ctx->sk is at offset 64 of struct bpf_sock_addr.
func probeStorage() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.SkStorage, KeySize: 4, ValueSize: 8, Flags: unix.BPF_F_NO_PREALLOC,
		Key: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}, Value: &btf.Int{Name: "u64", Size: 8},
	})
	if err != nil {
		return err
	}
	defer m.Close()
	return tries(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 64, asm.DWord),
			asm.JEq.Imm(asm.R2, 0, "out"),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.Mov.Imm(asm.R4, 1), // BPF_SK_STORAGE_GET_F_CREATE
			asm.FnSkStorageGet.Call(),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("out"),
			asm.Return(),
		},
	})
}

// probeCookie asks for the cookie of this namespace, and whether programs may.
func probeCookie() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return err
	}
	if cookie == 0 {
		return errors.New("cookie of this namespace is 0")
	}
	return features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnGetNetnsCookie)
}

// probeTimer lets a packet program set up a timer.
func probeTimer() error {
	timer := &btf.Struct{Name: "bpf_timer", Size: 16, Members: []btf.Member{{
		Name: "opaque", Type: &btf.Array{Index: &btf.Int{Name: "u32", Size: 4}, Type: &btf.Int{Name: "u64", Size: 8}, Nelems: 2},
	}}}
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: 1, Key: &btf.Int{Name: "u32", Size: 4},
		Value: &btf.Struct{Name: "holder", Size: 16, Members: []btf.Member{{Name: "timer", Type: timer}}},
	})
	if err != nil {
		return err
	}
	defer m.Close()
	return runs(asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.LoadMapPtr(asm.R2, m.FD()),
		asm.Mov.Imm(asm.R3, unix.CLOCK_MONOTONIC),
		asm.FnTimerInit.Call(),
		asm.Return().WithSymbol("out"),
	})
}

// probeTunnelKey sets a key of the size that holds the local address: kernels that know a shorter one refuse it when the program runs.
func probeTunnelKey() error {
	const size = 44 // struct bpf_tunnel_key with local_ipv4 and local_ipv6
	key := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1), asm.Mov.Imm(asm.R1, 0)}
	for offset := int16(-48); offset < 0; offset += 8 {
		key = append(key, asm.StoreMem(asm.RFP, offset, asm.R1, asm.DWord))
	}
	return runs(append(key,
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -48),
		asm.Mov.Imm(asm.R3, size),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnSkbSetTunnelKey.Call(),
		asm.Return(),
	))
}

// runs loads a packet program and runs it once: it has to answer 0.
func runs(code asm.Instructions) error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: code})
	if err != nil {
		return err
	}
	defer p.Close()
	answer, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil {
		return err
	}
	if answer != 0 {
		return unix.Errno(-int32(answer))
	}
	return nil
}

// probeIterator walks all sockets of a kind, or all storage, with a program that does nothing.
func probeIterator(target string) error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: target, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return err
	}
	defer p.Close()
	o := link.IterOptions{Program: p}
	if target == "bpf_sk_storage_map" {
		o.Map, err = ebpf.NewMap(&ebpf.MapSpec{
			Type: ebpf.SkStorage, KeySize: 4, ValueSize: 8, Flags: unix.BPF_F_NO_PREALLOC,
			Key: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}, Value: &btf.Int{Name: "u64", Size: 8},
		})
		if err != nil {
			return err
		}
		defer o.Map.Close()
	}
	it, err := link.AttachIter(o)
	if err != nil {
		return err
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return errors.Join(err, r.Close())
}

// probeDestroy looks for the kernel function by which an iterator destroys a socket.
func probeDestroy() error {
	types, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	var f *btf.Func
	return types.TypeByName("bpf_sock_destroy", &f)
}

// inNamespace runs f on a thread in a network namespace of its own; both end with it. Its loopback device has index 1.
func inNamespace(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// loopbackIndex is the index of the first device of every namespace.
const loopbackIndex = 1

// passes is a packet program that lets everything pass.
func passes() (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "probe", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
}

func probeTCX() error {
	p, err := passes()
	if err != nil {
		return err
	}
	defer p.Close()
	l, err := link.AttachTCX(link.TCXOptions{Interface: loopbackIndex, Program: p, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return err
	}
	return l.Close()
}

// probeClsact attaches a direct-action filter as pods' links carry them.
func probeClsact() error {
	p, err := passes()
	if err != nil {
		return err
	}
	defer p.Close()
	if err := addClsact(loopbackIndex); err != nil {
		return fmt.Errorf("add clsact qdisc: %w", err)
	}
	if err := addFilter(loopbackIndex, p.FD()); err != nil {
		return fmt.Errorf("add bpf filter: %w", err)
	}
	return nil
}

func probeVXLAN() error { return addVXLAN("probe0") }

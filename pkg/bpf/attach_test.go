// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/pkg/testnet/sandbox"
)

// links returns the pinned links by name.
func links(t *testing.T, o *Objects) map[string]Link {
	t.Helper()
	all, err := o.Links()
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]Link{}
	for _, l := range all {
		byName[l.Name] = l
	}
	return byName
}

// wantPrograms checks that each named link runs the program of these objects.
func wantPrograms(t *testing.T, o *Objects, got map[string]Link, names ...string) {
	t.Helper()
	if len(got) != len(names) {
		t.Errorf("links are %v, want %q", got, names)
	}
	for _, name := range names {
		p, err := o.export(name)
		if err != nil {
			t.Fatal(err)
		}
		if got[name].Program != p.ID {
			t.Errorf("link %s runs program %d, want %d", name, got[name].Program, p.ID)
		}
	}
}

func sockNames() []string {
	var names []string
	for _, s := range sockPrograms() {
		names = append(names, s.name)
	}
	return names
}

func TestSockLinksAreUpdatedInPlace(t *testing.T) {
	dir, group := testDir(t), sandbox.NewGroup(t)
	first := mustOpen(t, Options{Dir: dir, Capacity: small()})
	if err := first.AttachSock(group.Path); err != nil {
		t.Fatal(err)
	}
	before := links(t, first)
	wantPrograms(t, first, before, sockNames()...)

	second := mustOpen(t, Options{Dir: dir, Capacity: small()})
	defer second.Close()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, links(t, second)); diff != "" {
		t.Errorf("links changed when the first agent ended, before the second attached:\n%s", diff)
	}
	if err := second.AttachSock(group.Path); err != nil {
		t.Fatal(err)
	}
	after := links(t, second)
	wantPrograms(t, second, after, sockNames()...)
	for name := range before {
		if before[name].ID != after[name].ID {
			t.Errorf("link %s has id %d, had %d: not updated in place", name, after[name].ID, before[name].ID)
		}
		if before[name].Program == after[name].Program {
			t.Errorf("link %s still runs program %d", name, before[name].Program)
		}
	}
	if n := attachedTo(t, group.Path, ebpf.AttachCGroupInet4Connect); n != 1 {
		t.Errorf("%d programs at connect4, want 1", n)
	}
}

func TestSockLinksMoveToAnotherCgroup(t *testing.T) {
	o, a, b := openTest(t), sandbox.NewGroup(t), sandbox.NewGroup(t)
	if err := o.AttachSock(a.Path); err != nil {
		t.Fatal(err)
	}
	// A predecessor that was killed before it renamed the new link.
	stray, err := link.AttachCgroup(link.CgroupOptions{Path: b.Path, Attach: ebpf.AttachCGroupInet4Connect, Program: o.programs["connect4"]})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stray.Pin(filepath.Join(o.dir, linksDir, "connect4-new")), stray.Close()); err != nil {
		t.Fatal(err)
	}

	if err := o.AttachSock(b.Path); err != nil {
		t.Fatal(err)
	}
	wantPrograms(t, o, links(t, o), sockNames()...)
	for _, s := range sockPrograms() {
		if n := attachedTo(t, b.Path, s.hook); n != 1 {
			t.Errorf("%d programs at %s of the new cgroup, want 1", n, s.name)
		}
		await(t, func() bool { return attachedTo(t, a.Path, s.hook) == 0 })
	}
}

func TestAttachSockRefuses(t *testing.T) {
	o := openTest(t)
	wantError(t, o.AttachSock("/sys/fs/cgroup/no-such-group"), "attach socket programs to /sys/fs/cgroup/no-such-group: no such file or directory")
	wantError(t, o.AttachSock(t.TempDir()), "attach recvmsg4")
}

func TestOverlayLinksAreUpdatedInPlace(t *testing.T) {
	dir := testDir(t)
	const lo = 1
	a, b := sandbox.NewNamespace(t), sandbox.NewNamespace(t)
	first := mustOpen(t, Options{Dir: dir, Capacity: small()})
	var err error
	a.Do(t, func() error { err = first.AttachOverlay(lo); return nil })
	if errors.Is(err, ErrNoTCX) {
		t.Skipf("the agent attaches filters instead: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	before := links(t, first)
	wantPrograms(t, first, before, "from_overlay", "to_overlay")

	second := mustOpen(t, Options{Dir: dir, Capacity: small()})
	defer second.Close()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	a.Do(t, func() error { return second.AttachOverlay(lo) })
	after := links(t, second)
	wantPrograms(t, second, after, "from_overlay", "to_overlay")
	for name := range before {
		if before[name].ID != after[name].ID || before[name].Program == after[name].Program {
			t.Errorf("link %s was %+v and is %+v: not updated in place", name, before[name], after[name])
		}
	}

	// The device was made anew, with the same index as another namespace's: the links move.
	b.Do(t, func() error { return second.AttachOverlay(lo) })
	wantPrograms(t, second, links(t, second), "from_overlay", "to_overlay")
	for ns, want := range map[*sandbox.Namespace]int{a: 0, b: 1} {
		await(t, func() (same bool) {
			ns.Do(t, func() error {
				on, err := link.QueryPrograms(link.QueryOptions{Target: lo, Attach: ebpf.AttachTCXIngress})
				same = err == nil && len(on.Programs) == want
				return err
			})
			return same
		})
	}
	a.Do(t, func() error {
		wantError(t, second.AttachOverlay(4711), "attach overlay programs to device 4711")
		return nil
	})
}

func TestPodProgramsOutliveOpen(t *testing.T) {
	o := openTest(t)
	from, to, err := o.PodPrograms()
	if err != nil {
		t.Fatal(err)
	}
	if from.Name != "from_pod" || to.Name != "to_pod" || from.ID == to.ID || from.FD == to.FD || from.ID == 0 || to.ID == 0 {
		t.Errorf("programs are %+v and %+v", from, to)
	}
}

func TestArmSweepTwice(t *testing.T) {
	o := openTest(t)
	if err := errors.Join(o.ArmSweep(), o.ArmSweep()); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool {
		s, err := o.Sweep()
		if err != nil {
			t.Fatal(err)
		}
		return s.Passes > 1
	})
}

// TestFlowTableIsMatchedAfterKill makes one array of the flow table, as an agent does that is killed before it makes the other, and opens
// with other sizes.
func TestFlowTableIsMatchedAfterKill(t *testing.T) {
	for _, gone := range []string{LayoutMapFlowBuckets, LayoutMapFlowSlots} {
		t.Run(gone, func(t *testing.T) {
			dir := testDir(t)
			capacity := small()
			capacity["flow_slots"] = 3 * 512
			first := mustOpen(t, Options{Dir: dir, Capacity: capacity})
			if err := errors.Join(first.Close(), os.Remove(filepath.Join(dir, mapsDir, gone))); err != nil {
				t.Fatal(err)
			}
			capacity["flow_slots"] = 1 << 16
			second := mustOpen(t, Options{Dir: dir, Capacity: capacity})
			defer second.Close()
			if got := second.Flows().Capacity(); got != 3*512 {
				t.Errorf("flow table has %d slots, want those of the array that was left", got)
			}
			if c := second.Config().layout(); c.FlowSlots != 3*512 || c.FlowBuckets != 1024 {
				t.Errorf("programs are told %d slots and %d buckets, want 1536 and 1024", c.FlowSlots, c.FlowBuckets)
			}
		})
	}
}

func TestDropNames(t *testing.T) {
	o := openTest(t)
	drops, err := o.Drops()
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range o.DropReasons() {
		if name == "" || strings.ToLower(name) != name || strings.ContainsAny(name, "_ ") {
			t.Errorf("drop reason %d is called %q", i, name)
		}
		if _, ok := drops[name]; !ok && name != "none" {
			t.Errorf("drop reason %s is not counted", name)
		}
	}
	if _, ok := drops["ipv4-short"]; !ok || len(drops) != len(o.DropReasons())-1 {
		t.Errorf("drops are %v", drops)
	}
	// The sum is over the CPUs.
	perCPU := make([]uint64, ebpf.MustPossibleCPU())
	var want uint64
	for i := range perCPU {
		perCPU[i] = uint64(i + 2)
		want += perCPU[i]
	}
	if err := o.maps[LayoutMapDrops].Put(uint32(LayoutDropReasonDROP_IPV4SHORT), perCPU); err != nil {
		t.Fatal(err)
	}
	if drops, err = o.Drops(); err != nil || drops["ipv4-short"] != want {
		t.Errorf("ipv4-short is %d, %v, want %d", drops["ipv4-short"], err, want)
	}
	counters, err := o.Counters()
	if _, ok := counters["flow-created"]; err != nil || !ok {
		t.Errorf("counters are %v, %v", counters, err)
	}
}

// attachedTo returns how many programs a cgroup itself has at a hook.
func attachedTo(t *testing.T, cgroup string, hook ebpf.AttachType) int {
	t.Helper()
	f, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	on, err := link.QueryPrograms(link.QueryOptions{Target: int(f.Fd()), Attach: hook})
	if err != nil {
		t.Fatal(err)
	}
	return len(on.Programs)
}

// await looks until something is so: the kernel frees links and runs timers by itself, and tells nobody.
func await(t *testing.T, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen within 10 s")
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
)

const testPrefix = "/sys/fs/bpf/fairlead-test-"

var sweepLeftovers sync.Once

// testDir returns a directory of its own on the bpf file system; it is gone after the test, and so are those of runs that died.
func testDir(t testing.TB) string {
	t.Helper()
	sweepLeftovers.Do(func() {
		old, _ := filepath.Glob(testPrefix + "*")
		for _, dir := range old {
			pid, _, _ := strings.Cut(strings.TrimPrefix(dir, testPrefix), "-")
			if n, err := strconv.Atoi(pid); err != nil || syscall.Kill(n, 0) == nil {
				continue
			}
			if err := Remove(dir); err != nil {
				t.Error(err)
			}
		}
	})
	name := strings.Map(func(r rune) rune {
		if r == '/' || r == '.' {
			return '_'
		}
		return r
	}, t.Name())
	dir := fmt.Sprintf("%s%d-%s", testPrefix, os.Getpid(), name)
	t.Cleanup(func() {
		if err := Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// small keeps the maps of a test from filling the machine.
func small() map[string]uint32 {
	return map[string]uint32{
		"backends": 4096, "slots": 4096, "services": 1024, "frontends": 1024, "affinities": 1024, "cluster_ips": 1024, "ids": 8192,
	}
}

func mustOpen(t testing.TB, o Options) *Objects {
	t.Helper()
	ob, err := Open(o)
	if err != nil {
		var v *ebpf.VerifierError
		if errors.As(err, &v) {
			t.Fatalf("%v\n%+v", err, v)
		}
		t.Fatal(err)
	}
	return ob
}

// openTest opens a fresh directory that ends with the test.
func openTest(t *testing.T) *Objects {
	t.Helper()
	ob := mustOpen(t, Options{Dir: testDir(t), Capacity: small()})
	t.Cleanup(func() {
		if err := ob.Close(); err != nil {
			t.Error(err)
		}
	})
	return ob
}

func TestOpenTwiceSharesMaps(t *testing.T) {
	dir := testDir(t)
	first := mustOpen(t, Options{Dir: dir, Capacity: small()})
	e := Endpoint{ID: 7, Incarnation: 3, Addr4: netip.MustParseAddr("10.0.0.2"), Ifindex: 9, Cookie: 77, MAC: [6]byte{2, 1, 1, 1, 1, 1}}
	if err := first.Endpoints().Put(e); err != nil {
		t.Fatal(err)
	}

	// The second adopts while the first still holds everything.
	second := mustOpen(t, Options{Dir: dir, Capacity: small()})
	if got, ok := second.Endpoints().Get(7); !ok || got != e {
		t.Errorf("second agent sees %+v, want %+v", got, e)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if got, ok := second.Endpoints().Get(7); !ok || got != e {
		t.Errorf("after the first ended the second sees %+v, want %+v", got, e)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}

	third := mustOpen(t, Options{Dir: dir, Capacity: small()})
	defer third.Close()
	all, err := third.Endpoints().List()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Endpoint{e}, all, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("third agent finds other endpoints (-want +got):\n%s", diff)
	}
	// What ids mean is found through every index too.
	for name, key := range map[string]any{
		LayoutMapEndpointLinks: uint32(9), LayoutMapEndpointAddrs: addrOf(e.Addr4), LayoutMapEndpointNs: uint64(77),
	} {
		var id uint32
		if err := third.maps[name].Lookup(key, &id); err != nil || id != 7 {
			t.Errorf("%s leads to endpoint %d, %v, want 7", name, id, err)
		}
	}
}

func TestDirectoriesNeverMeet(t *testing.T) {
	a := mustOpen(t, Options{Dir: testDir(t) + "-a", Capacity: small()})
	t.Cleanup(func() { _ = a.Close(); _ = Remove(a.dir) })
	b := mustOpen(t, Options{Dir: testDir(t) + "-b", Capacity: small()})
	t.Cleanup(func() { _ = b.Close(); _ = Remove(b.dir) })
	for name := range a.maps {
		if ia, ib := mapID(t, a.maps[name]), mapID(t, b.maps[name]); ia == ib {
			t.Errorf("map %s is shared: id %d", name, ia)
		}
	}
	if err := a.Endpoints().Put(Endpoint{ID: 1, Incarnation: 1, Ifindex: 1}); err != nil {
		t.Fatal(err)
	}
	if all, _ := b.Endpoints().List(); len(all) != 0 {
		t.Errorf("an endpoint of one directory is in another: %v", all)
	}
}

func TestPinnedCapacityWins(t *testing.T) {
	dir := testDir(t)
	capacity := small()
	capacity["backends"] = 2048
	if err := mustOpen(t, Options{Dir: dir, Capacity: capacity}).Close(); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	capacity["backends"] = 8192
	ob := mustOpen(t, Options{Dir: dir, Capacity: capacity, Log: slog.New(slog.NewTextHandler(&log, nil))})
	defer ob.Close()
	if got := ob.Services().BackendCapacity(); got != 2047 {
		t.Errorf("largest backend id is %d, want 2047", got)
	}
	if want := "map=backends capacity=2048 wanted=8192"; !strings.Contains(log.String(), want) {
		t.Errorf("log does not say %q:\n%s", want, log.String())
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Run("unknown map", func(t *testing.T) {
		_, err := Open(Options{Dir: testDir(t), Capacity: map[string]uint32{"backend": 1}})
		wantError(t, err, "size map backend: there is no such map")
	})
	t.Run("empty map", func(t *testing.T) {
		_, err := Open(Options{Dir: testDir(t), Capacity: map[string]uint32{"backends": 0}})
		wantError(t, err, "size map backends: 0 elements are not possible")
	})
	t.Run("no bpf file system", func(t *testing.T) {
		dir := t.TempDir()
		_, err := Open(Options{Dir: dir})
		wantError(t, err, dir+": not on a bpf file system: mount one")
	})
	t.Run("no directory", func(t *testing.T) {
		_, err := Open(Options{})
		wantError(t, err, "no path given")
	})
}

func TestOtherLayoutIsRefused(t *testing.T) {
	dir := testDir(t)
	if err := makeDir(dir, func(string) {}); err != nil {
		t.Fatal(err)
	}
	spec, err := LoadLayout()
	if err != nil {
		t.Fatal(err)
	}

	t.Run("size", func(t *testing.T) {
		m := spec.Maps["peers"].Copy()
		m.ValueSize += 8
		m.Key, m.Value = nil, nil
		pinForeign(t, dir, "peers", m)
		before := pins(t, dir)
		_, err := Open(Options{Dir: dir})
		var le *LayoutError
		if !errors.As(err, &le) {
			t.Fatalf("got %v, want a LayoutError", err)
		}
		wantError(t, err, "adopt map peers", dir+"/maps/peers", fmt.Sprintf("value %d bytes", m.ValueSize),
			fmt.Sprintf("value %d bytes {word@0:8", m.ValueSize-8), "fairleadd uninstall")
		if diff := cmp.Diff(before, pins(t, dir)); diff != "" {
			t.Errorf("a refused Open changed pins (-before +after):\n%s", diff)
		}
	})
	t.Run("type", func(t *testing.T) {
		m := spec.Maps["frontends"].Copy()
		m.Type = ebpf.LRUHash
		m.Flags = 0
		m.MaxEntries = 16
		pinForeign(t, dir, "frontends", m)
		_, err := Open(Options{Dir: dir})
		wantError(t, err, "adopt map frontends", "is lruhash", "needs hash")
	})
	t.Run("fields", func(t *testing.T) {
		// The same sizes, another meaning: BTF of struct affinity for a map of struct addr.
		m := spec.Maps["cluster_ips"].Copy()
		m.Key = spec.Maps["affinities"].Value
		pinForeign(t, dir, "cluster_ips", m)
		_, err := Open(Options{Dir: dir})
		wantError(t, err, "adopt map cluster_ips", "backend@0:4", "bytes@0:16")
	})
	t.Run("version", func(t *testing.T) {
		ob := mustOpen(t, Options{Dir: dir, Capacity: small()})
		if err := ob.setVersion("ids", 3); err != nil {
			t.Fatal(err)
		}
		if err := ob.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := Open(Options{Dir: dir})
		wantError(t, err, "adopt map ids", "version 3", "version 1")
	})
	t.Run("next version", func(t *testing.T) {
		ob := mustOpen(t, Options{Dir: dir + "-next", Capacity: small()})
		t.Cleanup(func() { _ = Remove(dir + "-next") })
		if err := ob.setVersion("ids", 2); err != nil {
			t.Fatal(err)
		}
		if err := ob.Close(); err != nil {
			t.Fatal(err)
		}
		ob = mustOpen(t, Options{Dir: dir + "-next", Capacity: small()})
		defer ob.Close()
		if v, err := ob.version("ids", 1); err != nil || v != 2 {
			t.Errorf("version is %d, %v after adoption by an older agent, want 2", v, err)
		}
	})
}

// TestKilledBetweenSteps kills a process before each step of Open in turn, and after the last; every time the next Open makes the rest.
func TestKilledBetweenSteps(t *testing.T) {
	if os.Getenv("FAIRLEAD_TEST_OPEN") != "" {
		openAndDie()
		return
	}
	var steps []string
	dir := testDir(t)
	ob, err := open(Options{Dir: dir, Capacity: small()}, func(s string) { steps = append(steps, s) })
	if err != nil {
		t.Fatal(err)
	}
	want := pins(t, dir)
	if err := errors.Join(ob.Close(), Remove(dir)); err != nil {
		t.Fatal(err)
	}
	if len(steps) < 3*len(want) {
		t.Fatalf("%d steps for %d pins: some are not told", len(steps), len(want))
	}

	for i, step := range steps {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledBetweenSteps$", "-test.count=1")
		cmd.Env = append(os.Environ(), "FAIRLEAD_TEST_OPEN="+dir, fmt.Sprintf("FAIRLEAD_TEST_STEP=%d", i))
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("step %d (%s): child ended with %v, want to be killed\n%s", i, step, err, out)
		}
		ob, _, err := openMaps(Options{Dir: dir, Capacity: small()}, func(string) {})
		if err != nil {
			t.Fatalf("killed before %q: %v", step, err)
		}
		if diff := cmp.Diff(want, pins(t, dir)); diff != "" {
			t.Fatalf("killed before %q (-want +got):\n%s", step, diff)
		}
		for name := range ob.maps {
			if v, ok, err := ob.layouts.get(layoutName(name)); name != LayoutMapLayouts && (err != nil || !ok || v == 0) {
				t.Fatalf("killed before %q: map %s has version %d, %v", step, name, v, err)
			}
		}
		if err := errors.Join(ob.Close(), Remove(dir)); err != nil {
			t.Fatal(err)
		}
	}
}

// openAndDie is the child of TestKilledBetweenSteps.
func openAndDie() {
	at, _ := strconv.Atoi(os.Getenv("FAIRLEAD_TEST_STEP"))
	n := 0
	_, err := open(Options{Dir: os.Getenv("FAIRLEAD_TEST_OPEN"), Capacity: small()}, func(string) {
		if n == at {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		n++
	})
	fmt.Println(err)
}

func TestRemoveLeavesNothing(t *testing.T) {
	dir := testDir(t)
	ob := mustOpen(t, Options{Dir: dir, Capacity: small()})
	ids := map[string]ebpf.MapID{}
	for name, m := range ob.maps {
		ids[name] = mapID(t, m)
	}
	if err := errors.Join(ob.Close(), Remove(dir), Remove(dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", dir, err)
	}
	// The kernel frees maps and programs a little later.
	deadline := time.Now().Add(10 * time.Second)
	for name, id := range ids {
		for {
			m, err := ebpf.NewMapFromID(id)
			if errors.Is(err, os.ErrNotExist) {
				break
			}
			if err == nil {
				_ = m.Close()
			}
			if time.Now().After(deadline) {
				t.Fatalf("map %s (id %d) is still in the kernel: %v", name, id, err)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func mapID(t *testing.T, m *ebpf.Map) ebpf.MapID {
	t.Helper()
	info, err := m.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return id
}

func pinForeign(t *testing.T, dir, name string, spec *ebpf.MapSpec) {
	t.Helper()
	m, err := ebpf.NewMap(spec)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, mapsDir, name)
	if err := m.Pin(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(path); _ = m.Close() })
}

// pins lists everything below a directory.
func pins(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	for _, part := range []string{mapsDir, linksDir} {
		entries, err := os.ReadDir(filepath.Join(dir, part))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, part+"/"+e.Name())
		}
	}
	slices.Sort(all)
	return all
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}

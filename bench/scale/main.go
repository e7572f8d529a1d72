// SPDX-License-Identifier: Apache-2.0

// Scale measures what Services cost the agent: the first sync from complete lists to maps, the same again by a second agent that finds
// everything there, one change while the rest is there, and the memory that is resident then. The maps are the real ones, pinned in a
// directory of its own; nothing is attached. It needs root.
//
// The numbers are this machine's; there is no peer beside it: kube-proxy's first sync is measured on a cluster, in bench/cluster.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/service"
)

// shape is a cluster: Services with the same number of endpoints each.
type shape struct {
	services, endpoints int
}

func main() {
	shapes := flag.String("shapes", "10000x20000,44000x44000,5000x250000", "Services x endpoints, separated by commas")
	changes := flag.Int("changes", 2000, "endpoint events to measure")
	profile := flag.String("cpuprofile", "", "write a CPU profile of the first syncs to this file")
	flag.Parse()
	if err := run(os.Stdout, *shapes, *changes, *profile); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(w io.Writer, shapes string, changes int, profile string) error {
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	fmt.Fprintf(w, "%-16s %12s %12s %12s %12s %12s %12s %12s %12s\n", "services", "first sync", "its CPU", "adoption", "change p50", "change p99", "change max", "removal", "resident")
	for s := range strings.SplitSeq(shapes, ",") {
		a, b, _ := strings.Cut(s, "x")
		services, err := strconv.Atoi(a)
		endpoints, err2 := strconv.Atoi(b)
		if err := errors.Join(err, err2); err != nil {
			return fmt.Errorf("read shape %q: %w", s, err)
		}
		if err := measure(w, shape{services, endpoints}, changes); err != nil {
			return fmt.Errorf("measure %s: %w", s, err)
		}
	}
	return nil
}

func measure(w io.Writer, sh shape, changes int) (err error) {
	dir := filepath.Join("/sys/fs/bpf", fmt.Sprintf("fairlead-bench-%d", os.Getpid()))
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	open := func() (*bpf.Objects, error) { return bpf.Open(bpf.Options{Dir: dir, Capacity: map[string]uint32{}}) }
	objects, err := open()
	if err != nil {
		return err
	}
	list := lists(sh)
	start := func(o *bpf.Objects) (p *service.Proxy, took, cpu time.Duration, err error) {
		p, err = service.New(service.Config{Node: "here", Tables: o.Services(), IDs: o.IDs(), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return nil, 0, 0, err
		}
		p.Apply(cluster.Batch{Changes: list})
		runtime.GC()
		began, busy := time.Now(), cpuTime()
		p.Apply(cluster.Batch{Synced: []cluster.Kind{cluster.NodeKind, cluster.ServiceKind, cluster.SliceKind}})
		took, cpu = time.Since(began), cpuTime()-busy
		if c := p.Conditions(); len(c) > 0 {
			return nil, 0, 0, fmt.Errorf("%d conditions, the first: %s: %s", len(c), c[0].Object, c[0].Message)
		}
		return p, took, cpu, nil
	}
	_, first, cpu, err := start(objects)
	if err != nil {
		return err
	}
	if err := objects.Close(); err != nil {
		return err
	}
	objects, err = open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, objects.Close()) }()
	p, adopted, _, err := start(objects)
	if err != nil {
		return err
	}

	// One endpoint after the other goes away and comes back.
	var took []time.Duration
	for i := range changes {
		k := i / 2 % sh.services
		slice := sliceOf(sh, k)
		if i%2 == 0 {
			slice.Endpoints = slice.Endpoints[1:]
		}
		b := cluster.Batch{Changes: []cluster.Change{{Kind: cluster.SliceKind, Key: key(slice.Name), Value: slice}}}
		began := time.Now()
		p.Apply(b)
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	runtime.GC()
	debug.FreeOSMemory()
	resident, err := residentKiB()
	if err != nil {
		return err
	}

	var gone []cluster.Change
	for _, c := range list {
		if c.Kind == cluster.ServiceKind {
			gone = append(gone, cluster.Change{Kind: c.Kind, Key: c.Key})
		}
	}
	began := time.Now()
	p.Apply(cluster.Batch{Changes: gone})
	removed := time.Since(began)
	fmt.Fprintf(w, "%-16s %12s %12s %12s %12s %12s %12s %12s %9d MiB\n", fmt.Sprintf("%dx%d", sh.services, sh.endpoints), round(first), round(cpu), round(adopted),
		round(took[len(took)/2]), round(took[len(took)*99/100]), round(took[len(took)-1]), round(removed), resident/1024)
	return nil
}

func round(d time.Duration) time.Duration {
	if d > 10*time.Millisecond {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Microsecond)
}

// cpuTime is what the process has used of all processors: what the first sync takes on a machine that does nothing else.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// residentKiB is the anonymous memory of the process: the maps are files to it and are counted by fairlead status.
func residentKiB() (int, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			return strconv.Atoi(strings.Fields(rest)[0])
		}
	}
	return 0, errors.New("read /proc/self/status: no RssAnon")
}

func key(name string) cluster.Key { return cluster.Key{Namespace: "bench", Name: name} }

// lists is what a source emits at first: Services of one port with one slice each, endpoints over a hundred nodes.
func lists(sh shape) []cluster.Change {
	changes := []cluster.Change{{Kind: cluster.NodeKind, Key: cluster.Key{Name: "here"}, Value: &cluster.Node{Name: "here"}}}
	for i := range sh.services {
		s := &cluster.Service{
			Namespace: "bench", Name: fmt.Sprint("s", i), UID: fmt.Sprint("uid-", i),
			ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)})},
			Ports:      []cluster.ServicePort{{Name: "http", Protocol: cluster.TCP, Port: 80}},
		}
		slice := sliceOf(sh, i)
		changes = append(changes, cluster.Change{Kind: cluster.ServiceKind, Key: key(s.Name), Value: s},
			cluster.Change{Kind: cluster.SliceKind, Key: key(slice.Name), Value: slice})
	}
	return changes
}

func sliceOf(sh shape, i int) *cluster.Slice {
	each := sh.endpoints / sh.services
	s := &cluster.Slice{
		Namespace: "bench", Name: fmt.Sprint("s", i, "-1"), Service: fmt.Sprint("s", i),
		Ports:     []cluster.SlicePort{{Name: "http", Protocol: cluster.TCP, Port: 8080}},
		Endpoints: make([]cluster.Endpoint, 0, each),
	}
	for j := range each {
		n := i*each + j
		s.Endpoints = append(s.Endpoints, cluster.Endpoint{
			Addr: netip.AddrFrom4([4]byte{11, byte(n >> 16), byte(n >> 8), byte(n)}), Ready: true, Serving: true, Node: fmt.Sprint("node-", n%100),
		})
	}
	return s
}

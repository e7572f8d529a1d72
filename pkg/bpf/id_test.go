// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func acquire(t *testing.T, o *Objects, kind IDKind, description string) ID {
	t.Helper()
	id, err := o.IDs().Acquire(kind, description)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestIDsAreFoundAgain(t *testing.T) {
	dir := testDir(t)
	first := mustOpen(t, Options{Dir: dir, Capacity: small()})
	a := acquire(t, first, IDService, "default/web:80")
	b := acquire(t, first, IDService, "default/web:443")
	other := acquire(t, first, IDBackend, "default/web:80")
	if a.ID == b.ID || a.Incarnation == b.Incarnation {
		t.Errorf("two services share an id: %v %v", a, b)
	}
	if a.ID != 1 || other.ID != 1 {
		t.Errorf("kinds do not count by themselves: %v %v", a, other)
	}
	if again := acquire(t, first, IDService, "default/web:80"); again != a {
		t.Errorf("the same service has ids %v and %v", a, again)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	second := mustOpen(t, Options{Dir: dir, Capacity: small()})
	defer second.Close()
	if got, ok, err := second.IDs().Find(IDService, "default/web:443"); err != nil || !ok || got != b {
		t.Errorf("after a restart the service has id %v %v %v, want %v", got, ok, err, b)
	}
	all, err := second.IDs().List(IDService)
	if err != nil || len(all) != 2 {
		t.Errorf("after a restart there are %v, %v", all, err)
	}
	// An id that changes hands has another incarnation, which no agent gave out before.
	if err := second.IDs().Release(IDService, "default/web:80"); err != nil {
		t.Fatal(err)
	}
	c := acquire(t, second, IDService, "default/new:80")
	if c.ID == b.ID || c.Incarnation <= b.Incarnation {
		t.Errorf("new service has %v beside %v", c, b)
	}
}

func TestIDsAreReusedLate(t *testing.T) {
	capacity := small()
	capacity["endpoints"] = 5 // ids 1 to 4
	o := mustOpen(t, Options{Dir: testDir(t), Capacity: capacity})
	defer o.Close()
	seen := map[ID]bool{}
	for i := range 4 {
		seen[acquire(t, o, IDEndpoint, fmt.Sprint(i))] = true
	}
	_, err := o.IDs().Acquire(IDEndpoint, "one more")
	if !errors.Is(err, ErrFull) {
		t.Fatalf("fifth of four: %v, want ErrFull", err)
	}
	wantError(t, err, "acquire endpoint id: map is full (4 ids)")
	for _, i := range []int{2, 0, 3} {
		if err := errors.Join(o.IDs().Release(IDEndpoint, fmt.Sprint(i)), o.IDs().Release(IDEndpoint, fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	var order []uint32
	for i := range 3 {
		id := acquire(t, o, IDEndpoint, fmt.Sprint("new ", i))
		if seen[id] {
			t.Errorf("%v was given out before", id)
		}
		order = append(order, id.ID)
	}
	if fmt.Sprint(order) != "[3 1 4]" {
		t.Errorf("ids came back in the order %v, want the longest unused first: [3 1 4]", order)
	}
}

// TestIncarnationsOnlyGrow kills an agent at any moment of giving out ids, several times; no incarnation is ever given out twice.
func TestIncarnationsOnlyGrow(t *testing.T) {
	if dir := os.Getenv("FAIRLEAD_TEST_IDS"); dir != "" {
		ob, _, err := openMaps(Options{Dir: dir, Capacity: small()}, func(string) {})
		if err != nil {
			fmt.Println(err)
			return
		}
		if err := ob.IDs().Release(IDService, "flapping"); err != nil { // the one before died with it
			fmt.Println(err)
			return
		}
		for {
			id, err := ob.IDs().Acquire(IDService, "flapping")
			if err != nil {
				fmt.Println(err)
				return
			}
			fmt.Println(id.Incarnation)
			if err := ob.IDs().Release(IDService, "flapping"); err != nil {
				fmt.Println(err)
				return
			}
		}
	}
	dir := testDir(t)
	mustOpen(t, Options{Dir: dir, Capacity: small()}).Close()
	last := 0
	for round := range 5 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestIncarnationsOnlyGrow$", "-test.count=1")
		cmd.Env = append(os.Environ(), "FAIRLEAD_TEST_IDS="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for range 300 + 400*round { // past a reserved block in the later rounds
			var n int
			if _, err := fmt.Fscan(out, &n); err != nil {
				t.Fatal(err)
			}
			if n <= last {
				t.Fatalf("round %d: incarnation %d after %d", round, n, last)
			}
			last = n
		}
		_ = cmd.Process.Kill()
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			// Reading stopped before the child did, so a full pipe may have ended it instead.
			if err == nil || !strings.Contains(err.Error(), "signal") {
				t.Fatalf("child ended with %v", err)
			}
		}
		// What it had given out and not told is behind the counter too.
		ob, _, err := openMaps(Options{Dir: dir, Capacity: small()}, func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		all, err := ob.IDs().List(IDService)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range all {
			last = max(last, int(i.Incarnation))
		}
		if err := ob.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var errFault = errors.New("injected fault")

// bench is a runner with a log of what ran.
type bench struct {
	sync.Mutex
	r    *Runner
	now  time.Time
	log  []string
	fail map[string]int // how often a part fails from now on
}

func newBench(linger time.Duration) *bench {
	b := &bench{now: time.Unix(0, 0), fail: map[string]int{}}
	b.r = NewRunner(Options{
		Lock: b, Linger: linger, Now: func() time.Time { return b.now },
		Grace: func() error {
			if !b.TryLock() {
				panic("the lock is held while a grace period is awaited")
			}
			defer b.Unlock()
			return b.part("grace")()
		},
	})
	return b
}

func (b *bench) part(name string) func() error {
	return func() error {
		if b.fail[name] > 0 {
			b.fail[name]--
			b.log = append(b.log, name+"!")
			return errFault
		}
		b.log = append(b.log, name)
		return nil
	}
}

func (b *bench) step(name string) Step { return Step{b.part(name), b.part("-" + name)} }

func (b *bench) change() Change {
	return Change{
		Name:    "x",
		Reserve: []Step{b.step("room1"), b.step("room2")},
		Add:     []Step{b.step("add")},
		Flip:    b.part("flip"),
		Settle:  []func() error{b.part("settle1"), b.part("settle2")},
		Retire:  []func() error{b.part("retire")},
		Free:    []func() error{b.part("free")},
	}
}

func (b *bench) do() error {
	b.Lock()
	defer b.Unlock()
	return b.r.Do(b.change())
}

func (b *bench) want(t *testing.T, when, want string) {
	t.Helper()
	if got := strings.Join(b.log, " "); got != want {
		t.Errorf("%s: ran %q, want %q", when, got, want)
	}
	b.log = nil
}

// collect lets time pass.
func (b *bench) collect(d time.Duration) (int, error) {
	b.now = b.now.Add(d)
	return b.r.Collect()
}

func TestStagesRunInOrder(t *testing.T) {
	b := newBench(time.Second)
	if err := b.do(); err != nil {
		t.Fatal(err)
	}
	b.want(t, "do", "room1 room2 add flip settle1 settle2")
	if at, ok := b.r.Next(); !ok || at != b.now.Add(time.Second) {
		t.Errorf("next at %v, %v", at, ok)
	}
	for _, c := range []struct {
		wait  time.Duration
		log   string
		ended int
	}{
		{999 * time.Millisecond, "", 0}, // lingers
		{time.Millisecond, "grace retire", 0},
		{0, "grace free", 1}, // a grace period of its own
		{time.Hour, "", 0},
	} {
		ended, err := b.collect(c.wait)
		if err != nil || ended != c.ended {
			t.Errorf("%d ended, %v", ended, err)
		}
		b.want(t, fmt.Sprint("after another ", c.wait), c.log)
	}
	if _, ok := b.r.Next(); ok || b.r.Pending() != 0 {
		t.Error("something is left")
	}
}

// A failure before the flip gives back what was taken, the last thing first; one after it is tried until it succeeds.
func TestFaultAtEachStage(t *testing.T) {
	for _, c := range []struct {
		part  string
		stage Stage
		log   string
	}{
		{"room1", Reserve, "room1! -room1"},
		{"room2", Reserve, "room1 room2! -room2 -room1"},
		{"add", Add, "room1 room2 add! -add -room2 -room1"},
		{"flip", Flip, "room1 room2 add flip! -add -room2 -room1"},
	} {
		b := newBench(0)
		b.fail[c.part] = 1
		err := b.do()
		var e *Error
		if !errors.As(err, &e) || e.Stage != c.stage || e.Name != "x" || !errors.Is(err, errFault) {
			t.Errorf("%s: error %v", c.part, err)
		}
		b.want(t, c.part, c.log)
		if b.r.Pending() != 0 {
			t.Errorf("%s: something is left", c.part)
		}
	}
	for _, c := range []struct {
		part string
		log  string
	}{
		{"settle1", "room1 room2 add flip settle1! settle1! settle1 settle2 grace retire grace free"},
		{"settle2", "room1 room2 add flip settle1 settle2! settle2! settle2 grace retire grace free"},
		{"grace", "room1 room2 add flip settle1 settle2 grace! grace! grace retire grace free"},
		{"retire", "room1 room2 add flip settle1 settle2 grace retire! grace retire! grace retire grace free"},
		{"free", "room1 room2 add flip settle1 settle2 grace retire grace free! grace free! grace free"},
	} {
		b := newBench(0)
		b.fail[c.part] = 2
		if err := b.do(); err != nil {
			t.Errorf("%s: %v", c.part, err)
		}
		for b.r.Pending() > 0 {
			b.collect(time.Minute)
		}
		b.want(t, c.part, c.log)
	}
}

// What cannot be given back at once is given back later, in order.
func TestUndoThatFails(t *testing.T) {
	b := newBench(0)
	b.fail["add"], b.fail["-room2"] = 1, 2
	if err := b.do(); err == nil {
		t.Fatal("no error")
	}
	b.want(t, "do", "room1 room2 add! -add -room2!")
	if _, err := b.collect(time.Millisecond); err != nil {
		t.Errorf("too early: %v", err)
	}
	b.want(t, "too early", "")
	if _, err := b.collect(time.Minute); !errors.Is(err, errFault) {
		t.Errorf("error %v", err)
	}
	if ended, err := b.collect(time.Minute); err != nil || ended != 1 {
		t.Errorf("%d ended, %v", ended, err)
	}
	b.want(t, "later", "-room2! -room2 -room1")
}

// Many changes share one grace period.
func TestOneGraceForMany(t *testing.T) {
	b := newBench(time.Second)
	for range 3 {
		if err := b.do(); err != nil {
			t.Fatal(err)
		}
	}
	b.log = nil
	b.collect(time.Second)
	b.want(t, "retire", "grace retire retire retire")
	b.collect(0)
	b.want(t, "free", "grace free free free")
}

func TestFaultHook(t *testing.T) {
	for _, stage := range []Stage{Reserve, Add, Flip} {
		b := newBench(0)
		b.r.o.Fault = func(s Stage, name string) error {
			if s == stage && name == "x" {
				return errFault
			}
			return nil
		}
		var e *Error
		if err := b.do(); !errors.As(err, &e) || e.Stage != stage {
			t.Errorf("fault in %s gives %v", stage, err)
		}
		taken := 0
		for _, part := range b.log {
			if strings.HasPrefix(part, "-") {
				taken--
			} else {
				taken++
			}
		}
		if taken != 0 {
			t.Errorf("fault in %s: not given back: %v", stage, b.log)
		}
	}
}

func TestRetry(t *testing.T) {
	var r Retry[string]
	at := time.Unix(0, 0)
	if _, ok := r.Next(); ok || r.Get("a") != nil {
		t.Error("the zero value remembers something")
	}
	var waits []time.Duration
	for range 12 {
		r.Failed("a", errFault, at)
		next, _ := r.Next()
		waits = append(waits, next.Sub(at))
		if len(r.Due(next.Add(-1))) != 0 || !slices.Equal(r.Due(next), []string{"a"}) {
			t.Fatalf("due at another time than %v", next)
		}
		at = next
	}
	if waits[0] != 20*time.Millisecond || waits[1] != 40*time.Millisecond || waits[11] != 10*time.Second || slices.Max(waits) != 10*time.Second {
		t.Errorf("waits %v", waits)
	}
	if f := r.Get("a"); f.Since != time.Unix(0, 0) || f.Tries != 12 || !errors.Is(f.Err, errFault) {
		t.Errorf("failure %+v", f)
	}
	r.Failed("b", errFault, at)
	r.Hurry(at)
	if due := r.Due(at); len(due) != 2 {
		t.Errorf("due after hurry: %v", due)
	}
	r.Forget("a")
	if r.Len() != 1 || r.Get("a") != nil {
		t.Error("a is not forgotten")
	}
}

// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func pool(t *testing.T, cidr string) *Pool {
	t.Helper()
	p, err := New(netip.MustParsePrefix(cidr), 130*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func all(t *testing.T, p *Pool, now time.Duration) (got []string) {
	t.Helper()
	for {
		a, err := p.Allocate(now)
		if errors.Is(err, ErrFull) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a.String())
	}
}

func TestPoolGivesEveryAddressOnceButTheReserved(t *testing.T) {
	for cidr, want := range map[string][]string{
		"10.0.0.0/29":      {"10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"},
		"10.0.0.248/30":    {"10.0.0.250"},
		"fd00::8/125":      {"fd00::a", "fd00::b", "fd00::c", "fd00::d", "fd00::e", "fd00::f"},
		"fd00:1::fffc/126": {"fd00:1::fffe", "fd00:1::ffff"},
	} {
		p := pool(t, cidr)
		got := all(t, p, 0)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", cidr, d)
		}
		if p.Used() != len(want) || p.Size() != len(want) {
			t.Errorf("%s: used %d of %d, want %d", cidr, p.Used(), p.Size(), len(want))
		}
	}
}

func TestPoolRefusesWhatHoldsNoPod(t *testing.T) {
	for _, cidr := range []string{"10.0.0.0/31", "10.0.0.1/32", "fd00::/127", "10.0.0.1/24", "::ffff:10.0.0.0/120"} {
		if p, err := New(netip.MustParsePrefix(cidr), 0); err == nil {
			t.Errorf("%s: no error, %d addresses", cidr, p.Size())
		}
	}
}

func TestPoolReusesLeastRecentlyFreed(t *testing.T) {
	p := pool(t, "10.0.0.0/29")
	all(t, p, 0)
	for i, a := range []string{"10.0.0.4", "10.0.0.2", "10.0.0.6"} {
		p.Free(netip.MustParseAddr(a), time.Duration(i)*time.Second)
	}
	if got := p.Cooling(131 * time.Second); got != 1 {
		t.Errorf("cooling at 131 s: %d, want 1", got)
	}
	got := all(t, p, 200*time.Second)
	if d := cmp.Diff([]string{"10.0.0.4", "10.0.0.2", "10.0.0.6"}, got); d != "" {
		t.Error(d)
	}
	if p.Hurried() != 0 {
		t.Errorf("hurried %d times after the cooldown", p.Hurried())
	}
}

func TestPoolShortensTheCooldownRatherThanFail(t *testing.T) {
	p := pool(t, "10.0.0.0/29")
	a, err := p.Allocate(0)
	if err != nil {
		t.Fatal(err)
	}
	p.Free(a, 0)
	got := all(t, p, time.Second)
	if d := cmp.Diff([]string{"10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"}, got); d != "" {
		t.Error(d)
	}
	if p.Hurried() != 1 {
		t.Errorf("hurried %d times, want 1", p.Hurried())
	}
}

func TestPoolTake(t *testing.T) {
	p := pool(t, "10.0.0.0/29")
	six := pool(t, "fd00::/64")
	for _, c := range []struct {
		pool *Pool
		addr string
		want error
	}{
		{p, "10.0.0.3", nil},
		{p, "10.0.0.3", ErrTaken},
		{p, "10.0.0.0", ErrReserved},
		{p, "10.0.0.1", ErrReserved},
		{p, "10.0.0.7", ErrReserved},
		{p, "10.0.0.8", ErrOutside},
		{p, "fd00::3", ErrOutside},
		{six, "fd00::ffff", nil},
		{six, "fd00::1:0", ErrReserved},
		{six, "fd00::ffff:0:0:2", ErrReserved},
	} {
		if err := c.pool.Take(netip.MustParseAddr(c.addr)); !errors.Is(err, c.want) {
			t.Errorf("take %s: %v, want %v", c.addr, err, c.want)
		}
	}
	if d := cmp.Diff([]string{"10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"}, all(t, p, 0)); d != "" {
		t.Error(d)
	}
}

func TestPoolRemembersOverARestart(t *testing.T) {
	p := pool(t, "10.0.0.0/28")
	for range 5 {
		if _, err := p.Allocate(0); err != nil {
			t.Fatal(err)
		}
	}
	p.Free(netip.MustParseAddr("10.0.0.5"), 10*time.Second)
	p.Free(netip.MustParseAddr("10.0.0.2"), 20*time.Second)

	q := pool(t, "10.0.0.0/28")
	q.Restore(p.State(), func(at time.Duration) time.Duration { return at })
	for _, a := range []string{"10.0.0.3", "10.0.0.4", "10.0.0.6"} {
		if err := q.Take(netip.MustParseAddr(a)); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(p.State(), q.State(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(all(t, p, time.Hour), all(t, q, time.Hour)); d != "" {
		t.Error(d)
	}
	other := pool(t, "10.0.1.0/28")
	other.Restore(p.State(), func(at time.Duration) time.Duration { return at })
	if s := other.State(); s.Next != Reserved || len(s.Freed) != 0 {
		t.Errorf("state of another CIDR was taken: %+v", s)
	}
}

// Whatever is done, an address is never given out twice, and the counts hold.
func TestPoolNeverGivesAnAddressTwice(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := pool(t, "10.0.0.0/26")
		held := map[netip.Addr]bool{}
		for step := range 2000 {
			now := time.Duration(step) * time.Second
			switch r.IntN(5) {
			case 0, 1:
				a, err := p.Allocate(now)
				if err != nil {
					if len(held) != p.Size() {
						t.Fatalf("seed %d step %d: %v with %d of %d in use", seed, step, err, len(held), p.Size())
					}
					continue
				}
				if held[a] {
					t.Fatalf("seed %d step %d: %s twice", seed, step, a)
				}
				held[a] = true
			case 2:
				a := p.at(uint32(r.IntN(64)))
				if err := p.Take(a); (err == nil) == held[a] && !errors.Is(err, ErrReserved) {
					t.Fatalf("seed %d step %d: take %s: %v, held %v", seed, step, a, err, held[a])
				} else if err == nil {
					held[a] = true
				}
			default:
				for a := range held {
					p.Free(a, now)
					p.Free(a, now)
					delete(held, a)
					break
				}
			}
			if p.Used() != len(held) {
				t.Fatalf("seed %d step %d: used %d, held %d", seed, step, p.Used(), len(held))
			}
		}
	}
}

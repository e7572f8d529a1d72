// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestSnapshotComesBack(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "snapshot.json")
	if _, err := ReadSnapshot(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v, want fs.ErrNotExist", err)
	}
	full := Snapshot{
		Node: &Node{Name: "n1", UID: "u", Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Zone: "z", MTU: 1450, Deleting: true, Excluded: true,
			PodCIDRs: prefixes("10.0.1.0/24", "fd00::/64"), InternalIPs: addrs("192.0.2.1", "fd00::1")},
		APIServers: []string{"192.0.2.10:6443", "[fd00::a]:6443"},
		Versions:   map[string]string{NodeKind.String(): "7", SliceKind.String(): "18446744073709551615"},
	}
	for _, want := range []Snapshot{full, {}} {
		if err := want.Write(path); err != nil {
			t.Fatal(err)
		}
		got, err := ReadSnapshot(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Errorf("snapshot (-want +got):\n%s", diff)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left in the folder: %v, %v; want the snapshot alone", entries, err)
	}
}

func TestSnapshotRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot.json")
	for _, c := range []struct{ text, want string }{
		{"", "unexpected end"},
		{`{"version":1,"node":{"PodCIDRs":["x"]}}`, "snapshot.json"},
		{`{"version":2}`, "version 2, this agent knows 1; remove the file"},
		{`{}`, "version 0"},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadSnapshot(path); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v, want an error with the path and %q", c.text, err, c.want)
		}
	}
	if err := (Snapshot{}).Write(filepath.Join(t.TempDir(), "absent", "snapshot.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("write into a folder that is not there: %v", err)
	}
	// A newer agent may know more kinds and fields; going back to this one must work.
	if err := os.WriteFile(path, []byte(`{"version":1,"versions":{"policies":"5"},"more":true}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := ReadSnapshot(path); err != nil || s.Versions["policies"] != "5" {
		t.Errorf("a newer agent's snapshot: %+v, %v", s, err)
	}
}

func TestConditions(t *testing.T) {
	var c Conditions
	if !c.Set(Condition{Name: "b", Reason: "r", Message: "m"}) || !c.Set(Condition{Name: "a", Object: "o", Reason: "r"}) {
		t.Error("a new condition is not new")
	}
	since := c.List()[1].Since
	if c.Set(Condition{Name: "b", Reason: "r", Message: "m"}) {
		t.Error("the same condition is new")
	}
	if !c.Set(Condition{Name: "b", Reason: "r", Message: "other"}) || !c.List()[1].Since.Equal(since) {
		t.Error("another message for the same reason: want news, and the old time")
	}
	if got := c.List(); len(got) != 2 || got[0].Name != "a" || got[1].Message != "other" || since.IsZero() {
		t.Errorf("list %+v", got)
	}
	if !c.Clear("a", "o") || c.Clear("a", "o") || c.Clear("b", "x") || len(c.List()) != 1 {
		t.Errorf("clear: left %+v", c.List())
	}
}

func TestInternerShares(t *testing.T) {
	in := NewInterner()
	a, b := in.list(strings.Repeat("z", 3)), in.list(strings.Repeat("z", 3))
	if &a[0] != &b[0] {
		t.Error("equal lists are two")
	}
	for i := range 2 * internLimit { // a full table starts again and stays right
		s := in.intern(strconv.Itoa(i))
		if in.intern(s) != s {
			t.Fatal("not what went in")
		}
	}
	if n := len(in.strings); n > internLimit {
		t.Errorf("%d strings, want at most %d", n, internLimit)
	}
}

// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestProbe knows the answers for a kernel with everything: the one that Open works on.
func TestProbe(t *testing.T) {
	before, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	all := Probe()
	names := map[string]bool{}
	for _, f := range all {
		t.Logf("%-20s needed %-5t %v", f.Name, f.Needed, f.Err)
		if names[f.Name] || f.Name == "" || f.What == "" {
			t.Errorf("feature %+v has no name of its own", f)
		}
		names[f.Name] = true
		if f.Needed && !f.OK() {
			t.Errorf("%s: %v", f.Name, f.Err)
		}
	}
	if err := Missing(all); err != nil {
		t.Error(err)
	}
	after, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range after {
		if i.Name == "probe0" {
			t.Errorf("the probe left device %s (%d devices before)", i.Name, len(before))
		}
	}
}

// TestProbesSayNo gives each way of probing something that this kernel cannot do.
func TestProbesSayNo(t *testing.T) {
	if err := probeIterator("no_such_iterator"); err == nil {
		t.Error("an iterator that does not exist works")
	}
	err := inNamespace(func() error {
		if err := addClsact(4711); !errors.Is(err, unix.ENODEV) {
			t.Errorf("clsact on no device: %v", err)
		}
		if err := addFilter(loopbackIndex, 0); err == nil {
			t.Error("a filter without clsact works")
		}
		return errors.Join(addVXLAN("a0"), addVXLAN("a0"))
	})
	if !errors.Is(err, unix.EEXIST) {
		t.Errorf("two devices of one name: %v", err)
	}
}

func TestMissing(t *testing.T) {
	err := Missing([]Feature{
		{Name: "timer", What: "flows expire without the agent", Needed: true, Err: errors.New("unknown func")},
		{Name: "tcx", Err: errors.New("invalid argument")},
		{Name: "clsact", Needed: true},
	})
	if want := "kernel feature timer (flows expire without the agent) is missing: unknown func"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

func TestLayoutAdopts(t *testing.T) {
	u32 := &btf.Int{Name: "u32", Size: 4}
	u64 := &btf.Int{Name: "u64", Size: 8}
	words := func(n uint32) *btf.Array { return &btf.Array{Index: u32, Type: u32, Nelems: n} }
	member := func(name string, typ btf.Type, offset uint32) btf.Member {
		return btf.Member{Name: name, Type: typ, Offset: btf.Bits(offset * 8)}
	}
	of := func(members ...btf.Member) layout {
		value := &btf.Struct{Name: "value", Size: 32, Members: members}
		return wantedLayout(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 32, Key: u32, Value: value})
	}
	base := of(member("word", u64, 0), member("mtu", u32, 8), member("pad", u32, 12), member("reserved", words(4), 16))
	with := func(l layout, change func(*layout)) layout {
		change(&l)
		return l
	}
	for _, c := range []struct {
		name   string
		pinned layout
		want   bool
	}{
		{"same", base, true},
		{"field in reserved space", of(member("word", u64, 0), member("mtu", u32, 8), member("pad", u32, 12), member("zone", u32, 16),
			member("reserved", words(3), 20)), true},
		{"field in padding", of(member("word", u64, 0), member("mtu", u32, 8), member("port", u32, 12), member("reserved", words(4), 16)), true},
		{"field in an unnamed hole", of(member("word", u64, 0), member("mtu", u32, 8)), true},
		{"field renamed", of(member("word", u64, 0), member("size", u32, 8), member("pad", u32, 12), member("reserved", words(4), 16)), false},
		{"fields swapped", of(member("mtu", u32, 0), member("word", u64, 8), member("reserved", words(4), 16)), false},
		{"field wider", of(member("word", u64, 0), member("mtu", u64, 8), member("reserved", words(4), 16)), false},
		{"nested alike", of(member("word", u64, 0), member("mtu", &btf.Typedef{Name: "m", Type: &btf.Volatile{Type: u32}}, 8),
			member("reserved", words(4), 16)), true},
		{"another type", with(base, func(l *layout) { l.kind = ebpf.Hash }), false},
		{"other flags", with(base, func(l *layout) { l.flags = 1 }), false},
		{"larger value", with(base, func(l *layout) { l.valueSize = 40 }), false},
		{"larger key", with(base, func(l *layout) { l.keySize = 8 }), false},
		{"sizes only", with(base, func(l *layout) { l.typed, l.key, l.value = false, nil, nil }), true},
		{"version before", with(base, func(l *layout) { l.version = 0 }), true},
		{"version after", with(base, func(l *layout) { l.version = 2 }), true},
		{"two versions after", with(base, func(l *layout) { l.version = 3 }), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := base.adopts(c.pinned); got != c.want {
				t.Errorf("adopts is %t, want %t\nwanted %s\npinned %s", got, c.want, base, c.pinned)
			}
			if got := c.pinned.adopts(base); got != c.want {
				t.Errorf("the other way adopts is %t, want %t: a release and the one before adopt each other", got, c.want)
			}
		})
	}
	if got, want := base.String(), "array flags 0x0 version 1 key 4 bytes value 32 bytes {word@0:8 mtu@8:4 pad@12:4 reserved@16:16}"; got != want {
		t.Errorf("layout is written %q, want %q", got, want)
	}
}

func TestLayoutVersionIsATag(t *testing.T) {
	for want, tags := range map[uint32][]string{1: {"keep"}, 7: {"keep", "version:7"}} {
		if got := wantedLayout(&ebpf.MapSpec{Tags: tags}).version; got != want {
			t.Errorf("tags %q give version %d, want %d", tags, got, want)
		}
	}
}

// TestPinnedLayoutIsWanted compares what the objects declare with what the kernel gives back, for every kept map.
func TestPinnedLayoutIsWanted(t *testing.T) {
	o := openTest(t)
	specs, err := load()
	if err != nil {
		t.Fatal(err)
	}
	kept, err := keep(specs)
	if err != nil {
		t.Fatal(err)
	}
	typed := 0
	for name, spec := range kept {
		pinned, err := pinnedLayout(o.maps[name])
		if err != nil {
			t.Fatal(err)
		}
		wanted := wantedLayout(spec)
		pinned.version = wanted.version
		if !pinned.typed { // the kernel refuses BTF for this map
			wanted.key, wanted.value = nil, nil
		} else {
			typed++
		}
		if pinned.String() != wanted.String() {
			t.Errorf("map %s: kernel has %s, object declares %s", name, pinned, wanted)
		}
	}
	if untyped := len(kept) - typed; untyped > 3 { // drops, counters, incarnations: an enum is their key
		t.Errorf("%d maps of %d are not known by BTF", untyped, len(kept))
	}
}

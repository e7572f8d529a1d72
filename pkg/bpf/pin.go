// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// What an agent's directory holds.
const (
	mapsDir  = "maps"
	linksDir = "links"
)

// makeDir makes the directories, on a bpf file system only: a pin elsewhere is refused by the kernel with an error that says nothing.
func makeDir(dir string, step func(string)) error {
	if dir == "" {
		return errors.New("open bpf directory: no path given")
	}
	for _, d := range []string{dir, filepath.Join(dir, mapsDir), filepath.Join(dir, linksDir)} {
		step("directory " + filepath.Base(d))
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make bpf directory %s: %w", d, err)
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(d, &fs); err != nil {
			return fmt.Errorf("look at bpf directory %s: %w", d, err)
		}
		if fs.Type != unix.BPF_FS_MAGIC {
			return fmt.Errorf("open bpf directory %s: not on a bpf file system: mount one (mount -t bpf bpf /sys/fs/bpf) or set another --bpffs-dir", d)
		}
	}
	return nil
}

// adoptMaps fills o.maps. First everything that is pinned is looked at, so that a map that cannot be adopted leaves nothing behind; then
// what is missing is made. The version of a map is written before its pin exists: a pin without a version does not happen.
func (o *Objects) adoptMaps(kept map[string]*ebpf.MapSpec, step func(string)) error {
	for _, name := range order(kept) {
		m, err := o.adoptMap(name, kept[name])
		if err != nil {
			return err
		}
		if m != nil {
			o.maps[name] = m
		}
	}
	o.matchFlows(kept)
	for _, name := range order(kept) {
		if o.maps[name] != nil {
			continue
		}
		m, err := o.makeMap(name, kept[name], step)
		if err != nil {
			return err
		}
		o.maps[name] = m
	}
	return nil
}

// matchFlows sizes the missing one of the two arrays of the flow table after the one that is pinned: their maker was killed in between,
// and was told other sizes.
func (o *Objects) matchFlows(kept map[string]*ebpf.MapSpec) {
	index, slots := o.maps[LayoutMapFlowBuckets], o.maps[LayoutMapFlowSlots]
	if index == nil && slots != nil {
		kept[LayoutMapFlowBuckets].MaxEntries, _ = flowLines(slots.MaxEntries())
	}
	if index != nil && slots == nil {
		kept[LayoutMapFlowSlots].MaxEntries = flowSlots(index.MaxEntries())
	}
}

// order is the order in which maps are adopted and made: the one with the versions first.
func order(kept map[string]*ebpf.MapSpec) []string {
	names := slices.Sorted(maps.Keys(kept))
	i := slices.Index(names, LayoutMapLayouts)
	return append([]string{LayoutMapLayouts}, slices.Delete(names, i, i+1)...)
}

// adoptMap returns the pinned map, or nil when there is none.
func (o *Objects) adoptMap(name string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	path := filepath.Join(o.dir, mapsDir, name)
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("adopt map %s: open %s: %w", name, path, err)
	}
	wanted := wantedLayout(spec)
	pinned, err := pinnedLayout(m)
	if err == nil && name == LayoutMapLayouts {
		pinned.version = wanted.version
	} else if err == nil {
		pinned.version, err = o.version(name, wanted.version)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("adopt map %s: %w", name, err), m.Close())
	}
	if !wanted.adopts(pinned) {
		return nil, errors.Join(&LayoutError{Map: name, Path: path, Pinned: pinned.String(), Wanted: wanted.String()}, m.Close())
	}
	if m.MaxEntries() != spec.MaxEntries {
		o.log.Info("map keeps the capacity of its pin", "map", name, "capacity", m.MaxEntries(), "wanted", spec.MaxEntries)
	}
	if name == LayoutMapLayouts {
		o.layouts = &hash[LayoutLayoutName, uint32]{name: name, m: m}
		return m, nil
	}
	// A later release reads what this one writes from now on as its own version.
	if pinned.version < wanted.version {
		if err := o.setVersion(name, wanted.version); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	return m, nil
}

// makeMap makes and pins a map. When another agent was faster its map is the one.
func (o *Objects) makeMap(name string, spec *ebpf.MapSpec, step func(string)) (*ebpf.Map, error) {
	step("make " + name)
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("make map %s: %w", name, err)
	}
	if name == LayoutMapLayouts {
		o.layouts = &hash[LayoutLayoutName, uint32]{name: name, m: m}
	} else {
		step("version " + name)
		if err := o.setVersion(name, versionOf(spec)); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	step("pin " + name)
	path := filepath.Join(o.dir, mapsDir, name)
	if err := m.Pin(path); errors.Is(err, os.ErrExist) {
		if err := m.Close(); err != nil {
			return nil, fmt.Errorf("close map %s: %w", name, err)
		}
		return o.adoptMap(name, spec)
	} else if err != nil {
		return nil, errors.Join(fmt.Errorf("pin map %s at %s: %w", name, path, err), m.Close())
	}
	o.log.Info("map made", "map", name, "capacity", m.MaxEntries())
	return m, nil
}

// version returns the version of a pinned map; one that nobody wrote down is the wanted one.
func (o *Objects) version(name string, wanted uint32) (uint32, error) {
	if o.layouts == nil {
		return wanted, nil
	}
	v, ok, err := o.layouts.get(layoutName(name))
	if err != nil {
		return 0, err
	}
	if !ok {
		return wanted, nil
	}
	return v, nil
}

func (o *Objects) setVersion(name string, version uint32) error {
	if err := o.layouts.put(layoutName(name), version); err != nil {
		return fmt.Errorf("write version of map %s: %w", name, err)
	}
	return nil
}

// layoutName returns a map's name as the key of layouts.
func layoutName(name string) (n LayoutLayoutName) {
	for i := range min(len(name), len(n.Bytes)-1) {
		n.Bytes[i] = name[i]
	}
	return n
}

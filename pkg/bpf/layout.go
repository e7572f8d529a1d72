// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// LayoutError says that a pinned map cannot be adopted: what the kernel holds is not what this agent reads and writes.
type LayoutError struct {
	Map    string
	Path   string // of the pin
	Pinned string // layout in the kernel
	Wanted string // layout of this agent
}

// Error names the map, both layouts and what to do.
func (e *LayoutError) Error() string {
	return fmt.Sprintf("adopt map %s: layout differs: pinned at %s is %s, this agent needs %s: "+
		"run an agent of the release that pinned it or of the one after, or remove everything with fairleadd uninstall", e.Map, e.Path, e.Pinned, e.Wanted)
}

// layout is how a map is laid out: what two agents that share it must agree on. The number of elements is not part of it.
type layout struct {
	kind       ebpf.MapType
	flags      uint32
	keySize    uint32
	valueSize  uint32
	version    uint32
	typed      bool // key and value are known by BTF
	key, value []field
}

// field is a leaf of a key or value.
type field struct {
	name     string // path with dots
	offset   uint32 // in bits
	size     uint32 // in bits
	reserved bool   // padding, or space for later releases
}

// wantedLayout returns the layout that an object file declares. The kernel takes no BTF for some maps (an enum as array key); then
// their key and value are known by size only, on both sides.
func wantedLayout(spec *ebpf.MapSpec) layout {
	l := layout{kind: spec.Type, flags: spec.Flags, keySize: spec.KeySize, valueSize: spec.ValueSize, version: versionOf(spec)}
	if spec.Key != nil && spec.Value != nil {
		l.typed = true
		l.key, l.value = fieldsOf(spec.Key), fieldsOf(spec.Value)
	}
	return l
}

// versionOf returns the version in a map's tag "version:n"; 1 without.
func versionOf(spec *ebpf.MapSpec) uint32 {
	for _, tag := range spec.Tags {
		if n, ok := strings.CutPrefix(tag, "version:"); ok {
			if v, err := strconv.ParseUint(n, 10, 32); err == nil {
				return uint32(v)
			}
		}
	}
	return 1
}

// pinnedLayout returns the layout that the kernel knows of a map; the version is not the kernel's to know.
func pinnedLayout(m *ebpf.Map) (layout, error) {
	info, err := mapInfoOf(m)
	if err != nil {
		return layout{}, err
	}
	l := layout{kind: m.Type(), flags: info.flags &^ lockFlags, keySize: info.keySize, valueSize: info.valueSize}
	if info.btfID == 0 || info.btfValueType == 0 {
		return l, nil
	}
	handle, err := btf.NewHandleFromID(btf.ID(info.btfID))
	if err != nil {
		return layout{}, fmt.Errorf("open BTF %d: %w", info.btfID, err)
	}
	defer handle.Close()
	types, err := handle.Spec(nil)
	if err != nil {
		return layout{}, fmt.Errorf("read BTF %d: %w", info.btfID, err)
	}
	key, err1 := types.TypeByID(btf.TypeID(info.btfKeyType))
	value, err2 := types.TypeByID(btf.TypeID(info.btfValueType))
	if err := errors.Join(err1, err2); err != nil {
		return layout{}, fmt.Errorf("read BTF %d: %w", info.btfID, err)
	}
	l.typed = true
	l.key, l.value = fieldsOf(key), fieldsOf(value)
	return l, nil
}

// lockFlags are set or cleared by the kernel and say nothing of the layout.
const lockFlags = unix.BPF_F_RDONLY | unix.BPF_F_WRONLY

// adopts says whether an agent that wants l may use what has layout pinned. Fields may be added in reserved space only: a field that one
// side does not know lies where the other side has padding or reserved bytes.
func (l layout) adopts(pinned layout) bool {
	if l.kind != pinned.kind || l.flags != pinned.flags || l.keySize != pinned.keySize || l.valueSize != pinned.valueSize {
		return false
	}
	if pinned.version > l.version+1 || l.version > pinned.version+1 {
		return false
	}
	if !l.typed || !pinned.typed {
		return true
	}
	return agree(l.key, pinned.key) && agree(l.value, pinned.value)
}

// agree compares two sets of fields of the same size.
func agree(a, b []field) bool {
	return coveredBy(a, b) && coveredBy(b, a)
}

// coveredBy says that each field of a is the same field in b, or reserved space there.
func coveredBy(a, b []field) bool {
	for _, f := range a {
		if f.reserved {
			continue
		}
		if slices.Contains(b, f) {
			continue
		}
		for _, g := range b {
			apart := g.offset+g.size <= f.offset || f.offset+f.size <= g.offset
			if !apart && !g.reserved {
				return false
			}
		}
	}
	return true
}

// fieldsOf flattens a type. Members of a union lie side by side.
func fieldsOf(t btf.Type) []field {
	var fields []field
	flatten(&fields, t, "", 0, 0)
	return fields
}

func flatten(fields *[]field, t btf.Type, path string, offset, bits uint32) {
	t = btf.UnderlyingType(t)
	var members []btf.Member
	switch t := t.(type) {
	case *btf.Struct:
		members = t.Members
	case *btf.Union:
		members = t.Members
	default:
		if bits == 0 {
			if n, err := btf.Sizeof(t); err == nil {
				bits = uint32(n) * 8
			}
		}
		last := path[strings.LastIndexByte(path, '.')+1:]
		reserved := strings.HasPrefix(last, "reserved") || strings.HasPrefix(last, "pad")
		*fields = append(*fields, field{name: path, offset: offset, size: bits, reserved: reserved})
		return
	}
	for _, m := range members {
		name := path
		if m.Name != "" && path != "" {
			name += "."
		}
		flatten(fields, m.Type, name+m.Name, offset+uint32(m.Offset), uint32(m.BitfieldSize))
	}
}

// String writes the layout as one line: type, flags, version, then name@offset:size of every field in bytes.
func (l layout) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s flags %#x version %d key %d bytes", strings.ToLower(l.kind.String()), l.flags, l.version, l.keySize)
	writeFields(&b, l.key)
	fmt.Fprintf(&b, " value %d bytes", l.valueSize)
	writeFields(&b, l.value)
	return b.String()
}

func writeFields(b *strings.Builder, fields []field) {
	if len(fields) < 2 {
		return
	}
	b.WriteString(" {")
	for i, f := range fields {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(b, "%s@%d:%d", f.name, f.offset/8, f.size/8)
	}
	b.WriteByte('}')
}

// mapInfo is what the kernel tells of a map and the library does not pass on.
type mapInfo struct {
	keySize, valueSize, maxEntries, flags uint32
	btfID, btfKeyType, btfValueType       uint32
}

// mapInfoOf asks the kernel (struct bpf_map_info in linux/bpf.h).
func mapInfoOf(m *ebpf.Map) (mapInfo, error) {
	type bpfMapInfo struct {
		kind, id, keySize, valueSize, maxEntries, flags uint32
		name                                            [16]byte
		ifindex, btfVmlinuxValueType                    uint32
		netnsDev, netnsIno                              uint64
		btfID, btfKeyType, btfValueType, pad            uint32
		mapExtra                                        uint64
	}
	raw := new(bpfMapInfo)
	var pin runtime.Pinner // the kernel gets the address as a number
	pin.Pin(raw)
	defer pin.Unpin()
	attr := struct {
		fd, len uint32
		info    uint64
	}{uint32(m.FD()), uint32(unsafe.Sizeof(*raw)), uint64(uintptr(unsafe.Pointer(raw)))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET_INFO_BY_FD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return mapInfo{}, fmt.Errorf("read map info: %w", errno)
	}
	return mapInfo{
		keySize: raw.keySize, valueSize: raw.valueSize, maxEntries: raw.maxEntries, flags: raw.flags,
		btfID: raw.btfID, btfKeyType: raw.btfKeyType, btfValueType: raw.btfValueType,
	}, nil
}

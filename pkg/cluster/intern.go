// SPDX-License-Identifier: Apache-2.0

package cluster

// internLimit bounds an Interner; a cluster has fewer distinct node names, namespaces, zones and port names than that.
const internLimit = 1 << 16

// Interner gives equal strings one backing store: names of nodes, namespaces, zones and ports repeat in every endpoint. One goroutine at a
// time may use it; nil interns nothing.
type Interner struct {
	strings map[string]string
	lists   map[string][]string // the one-element lists that topology hints are
}

// NewInterner returns an empty one.
func NewInterner() *Interner {
	return &Interner{strings: map[string]string{}, lists: map[string][]string{}}
}

// intern returns a string equal to s. A full table is thrown away: what is in use lives on, and what comes is shared again.
func (i *Interner) intern(s string) string {
	if i == nil || s == "" {
		return s
	}
	if t, ok := i.strings[s]; ok {
		return t
	}
	if len(i.strings) >= internLimit {
		clear(i.strings)
	}
	i.strings[s] = s
	return s
}

// list returns a list with s as its only element, shared by all callers, so it must not be changed.
func (i *Interner) list(s string) []string {
	if i == nil {
		return []string{s}
	}
	if l, ok := i.lists[s]; ok {
		return l
	}
	if len(i.lists) >= internLimit {
		clear(i.lists)
	}
	l := []string{i.intern(s)}
	i.lists[l[0]] = l
	return l
}

// labels returns a copy with shared strings; nil when there are none.
func (i *Interner) labels(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	c := make(map[string]string, len(m))
	for k, v := range m {
		c[i.intern(k)] = i.intern(v)
	}
	return c
}

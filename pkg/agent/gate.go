// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"strings"
	"sync"
)

// gate holds a domain back until everything that its desired state is computed from is there: before that "not seen" does not mean
// "does not exist", and a pinned entry of the previous agent must not be taken away. A gate never closes again.
type gate struct {
	name string

	mu      sync.Mutex
	waiting []string
	open    chan struct{}
}

func newGate(name string, needs ...string) *gate {
	g := &gate{name: name, waiting: slices.Clone(needs), open: make(chan struct{})}
	if len(needs) == 0 {
		close(g.open)
	}
	return g
}

// have says that one of the needs is there. Saying it again, or of something that the gate does not need, changes nothing.
func (g *gate) have(what string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.waiting, what)
	if i < 0 {
		return
	}
	g.waiting = slices.Delete(g.waiting, i, i+1)
	if len(g.waiting) == 0 {
		close(g.open)
	}
}

// missing returns what the gate still waits for.
func (g *gate) missing() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.waiting)
}

// String names the gate and what it waits for.
func (g *gate) String() string {
	if m := g.missing(); len(m) > 0 {
		return g.name + " (" + strings.Join(m, ", ") + ")"
	}
	return g.name
}

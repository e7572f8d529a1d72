// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"sync"
	"time"
)

// linger is how long a removed endpoint's link stays. The runtime removes the namespace right after DEL, and the link with it, together
// with many others in one go; alone it costs 15 ms under the kernel's network lock, for which every ADD would wait.
const linger = time.Second

// doomed is the links of endpoints that are gone already: no program knows them, so they carry nothing.
type doomed struct {
	mu    sync.Mutex
	links map[string]doom
	wake  chan struct{}
}

type doom struct {
	due    time.Time
	cookie uint64 // of the namespace of the pod side
	ifname string
}

func (d *doomed) add(name string, what doom) {
	d.mu.Lock()
	d.links[name] = what
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// take returns whether a link is doomed and takes it from the list.
func (d *doomed) take(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.links[name]
	delete(d.links, name)
	return ok
}

// inside returns the doomed links whose pod side is an interface of a namespace.
func (d *doomed) inside(cookie uint64, ifname string) (names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, w := range d.links {
		if w.cookie == cookie && w.ifname == ifname {
			names = append(names, name)
		}
	}
	return names
}

// next returns a link that is due, or how long it is until one is.
func (d *doomed) next(now time.Time) (name string, wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	wait = time.Hour
	for n, w := range d.links {
		if left := w.due.Sub(now); left < wait {
			name, wait = n, left
		}
	}
	if wait > 0 {
		return "", wait
	}
	return name, 0
}

func (d *doomed) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.links)
}

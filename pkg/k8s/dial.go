// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	dialTimeout = 3 * time.Second  // for each address
	blameTime   = 30 * time.Second // an address that failed comes last for so long
)

// dialer connects to the first API server that answers, whatever name the client asks for: before any Service works there is no name and
// no ClusterIP that leads to one. TLS still verifies the name that the client asked for.
type dialer struct {
	mu     sync.Mutex
	fixed  []string // HOST:PORT, configured
	seen   []string // HOST:PORT, learned from the cluster; they come after the fixed ones
	failed map[string]time.Time
	last   string // the address of the newest connection
}

// dial makes one connection. The error names every address that was tried.
func (d *dialer) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	var errs []error
	for _, address := range d.candidates() {
		conn, err := (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext(ctx, network, address)
		if err == nil {
			d.mu.Lock()
			d.last = address
			d.mu.Unlock()
			return conn, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
		d.fail(address)
	}
	return nil, fmt.Errorf("connect to API server: %w", errors.Join(errs...))
}

// candidates returns all addresses, those that failed lately last.
func (d *dialer) candidates() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var good, bad []string
	for _, list := range [][]string{d.fixed, d.seen} {
		for _, a := range list {
			if slices.Contains(good, a) || slices.Contains(bad, a) {
				continue
			}
			if t, ok := d.failed[a]; ok && time.Since(t) < blameTime {
				bad = append(bad, a)
			} else {
				good = append(good, a)
			}
		}
	}
	return append(good, bad...)
}

// blame says that the server of the newest connection does not serve, although it accepts connections.
func (d *dialer) blame() {
	d.mu.Lock()
	last := d.last
	d.mu.Unlock()
	if last != "" {
		d.fail(last)
	}
}

func (d *dialer) fail(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed[address] = time.Now()
}

// learn replaces the addresses seen in the cluster.
func (d *dialer) learn(seen []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen = slices.Clone(seen)
	for a := range d.failed {
		if !slices.Contains(d.seen, a) && !slices.Contains(d.fixed, a) {
			delete(d.failed, a)
		}
	}
}

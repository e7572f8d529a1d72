// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/fairlead/fairlead/pkg/cluster"
)

// retrySetup is how long the agent waits before it tries again to set up the own node when nothing else happens: a device or an address
// may have come.
const retrySetup = 5 * time.Second

// feed hands what the source says to the domains, in order. Until the own Node is set up there are none: what comes until then is kept,
// each object once.
type feed struct {
	batches chan cluster.Batch
	kept    map[object]any
	synced  []cluster.Kind
}

type object struct {
	kind cluster.Kind
	key  cluster.Key
}

func newFeed() *feed {
	return &feed{batches: make(chan cluster.Batch), kept: map[object]any{}}
}

// put hands one batch over; it waits until the domains have worked off those before.
func (f *feed) put(ctx context.Context, b cluster.Batch) {
	select {
	case f.batches <- b:
	case <-ctx.Done():
	}
}

// untilOwn reads batches until setUp accepts the Node object of this name. A Node that cannot be used is tried again when it changes, and
// when some time has passed: what is missing may be on the host. Every reason to wait is logged once.
func (f *feed) untilOwn(ctx context.Context, name string, setUp func(*cluster.Node) error, log *slog.Logger) error {
	var own *cluster.Node
	var said string
	wait := func(message string, args ...any) {
		if text := message + " " + slog.GroupValue(slog.Group("", args...)).String(); text != said {
			said = text
			log.Warn(message, args...)
		}
	}
	retry := time.NewTimer(retrySetup)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case b := <-f.batches:
			before := own
			own = f.keep(b, name)
			if own == nil && slices.Contains(f.synced, cluster.NodeKind) {
				wait("own Node does not exist yet, wait for it", "node", name)
			}
			if own == nil || own == before {
				continue
			}
		case <-retry.C:
		}
		if own != nil {
			err := setUp(own)
			if err == nil {
				return nil
			}
			wait("own node cannot be set up, wait for a change", "node", name, "error", err)
		}
		retry.Reset(retrySetup)
	}
}

// keep adds a batch to what waits for the domains and returns the own Node.
func (f *feed) keep(b cluster.Batch, name string) *cluster.Node {
	for _, c := range b.Changes {
		if c.Value == nil {
			delete(f.kept, object{c.Kind, c.Key})
		} else {
			f.kept[object{c.Kind, c.Key}] = c.Value
		}
	}
	for _, k := range b.Synced {
		if !slices.Contains(f.synced, k) {
			f.synced = append(f.synced, k)
		}
	}
	own, _ := f.kept[object{cluster.NodeKind, cluster.Key{Name: name}}].(*cluster.Node)
	return own
}

// run gives what was kept and every batch from then on to apply.
func (f *feed) run(ctx context.Context, apply func(cluster.Batch)) error {
	b := cluster.Batch{Synced: f.synced}
	for o, v := range f.kept {
		b.Changes = append(b.Changes, cluster.Change{Kind: o.kind, Key: o.key, Value: v})
	}
	f.kept, f.synced = nil, nil
	for {
		apply(b)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case b = <-f.batches:
		}
	}
}

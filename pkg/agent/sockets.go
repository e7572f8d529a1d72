// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"time"
)

// sweeper asks for stale sockets to be destroyed: some time after backends left, so that one that comes straight back costs nobody a
// socket, and again after a failure.
type sweeper struct {
	sweep func(context.Context) (destroyed int, err error)
	count func(destroyed int)
	log   *slog.Logger
	asked chan struct{}
}

// Pacing of sweeps.
const (
	sweepAfter = time.Second
	sweepRetry = 10 * time.Second
)

func newSweeper(sweep func(context.Context) (int, error), count func(int), log *slog.Logger) *sweeper {
	return &sweeper{sweep: sweep, count: count, log: log, asked: make(chan struct{}, 1)}
}

// ask never waits: one sweep serves everybody who asked before it began.
func (s *sweeper) ask() {
	select {
	case s.asked <- struct{}{}:
	default:
	}
}

// run sweeps until the context ends.
func (s *sweeper) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.asked:
		}
		if !pause(ctx, sweepAfter) {
			return context.Cause(ctx)
		}
		destroyed, err := s.sweep(ctx)
		s.count(destroyed)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("stale sockets are left, trying again", "error", err, "after", sweepRetry)
			if !pause(ctx, sweepRetry) {
				return context.Cause(ctx)
			}
			s.ask()
		}
	}
}

// pause waits, and says whether the context still lives.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"sync"
	"time"
)

// Options says what a Runner works with.
type Options struct {
	Lock   sync.Locker                          // held while functions of a change run, never while a grace period is awaited
	Grace  func() error                         // returns when every reader that ran at the call has ended
	Linger time.Duration                        // least time from flip to retire: what comes back meanwhile was never away
	Fault  func(stage Stage, name string) error // asked before each stage of each change; nil: no faults. For tests
	Now    func() time.Time                     // nil: time.Now
}

// Runner runs changes: Do runs one up to its settle stage, Collect the stages that wait for grace periods, for many changes at once.
type Runner struct {
	o       Options
	pending []*item
}

// item is a change after its flip, or what is left of giving one back.
type item struct {
	name  string
	stage Stage // the next one to run
	parts [Undo + 1][]func() error
	due   time.Time
	tries int
}

// Waits between tries of a stage that failed.
const (
	minWait = 20 * time.Millisecond
	maxWait = 10 * time.Second
)

// NewRunner returns a Runner without pending work.
func NewRunner(o Options) *Runner {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Runner{o: o}
}

// Do runs a change up to its flip and tries to settle it. The lock is held. An error (of type *Error) means that the flip did not
// happen and that everything is given back, or will be by Collect.
func (r *Runner) Do(c Change) error {
	done := make([]Step, 0, len(c.Reserve)+len(c.Add))
	for stage, steps := range [][]Step{Reserve: c.Reserve, Add: c.Add} {
		for _, step := range steps {
			err := r.fault(Stage(stage), c.Name)
			if err == nil {
				done = append(done, step)
				err = step.Do()
			}
			if err != nil {
				r.giveBack(c.Name, done)
				return &Error{Stage: Stage(stage), Name: c.Name, Err: err}
			}
		}
	}
	if c.Flip != nil {
		err := r.fault(Flip, c.Name)
		if err == nil {
			err = c.Flip()
		}
		if err != nil {
			r.giveBack(c.Name, done)
			return &Error{Stage: Flip, Name: c.Name, Err: err}
		}
	}
	if len(c.Settle)+len(c.Retire)+len(c.Free) == 0 {
		return nil
	}
	it := &item{name: c.Name, stage: Settle}
	it.parts[Settle], it.parts[Retire], it.parts[Free] = c.Settle, c.Retire, c.Free
	r.step(it, Settle)
	if !it.done() {
		r.pending = append(r.pending, it)
	}
	return nil
}

// giveBack undoes steps, the last one first; what fails stays pending.
func (r *Runner) giveBack(name string, done []Step) {
	it := &item{name: name, stage: Undo}
	for i := len(done) - 1; i >= 0; i-- {
		if done[i].Undo != nil {
			it.parts[Undo] = append(it.parts[Undo], done[i].Undo)
		}
	}
	r.step(it, Undo)
	if !it.done() {
		r.pending = append(r.pending, it)
	}
}

// step runs what is left of a stage and moves on to the next one when all of it succeeded.
func (r *Runner) step(it *item, stage Stage) error {
	now := r.o.Now()
	var err error
	if len(it.parts[stage]) > 0 {
		err = r.fault(stage, it.name)
	}
	for err == nil && len(it.parts[stage]) > 0 {
		if err = it.parts[stage][0](); err == nil {
			it.parts[stage] = it.parts[stage][1:]
		}
	}
	if err != nil {
		it.due = now.Add(min(maxWait, minWait<<min(it.tries, 9)))
		it.tries++
		return &Error{Stage: stage, Name: it.name, Err: err}
	}
	it.tries = 0
	it.due = now
	switch stage {
	case Settle:
		it.stage = Retire
		it.due = now.Add(r.o.Linger)
	case Retire:
		it.stage = Free
	default:
		it.stage = Undo + 1
	}
	return nil
}

func (it *item) done() bool {
	return it.stage > Undo || it.stage == Retire && len(it.parts[Retire])+len(it.parts[Free]) == 0
}

func (r *Runner) fault(stage Stage, name string) error {
	if r.o.Fault == nil {
		return nil
	}
	return r.o.Fault(stage, name)
}

// Next returns when Collect has something to do. The lock is held.
func (r *Runner) Next() (at time.Time, ok bool) {
	for _, it := range r.pending {
		if !ok || it.due.Before(at) {
			at, ok = it.due, true
		}
	}
	return at, ok
}

// Pending returns how many changes wait for a later stage. The lock is held.
func (r *Runner) Pending() int { return len(r.pending) }

// Collect runs the stages that are due: those that failed before, and, behind one grace period for all of them, retire and free. The
// lock is not held. It returns how many changes came to their end, and every error; what failed stays pending.
func (r *Runner) Collect() (ended int, err error) {
	r.o.Lock.Lock()
	before := len(r.pending)
	now := r.o.Now()
	var waiting []*item
	var errs []error
	for _, it := range r.pending {
		if it.due.After(now) {
			continue
		}
		switch it.stage {
		case Settle, Undo:
			errs = append(errs, r.step(it, it.stage))
		case Retire, Free:
			waiting = append(waiting, it)
		}
	}
	ended = r.sweep(before)
	r.o.Lock.Unlock()
	if len(waiting) == 0 {
		return ended, errors.Join(errs...)
	}
	if err := r.o.Grace(); err != nil {
		r.o.Lock.Lock()
		for _, it := range waiting {
			it.due = r.o.Now().Add(minWait)
		}
		r.o.Lock.Unlock()
		return ended, errors.Join(append(errs, err)...)
	}
	r.o.Lock.Lock()
	defer r.o.Lock.Unlock()
	before = len(r.pending)
	for _, it := range waiting {
		errs = append(errs, r.step(it, it.stage))
	}
	ended += r.sweep(before)
	return ended, errors.Join(errs...)
}

// sweep forgets changes that are at their end and returns how many there were.
func (r *Runner) sweep(before int) int {
	kept := r.pending[:0]
	for _, it := range r.pending {
		if !it.done() {
			kept = append(kept, it)
		}
	}
	clear(r.pending[len(kept):])
	r.pending = kept
	return before - len(kept)
}

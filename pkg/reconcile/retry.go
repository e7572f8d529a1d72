// SPDX-License-Identifier: Apache-2.0

package reconcile

import "time"

// Failure is why something is not as it should be.
type Failure struct {
	Err   error
	Since time.Time // of the first failure in a row
	Tries int
	due   time.Time
}

// Retry remembers what failed and when to try it again: 20 ms after the first failure, twice as long after each further one, at most
// 10 s. The zero value remembers nothing.
type Retry[K comparable] struct {
	failing map[K]*Failure
}

// Failed notes a failure.
func (r *Retry[K]) Failed(k K, err error, now time.Time) {
	if r.failing == nil {
		r.failing = map[K]*Failure{}
	}
	f := r.failing[k]
	if f == nil {
		f = &Failure{Since: now}
		r.failing[k] = f
	}
	f.Err = err
	f.due = now.Add(min(maxWait, minWait<<min(f.Tries, 9)))
	f.Tries++
}

// Forget says that it succeeded or is not wanted any more.
func (r *Retry[K]) Forget(k K) { delete(r.failing, k) }

// Get returns the failure of k, nil when there is none.
func (r *Retry[K]) Get(k K) *Failure { return r.failing[k] }

// Len returns how many things fail.
func (r *Retry[K]) Len() int { return len(r.failing) }

// Due returns what is to be tried again, in no order.
func (r *Retry[K]) Due(now time.Time) []K {
	var due []K
	for k, f := range r.failing {
		if !f.due.After(now) {
			due = append(due, k)
		}
	}
	return due
}

// Hurry makes everything due: there is a new reason to hope, such as room that became free.
func (r *Retry[K]) Hurry(now time.Time) {
	for _, f := range r.failing {
		if f.due.After(now) {
			f.due = now
		}
	}
}

// Next returns when something is due.
func (r *Retry[K]) Next() (at time.Time, ok bool) {
	for _, f := range r.failing {
		if !ok || f.due.Before(at) {
			at, ok = f.due, true
		}
	}
	return at, ok
}

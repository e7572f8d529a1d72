// SPDX-License-Identifier: Apache-2.0

// Package reconcile carries changes into tables that somebody reads while they are written, so that a reader sees all of a change or
// nothing of it. It knows no domain: what is reserved, added and flipped is the caller's.
//
// A change goes through six stages:
//
//	reserve  takes all the room it needs, in every table
//	add      writes what no reader can reach yet
//	flip     writes the one word that leads readers from old to new
//	settle   writes what may follow the flip late: readers are right with it and without it
//	retire   a grace period later nobody reads the old state: what still answers to its name is unnamed
//	free     another grace period later nobody who asked for that name is still running: ids and ranges may be used again
//
// A failure before the flip is as if nothing had happened: what was reserved and added is given back. From the flip on a change is
// carried to its end, however often that must be tried.
package reconcile

import "fmt"

// Stage is how far a change is.
type Stage uint8

// The stages in their order. Undo is the way back from a failure in Reserve, Add or Flip.
const (
	Reserve Stage = iota
	Add
	Flip
	Settle
	Retire
	Free
	Undo
)

// String returns the lower-case name.
func (s Stage) String() string {
	switch s {
	case Reserve:
		return "reserve"
	case Add:
		return "add"
	case Flip:
		return "flip"
	case Settle:
		return "settle"
	case Retire:
		return "retire"
	case Free:
		return "free"
	case Undo:
		return "undo"
	}
	return fmt.Sprintf("stage %d", uint8(s))
}

// Step is a part of a change that can be taken back.
type Step struct {
	Do func() error
	// Undo gives back what Do took, also what a Do that failed took before; nil when there is nothing. It runs right after the
	// failure, and again later while it fails; other changes may have come in between by then, so it looks at what is the case now
	// and may run any number of times.
	Undo func() error
}

// Change is one unit of work. The functions of the stages after the flip may run any number of times until they succeed; they see
// what later changes did and must leave alone what is wanted again.
type Change struct {
	Name    string // names the object in errors
	Reserve []Step
	Add     []Step
	Flip    func() error // writes one word, or nothing when it fails; nil when nothing is flipped
	Settle  []func() error
	Retire  []func() error
	Free    []func() error
}

// Error says where a change failed.
type Error struct {
	Stage Stage
	Name  string
	Err   error
}

// Error returns "stage name: cause".
func (e *Error) Error() string { return fmt.Sprintf("%s %s: %v", e.Stage, e.Name, e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

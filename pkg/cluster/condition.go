// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Condition is something that keeps a source from knowing all it should. It lasts until its cause is gone.
type Condition struct {
	Name    string    `json:"name"`             // what is affected: "k8s/services", "manifests"
	Object  string    `json:"object,omitempty"` // the object or file, if it is one
	Reason  string    `json:"reason"`           // one word for programs: "forbidden", "unreachable", "bad-field"
	Message string    `json:"message"`          // for people: names the thing and what to do
	Since   time.Time `json:"since"`
}

// Conditions is a set of conditions, at most one for each name and object. The zero value is empty; all methods may be called by several
// goroutines at once.
type Conditions struct {
	mu  sync.Mutex
	set map[[2]string]Condition
}

// Set records a condition and says whether it is new or another one than before; Since is filled in.
func (c *Conditions) Set(v Condition) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := [2]string{v.Name, v.Object}
	old, ok := c.set[k]
	if ok && old.Reason == v.Reason && old.Message == v.Message {
		return false
	}
	v.Since = time.Now()
	if ok && old.Reason == v.Reason {
		v.Since = old.Since
	}
	if c.set == nil {
		c.set = map[[2]string]Condition{}
	}
	c.set[k] = v
	return true
}

// Clear removes the condition of this name and object and says whether there was one.
func (c *Conditions) Clear(name, object string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := [2]string{name, object}
	_, ok := c.set[k]
	delete(c.set, k)
	return ok
}

// List returns all conditions, by name and object.
func (c *Conditions) List() []Condition {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]Condition, 0, len(c.set))
	for _, v := range c.set {
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b Condition) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Object, b.Object)) })
	return list
}

// LogValue gives a condition's parts as attributes.
func (v Condition) LogValue() slog.Value {
	return slog.GroupValue(slog.String("name", v.Name), slog.String("object", v.Object),
		slog.String("reason", v.Reason), slog.String("message", v.Message))
}

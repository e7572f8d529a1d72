// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/fairlead/fairlead/pkg/cluster"
)

// reporter turns what is wrong with one kind into two conditions: one about the stream, one about fields of objects. It belongs to the goroutine of
// its watcher.
type reporter struct {
	name       string // "k8s/services"
	resource   string
	conditions *cluster.Conditions
	log        *slog.Logger
	bad        map[cluster.Key]error
}

// stream reports why list or watch does not work.
func (r *reporter) stream(err error) {
	c := cluster.Condition{Name: r.name, Reason: "unreachable", Message: err.Error()}
	var request *url.Error
	if errors.As(err, &request) { // its URL has a timeout by chance, so that each message would be another one
		c.Message = fmt.Sprintf("watch %s: %v", r.resource, request.Err)
	}
	grant := fmt.Sprintf("; allow the agent's ServiceAccount to list and watch %s", r.resource)
	switch {
	case apierrors.IsForbidden(err):
		c.Reason = "forbidden"
		c.Message += grant
	case apierrors.IsUnauthorized(err):
		c.Reason = "unauthorized"
		c.Message += "; check the credentials of the kubeconfig or ServiceAccount"
	case apierrors.IsNotFound(err):
		c.Reason = "missing"
		c.Message += "; the server does not have this resource"
	case errors.Is(err, errOlderView):
		c.Reason = "older-view"
		c.Message += fmt.Sprintf(": nothing is removed until it catches up, or after %s", olderGrace)
	case isStatus(err):
		c.Reason = "refused"
	}
	if r.conditions.Set(c) {
		r.log.Warn("cluster is not seen", "condition", c)
	}
}

// streamWorks ends the condition of stream.
func (r *reporter) streamWorks() {
	if r.conditions.Clear(r.name, "") {
		r.log.Info("cluster is seen again", "kind", r.resource)
	}
}

// fieldsBad reports an object with fields that were left out.
func (r *reporter) fieldsBad(key cluster.Key, err error) {
	if old, ok := r.bad[key]; ok && old.Error() == err.Error() {
		return
	}
	r.bad[key] = err
	r.log.Warn("leave out fields of an object", "object", key, "error", err)
	r.fields()
}

// fieldsGood reports that nothing is wrong with an object, or that it is gone.
func (r *reporter) fieldsGood(key cluster.Key) {
	if _, ok := r.bad[key]; ok {
		delete(r.bad, key)
		r.fields()
	}
}

// keep forgets all objects but these.
func (r *reporter) keep(values map[cluster.Key]any) {
	for key := range r.bad {
		if _, ok := values[key]; !ok {
			r.fieldsGood(key)
		}
	}
}

// fields keeps one condition for all objects, so that a thousand bad ones do not become a thousand conditions.
func (r *reporter) fields() {
	if len(r.bad) == 0 {
		r.conditions.Clear(r.name, "fields")
		return
	}
	var first cluster.Key
	for key := range r.bad {
		if first == (cluster.Key{}) || key.String() < first.String() {
			first = key
		}
	}
	message := r.bad[first].Error()
	if n := len(r.bad); n > 1 {
		message += fmt.Sprintf(" (and %d more objects)", n-1)
	}
	r.conditions.Set(cluster.Condition{Name: r.name, Object: "fields", Reason: "bad-field", Message: message})
}

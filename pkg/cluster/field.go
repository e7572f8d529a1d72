// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
)

// FieldError says that one field of an object cannot be used. The rest of the object can.
type FieldError struct {
	Kind   string // "Node"
	Object string // namespace/name
	Field  string // path as in YAML, "spec.ports[1].port"
	Value  string // as written
	Reason string
}

// Error names object, field and value.
func (e *FieldError) Error() string {
	return fmt.Sprintf("%s %s: %s: %q: %s", e.Kind, e.Object, e.Field, e.Value, e.Reason)
}

// FieldErrors returns the field errors in err, which a From function returned.
func FieldErrors(err error) []*FieldError {
	var many interface{ Unwrap() []error }
	if errors.As(err, &many) {
		var list []*FieldError
		for _, e := range many.Unwrap() {
			list = append(list, FieldErrors(e)...)
		}
		return list
	}
	var one *FieldError
	if errors.As(err, &one) {
		return []*FieldError{one}
	}
	return nil
}

// problems collects what is wrong with one object.
type problems struct {
	kind, object string
	list         []error
}

func (p *problems) add(field, value string, reason error) {
	p.list = append(p.list, &FieldError{Kind: p.kind, Object: p.object, Field: field, Value: value, Reason: reason.Error()})
}

func (p *problems) err() error { return errors.Join(p.list...) }

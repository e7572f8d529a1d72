// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/pkg/cluster"
)

func TestBadFieldsAreOneCondition(t *testing.T) {
	var conditions cluster.Conditions
	r := &reporter{name: "k8s/services", resource: "services", conditions: &conditions, log: newLog(t), bad: map[cluster.Key]error{}}
	key := func(i int) cluster.Key { return cluster.Key{Namespace: "default", Name: fmt.Sprintf("s%d", i)} }
	for i := range 1000 {
		r.fieldsBad(key(i), fmt.Errorf("Service default/s%d: spec.x: bad", i))
	}
	list := conditions.List()
	if len(list) != 1 || list[0].Reason != "bad-field" || list[0].Message != "Service default/s0: spec.x: bad (and 999 more objects)" {
		t.Errorf("conditions %+v", list)
	}
	r.fieldsBad(key(0), errors.New("Service default/s0: spec.y: bad"))
	if m := conditions.List()[0].Message; !strings.Contains(m, "spec.y") {
		t.Errorf("message %q is of an older error", m)
	}
	r.keep(map[cluster.Key]any{key(7): true})
	if m := conditions.List()[0].Message; m != "Service default/s7: spec.x: bad" {
		t.Errorf("message %q, want the one object that is left", m)
	}
	r.fieldsGood(key(7))
	if list := conditions.List(); len(list) != 0 {
		t.Errorf("conditions %+v, want none", list)
	}
}

// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"strings"
	"testing"
	"time"
)

func TestDialerOrder(t *testing.T) {
	d := &dialer{fixed: []string{"a:1", "b:1"}, failed: map[string]time.Time{}}
	d.learn([]string{"b:1", "c:1"})
	is := func(want string) {
		t.Helper()
		if got := strings.Join(d.candidates(), " "); got != want {
			t.Errorf("candidates %s, want %s", got, want)
		}
	}
	is("a:1 b:1 c:1")
	d.last = "a:1"
	d.blame()
	is("b:1 c:1 a:1")
	d.fail("b:1")
	is("c:1 a:1 b:1")
	d.failed["a:1"] = time.Now().Add(-2 * blameTime)
	is("a:1 c:1 b:1")
	d.fail("c:1")
	d.learn([]string{"d:1"})
	is("a:1 d:1 b:1")
	if _, ok := d.failed["c:1"]; ok {
		t.Error("an address that is no more is remembered")
	}
}

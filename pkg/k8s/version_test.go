// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"testing"
)

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"1", "2", true}, {"2", "1", false}, {"2", "2", false}, {"9", "10", true}, {"", "1", true}, {"", "", false}, {"1", "", false},
		{"x", "2", false}, {"1", "x", false}, {"18446744073709551614", "18446744073709551615", true},
	} {
		if got := before(c.a, c.b); got != c.want {
			t.Errorf("before(%q, %q) = %v", c.a, c.b, got)
		}
	}
}

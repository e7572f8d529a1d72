// SPDX-License-Identifier: Apache-2.0

package cluster

import "testing"

func TestParseAddr(t *testing.T) {
	for _, c := range []struct{ in, want string }{ // want empty: refused
		{"10.0.0.1", "10.0.0.1"},
		{"010.000.00.010", "10.0.0.10"}, // decimal, not octal
		{"0.0.0.0", "0.0.0.0"},
		{"00.0.0.0000", "0.0.0.0"},
		{"0000000255.1.1.1", "255.1.1.1"},
		{"0256.1.1.1", ""},
		{"10.0.0", ""},
		{"10.0.0.", ""},
		{"10.0.0.1.1", ""},
		{"10.0.0.+1", ""},
		{"10.0.0.0x1", ""},
		{" 10.0.0.1", ""},
		{"fd00::1", "fd00::1"},
		{"FD00:0000::0001", "fd00::1"},
		{"::ffff:10.0.0.1", "10.0.0.1"},
		{"::ffff:010.0.0.01", "10.0.0.1"},
		{"64:ff9b::010.0.0.1", "64:ff9b::a00:1"},
		{"fe80::1%eth0", ""},
		{"[fd00::1]", ""},
		{"example.com", ""},
		{"", ""},
	} {
		a, err := ParseAddr(c.in)
		switch {
		case c.want == "" && err == nil:
			t.Errorf("ParseAddr(%q) = %s, want an error", c.in, a)
		case c.want != "" && (err != nil || a.String() != c.want):
			t.Errorf("ParseAddr(%q) = %s, %v, want %s", c.in, a, err, c.want)
		}
	}
}

func TestParsePrefix(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"10.0.0.0/24", "10.0.0.0/24"},
		{"10.0.0.5/24", "10.0.0.0/24"}, // masked
		{"010.0.0.0/08", "10.0.0.0/8"},
		{"0.0.0.0/0", "0.0.0.0/0"},
		{"fd00::5/64", "fd00::/64"},
		{"::ffff:10.0.0.0/104", "10.0.0.0/8"},
		{"::ffff:10.0.0.0/95", ""},
		{"10.0.0.0/33", ""},
		{"fd00::/129", ""},
		{"10.0.0.0/-1", ""},
		{"10.0.0.0/+8", ""},
		{"10.0.0.0/", ""},
		{"10.0.0.0", ""},
		{"10.0.0.0/8/8", ""},
		{"10.0.0.0/99999999999999999999", ""},
		{"fe80::%1/64", ""},
		{"/24", ""},
	} {
		p, err := ParsePrefix(c.in)
		switch {
		case c.want == "" && err == nil:
			t.Errorf("ParsePrefix(%q) = %s, want an error", c.in, p)
		case c.want != "" && (err != nil || p.String() != c.want):
			t.Errorf("ParsePrefix(%q) = %s, %v, want %s", c.in, p, err, c.want)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"testing"
)

func TestHostPort(t *testing.T) {
	for in, want := range map[string]string{
		"https://10.0.0.1:6443": "10.0.0.1:6443", "https://[fd00::1]:6443/prefix": "[fd00::1]:6443", "https://api.example.com": "api.example.com:443",
		"http://localhost": "localhost:80", "10.0.0.1:8443": "10.0.0.1:8443", "api": "api:443", "https://[fd00::1]": "[fd00::1]:443",
	} {
		if got, err := hostPort(in); err != nil || got != want {
			t.Errorf("hostPort(%q) = %s, %v, want %s", in, got, err, want)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package agent

import "testing"

func TestGateOpensWithItsLastNeed(t *testing.T) {
	g := newGate("service", "Service", "own Node")
	isOpen := func() bool {
		select {
		case <-g.open:
			return true
		default:
			return false
		}
	}
	g.have("Pod")
	g.have("Service")
	g.have("Service")
	if isOpen() || g.String() != "service (own Node)" {
		t.Fatalf("open %v, %s", isOpen(), g)
	}
	g.have("own Node")
	if !isOpen() || g.String() != "service" {
		t.Fatalf("open %v, %s", isOpen(), g)
	}
	g.have("own Node") // must not close a closed channel
	if !newGateIsOpen() {
		t.Error("a gate without needs is closed")
	}
}

func newGateIsOpen() bool {
	select {
	case <-newGate("none").open:
		return true
	default:
		return false
	}
}

// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"

	"github.com/fairlead/fairlead/pkg/testnet/sandbox"
)

func TestMain(m *testing.M) {
	if sandbox.Helper() {
		return
	}
	m.Run()
}

// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"strings"
)

// String returns the name of the kind as logs, conditions and files spell it.
func (k Kind) String() string {
	switch k {
	case NodeKind:
		return "nodes"
	case PodKind:
		return "pods"
	case NamespaceKind:
		return "namespaces"
	case ServiceKind:
		return "services"
	case SliceKind:
		return "slices"
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// String returns namespace/name, or the name alone of a cluster-wide object.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// String returns the protocol as Kubernetes spells it.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("protocol-%d", uint8(p))
}

// parseProtocol reads a protocol of a port; empty means TCP, as the API server's defaulting has it.
func parseProtocol(s string) (Protocol, error) {
	switch s {
	case "TCP", "":
		return TCP, nil
	case "UDP":
		return UDP, nil
	case "SCTP":
		return SCTP, nil
	}
	return 0, fmt.Errorf("not one of %s", strings.Join([]string{TCP.String(), UDP.String(), SCTP.String()}, ", "))
}

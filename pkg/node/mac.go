// SPDX-License-Identifier: Apache-2.0

package node

import "crypto/sha256"

// The roles of a node's MACs.
const (
	gatewayRole = "gateway" // host side of every pod's veth, and the next hop behind the overlay device
	overlayRole = "overlay" // the overlay device
)

// GatewayMAC returns the MAC of the host side of every pod's link on the node of that name.
func GatewayMAC(name string) [6]byte { return mac(name, gatewayRole) }

// mac derives a locally administered unicast MAC from the node's name and a role: the same after every restart, so that permanent
// neighbours inside pods stay right, and different on every node, because VXLAN drops a frame that carries the receiver's own MAC as its
// source.
func mac(name, role string) [6]byte {
	sum := sha256.Sum256([]byte(name + "/" + role))
	return [6]byte{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

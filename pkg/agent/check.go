// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"github.com/fairlead/fairlead/pkg/health"
	"github.com/fairlead/fairlead/pkg/service"
)

// healthPorts returns the ports on which load balancers ask for a Service's endpoints on this node.
func healthPorts(proxy *service.Proxy) []health.ServicePort {
	var all []health.ServicePort
	for _, c := range proxy.HealthChecks() {
		all = append(all, health.ServicePort(c))
	}
	return all
}

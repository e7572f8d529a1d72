// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/cni"
)

// confEvery is how often the CNI configuration is looked at: somebody may have removed it, or put another one before it.
const confEvery = 10 * time.Second

// keepConf tells the container runtime of the network and keeps it told, until the context ends; the configuration stays then, so that pods
// can always be taken away. Without a directory there is nothing to do. The gate opens once the configuration is there.
func (a *agent) keepConf(ctx context.Context, s *state, gate *gate) error {
	dir := a.config.CNIConfDir
	if dir == "" {
		gate.have(confNeed)
		return nil
	}
	for {
		problem := func(reason, message string) {
			c := cluster.Condition{Name: "cni", Object: dir, Reason: reason, Message: message}
			if s.conditions.Set(c) {
				a.log.Error("container runtime does not come here", "condition", c)
			}
		}
		wrote, err := cni.WriteConf(dir, a.config.RunDir)
		if wrote {
			a.log.Info("CNI configuration written", "path", filepath.Join(dir, cni.ConfName))
		}
		var rivals []string
		if err == nil {
			gate.have(confNeed)
			rivals, err = cni.Rivals(dir)
		}
		switch {
		case err != nil:
			problem("not-written", err.Error())
		case len(rivals) > 0:
			problem("rival", "the runtime reads "+strings.Join(rivals, ", ")+" before "+cni.ConfName+": remove what is not wanted")
		default:
			s.conditions.Clear("cni", dir)
		}
		if !pause(ctx, confEvery) {
			return context.Cause(ctx)
		}
	}
}

// confNeed is what the gate of keepConf waits for.
const confNeed = "CNI configuration"

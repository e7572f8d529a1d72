// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/pkg/agent"
	"github.com/fairlead/fairlead/pkg/cni"
)

// defaultBinDir is where container runtimes look for CNI binaries.
const defaultBinDir = "/opt/cni/bin"

// install places the CNI binary where the container runtime looks for it.
func install(out io.Writer) *cobra.Command {
	var from, to string
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Place the CNI binary",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if from == "" {
				found, err := findBinary()
				if err != nil {
					return err
				}
				from = found
			}
			wrote, err := cni.InstallBinary(from, to)
			if err != nil {
				return err
			}
			said := "is up to date"
			if wrote {
				said = "installed"
			}
			_, err = fmt.Fprintf(out, "%s %s\n", filepath.Join(to, cni.BinaryName), said)
			return err
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "CNI binary to install (default: found beside this program or where the image has it)")
	cmd.Flags().StringVar(&to, "cni-bin-dir", defaultBinDir, "directory that gets the CNI binary")
	return cmd
}

// findBinary returns the CNI binary that came with this program: where the image has it, or as `make build` leaves it.
func findBinary() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find CNI binary: %w", err)
	}
	places := []string{
		filepath.Join(filepath.Dir(self), "cni", cni.BinaryName),
		filepath.Join("/opt/fairlead/cni", cni.BinaryName),
	}
	for _, p := range places {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("find CNI binary: %w", err)
		}
	}
	return "", fmt.Errorf("find CNI binary: not at %s nor at %s: name it with --from", places[0], places[1])
}

// uninstall takes everything of Fairlead off this node.
func uninstall(out io.Writer) *cobra.Command {
	var config agent.Config
	var file, from string
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take everything of Fairlead off this node",
		Long: `Take everything of Fairlead off this node: CNI configuration and binary, links, routes, programs, maps and state, found by the flags that
the agent was run with. The agent must not run any more. Pods that still run lose their network.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := complete(cmd.Flags(), &config, file); err != nil {
				return err
			}
			return agent.Uninstall(config, from, out)
		},
	}
	flags(cmd.Flags(), &config, &file)
	cmd.Flags().StringVar(&from, "cni-bin-dir", defaultBinDir, "directory that has the CNI binary")
	return cmd
}

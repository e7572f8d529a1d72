// SPDX-License-Identifier: Apache-2.0

// Command fairleadd is the node daemon: it turns flags into a configuration and runs the agent.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/pkg/agent"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fairleadd:", err)
		os.Exit(1)
	}
}

// run is the whole command; logs go to out.
func run(ctx context.Context, args []string, out io.Writer) error {
	var config agent.Config
	var file string
	root := &cobra.Command{
		Use:               "fairleadd",
		Short:             "Connect the pods of this node and serve its Services",
		Args:              cobra.NoArgs,
		Version:           versionName(),
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := complete(cmd.Flags(), &config, file); err != nil {
				return err
			}
			return agent.Run(cmd.Context(), config, versionName(), out)
		},
	}
	flags(root.Flags(), &config, &file)
	root.AddCommand(install(out), uninstall(out))
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

// flags declares those of the agent, and the file that may hold them.
func flags(fs *pflag.FlagSet, config *agent.Config, file *string) {
	config.Flags(fs)
	fs.StringVar(file, "config", "", "YAML file with the names of these flags as keys; flags win")
}

// complete adds the file to the flags and checks the whole.
func complete(fs *pflag.FlagSet, config *agent.Config, file string) error {
	if file != "" {
		if err := agent.LoadFile(fs, file); err != nil {
			return err
		}
	}
	return config.Validate(os.Hostname)
}

// version is set by the linker: the tag that `make build` works on.
var version string

// versionName returns the tag, or else what the Go toolchain wrote into the binary: the module's version or the commit.
func versionName() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}

// SPDX-License-Identifier: Apache-2.0

// Command fairlead asks the agent of this node what it does. Its commands are nouns and change nothing.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/pkg/query"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "fairlead:", err)
		stop()
		os.Exit(1)
	}
}

// env is what every command works with.
type env struct {
	out    io.Writer
	runDir string
	format string
}

func run(ctx context.Context, args []string, out, errors io.Writer) error {
	e := &env{out: out}
	root := &cobra.Command{
		Use:               "fairlead",
		Short:             "Ask the Fairlead agent of this node",
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if e.format != "text" && e.format != "json" {
				return fmt.Errorf("--output %q: not one of text, json", e.format)
			}
			return nil
		},
	}
	root.PersistentFlags().StringVar(&e.runDir, "run-dir", "/run/fairlead", "the agent's --run-dir")
	root.PersistentFlags().StringVarP(&e.format, "output", "o", "text", "text or json")
	root.AddCommand(
		command(e, "status", "the agent, its gates, maps and what is wrong", (*query.Client).Status, printStatus),
		command(e, "drops", "why packets and system calls were refused", (*query.Client).Drops, printDrops),
		command(e, "services", "Services with their frontends and backends", (*query.Client).Services, printServices),
		command(e, "endpoints", "the pods of this node", (*query.Client).Endpoints, printEndpoints),
		command(e, "peers", "the other nodes", (*query.Client).Peers, printPeers),
	)
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errors)
	return root.ExecuteContext(ctx)
}

// command asks one question and prints the answer as JSON or as text.
func command[T any](e *env, name, short string, ask func(*query.Client, context.Context) (T, error), print func(io.Writer, T) error) *cobra.Command {
	return &cobra.Command{
		Use:   name,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer, err := ask(query.NewClient(filepath.Join(e.runDir, "query.sock")), cmd.Context())
			if err != nil {
				return err
			}
			if e.format == "json" {
				encoder := json.NewEncoder(e.out)
				encoder.SetIndent("", "  ")
				return encoder.Encode(answer)
			}
			return print(e.out, answer)
		},
	}
}

// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// listFlag is a flag that may be given several times, or once with commas. The first use replaces the default.
type listFlag[T any] struct {
	to    *[]T
	parse func(string) (T, error)
	set   bool
}

func list[T any](to *[]T, parse func(string) (T, error)) pflag.Value {
	return &listFlag[T]{to: to, parse: parse}
}

func (f *listFlag[T]) Set(s string) error {
	var values []T
	for part := range strings.SplitSeq(s, ",") {
		v, err := f.parse(strings.TrimSpace(part))
		if err != nil {
			return err
		}
		values = append(values, v)
	}
	if !f.set {
		*f.to, f.set = nil, true
	}
	*f.to = append(*f.to, values...)
	return nil
}

func (f *listFlag[T]) String() string {
	if f.to == nil {
		return ""
	}
	var parts []string
	for _, v := range *f.to {
		parts = append(parts, fmt.Sprint(v))
	}
	return strings.Join(parts, ",")
}

func (f *listFlag[T]) Type() string { return "list" }

// choiceFlag is a flag with a closed set of values.
type choiceFlag struct {
	to     *string
	values []string
}

func choice(to *string, value string, values ...string) pflag.Value {
	*to = value
	return &choiceFlag{to: to, values: values}
}

func (f *choiceFlag) Set(s string) error {
	if !slices.Contains(f.values, s) {
		return fmt.Errorf("not one of %s", strings.Join(f.values, ", "))
	}
	*f.to = s
	return nil
}

func (f *choiceFlag) String() string {
	if f.to == nil {
		return ""
	}
	return *f.to
}

func (f *choiceFlag) Type() string { return "choice" }

// numberFlag is a whole number within limits.
type numberFlag[T uint16 | uint32] struct {
	to       *T
	min, max T
}

func number[T uint16 | uint32](to *T, value, min, max T) pflag.Value {
	*to = value
	return &numberFlag[T]{to: to, min: min, max: max}
}

func (f *numberFlag[T]) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n < uint64(f.min) || n > uint64(f.max) {
		return fmt.Errorf("not a whole number between %d and %d", f.min, f.max)
	}
	*f.to = T(n)
	return nil
}

func (f *numberFlag[T]) String() string {
	if f.to == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*f.to), 10)
}

func (f *numberFlag[T]) Type() string { return "number" }

// optionalFlag is a checked string that may be empty.
type optionalFlag struct {
	to    *string
	parse func(string) (string, error)
}

func optional(to *string, value string, parse func(string) (string, error)) pflag.Value {
	*to = value
	return &optionalFlag{to: to, parse: parse}
}

func (f *optionalFlag) Set(s string) error {
	if s == "" {
		*f.to = ""
		return nil
	}
	v, err := f.parse(s)
	if err != nil {
		return err
	}
	*f.to = v
	return nil
}

func (f *optionalFlag) String() string {
	if f.to == nil {
		return ""
	}
	return *f.to
}

func (f *optionalFlag) Type() string { return "string" }

// capacityFlag collects MAP=ENTRIES.
type capacityFlag struct {
	to *map[string]uint32
}

func capacities(to *map[string]uint32) pflag.Value {
	*to = map[string]uint32{}
	return &capacityFlag{to: to}
}

func (f *capacityFlag) Set(s string) error {
	for part := range strings.SplitSeq(s, ",") {
		name, entries, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || name == "" {
			return errors.New("not of the form MAP=ENTRIES")
		}
		n, err := strconv.ParseUint(entries, 10, 31)
		if err != nil || n == 0 {
			return fmt.Errorf("%s: %q is not a number of entries", name, entries)
		}
		(*f.to)[name] = uint32(n)
	}
	return nil
}

func (f *capacityFlag) String() string {
	if f.to == nil {
		return ""
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(*f.to)) {
		parts = append(parts, fmt.Sprintf("%s=%d", name, (*f.to)[name]))
	}
	return strings.Join(parts, ",")
}

func (f *capacityFlag) Type() string { return "map=entries" }

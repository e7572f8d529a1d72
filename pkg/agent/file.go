// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

// LoadFile sets on fs what the YAML file at path says. Its keys are the names of the flags; a flag that was given on the command line
// wins. Every wrong key is reported, by file and key, and nothing is set twice.
func LoadFile(fs *pflag.FlagSet, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read config: %w", err)
	}
	// Strict refuses a key that is there twice: which one was meant cannot be known.
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return fmt.Errorf("parse config %s: %w", path, err)
	}
	var values map[string]any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&values); err != nil {
		return fmt.Errorf("parse config %s: not a mapping of keys to values", path)
	}
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(values)) {
		flag := fs.Lookup(key)
		if flag == nil || key == "config" || key == "help" {
			errs = append(errs, fmt.Errorf("config %s: unknown key %q", path, key))
			continue
		}
		if flag.Changed {
			continue
		}
		texts, err := scalars(values[key])
		if err != nil {
			errs = append(errs, fmt.Errorf("config %s: key %q: %w", path, key, err))
			continue
		}
		if kind := flag.Value.Type(); len(texts) > 1 && kind != "list" && kind != "map=entries" {
			errs = append(errs, fmt.Errorf("config %s: key %q: takes one value, not %d", path, key, len(texts)))
			continue
		}
		for _, s := range texts {
			if err := flag.Value.Set(s); err != nil {
				errs = append(errs, fmt.Errorf("config %s: key %q: value %q: %w", path, key, s, err))
			}
		}
	}
	return errors.Join(errs...)
}

// scalars returns the values of a key as flags would get them: a list is a flag that is given several times.
func scalars(value any) ([]string, error) {
	var texts []string
	switch v := value.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			text, err := scalar(v[name])
			if err != nil {
				return nil, fmt.Errorf("%s %w", name, err)
			}
			texts = append(texts, name+"="+text)
		}
	case []any:
		for i, item := range v {
			text, err := scalar(item)
			if err != nil {
				return nil, fmt.Errorf("item %d %w", i+1, err)
			}
			texts = append(texts, text)
		}
	default:
		text, err := scalar(v)
		if err != nil {
			return nil, err
		}
		texts = append(texts, text)
	}
	return texts, nil
}

func scalar(value any) (string, error) {
	switch v := value.(type) {
	case string:
		return v, nil
	case bool, json.Number:
		return fmt.Sprint(v), nil
	case nil:
		return "", errors.New("has no value")
	}
	return "", errors.New("is not a single value")
}

// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Settings is what the annotations of section "what a user writes" ask for:
// the cluster's flags, overlaid by a namespace's annotations, overlaid by a
// Pod's. The zero value is not valid; start from DefaultSettings.
//
// +kubebuilder:object:generate=false
type Settings struct {
	// Hold is HoldAuto, ValueTrue or ValueFalse.
	Hold string
	// Scope is ScopePeers or ScopeLocal.
	Scope string
	// Timeout is between MinTimeout and MaxTimeout, both included.
	Timeout time.Duration
	// OnTimeout is OnTimeoutStart or OnTimeoutFail.
	OnTimeout string
}

// DefaultSettings returns what holds where nobody says otherwise.
func DefaultSettings() Settings {
	return Settings{
		Hold:      HoldAuto,
		Scope:     ScopePeers,
		Timeout:   DefaultTimeout,
		OnTimeout: OnTimeoutStart,
	}
}

// ParseSettings returns the settings of a Pod that the webhook has injected:
// it wrote the effective values on the Pod, so nothing else need be looked at.
// A missing key means the default. With an error, which names every malformed
// key, its value and what is valid, the settings are still usable: they hold
// the default for each malformed key.
func ParseSettings(podAnnotations map[string]string) (Settings, error) {
	s, errs := DefaultSettings().Overlay(podAnnotations, field.NewPath("metadata", "annotations"))
	return s, errs.ToAggregate()
}

// Overlay returns s with the values that annotations hold in place of its own.
// A malformed value leaves that of s and adds an error under path, which is
// where the annotations were found. An absent key is none, an empty value is
// malformed.
func (s Settings) Overlay(annotations map[string]string, path *field.Path) (Settings, field.ErrorList) {
	var errs field.ErrorList
	choose := func(value *string, key string, valid ...string) {
		text, ok := annotations[key]
		if !ok {
			return
		}
		for _, v := range valid {
			if text == v {
				*value = v
				return
			}
		}
		errs = append(errs, field.NotSupported(path.Key(key), text, valid))
	}
	choose(&s.Hold, KeyHold, HoldAuto, ValueTrue, ValueFalse)
	choose(&s.Scope, KeyScope, ScopePeers, ScopeLocal)
	choose(&s.OnTimeout, KeyOnTimeout, OnTimeoutStart, OnTimeoutFail)
	if text, ok := annotations[KeyTimeout]; ok {
		d, err := time.ParseDuration(text)
		if err != nil || d < MinTimeout || d > MaxTimeout {
			errs = append(errs, field.Invalid(path.Key(KeyTimeout), text,
				fmt.Sprintf("want a duration from %s to %s, like 90s or 2m30s", MinTimeout, MaxTimeout)))
		} else {
			s.Timeout = d
		}
	}
	return s, errs
}

// Annotations returns s as the annotations that Overlay reads.
func (s Settings) Annotations() map[string]string {
	return map[string]string{
		KeyHold:      s.Hold,
		KeyScope:     s.Scope,
		KeyTimeout:   s.Timeout.String(),
		KeyOnTimeout: s.OnTimeout,
	}
}

// Validate returns an error that names each value that is not valid, or nil.
func (s Settings) Validate() error {
	_, errs := DefaultSettings().Overlay(s.Annotations(), field.NewPath("defaults"))
	return errs.ToAggregate()
}

// WantsInjection returns whether a Pod that the API server sent to the webhook
// asks to be left alone: false for the annotation ValueFalse, true for
// ValueTrue and for none, since only Pods of a labelled namespace are sent
// without one. Any other value is an error.
func WantsInjection(podAnnotations map[string]string) (bool, *field.Error) {
	switch value, ok := podAnnotations[KeyInject]; {
	case !ok, value == ValueTrue:
		return true, nil
	case value == ValueFalse:
		return false, nil
	default:
		return false, field.NotSupported(field.NewPath("metadata", "annotations").Key(KeyInject),
			value, []string{ValueTrue, ValueFalse})
	}
}
